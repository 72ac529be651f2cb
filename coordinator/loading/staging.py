"""The temporary tables of a load, and the set statements that move their rows into the real tables.

`Staging.copy` fills the temporary tables; it locks nothing and changes no real table. `Staging.store` then repeats
these steps until no line is left:

 1. match each line with the composite that has, or once had, its value;
 2. of the lines without a match, insert the first one with each value as a new composite, with its aliases, factors and
    prior work, unless its value is the cofactor of another such line.

The steps are repeated because a value may occur twice in the list, may be the cofactor of another number in it, or may
have been registered by somebody else in between. coordinator/loading/upsert.py updates the composites that existed
before.
"""

from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql

from coordinator.base import jobs
from coordinator.composites.eligibility import Eligibility
from coordinator.composites.registry import COFACTOR, NUMBER
from coordinator.loading.copy_rows import NODE_COLUMNS, NUMBER_COLUMNS, RUN_COLUMNS
from coordinator.loading.validation import ValidatedBatch
from models.tables import Composite

# Rows that one statement inserts. It takes some seconds, far less than a request's statement timeout.
CHUNK = 50_000

_ELIGIBILITY = ", ".join(Eligibility._fields)
_DIALECT = postgresql.psycopg2.dialect()  # type: ignore[no-untyped-call]
_ELIGIBILITY_TYPES = ", ".join(
    f"{name} {Composite.__table__.columns[name].type.compile(_DIALECT)}" for name in Eligibility._fields
)

# Rows take their ids from the real tables' sequences on arrival, so ids follow the order of the list.
# `plain`: the trial division and the given factors leave only primes, and nothing needs work of its own.
_TABLES = f"""
CREATE TEMP TABLE incoming (
    line bigint, id bigint DEFAULT nextval('composites_id_seq'), written text, written_sha256 bytea, value_sha256 bytea,
    cofactor text, cofactor_sha256 bytea, plain boolean, digit_length integer, is_prime boolean, finished boolean,
    priority integer, has_snfs_form boolean, snfs_difficulty integer, explicit_target double precision,
    target double precision, project text, t_level double precision, effort bytea,
    {_ELIGIBILITY_TYPES}
) ON COMMIT DROP;
CREATE TEMP TABLE incoming_nodes (
    id bigint DEFAULT nextval('factors_id_seq'), line bigint, place integer, parent_place integer, factor text,
    factor_sha256 bytea, digits integer, multiplicity integer, is_prime boolean, origin text
) ON COMMIT DROP;
CREATE TEMP TABLE incoming_runs (
    line bigint, b1 bigint, b2 numeric(22), parametrization smallint, curves bigint
) ON COMMIT DROP;
CREATE TEMP TABLE line_matches (line bigint PRIMARY KEY, composite_id bigint, is_loaded boolean) ON COMMIT DROP;
CREATE TEMP TABLE new_lines (line bigint PRIMARY KEY, id bigint) ON COMMIT DROP;
CREATE TEMP TABLE changed_composites (composite_id bigint PRIMARY KEY) ON COMMIT DROP
"""
# In the order of registry.find: the exact number, then a current cofactor, then the oldest composite.
_MATCH = f"""
INSERT INTO line_matches
SELECT DISTINCT ON (i.line) i.line, c.id, false
FROM incoming i JOIN composite_aliases a ON a.value_sha256 = i.value_sha256 JOIN composites c ON c.id = a.composite_id
WHERE NOT EXISTS (SELECT FROM line_matches m WHERE m.line = i.line)
ORDER BY i.line, a.kind = '{NUMBER}' DESC,
         a.kind <> '{NUMBER}' AND sha256(convert_to(c.current_composite, 'UTF8')) = i.value_sha256 DESC, c.id
"""
_CHOOSE = """
INSERT INTO new_lines
SELECT DISTINCT ON (i.value_sha256) i.line, i.id FROM incoming i
WHERE NOT EXISTS (SELECT FROM line_matches m WHERE m.line = i.line)
  AND NOT EXISTS (
    SELECT FROM incoming larger
    WHERE larger.cofactor_sha256 = i.value_sha256 AND NOT EXISTS (SELECT FROM line_matches m WHERE m.line = larger.line)
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
FROM new_lines JOIN incoming i USING (line)
WHERE line BETWEEN :first AND :last ORDER BY line
ON CONFLICT (value_sha256) DO NOTHING
"""
_DELETE_REGISTERED = """
DELETE FROM new_lines
WHERE line BETWEEN :first AND :last AND NOT EXISTS (SELECT FROM composites c WHERE c.id = new_lines.id)
"""
# In hash order, like every insert into this table, so that two transactions cannot deadlock.
_ALIASES = f"""
INSERT INTO composite_aliases (value_sha256, composite_id, kind)
SELECT value, i.id, kind
FROM new_lines JOIN incoming i USING (line), LATERAL (VALUES
    (value_sha256, '{NUMBER}'), (written_sha256, '{NUMBER}'), (cofactor_sha256, '{COFACTOR}')) alias (value, kind)
WHERE line BETWEEN :first AND :last AND value IS NOT NULL
ORDER BY value
ON CONFLICT DO NOTHING
"""
_FACTORS = """
INSERT INTO factors (
    id, composite_id, factor, factor_sha256, digit_length, multiplicity, is_prime, split_from_id, origin
)
SELECT node.id, i.id, node.factor, node.factor_sha256, node.digits, node.multiplicity, node.is_prime, parent.id,
       node.origin
FROM new_lines JOIN incoming i USING (line) JOIN incoming_nodes node USING (line)
LEFT JOIN incoming_nodes parent ON parent.line = node.line AND parent.place = node.parent_place
WHERE new_lines.line BETWEEN :first AND :last AND i.plain
ORDER BY node.id
"""
_RUNS = """
INSERT INTO composite_effort (composite_id, b1, b2, parametrization, prior_curves)
SELECT new_lines.id, r.b1, r.b2, r.parametrization, r.curves FROM new_lines JOIN incoming_runs r USING (line)
WHERE line BETWEEN :first AND :last
"""
_UNTESTED = """
SELECT i.id FROM new_lines JOIN incoming i USING (line) WHERE line BETWEEN :first AND :last AND is_prime IS NULL
ORDER BY i.id
"""
_SHARING = """
SELECT DISTINCT i.id FROM new_lines JOIN incoming i USING (line)
JOIN composite_aliases a ON a.value_sha256 IN (i.value_sha256, i.cofactor_sha256) AND a.composite_id <> i.id
WHERE line BETWEEN :first AND :last AND cofactor_sha256 IS NOT NULL
ORDER BY i.id
"""
_MATCH_INSERTED = "INSERT INTO line_matches SELECT line, id, true FROM new_lines"


