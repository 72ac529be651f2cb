"""How fast results are accepted and applied by the whole stack, with the load generator on the same machine.

For 1, 8 and 32 connections, on 100 composites with 20 attempts each and on one composite with 100,000 attempts:

- accepted/s: results stored per second (`Prefer: respond-async`); applied/s: the same results, from the first that is
  sent to the last that is applied;
- waiting: results per second, and the p50 and p99 of requests that wait for their outcome.
"""

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import gmpy2
from gmpy2 import mpz
from rich.table import Table
from sqlalchemy import Engine, select, text

from bench import load
from config.local.ports import free_port
from config.local.postgres import postgres_url
from coordinator.composites import ledger, targets
from ingest.commands.private_stack import private_stack
from models.engine import make_engine
from models.tables import Composite

CONNECTIONS = (1, 8, 32)
MANY, FEW_ATTEMPTS = 100, 20
DEEP_ATTEMPTS = 100_000
RESULTS = {1: 1500, 8: 6000, 32: 6000}
WAITING = {1: 300, 8: 1600, 32: 2400}


def composites(count: int) -> list[str]:
    """Distinct composites of about 150 digits: a small prime times a large one."""
    large = mpz(10) ** 148
    numbers = []
    for _ in range(count):
        large = gmpy2.next_prime(large + 10**6)
        numbers.append((large * 1_000_003).digits())
    return numbers


def requests(numbers: list[str], count: int, connections: int, host: str, wait: bool) -> Any:
    """The requests of each connection: `count` results in all, for one number after the other."""

    def of_connection(connection: int) -> Iterator[bytes]:
        headers = {} if wait else {"Prefer": "respond-async"}
        for index in range(count // connections):
            number = numbers[(index * connections + connection) % len(numbers)]
            body = load.result(number, f"bench-{connection}", 10)
            yield load.post("/api/v1/submit_result", body, host, headers)

    return of_connection


def send(server: str, numbers: list[str], count: int, connections: int, wait: bool) -> load.Measured:
    """Send `count` results over `connections` connections; raises RuntimeError if one is not accepted."""
    address = urlsplit(server)
    host, port = address.hostname or "127.0.0.1", address.port or 80
    measured = load.run(host, port, connections, requests(numbers, count, connections, host, wait))
    if set(measured.statuses) - {200, 202}:
        raise RuntimeError(f"not every result was accepted: {measured.statuses}")
    return measured


def wait_applied(engine: Engine) -> None:
    """Wait until every submission is settled."""
    waiting = text("SELECT EXISTS (SELECT FROM submissions WHERE state = 'received')")
    while True:
        with engine.connect() as connection:
            if not connection.execute(waiting).scalar_one():
                return
        time.sleep(0.02)


def add_attempts(engine: Engine, number: str, attempts: int) -> None:
    """Insert copies of a composite's only attempt, and rebuild its effort."""
    with engine.begin() as connection:
        parameters = {"number": number, "attempts": attempts}
        connection.execute(
            text(
                """
                WITH base AS (
                    SELECT a.*, s.payload, s.payload_sha256 FROM ecm_attempts a
                    JOIN composites c ON c.id = a.composite_id JOIN submissions s ON s.id = a.submission_id
                    WHERE c.number = :number LIMIT 1
                ), sent AS (
                    INSERT INTO submissions (client_id, idempotency_key, key_is_implicit, payload_sha256, payload,
                                             state, settled_at, composite_id)
                    SELECT client_id, 'history-' || n, false, payload_sha256, payload, 'applied', now(), composite_id
                    FROM base, generate_series(1, :attempts) n
                    RETURNING id, attempt_id, composite_id
                )
                INSERT INTO ecm_attempts (id, composite_id, value_id, submission_id, client_id, method, b1, b2,
                                          parametrization, curves)
                SELECT sent.attempt_id, sent.composite_id, base.value_id, sent.id, base.client_id, base.method,
                       base.b1, base.b2, base.parametrization, base.curves
                FROM sent, base
                """
            ),
            parameters,
        )
        composite = select(Composite.id).where(Composite.number == number)
        target_ids = targets.lock_of(connection, connection.execute(composite).scalars())
        ledger.correct_sums(connection, targets.sources(connection, target_ids))
        ledger.rebuild(connection, target_ids)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def measure() -> dict[str, Any]:
    """All figures, by case and number of connections."""
    figures: dict[str, Any] = {}
    with private_stack("--flower-port", str(free_port()), LOG_LEVEL="WARNING") as (server, home):
        engine = make_engine(postgres_url(home), pool_size=2)
        many, deep = composites(MANY), composites(MANY + 1)[-1:]
        for _ in range(FEW_ATTEMPTS):
            send(server, many, MANY, 1, wait=False)
        send(server, deep, 1, 1, wait=True)
        wait_applied(engine)
        add_attempts(engine, deep[0], DEEP_ATTEMPTS)
        for connections in CONNECTIONS:
            # Alternately, so that a change of the machine's speed affects both cases.
            for case, numbers in (("100 composites", many), ("one composite, 100,000 attempts", deep)):
                figures.setdefault(case, {})[connections] = _one(server, engine, numbers, connections)
        engine.dispose()
    return figures


def _one(server: str, engine: Engine, numbers: list[str], connections: int) -> dict[str, float]:
    began = time.perf_counter()
    accepted = send(server, numbers, RESULTS[connections], connections, wait=False)
    wait_applied(engine)
    applied = len(accepted.latencies) / (time.perf_counter() - began)
    waited = send(server, numbers, WAITING[connections], connections, wait=True)
    wait_applied(engine)
    return {
        "accepted_per_second": round(accepted.rate, 1),
        "applied_per_second": round(applied, 1),
        "waiting_per_second": round(waited.rate, 1),
        "waiting_p50_ms": round(waited.percentile(0.5), 1),
        "waiting_p99_ms": round(waited.percentile(0.99), 1),
    }


def as_table(figures: dict[str, Any]) -> Table:
    """The figures for a terminal."""
    table = Table(title="The results pipeline")
    for heading in ("case", "connections", "accepted/s", "applied/s", "waiting/s", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for case, by_connections in figures.items():
        for connections, row in by_connections.items():
            table.add_row(case, str(connections), *(f"{value:,.1f}" for value in row.values()))
    return table
