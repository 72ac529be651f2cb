"""How fast claims are, and whether that depends on the number of targets.

With 1,000, 100,000 and 1,000,000 targets in all states, of which 5 % are shared by two numbers, for each work type,
some with filters: claims per second and the p50 and p99 of a claim, for one client and for eight at once, by function
call and by HTTP. Rounds of the three sizes alternate, so that a change of the machine's speed affects all of them;
after each round the leases expire. Then 10,000 claims of whole numbers in a row: each leaves a dead entry at the head
of its index, which might make later ones slower.
"""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import structlog
from rich.table import Table
from sqlalchemy import Column, Engine, Integer, MetaData, insert, make_url, text
from sqlalchemy import Table as SqlTable

from bench import load as http
from config.local.postgres import start_postgres
from config.settings import Settings
from coordinator import effort
from coordinator.composites import eligibility
from coordinator.composites.eligibility import ECM
from coordinator.effort import planning
from coordinator.housekeeping import lease_expiry
from coordinator.leases import claims
from coordinator.leases.work_request import NoWork, WorkRequest
from ingest.commands.private_stack import private_stack
from models.engine import make_engine
from models.limits import DEFAULT_B2
from models.migrate import upgrade
from models.tables import Target, ValueEffort, WorkAssignment

SIZES = (1_000, 100_000, 1_000_000)
SHARED = 20  # one target in this many is shared by two numbers
CLIENTS = (1, 8)
ROUNDS = 5
CLAIMS_PER_ROUND = {1: 40, 8: 10}  # by number of clients, for each client
CLAIMS_IN_A_ROW, COMPARED = 10_000, 1_000

DIGITS = range(90, 251)
PROJECT = "one number in a hundred"
CASES: dict[str, dict[str, Any]] = {
    "standard": {"shared": True},
    "standard, whole numbers": {},
    "progressive": {"shared": True, "order": "progressive"},
    "priority": {"shared": True, "order": "priority"},
    "best": {"shared": True, "order": "best"},
    "P-1 and P+1": {"method": "p1"},
    "best, from 200 digits": {"shared": True, "order": "best", "min_digits": 200},
    "standard, 150-160 digits": {"shared": True, "min_digits": 150, "max_digits": 160},
    "standard, priority from 6": {"shared": True, "min_priority": 6},
    "standard, a project of 1 %": {"shared": True, "project": PROJECT},
}
BY_HTTP: dict[str, dict[str, Any]] = {
    "standard": {"shared": 1},
    "standard, whole numbers": {},
    "best": {"shared": 1, "work_type": "best"},
}
# The states of twenty numbers of each size, and the share of their target's t-level that they have reached.
STATES = (
    *(("eligible", 0.0),) * 4,
    *(("eligible", 0.3), ("eligible", 0.6), ("eligible", 0.8), ("eligible", 0.9)),
    *(("leased by curves", 0.3), ("leased as a whole", 0.6), ("reserved", 0.9)),
    *(("paused", 0.0), ("untested", 0.0)),
    *(("at its target", 1.01),) * 3,
    *(("finished", 0.6),) * 4,
)


@dataclass(frozen=True)
class NumberKind:
    """Numbers of the same size and state."""

    digit_length: int
    state: str
    effort: np.ndarray
    run: tuple[int, int | None, int, int]
    target_t_level: float

    @property
    def inputs(self) -> eligibility.EligibilityInputs:
        """The columns that decide which work these numbers are eligible for."""
        return eligibility.EligibilityInputs(
            self.effort, self.digit_length, self.is_prime, self.is_fully_factored, self.target_t_level, self.hold
        )

    @property
    def is_prime(self) -> bool | None:
        return None if self.state == "untested" else self.is_fully_factored

    @property
    def is_fully_factored(self) -> bool:
        return self.state == "finished"

    @property
    def hold(self) -> str | None:
        return "paused" if self.state == "paused" else None


@dataclass(frozen=True)
class LeaseKind:
    """The columns of a lease that coordinator/composites/eligibility.py reads; `curves` None: the whole number."""

    method: str
    b1: int | None = None
    curves: int | None = None
    b2: int = DEFAULT_B2
    parametrization: int = planning.PARAMETRIZATION
    curves_submitted: int = 0


LEASES = {
    "leased by curves": LeaseKind(ECM, b1=50_000, curves=10),
    "leased as a whole": LeaseKind(ECM),
    "reserved": LeaseKind("nfs"),
}


