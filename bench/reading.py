"""How long reads take with a million numbers: lists, filters, pages in the middle of a list, many numbers at once.

The benchmark calls the functions behind the routes; HTTP adds a few milliseconds per page. For every case it gives the
p50 and the slowest of REPEATS reads after a first one, on a database with numbers in all states.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from rich.table import Table
from sqlalchemy import Engine, text

from bench.claims import PROJECT, load
from config.local.postgres import start_postgres
from coordinator.reading import batch_lookup, detail, factors, search
from coordinator.reading.batch_lookup import ProgressFilters
from coordinator.reading.search import CompositeFilters
from models.engine import make_engine
from models.migrate import upgrade

NUMBERS = 1_000_000
FACTORS = 200_000
REPEATS = 15
AIM_MS = 50
MAX_DIGITS = 50_000

LISTS: dict[str, tuple[CompositeFilters, dict[str, Any]]] = {
    "by id": (CompositeFilters(), {}),
    "by digits, largest first": (CompositeFilters(), {"sort": "digits", "descending": True}),
    "by t-level": (CompositeFilters(), {"sort": "t_level"}),
    "by progress, nearest first": (CompositeFilters(), {"sort": "progress", "descending": True}),
    "by priority": (CompositeFilters(), {"sort": "priority", "descending": True}),
    "newest first": (CompositeFilters(), {"sort": "created", "descending": True}),
    "composite, by digits": (CompositeFilters(state="composite"), {"sort": "digits"}),
    "fully factored, by t-level": (CompositeFilters(state="fully_factored"), {"sort": "t_level"}),
    "prime (none), by digits": (CompositeFilters(state="prime"), {"sort": "digits"}),
    "150-152 digits, by progress": (CompositeFilters(min_digits=150, max_digits=152), {"sort": "progress"}),
    "t-level 20-21, by digits": (CompositeFilters(min_t_level=20, max_t_level=21), {"sort": "digits"}),
    "half done, by priority": (CompositeFilters(min_progress=0.5, max_progress=0.7), {"sort": "priority"}),
    "priority 6, by id": (CompositeFilters(min_priority=6), {}),
    "priority 6 and 245 digits, by t-level": (CompositeFilters(min_priority=6, min_digits=245), {"sort": "t_level"}),
    "nothing passes, by id": (CompositeFilters(min_digits=249, max_t_level=0, min_progress=0.5), {}),
    "a project of 1 %, by progress": (CompositeFilters(project=PROJECT), {"sort": "progress"}),
    "a project of everything, by digits": (CompositeFilters(project="everything"), {"sort": "digits"}),
    "everything's, 245 digits, by id": (CompositeFilters(project="everything", min_digits=245), {}),
    "its value": (CompositeFilters(text="1000000012345" + "7" * 140), {}),
    "beginning with 10000001": (CompositeFilters(text="10000001"), {"sort": "digits"}),
    "beginning with 1": (CompositeFilters(text="1"), {"sort": "progress"}),
}
NEAREST = {
    "nearest to their targets": ProgressFilters(),
    "nearest, factored too": ProgressFilters(include_factored=True),
    "nearest of a project of 1 %": ProgressFilters(project=PROJECT),
    "nearest of everything's": ProgressFilters(project="everything"),
    "nearest, 200-210 digits": ProgressFilters(min_difficulty=200, max_difficulty=210),
    "nearest, priority 6": ProgressFilters(min_priority=6),
}

_EVERYTHING = (
    "INSERT INTO projects (name) VALUES ('everything')",
    """
    INSERT INTO project_composites (project_id, composite_id)
    SELECT projects.id, composites.id FROM projects, composites WHERE projects.name = 'everything'
    """,
    """
    INSERT INTO composite_aliases (value_sha256, composite_id, kind) SELECT value_sha256, id, 'number' FROM composites
    """,
    """
    INSERT INTO composite_aliases (value_sha256, composite_id, kind)
    SELECT t.value_sha256, c.id, 'cofactor' FROM composites c JOIN targets t ON t.id = c.target_id
    WHERE c.value_sha256 <> t.value_sha256
    """,
    """
    INSERT INTO factors (composite_id, factor, factor_sha256, digit_length, multiplicity, is_prime, origin, client_id)
    SELECT n, n::text || repeat('3', (n % 40)::int), sha256(n::text::bytea), length(n::text) + n % 40, 1, true,
        'submitted', 'client-' || n % 100
    FROM generate_series(1, :factors) n
    """,
)


@contextmanager
def registry() -> Iterator[Engine]:
    """A PostgreSQL with NUMBERS numbers, all in one project; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="ecm-reading-", ignore_cleanup_errors=True) as home:
        server = start_postgres(Path(home))
        upgrade(server.url)
        engine = make_engine(server.url)
        try:
            fill(engine, NUMBERS, FACTORS)
            yield engine
        finally:
            engine.dispose()
            server.stop()