class Staging:
    """The temporary tables of one load, in its transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        for statement in _TABLES.split(";"):
            connection.execute(text(statement))

    def copy(self, batch: ValidatedBatch) -> None:
        """Copy the valid numbers of a batch into the temporary tables."""
        tables = (
            ("incoming", NUMBER_COLUMNS, batch.numbers),
            ("incoming_nodes", NODE_COLUMNS, batch.nodes),
            ("incoming_runs", RUN_COLUMNS, batch.runs),
        )
        cursor: Any = self._connection.connection.cursor()  # psycopg2's, which knows COPY
        for table, columns, rows in tables:
            if rows:
                cursor.copy_expert(f"COPY {table} ({', '.join(columns)}) FROM STDIN", StringIO(rows))
        cursor.close()

    def store(self, priority: int | None, progress: Callable[[int], None]) -> tuple[int, list[jobs.JobRef]]:
        """Match every line and insert the new numbers; returns how many are new, and the jobs to publish.

        `progress` is called with the number of lines that each step finished. New numbers for which the list gives no
        priority get `priority`.
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
            run(text("ANALYZE line_matches, new_lines"))
            if not run(text("SELECT EXISTS (SELECT FROM new_lines)")).scalar_one():
                return new, to_publish
            for first, last in self._line_ranges():
                to_publish += self._insert(first, last, priority)
                progress(self._count_new(first, last))
            new += run(text(_MATCH_INSERTED)).rowcount
            run(text("TRUNCATE new_lines"))

    def _line_ranges(self) -> Iterator[tuple[int, int]]:
        """(first line, last line) of at most CHUNK new numbers at a time."""
        ends = text(
            "SELECT min(line) AS first, max(line) AS last"
            " FROM (SELECT line, (row_number() OVER (ORDER BY line) - 1) / :chunk AS part FROM new_lines) numbered"
            " GROUP BY part ORDER BY part"
        )
        for chunk in self._connection.execute(ends, {"chunk": CHUNK}).all():
            yield chunk.first, chunk.last

    def _count_new(self, first: int, last: int) -> int:
        count = text("SELECT count(*) FROM new_lines WHERE line BETWEEN :first AND :last")
        lines: int = self._connection.execute(count, _span(first, last)).scalar_one()
        return lines

    def _insert(self, first: int, last: int, priority: int | None) -> list[jobs.JobRef]:
        run, span = self._connection.execute, _span(first, last)
        expected = self._count_new(first, last)
        inserted = run(text(_COMPOSITES), span | {"priority": priority}).rowcount
        if inserted < expected:  # another transaction has just registered some of them; the next pass matches them
            run(text(_DELETE_REGISTERED), span)
        for statement in (_ALIASES, _FACTORS, _RUNS):
            run(text(statement), span)
        to_publish = []
        for statement, kind in ((_UNTESTED, jobs.TEST_COFACTOR), (_SHARING, jobs.SHARE_FACTORS)):
            for composite_id in run(text(statement), span).scalars().all():
                to_publish += jobs.request(self._connection, kind, composite_id)
        return to_publish


def _span(first: int, last: int) -> dict[str, int]:
    return {"first": first, "last": last}