def kinds() -> list[dict[str, Any]]:
    """A row for each kind of number, with the eligibility columns that the coordinator computes."""
    rows: list[dict[str, Any]] = []
    for digits in DIGITS:
        target = effort.target_t_level(digits)
        by_share = {}
        for state, share in STATES:
            if share not in by_share:
                run = effort.curves_of_t_level(share * target)
                by_share[share] = run, effort.effort_of([run])
            run, vector = by_share[share]
            kind = NumberKind(digits, state, vector, run, target)
            lease = LEASES.get(state)
            rows.append(
                eligibility.compute_eligibility(kind.inputs, [lease] if lease else [])
                | {
                    "kind": len(rows),
                    "digit_length": digits,
                    "is_prime": kind.is_prime,
                    "is_finished": kind.is_fully_factored,
                    "hold": kind.hold,
                    "target_t_level": target,
                    "current_t_level": effort.t_level(vector),
                    "effort": vector,
                    "prior_b1": run[0],
                    "prior_curves": run[3],
                    "lease_method": lease and lease.method,
                    "lease_b1": lease and lease.b1,
                    "lease_curves": lease and lease.curves,
                }
            )
    return rows


_TARGET_COLUMNS = (
    *("digit_length", "is_prime", "is_finished", "hold", "target_t_level", "current_t_level", "effort"),
    *eligibility.Eligibility._fields,
)
# The rows of `kinds`, with the types of the columns into which they are copied.
_KINDS = SqlTable(
    "kinds",
    MetaData(),
    Column("kind", Integer, primary_key=True),
    *(Column(name, Target.__table__.c[name].type) for name in _TARGET_COLUMNS),
    Column("prior_b1", ValueEffort.__table__.c.b1.type),
    Column("prior_curves", ValueEffort.__table__.c.prior_curves.type),
    *(Column(f"lease_{name}", WorkAssignment.__table__.c[name].type) for name in ("method", "b1", "curves")),
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)
_NUMBERS = """
CREATE TEMP TABLE loaded ON COMMIT DROP AS
SELECT n AS id, '1' || lpad(n::text, 12, '0') || repeat('7', k.digit_length - 13) AS value, k.*
FROM generate_series(1, :amount) n
JOIN kinds k ON k.kind = (hashint8(n)::bigint & 2147483647) % (SELECT count(*) FROM kinds)
"""
# A target, its value, and the number that is this value have the same id.
_LOAD = (
    f"""
INSERT INTO targets (id, value_sha256, priority, held_at, {", ".join(_TARGET_COLUMNS)})
SELECT id, sha256(value::bytea), id % 7, CASE WHEN hold IS NOT NULL THEN now() END, {", ".join(_TARGET_COLUMNS)}
FROM loaded ORDER BY id
""",
    """
INSERT INTO composites (
    id, number, value_sha256, current_composite, digit_length, is_prime, is_fully_factored, target_id, priority,
    target_t_level, current_t_level
)
SELECT id, value, sha256(value::bytea), CASE WHEN is_finished THEN '1' ELSE value END, digit_length, is_prime,
       is_finished, id, id % 7, target_t_level, current_t_level
FROM loaded ORDER BY id
""",
    # The other numbers of shared targets: three times the value, with the factor 3.
    """
INSERT INTO composites (
    id, number, value_sha256, current_composite, digit_length, is_prime, is_fully_factored, target_id, target_t_level,
    current_t_level
)
SELECT :amount + id / :shared, number, sha256(number::bytea), CASE WHEN is_finished THEN '1' ELSE value END,
       digit_length, is_prime, is_finished, id, target_t_level, current_t_level
FROM loaded, LATERAL (SELECT (3 * value::numeric)::text AS number) tripled WHERE id % :shared = 0 ORDER BY id
""",
    """
INSERT INTO factors (composite_id, factor, factor_sha256, digit_length, multiplicity, is_prime, origin)
SELECT id, '3', sha256('3'), 1, 1, true, 'split' FROM composites WHERE id > :amount ORDER BY id
""",
    """
INSERT INTO worked_values (id, value_sha256, value)
SELECT id, sha256(value::bytea), value FROM loaded WHERE prior_curves > 0 ORDER BY id
""",
    "INSERT INTO target_sources (target_id, value_id) SELECT id, id FROM worked_values ORDER BY id",
    """
INSERT INTO value_effort (value_id, b1, b2, parametrization, prior_curves)
SELECT id, prior_b1, -1, 1, prior_curves FROM loaded WHERE prior_curves > 0 ORDER BY id
""",
    """
INSERT INTO work_assignments (
    id, composite_id, target_id, client_id, method, b1, b2, parametrization, curves, expires_at
)
SELECT gen_random_uuid(), id, id, 'holder-' || id % 1000, lease_method, lease_b1, -1, 1, lease_curves,
       now() + interval '5 days'
FROM loaded WHERE lease_method IS NOT NULL
""",
    """
INSERT INTO work_assignments (
    id, composite_id, target_id, client_id, method, status, created_at, expires_at, closed_at
)
SELECT gen_random_uuid(), id, id, 'holder-' || id % 1000, 'ecm', 'completed', now() - interval '9 days',
       now() - interval '4 days', now() - interval '5 days'
FROM loaded WHERE id % 4 = 0
""",
    """
INSERT INTO project_composites (project_id, composite_id)
SELECT p.id, loaded.id FROM loaded JOIN projects p ON p.name = :project WHERE loaded.id % 100 = 0
""",
    """
SELECT setval('targets_id_seq', :amount), setval('worked_values_id_seq', :amount),
       setval('composites_id_seq', (SELECT max(id) FROM composites))
""",
)


