"""Numbers on their way into the registry: screened rows in temporary tables, then set by set into the real ones.

Nothing real is touched, and no lock taken, until all numbers have been looked at (`Staging.copy`). Then, in one go:

 1. `match`: numbers that a composite is known by, by any value it has had, are that composite;
 2. `insert`: of the others the first with each value becomes a composite, with its aliases, factors and prior work;
 3. what is left (a value that stands twice in the list, or that is what is left of another number in it, or that
    somebody else registered just now) is matched again, until nothing is left.

What lists say of known numbers is put there by coordinator/loading/upsert.py.
"""

from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql

from coordinator.base import jobs
from coordinator.composites.eligibility import Eligibility
from coordinator.composites.registry import COFACTOR, NUMBER
from coordinator.loading.validation import NODE_COLUMNS, NUMBER_COLUMNS, RUN_COLUMNS, ValidatedBatch
from models.tables import Composite

# Rows that one statement inserts: some seconds, so that a request's statement timeout is far away.
CHUNK = 50_000

_ELIGIBILITY = ", ".join(Eligibility._fields)
_ELIGIBILITY_TYPES = ", ".join(
    f"{name} {Composite.__table__.columns[name].type.compile(postgresql.dialect())}" for name in Eligibility._fields
)

# Ids are taken from the tables' own sequences as rows come in: those of a list's numbers follow its order.
_TABLES = f"""
CREATE TEMP TABLE incoming (
    line bigint, id bigint DEFAULT nextval('composites_id_seq'), written text, written_sha256 bytea, value_sha256 bytea,
    cofactor text, cofactor_sha256 bytea, plain boolean, digit_length integer, is_prime boolean, finished boolean,
    priority integer, has_snfs_form boolean, snfs_difficulty integer, explicit_target double precision,
    target double precision, project text, t_level double precision, effort bytea,
    {_ELIGIBILITY_TYPES}
) ON COMMIT DROP;
CREATE TEMP TABLE incoming_nodes (
    id bigint DEFAULT nextval('factors_id_seq'), line bigint, place integer, above integer, factor text,
    factor_sha256 bytea, digits integer, multiplicity integer, is_prime boolean, origin text
) ON COMMIT DROP;
CREATE TEMP TABLE incoming_runs (
    line bigint, b1 bigint, b2 numeric(22), parametrization smallint, curves bigint
) ON COMMIT DROP;
CREATE TEMP TABLE matched (line bigint PRIMARY KEY, composite_id bigint, is_loaded boolean) ON COMMIT DROP;
CREATE TEMP TABLE fresh (line bigint PRIMARY KEY, id bigint) ON COMMIT DROP;
CREATE TEMP TABLE touched (composite_id bigint PRIMARY KEY) ON COMMIT DROP
"""
# As registry.find does: the exact number, then a current cofactor, then what is known longest.
_MATCH = f"""
INSERT INTO matched
SELECT DISTINCT ON (i.line) i.line, c.id, false
FROM incoming i JOIN composite_aliases a ON a.value_sha256 = i.value_sha256 JOIN composites c ON c.id = a.composite_id
WHERE NOT EXISTS (SELECT FROM matched m WHERE m.line = i.line)
ORDER BY i.line, a.kind = '{NUMBER}' DESC,
         a.kind <> '{NUMBER}' AND sha256(convert_to(c.current_composite, 'UTF8')) = i.value_sha256 DESC, c.id
"""
_CHOOSE = """
INSERT INTO fresh
SELECT DISTINCT ON (i.value_sha256) i.line, i.id FROM incoming i
WHERE NOT EXISTS (SELECT FROM matched m WHERE m.line = i.line)
  AND NOT EXISTS (
    SELECT FROM incoming larger
    WHERE larger.cofactor_sha256 = i.value_sha256 AND NOT EXISTS (SELECT FROM matched m WHERE m.line = larger.line)
  )
ORDER BY i.value_sha256, i.line
"""
_COMPOSITES = f"""
INSERT INTO composites (
    id, number, value_sha256, current_composite, digit_length, is_prime, is_fully_factored, priority, has_snfs_form,
    snfs_difficulty, target_t_level, explicit_target_t_level, current_t_level, effort,
    {_ELIGIBILITY}
)
SELECT i.id, written, value_sha256, coalesce(cofactor, written), digit_length, is_prime, finished,
       coalesce(priority, :priority, 0), coalesce(has_snfs_form, false), snfs_difficulty, target, explicit_target,
       t_level, coalesce(effort, ''),
       {_ELIGIBILITY}
FROM fresh JOIN incoming i USING (line)
WHERE line BETWEEN :first AND :last ORDER BY line
ON CONFLICT (value_sha256) DO NOTHING
"""
_TAKEN = """
DELETE FROM fresh
WHERE line BETWEEN :first AND :last AND NOT EXISTS (SELECT FROM composites c WHERE c.id = fresh.id)
"""
# In hash order, as everywhere, so that no two can deadlock.
_ALIASES = f"""
INSERT INTO composite_aliases (value_sha256, composite_id, kind)
SELECT value, i.id, kind
FROM fresh JOIN incoming i USING (line), LATERAL (VALUES
    (value_sha256, '{NUMBER}'), (written_sha256, '{NUMBER}'), (cofactor_sha256, '{COFACTOR}')) alias (value, kind)
WHERE line BETWEEN :first AND :last AND value IS NOT NULL
ORDER BY value
ON CONFLICT DO NOTHING
"""
_FACTORS = """
INSERT INTO factors (
    id, composite_id, factor, factor_sha256, digit_length, multiplicity, is_prime, split_from_id, origin
)
SELECT p.id, i.id, p.factor, p.factor_sha256, p.digits, p.multiplicity, p.is_prime, above.id, p.origin
FROM fresh JOIN incoming i USING (line) JOIN incoming_nodes p USING (line)
LEFT JOIN incoming_nodes above ON above.line = p.line AND above.place = p.above
WHERE fresh.line BETWEEN :first AND :last AND i.plain
ORDER BY p.id
"""
_RUNS = """
INSERT INTO composite_effort (composite_id, b1, b2, parametrization, prior_curves)
SELECT fresh.id, r.b1, r.b2, r.parametrization, r.curves FROM fresh JOIN incoming_runs r USING (line)
WHERE line BETWEEN :first AND :last
"""
_UNTESTED = """
SELECT i.id FROM fresh JOIN incoming i USING (line) WHERE line BETWEEN :first AND :last AND is_prime IS NULL
ORDER BY i.id
"""
_SHARERS = """
SELECT DISTINCT i.id FROM fresh JOIN incoming i USING (line)
JOIN composite_aliases a ON a.value_sha256 IN (i.value_sha256, i.cofactor_sha256) AND a.composite_id <> i.id
WHERE line BETWEEN :first AND :last AND cofactor_sha256 IS NOT NULL
ORDER BY i.id
"""
_LOADED = "INSERT INTO matched SELECT line, id, true FROM fresh"

