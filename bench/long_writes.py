"""How long loading, recalculating and voiding keep results from the numbers that they write, and from other numbers.

Two threads do what a result does first, again and again: one locks a number that the long write changes, the other one
a number that it does not change. `python -m bench --only long_writes` runs it.
"""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import click
import structlog
from rich.table import Table
from sqlalchemy import Engine, event, text

from bench.imports import numbers as products
from config.local.postgres import start_postgres
from coordinator.administration import deletions, recalculation
from coordinator.base.audit import Actor
from coordinator.base.unit_of_work import unit_of_work
from coordinator.loading.list_formats import InputRow, JsonFields
from coordinator.loading.load import load_numbers
from coordinator.reading import invariants
from models.engine import make_engine
from models.migrate import upgrade

DIGITS, MAX_DIGITS = 100, 1000
ACTOR = Actor("bench")
CLIENT = "voided"
PROBE_PAUSE = 0.02
ALWAYS = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))

# An applied result of one client for each of the first numbers.
_ATTEMPTS = (
    """
INSERT INTO submissions (client_id, idempotency_key, key_is_implicit, payload_sha256, payload, state, settled_at,
                         outcome, composite_id)
SELECT :client, 'bench-' || id, false, sha256(id::text::bytea), '{}', 'applied', now(), '{}', id
FROM composites ORDER BY id LIMIT :count
""",
    """
INSERT INTO worked_values (value_sha256, value) SELECT value_sha256, number FROM composites ORDER BY id LIMIT :count
ON CONFLICT DO NOTHING
""",
    """
INSERT INTO target_sources SELECT target_id, v.id FROM composites JOIN worked_values v USING (value_sha256)
ON CONFLICT DO NOTHING
""",
    """
INSERT INTO ecm_attempts (id, composite_id, value_id, submission_id, client_id, method, b1, b2, parametrization, curves)
SELECT s.attempt_id, c.id, v.id, s.id, s.client_id, 'ecm', 50000, -1, 1, 1 + c.id % 100
FROM submissions s JOIN composites c ON c.id = s.composite_id JOIN worked_values v USING (value_sha256)
WHERE s.idempotency_key LIKE 'bench-%'
""",
    """
UPDATE submissions SET outcome = jsonb_build_object('attempt_id', attempt_id, 'composite_id', composite_id)
WHERE idempotency_key LIKE 'bench-%'
""",
    "VACUUM ANALYZE",
)


def _rows(count: int, **fields: Any) -> Iterator[InputRow]:
    for place, number in enumerate(products(count, DIGITS, "products")):
        own = {name: value(place) if callable(value) else value for name, value in fields.items()}
        yield InputRow(place + 1, str(number), JsonFields(own))


def _load(engine: Engine, count: int, **fields: Any) -> None:
    load_numbers(engine, _rows(count, **fields), max_digits=MAX_DIGITS, actor=ACTOR, source="bench", processes=0)


def _add_attempts(engine: Engine, count: int) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in _ATTEMPTS:
            connection.execute(text(statement), {"client": CLIENT, "count": count})


@contextmanager
def _probe(engine: Engine, composite_id: int, waits: list[float]) -> Iterator[None]:
    """Lock a composite and its target again and again, as results do; adds the seconds of each lock to `waits`."""
    is_over = threading.Event()
    locks = [
        text("SELECT id FROM composites WHERE id = :id FOR NO KEY UPDATE"),
        text("SELECT id FROM targets WHERE id = (SELECT target_id FROM composites WHERE id = :id) FOR NO KEY UPDATE"),
    ]

    def lock_again_and_again() -> None:
        while not is_over.is_set():
            with unit_of_work(engine, "probe") as connection:
                began = perf_counter()
                for lock in locks:
                    connection.execute(lock, {"id": composite_id}).all()
                waits.append(perf_counter() - began)
            sleep(PROBE_PAUSE)

    thread = threading.Thread(target=lock_again_and_again)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextmanager
def _count_statements(engine: Engine, counted: list[int]) -> Iterator[None]:
    def count(*arguments: Any) -> None:
        parameters, is_many = arguments[3], arguments[5]
        counted.append(len(parameters) if is_many else 1)

    event.listen(engine, "before_cursor_execute", count)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", count)


def _measure(engine: Engine, probes: Engine, write: Callable[[], None]) -> dict[str, float]:
    """Run a long write; returns its seconds, statements, and the longest waits for a number of it and for another."""
    with engine.connect() as connection:
        first, last = connection.execute(text("SELECT min(id), max(id) FROM composites")).one()
    written: list[float] = []
    other: list[float] = []
    counted: list[int] = []
    with _probe(probes, first, written), _probe(probes, last, other), _count_statements(engine, counted):
        began = perf_counter()
        write()
        seconds = perf_counter() - began
    return {
        "seconds": round(seconds, 2),
        "statements": sum(counted),
        "wait_of_its_numbers": round(max(written), 2),
        "wait_of_others": round(max(other), 2),
    }


def _damage(engine: Engine) -> None:
    with unit_of_work(engine, "damage") as connection:
        connection.execute(
            text(
                "UPDATE targets SET current_t_level = 1"
                " WHERE id <> (SELECT target_id FROM composites ORDER BY id DESC LIMIT 1)"
            )
        )


def measure(count: int = 20_000) -> dict[str, dict[str, float]]:
    """Measure each kind of long write on `count` numbers; one more number is not in any of them."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="ecm-long-writes-") as home:
        server = start_postgres(Path(home))
        try:
            upgrade(server.url)
            engine, probes = make_engine(server.url, pool_size=4), make_engine(server.url, pool_size=2)
            writes: dict[str, Callable[[], Any]] = {
                "prior work": lambda: _load(engine, count, prior_work=lambda place: f"{100 + place}@50000"),
                "priority": lambda: _load(engine, count, priority=5),
                "higher target": lambda: _load(engine, count, target_t_level=lambda place: 40 + place % 5),
                "recalculation": lambda: recalculation.recalculate_all(engine, ACTOR),
                "voiding": lambda: deletions.void_attempts(
                    engine, ACTOR, CLIENT, since=ALWAYS[0], until=ALWAYS[1], program=None, reason="bench"
                ),
            }
            _load(engine, count + 1)
            for name, write in writes.items():
                if name == "recalculation":
                    _add_attempts(engine, count)
                    _damage(engine)
                figures[name] = _measure(engine, probes, write)
            broken = list(invariants.violations(engine, max_digits=MAX_DIGITS))
            if broken:
                raise click.ClickException(f"the invariants do not hold: {broken[:3]}; {figures}")
            engine.dispose()
            probes.dispose()
        finally:
            server.stop()
    return figures


def as_table(figures: dict[str, dict[str, float]]) -> Table:
    """The figures for a terminal."""
    table = Table(title="Long writes beside results")
    for heading in ("write", "seconds", "statements", "longest wait, its numbers (s)", "other numbers (s)"):
        table.add_column(heading, justify="left" if heading == "write" else "right")
    for name, row in figures.items():
        table.add_row(name, *(f"{value:,}" for value in row.values()))
    return table


@click.command()
@click.option("--count", default=20_000, show_default=True, help="Numbers of each write.")
def long_writes(count: int) -> None:
    """Measure how long loading, recalculating and voiding keep results waiting."""
    from rich.console import Console

    Console(soft_wrap=True).print(as_table(measure(count)))


if __name__ == "__main__":
    long_writes()