def load(engine: Engine, amount: int) -> None:
    """Insert so many targets in every state, and their numbers, into an empty database; update statistics.

    The targets and the numbers that are their values have the ids from 1; the other numbers of shared targets follow.
    """
    names = {"amount": amount, "project": PROJECT, "shared": SHARED}
    with engine.begin() as connection:
        _KINDS.create(connection)
        connection.execute(insert(_KINDS), kinds())
        connection.execute(text("INSERT INTO projects (name) VALUES (:project)"), names)
        for statement in (_NUMBERS, *_LOAD):
            connection.execute(text(statement), names)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def numbers_in_all(targets: int) -> int:
    """The number of numbers, and so the largest id of one, that `load` inserts with so many targets."""
    return targets + targets // SHARED


def measure() -> dict[str, Any]:
    """All figures: by way, case, size and number of clients, and those of the 10,000 claims in a row."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    settings = Settings(database_url="unused")
    figures: dict[str, Any] = {}
    try:
        with registries() as engines:
            figures["function"] = {
                case: _alternate(engines, partial(_claim, engines, fields, settings)) for case, fields in CASES.items()
            }
            with ExitStack() as stacks:
                servers = {size: stacks.enter_context(_stack(engine)) for size, engine in engines.items()}
                figures["http"] = {
                    case: _alternate(engines, partial(_ask, servers, query)) for case, query in BY_HTTP.items()
                }
            figures["in_a_row"] = in_a_row(engines[SIZES[-1]], settings)
    finally:
        structlog.configure(**before)
    return figures


@contextmanager
def registries() -> Iterator[dict[int, Engine]]:
    """A PostgreSQL with a database of each size, by size; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="ecm-claims-", ignore_cleanup_errors=True) as home:
        server = start_postgres(Path(home))
        engines: dict[int, Engine] = {}
        try:
            administration = make_engine(server.url).execution_options(isolation_level="AUTOCOMMIT")
            for size in SIZES:
                with administration.connect() as connection:
                    connection.execute(text(f"CREATE DATABASE numbers_{size}"))
                url = make_url(server.url).set(database=f"numbers_{size}").render_as_string(hide_password=False)
                upgrade(url)
                engines[size] = make_engine(url, pool_size=max(CLIENTS) + 1, pool_timeout=60)
                load(engines[size], size)
            administration.dispose()
            yield engines
        finally:
            for engine in engines.values():
                engine.dispose()
            server.stop()


@contextmanager
def _stack(engine: Engine) -> Iterator[str]:
    """Run a coordinator on this database; yields its address."""
    url = engine.url.render_as_string(hide_password=False)
    with private_stack("--no-flower", DATABASE_URL=url, LOG_LEVEL="WARNING") as (server, _):
        yield server


def _alternate(
    engines: dict[int, Engine], claim: Callable[[int, int], http.Measured]
) -> dict[int, dict[int, dict[str, float]]]:
    """Call `claim(size, clients)` in alternating rounds; returns the figures by size and number of clients."""
    rounds: dict[tuple[int, int], list[http.Measured]] = {}
    for which in range(ROUNDS + 1):
        for size, engine in engines.items():
            for clients in CLIENTS:
                measured = claim(size, clients)
                _expire_leases(engine)
                if which > 0:  # the first round fills the caches
                    rounds.setdefault((size, clients), []).append(measured)
    return {size: {clients: _figures(rounds[size, clients]) for clients in CLIENTS} for size in engines}


