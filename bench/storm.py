"""A storm of claims: many clients that claim, finish, give up, vanish and find factors at the same time.

`python -m bench --only storm` runs it at full size; the tests run a small one. The caller checks the invariants, also
during the storm.
"""

import logging
import random
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import gmpy2
import structlog
from sqlalchemy import Engine, text

from config.local.postgres import start_postgres
from config.settings import Settings
from coordinator.base.unit_of_work import is_transient, unit_of_work
from coordinator.composites import lease_lifecycle, registry
from coordinator.housekeeping import lease_expiry
from coordinator.leases import claims
from coordinator.leases.work_request import Claim, WorkRequest
from coordinator.reading import invariants
from coordinator.results import applying, inbox
from models.engine import make_engine
from models.migrate import upgrade
from models.wire.results import SubmitResult

# Seconds of work in a lease, so few that 10,000 leases do not bring 200 numbers to their targets.
LEASE_SECONDS = 3.0
ORDERS = ("standard", "progressive", "priority", "best")
# The end of a lease, and how many of a hundred end that way.
FATES = {
    "all curves are sent": 40,
    "some curves are sent, then completed": 15,
    "heartbeat, then abandoned": 15,
    "expires": 15,
    "stays open": 13,
    "finds a factor": 2,
}


@dataclass(frozen=True)
class StormSetup:
    """The database of a storm, the known factor of each composite by its id, and the settings."""

    engine: Engine
    factors: dict[int, int]
    settings: Settings


@dataclass
class StormReport:
    """The seconds of each claim, how often each fate happened, and errors that should not happen."""

    seconds: list[float] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    elapsed: float = 0.0


def load_numbers(engine: Engine, amount: int, seed: int) -> dict[int, int]:
    """Register products of two primes of 90 to 130 digits; returns the smaller prime of each by composite id."""
    generator = random.Random(seed)
    found: dict[int, int] = {}
    with unit_of_work(engine, "load") as connection:
        for _ in range(amount):
            small = gmpy2.next_prime(gmpy2.mpz(generator.randrange(10**39, 10**40)))
            large = gmpy2.next_prime(gmpy2.mpz(generator.randrange(10**50, 10 ** generator.randint(60, 90))))
            number = small * large
            composite_id = registry.register_new(connection, str(number), number, is_prime=False)
            if composite_id is not None:
                found[composite_id] = int(small)
    return found


def storm(engine: Engine, factors: dict[int, int], *, claimers: int, amount: int, seed: int) -> StormReport:
    """Let `claimers` threads make `amount` claims in all on the numbers of `factors`, and end the leases by FATES."""
    report = StormReport()
    setup = StormSetup(engine, factors, Settings(lease_target_minutes=LEASE_SECONDS / 60, database_url="unused"))
    tickets = iter(range(amount))
    started = perf_counter()
    threads = [
        threading.Thread(target=_client, args=(setup, f"client-{n}", tickets, random.Random(seed + n), report))
        for n in range(claimers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report.elapsed = perf_counter() - started
    return report


def _client(
    setup: StormSetup, name: str, tickets: Iterator[int], generator: random.Random, report: StormReport
) -> None:
    for _ in tickets:
        request = WorkRequest(name, order=generator.choice(ORDERS), shared=generator.random() < 0.9)
        try:
            began = perf_counter()
            made = claims.claim(setup.engine, request, setup.settings)
            report.seconds.append(perf_counter() - began)
            if not isinstance(made, Claim):
                report.happened["no work"] += 1
                continue
            (fate,) = generator.choices(list(FATES), list(FATES.values()))
            report.happened[fate] += 1
            _end_lease(setup, made, name, fate)
        except Exception as error:
            # The task of a result retries a transient fault; a claim must not have one.
            kind = "transient" if is_transient(error) else "error"
            report.errors.append(f"{kind}: {type(error).__name__}: {error}"[:500])


def _end_lease(setup: StormSetup, made: Claim, name: str, fate: str) -> None:
    curves = made.plan.curves if made.plan else 1
    if fate == "all curves are sent":
        _send(setup, made, name, curves)
    elif fate == "some curves are sent, then completed":
        _send(setup, made, name, max(1, curves // 2))
        lease_lifecycle.complete(setup.engine, made.work_id, name)
    elif fate == "heartbeat, then abandoned":
        lease_lifecycle.heartbeat(setup.engine, made.work_id, name, max(1, curves // 3))
        lease_lifecycle.abandon(setup.engine, made.work_id, name, "going home")
    elif fate == "expires":
        with unit_of_work(setup.engine, "make a lease overdue") as connection:
            overdue = text("UPDATE work_assignments SET expires_at = now() - interval '1 second' WHERE id = :id")
            connection.execute(overdue, {"id": made.work_id})
        lease_expiry.expire_leases(setup.engine, datetime.now(UTC))
    elif fate == "finds a factor":
        _send(setup, made, name, 1, str(setup.factors[made.composite.id]))


def _send(setup: StormSetup, made: Claim, name: str, curves: int, factor: str | None = None) -> None:
    """Send a result and apply it as its task does, with retries after transient faults."""
    body = {
        "client_id": name,
        "composite": made.composite.number,
        "parameters": {"b1": made.plan.b1 if made.plan else 50_000, "curves": curves},
        "results": {"factor_found": factor, "execution_time": LEASE_SECONDS},
        "work_id": str(made.work_id),
        "raw_output": str(made.work_id),
    }
    receipt = inbox.receive(
        setup.engine, SubmitResult.model_validate(body), key=None, max_raw_output=1000, implicit_key_window=0
    )
    settled = False
    while not settled:
        try:
            applying.apply_result(setup.engine, receipt.submission_id, setup.settings)
            settled = True
        except Exception as error:
            if not is_transient(error):
                raise


def measure(claimers: int = 32, numbers: int = 200, amount: int = 10_000, seed: int = 1) -> dict[str, object]:
    """Run the storm at full size on a PostgreSQL of its own: durations of claims, errors, and broken invariants."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory(prefix="ecm-storm-") as home:
        server = start_postgres(Path(home))
        try:
            upgrade(server.url)
            engine = make_engine(server.url, pool_size=claimers + 1, pool_timeout=60)
            factors = load_numbers(engine, numbers, seed)
            report = storm(engine, factors, claimers=claimers, amount=amount, seed=seed)
            broken = invariants.violations(engine, max_digits=1000)
            engine.dispose()
        finally:
            server.stop()
    seconds = sorted(report.seconds)
    return {
        "claims": len(seconds),
        "claimers": claimers,
        "numbers": numbers,
        "seconds": round(report.elapsed, 1),
        "p50_ms": round(1000 * seconds[len(seconds) // 2], 1),
        "p99_ms": round(1000 * seconds[len(seconds) * 99 // 100], 1),
        "slowest_ms": round(1000 * seconds[-1], 1),
        "happened": dict(report.happened),
        "errors": Counter(report.errors).most_common(10),
        "broken_invariants": [list(map(str, violation)) for violation in broken],
    }


def report(figures: dict[str, object]) -> str:
    """The figures as some lines of text."""
    lines = [
        f"{figures['claims']} claims by {figures['claimers']} clients on {figures['numbers']} numbers,"
        f" mixed with results, expiries and factors, in {figures['seconds']} s:",
        f"  a claim takes {figures['p50_ms']} ms (p50), {figures['p99_ms']} ms (p99),"
        f" {figures['slowest_ms']} ms at most",
        f"  errors: {figures['errors'] or 'none'}",
        f"  broken invariants: {figures['broken_invariants'] or 'none'}",
    ]
    return "\n".join(lines)