Progress = Callable[[int], None]


class Staging:
    """The temporary tables of one load, in its transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        for statement in _TABLES.split(";"):
            connection.execute(text(statement))

    def copy(self, screened: ValidatedBatch) -> None:
        """Take in the good numbers of a batch."""
        tables = (
            ("incoming", NUMBER_COLUMNS, screened.numbers),
            ("incoming_nodes", NODE_COLUMNS, screened.nodes),
            ("incoming_runs", RUN_COLUMNS, screened.runs),
        )
        cursor: Any = self._connection.connection.cursor()  # psycopg2's, which knows COPY
        for table, columns, rows in tables:
            if rows:
                cursor.copy_expert(f"COPY {table} ({', '.join(columns)}) FROM STDIN", StringIO(rows))
        cursor.close()

    def store(self, priority: int | None, progress: Progress) -> tuple[int, list[jobs.JobRef]]:
        """Match every number and insert those that are new: how many those are, and what to ring for.

        `progress` is told how many more numbers are done with. New numbers without a priority get `priority`.
        """
        run = self._connection.execute
        for table in ("incoming", "incoming_nodes", "incoming_runs"):
            run(text(f"CREATE INDEX ON {table} (line)"))
            run(text(f"ANALYZE {table}"))
        new = 0
        to_publish: list[jobs.JobRef] = []
        while True:
            progress(run(text(_MATCH)).rowcount)
            run(text(_CHOOSE))
            run(text("ANALYZE matched, fresh"))
            if not run(text("SELECT EXISTS (SELECT FROM fresh)")).scalar_one():
                return new, to_publish
            for first, last in self._chunks():
                to_publish += self._insert(first, last, priority)
                progress(self._fresh(first, last))
            new += run(text(_LOADED)).rowcount
            run(text("TRUNCATE fresh"))

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """(first line, last line) of so many fresh numbers at a time."""
        ends = text(
            "SELECT min(line) AS first, max(line) AS last"
            " FROM (SELECT line, (row_number() OVER (ORDER BY line) - 1) / :chunk AS part FROM fresh) numbered"
            " GROUP BY part ORDER BY part"
        )
        for chunk in self._connection.execute(ends, {"chunk": CHUNK}).all():
            yield chunk.first, chunk.last

    def _fresh(self, first: int, last: int) -> int:
        count = text("SELECT count(*) FROM fresh WHERE line BETWEEN :first AND :last")
        fresh: int = self._connection.execute(count, _span(first, last)).scalar_one()
        return fresh

    def _insert(self, first: int, last: int, priority: int | None) -> list[jobs.JobRef]:
        run, span = self._connection.execute, _span(first, last)
        expected = self._fresh(first, last)
        inserted = run(text(_COMPOSITES), span | {"priority": priority}).rowcount
        if inserted < expected:  # somebody else has just registered some of them, and they are matched next
            run(text(_TAKEN), span)
        for statement in (_ALIASES, _FACTORS, _RUNS):
            run(text(statement), span)
        to_publish = []
        for statement, kind in ((_UNTESTED, jobs.TEST_COFACTOR), (_SHARERS, jobs.SHARE_FACTORS)):
            for composite_id in run(text(statement), span).scalars().all():
                to_publish += jobs.request(self._connection, kind, composite_id)
        return to_publish


def _span(first: int, last: int) -> dict[str, int]:
    return {"first": first, "last": last}