def fill(engine: Engine, numbers: int, factors: int) -> None:
    """Insert numbers and those that share targets with them, all in one project, and factors; update statistics."""
    load(engine, numbers)
    with engine.begin() as connection:
        for statement in _EVERYTHING:
            connection.execute(text(statement), {"factors": factors})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def measure() -> dict[str, dict[str, float]]:
    """The p50 and the slowest read in milliseconds, and the number of rows, by case."""
    with registry() as engine:
        cases = {**_lists(engine), **_deep(engine), **_others(engine)}
        return {name: _time(read) for name, read in cases.items()}


Read = Callable[[], int]


def _lists(engine: Engine) -> dict[str, Read]:
    def page(filters: CompositeFilters, how: dict[str, Any]) -> Read:
        return lambda: len(search.list_composites(engine, filters, **how, max_digits=MAX_DIGITS).rows)

    return {name: page(filters, how) for name, (filters, how) in LISTS.items()}


def _deep(engine: Engine) -> dict[str, Read]:
    """Pages in the middle of a list; long pages lead to their cursors."""

    def middle(filters: CompositeFilters, how: dict[str, Any]) -> Read:
        cursor = None
        for _ in range(20):
            cursor = search.list_composites(
                engine, filters, **how, limit=10_000, cursor=cursor, max_digits=MAX_DIGITS
            ).next
        return lambda: len(search.list_composites(engine, filters, **how, cursor=cursor, max_digits=MAX_DIGITS).rows)

    return {
        "page 2,000 by digits": middle(CompositeFilters(), {"sort": "digits"}),
        "page 2,000 of composites by progress": middle(CompositeFilters(state="composite"), {"sort": "progress"}),
    }


def _others(engine: Engine) -> dict[str, Read]:
    asked = [f"1{n:012d}{'7' * (77 + n % 161)}" for n in range(1, 1001)]
    expressions = [f"10^{90 + n}+{n}" for n in range(1000)]

    def top(chosen: ProgressFilters) -> Read:
        return lambda: len(batch_lookup.top_progress(engine, chosen, limit=100, max_digits=MAX_DIGITS))

    def found(order: str, **chosen: Any) -> Read:
        filters = factors.FactorListFilters(**chosen)
        return lambda: len(factors.list_factors(engine, filters, order=order, cursor=None, max_digits=MAX_DIGITS).rows)

    return {
        **{name: top(chosen) for name, chosen in NEAREST.items()},
        "1,000 numbers at once": lambda: len(batch_lookup.read_batch_status(engine, asked, MAX_DIGITS)),
        "1,000 expressions at once": lambda: len(batch_lookup.read_batch_status(engine, expressions, MAX_DIGITS)),
        "newest factors": found("newest"),
        "largest factors": found("largest"),
        "a client's largest factors": found("largest", client_id="client-7"),
        "a project's newest factors": found("newest", project=PROJECT),
        "one composite": lambda: len(detail.read_composite(engine, NUMBERS // 2)),
        "one composite's effort": lambda: len(detail.composite_effort(engine, NUMBERS // 2)["points"]),
    }


def _time(read: Read) -> dict[str, float]:
    rows = read()  # the first one fills the caches
    seconds = []
    for _ in range(REPEATS):
        began = perf_counter()
        read()
        seconds.append(perf_counter() - began)
    return {"p50_ms": round(1000 * median(seconds), 1), "slowest_ms": round(1000 * max(seconds), 1), "rows": rows}


def as_table(figures: dict[str, dict[str, float]]) -> Table:
    """The figures for a terminal; cases above the aim are marked."""
    table = Table(title=f"Reading among {NUMBERS:,} numbers (aim: {AIM_MS} ms)")
    for heading in ("what", "rows", "p50, ms", "slowest, ms", ""):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for name, row in figures.items():
        mark = "" if row["p50_ms"] <= AIM_MS else "above"
        table.add_row(name, f"{row['rows']}", f"{row['p50_ms']:.1f}", f"{row['slowest_ms']:.1f}", mark)
    return table