def _figures(rounds: list[http.Measured]) -> dict[str, float]:
    # The machine's speed changes every second: the median round is more stable than the mean of all rounds.
    together = http.Measured(latencies=[latency for one in rounds for latency in one.latencies])
    return {
        "per_second": round(median(one.rate for one in rounds), 1),
        "p50_ms": round(together.percentile(0.5), 2),
        "p99_ms": round(together.percentile(0.99), 2),
    }


def _claim(
    engines: dict[int, Engine], fields: dict[str, Any], settings: Settings, size: int, clients: int
) -> http.Measured:
    """One round of function calls by `clients` threads. Raises RuntimeError if a claim gets no work."""
    measured = http.Measured()
    without: list[str] = []

    def ask(name: str) -> None:
        for _ in range(CLAIMS_PER_ROUND[clients]):
            began = perf_counter()
            made = claims.claim(engines[size], WorkRequest(name, **fields), settings)
            measured.latencies.append(perf_counter() - began)
            if isinstance(made, NoWork):
                without.append(made.message)

    threads = [threading.Thread(target=ask, args=(f"bench-{n}",)) for n in range(clients)]
    began = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    measured.seconds = perf_counter() - began
    if without or len(measured.latencies) != clients * CLAIMS_PER_ROUND[clients]:
        raise RuntimeError(f"not every claim got work: {fields}, {without[:1]}")
    return measured


def _ask(servers: dict[int, str], query: dict[str, Any], size: int, clients: int) -> http.Measured:
    """One round of HTTP requests over `clients` connections. Raises RuntimeError if a request fails."""
    address = urlsplit(servers[size])
    host, port = address.hostname or "127.0.0.1", address.port or 80

    def requests(client: int) -> Iterator[bytes]:
        line = f"GET /api/v1/ecm-work?{urlencode({'client_id': f'bench-{client}', **query})} HTTP/1.1"
        for _ in range(CLAIMS_PER_ROUND[clients]):
            yield f"{line}\r\nHost: {host}\r\n\r\n".encode()

    measured = http.run(host, port, clients, requests)
    if set(measured.statuses) != {200}:
        raise RuntimeError(f"not every request was answered with 200: {measured.statuses}")
    return measured


def _expire_leases(engine: Engine) -> None:
    """Let all leases of the bench's clients expire, so that their numbers are eligible as before."""
    with engine.begin() as connection:
        names = [f"bench-{n}" for n in range(max(CLIENTS))]
        expire = "UPDATE work_assignments SET expires_at = now() WHERE closed_at IS NULL AND client_id = ANY(:names)"
        connection.execute(text(expire), {"names": names})
    lease_expiry.expire_leases(engine, datetime.now(UTC))


def in_a_row(engine: Engine, settings: Settings) -> dict[str, float]:
    """The p50 of the first and of the last thousand of 10,000 claims of whole numbers, which stay leased."""
    seconds, without = [], 0
    for n in range(CLAIMS_IN_A_ROW):
        began = perf_counter()
        made = claims.claim(engine, WorkRequest(f"bench-{n // settings.max_work_per_client}"), settings)
        seconds.append(perf_counter() - began)
        without += isinstance(made, NoWork)
    if without:
        raise RuntimeError(f"{without} of {CLAIMS_IN_A_ROW} claims in a row got no work")
    first, last = seconds[:COMPARED], seconds[-COMPARED:]
    return {
        "claims": CLAIMS_IN_A_ROW,
        "first_p50_ms": round(1000 * median(first), 2),
        "last_p50_ms": round(1000 * median(last), 2),
        "last_to_first": round(median(last) / median(first), 2),
    }


def as_table(figures: dict[str, Any]) -> Table:
    """The figures for a terminal."""
    row = figures["in_a_row"]
    table = Table(
        title="Claiming work",
        caption=f"{row['claims']:,} whole numbers in a row: p50 {row['first_p50_ms']} ms for the first {COMPARED:,}, "
        f"{row['last_p50_ms']} ms for the last ({row['last_to_first']} times)",
    )
    for heading in ("way", "work type", "clients", *(f"{size:,}" for size in SIZES), "p50, largest to smallest"):
        table.add_column(heading, justify="left" if heading in ("way", "work type") else "right")
    for way in ("function", "http"):
        for case, by_size in figures[way].items():
            for clients in CLIENTS:
                cells = [by_size[size][clients] for size in SIZES]
                shown = [f"{one['per_second']:,.0f}/s {one['p50_ms']:.1f} / {one['p99_ms']:.1f} ms" for one in cells]
                ratio = cells[-1]["p50_ms"] / cells[0]["p50_ms"]
                table.add_row(way, case, str(clients), *shown, f"{ratio:.2f}")
    return table
