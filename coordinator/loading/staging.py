"""The temporary tables of a load, and the set statements that move their rows into the real tables.

`Staging.copy` fills the temporary tables, and `Staging.match` matches each line with the composite that has its value
as its number; neither locks anything or changes a real table. `Staging.store` repeats these steps until no line is
left:

 1. of the lines without a match, insert the first one with each value as a new composite, with its target, aliases,
    factors and prior work;
 2. match the lines that are left.

A number that is the cofactor of another one is a composite of its own; both have one target. The steps are repeated
because a value may occur twice in the list, or may have been registered by somebody else in between.
coordinator/loading/upsert.py updates the composites that existed before, and the targets that several composites have.
"""

from collections.abc import Callable, Iterator

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql

from coordinator.base import jobs
from coordinator.base.many_rows import copy_into
from coordinator.base.unit_of_work import step
from coordinator.composites import targets
from coordinator.composites.eligibility import Eligibility
from coordinator.composites.registry import COFACTOR, NUMBER
from coordinator.loading.copy_rows import NODE_COLUMNS, NUMBER_COLUMNS, RUN_COLUMNS
from coordinator.loading.validation import ValidatedBatch
from models.tables import Target

# Rows that one statement inserts. It takes some seconds, far less than a request's statement timeout.
CHUNK = 50_000

_ELIGIBILITY = ", ".join(Eligibility._fields)
_DIALECT = postgresql.psycopg2.dialect()  # type: ignore[no-untyped-call]
_ELIGIBILITY_TYPES = ", ".join(
    f"{name} {Target.__table__.columns[name].type.compile(_DIALECT)}" for name in Eligibility._fields
)

# Rows take their ids from the real tables' sequences on arrival, so ids follow the order of the list.
# `plain`: the trial division and the given factors leave only primes, and nothing needs work of its own. All other
# numbers are inserted as the trial division leaves them; upsert.py then uses their `is_divisor` nodes. A plain number
# with given factors has had the value that the trial division left (`undivided_sha256`), too, as if the list had given
# the factors later: so it exchanges factors with the numbers that work on this value.
_TABLES = f"""
CREATE TEMP TABLE incoming (
    line bigint, id bigint DEFAULT nextval('composites_id_seq'), written text, written_sha256 bytea, value_sha256 bytea,
    cofactor text, cofactor_sha256 bytea, undivided_sha256 bytea, plain boolean, digit_length integer,
    is_prime boolean, finished boolean,
    priority integer, has_snfs_form boolean, snfs_difficulty integer, explicit_target double precision,
    target double precision, project text, t_level double precision, effort bytea,
    unfinished_sha256 bytea GENERATED ALWAYS AS
        (CASE WHEN NOT finished THEN coalesce(cofactor_sha256, value_sha256) END) STORED,
    {_ELIGIBILITY_TYPES}
);
CREATE TEMP TABLE incoming_nodes (
    id bigint DEFAULT nextval('factors_id_seq'), line bigint, place integer, parent_place integer, factor text,
    factor_sha256 bytea, digits integer, multiplicity integer, is_prime boolean, origin text, is_divisor boolean
);
CREATE TEMP TABLE incoming_runs (
    line bigint, b1 bigint, b2 numeric(22), parametrization smallint, curves bigint
);
CREATE TEMP TABLE line_matches (
    line bigint PRIMARY KEY, composite_id bigint, is_loaded boolean, is_planned boolean DEFAULT false
);
CREATE TEMP TABLE new_lines (line bigint PRIMARY KEY, id bigint);
CREATE TEMP TABLE changed_composites (composite_id bigint PRIMARY KEY);
CREATE TEMP TABLE new_targets (target_id bigint PRIMARY KEY, line bigint, has_prior_work boolean)
"""
# What `match` and `store` write; the other tables have the list.
_WRITTEN = "TRUNCATE line_matches, new_lines, changed_composites, new_targets"
_MATCH = """
INSERT INTO line_matches
SELECT i.line, c.id, false FROM incoming i JOIN composites c USING (value_sha256)
WHERE NOT EXISTS (SELECT FROM line_matches m WHERE m.line = i.line)
"""
_CHOOSE = """
INSERT INTO new_lines
SELECT DISTINCT ON (i.value_sha256) i.line, i.id FROM incoming i
WHERE NOT EXISTS (SELECT FROM line_matches m WHERE m.line = i.line)
ORDER BY i.value_sha256, i.line
"""
# In hash order, so that two loads cannot deadlock. The first line of each value determines a new target; upsert.py adds
# what the others give.
_TARGETS = f"""
WITH first_lines AS MATERIALIZED (
    SELECT DISTINCT ON (unfinished_sha256) line, unfinished_sha256, digit_length, is_prime,
           coalesce(priority, :priority, 0) AS listed_priority, target, t_level, coalesce(effort, '') AS vector,
           {_ELIGIBILITY}
    FROM new_lines JOIN incoming USING (line)
    WHERE line BETWEEN :first AND :last AND unfinished_sha256 IS NOT NULL ORDER BY unfinished_sha256, line
), added AS (
    INSERT INTO targets (
        value_sha256, digit_length, is_prime, priority, target_t_level, current_t_level, effort, {_ELIGIBILITY}
    )
    SELECT unfinished_sha256, digit_length, is_prime, listed_priority, target, t_level, vector, {_ELIGIBILITY}
    FROM first_lines
    ON CONFLICT (value_sha256) DO NOTHING
    RETURNING id, value_sha256
)
INSERT INTO new_targets
SELECT added.id, line, false FROM added JOIN first_lines ON unfinished_sha256 = added.value_sha256
"""
# The composites of a target keep it from being deleted; until they are inserted, these locks do. Only this transaction
# knows the new targets.
_LOCK_TARGETS = """
SELECT id FROM targets WHERE value_sha256 IN (
    SELECT unfinished_sha256 FROM new_lines JOIN incoming USING (line) WHERE line BETWEEN :first AND :last)
  AND id NOT IN (SELECT target_id FROM new_targets WHERE line BETWEEN :first AND :last)
ORDER BY id FOR KEY SHARE
"""
_COUNT_UNFINISHED = """
SELECT count(DISTINCT unfinished_sha256) FROM new_lines JOIN incoming USING (line) WHERE line BETWEEN :first AND :last
"""
_COMPOSITES = """
INSERT INTO composites (
    id, number, value_sha256, current_composite, digit_length, is_prime, is_fully_factored, target_id, priority,
    has_snfs_form, snfs_difficulty, target_t_level, explicit_target_t_level, current_t_level
)
SELECT i.id, written, i.value_sha256, coalesce(cofactor, written), i.digit_length, i.is_prime, finished, t.id,
       coalesce(i.priority, :priority, 0), coalesce(has_snfs_form, false), snfs_difficulty, target, explicit_target,
       i.t_level
FROM new_lines JOIN incoming i USING (line) LEFT JOIN targets t ON t.value_sha256 = unfinished_sha256
WHERE line BETWEEN :first AND :last ORDER BY line
ON CONFLICT (value_sha256) DO NOTHING
"""
_DELETE_REGISTERED = """
DELETE FROM new_lines
WHERE line BETWEEN :first AND :last AND NOT EXISTS (SELECT FROM composites c WHERE c.id = new_lines.id)
"""
# Their lines did not become composites. Other lines may have these targets: then upsert.py treats them as known ones.
_DROP_NEW_TARGETS = """
DELETE FROM new_targets WHERE line BETWEEN :first AND :last AND line NOT IN (SELECT line FROM new_lines)
RETURNING target_id
"""
# In hash order, like every insert into this table, so that two transactions cannot deadlock.
_ALIASES = f"""
INSERT INTO composite_aliases (value_sha256, composite_id, kind)
SELECT value, i.id, kind
FROM new_lines JOIN incoming i USING (line), LATERAL (VALUES
    (value_sha256, '{NUMBER}'), (written_sha256, '{NUMBER}'), (cofactor_sha256, '{COFACTOR}'),
    (nullif(undivided_sha256, value_sha256), '{COFACTOR}')) alias (value, kind)
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
LEFT JOIN incoming_nodes parent
    ON parent.line = node.line AND parent.place = node.parent_place AND NOT parent.is_divisor
WHERE new_lines.line BETWEEN :first AND :last AND NOT node.is_divisor
ORDER BY node.id
"""
# The prior work of a new target's first line, unless curves were run on its value before, or count for other targets as
# well; upsert.py stores the prior work of all other lines.
_PRIOR_WORK = """
WITH added AS (
    INSERT INTO worked_values (value_sha256, value)
    SELECT unfinished_sha256, coalesce(cofactor, written) FROM new_targets n JOIN incoming i USING (line)
    WHERE line BETWEEN :first AND :last AND EXISTS (SELECT FROM incoming_runs r WHERE r.line = i.line)
      AND NOT EXISTS (
        SELECT FROM composite_aliases a JOIN composites other ON other.id = a.composite_id
        WHERE a.value_sha256 = unfinished_sha256 AND other.target_id IS DISTINCT FROM n.target_id)
    ORDER BY unfinished_sha256
    ON CONFLICT DO NOTHING
    RETURNING id, value_sha256
), of_line AS (
    UPDATE new_targets n SET has_prior_work = true
    FROM added JOIN targets t USING (value_sha256) WHERE t.id = n.target_id
    RETURNING n.line, n.target_id, added.id AS value_id
), linked AS (
    INSERT INTO target_sources (target_id, value_id) SELECT target_id, value_id FROM of_line
)
INSERT INTO value_effort (value_id, b1, b2, parametrization, prior_curves)
SELECT value_id, b1, b2, parametrization, curves FROM of_line JOIN incoming_runs USING (line)
"""
_UNTESTED = """
SELECT i.id FROM new_lines JOIN incoming i USING (line) WHERE line BETWEEN :first AND :last AND is_prime IS NULL
ORDER BY i.id
"""
_MATCH_INSERTED = "INSERT INTO line_matches SELECT line, id, true FROM new_lines"
_INDEXES = """
CREATE INDEX ON incoming (unfinished_sha256);
CREATE INDEX ON incoming (line);
CREATE INDEX ON incoming_nodes (line);
CREATE INDEX ON incoming_runs (line);
ANALYZE incoming, incoming_nodes, incoming_runs
"""


class Staging:
    """The temporary tables of one load, in a session (unit_of_work.session)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        with step(connection):
            self._run_all(_TABLES)

    def copy(self, batch: ValidatedBatch) -> None:
        """Copy the valid numbers of a batch into the temporary tables."""
        tables = (
            ("incoming", NUMBER_COLUMNS, batch.numbers),
            ("incoming_nodes", NODE_COLUMNS, batch.nodes),
            ("incoming_runs", RUN_COLUMNS, batch.runs),
        )
        with step(self._connection):
            for table, columns, rows in tables:
                if rows:
                    copy_into(self._connection, table, columns, rows)

    def index(self) -> None:
        """Prepare the tables for the statements that follow, when all numbers are copied."""
        with step(self._connection):
            self._run_all(_INDEXES)

    def match(self) -> int:
        """Match the lines with registered composites, without locks; returns how many lines match.

        Forgets what a call of `store` that was rolled back had done.
        """
        with step(self._connection):
            self._connection.execute(text(_WRITTEN))
            return self._match()

    def _match(self) -> int:
        lines = self._connection.execute(text(_MATCH)).rowcount
        self._connection.execute(text("ANALYZE line_matches"))
        return lines

    def _run_all(self, statements: str) -> None:
        for statement in statements.split(";"):
            self._connection.execute(text(statement))

    def store(self, priority: int | None, progress: Callable[[int], None]) -> tuple[int, list[jobs.JobRef]]:
        """Insert the numbers that no line matches, until every line matches one.

        Returns how many numbers are new, and the jobs to publish. `progress` is called with the number of lines that
        each step finished. New numbers for which the list gives no priority get `priority`.
        """
        run = self._connection.execute
        new = 0
        to_publish: list[jobs.JobRef] = []
        while True:
            run(text(_CHOOSE))
            run(text("ANALYZE new_lines"))
            if not run(text("SELECT EXISTS (SELECT FROM new_lines)")).scalar_one():
                return new, to_publish
            for first, last in self._line_ranges():
                to_publish += self._insert(first, last, priority)
                progress(self._count_new(first, last))
            new += run(text(_MATCH_INSERTED)).rowcount
            run(text("TRUNCATE new_lines"))
            progress(self._match())

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
        unfinished = run(text(_COUNT_UNFINISHED), span).scalar_one()
        inserted = locked = 0
        while inserted + locked < unfinished:  # another unit of work may delete a target before it is locked
            inserted += run(text(_TARGETS), span | {"priority": priority}).rowcount
            locked = len(run(text(_LOCK_TARGETS), span).all())
        inserted = run(text(_COMPOSITES), span | {"priority": priority}).rowcount
        if inserted < expected:  # another transaction has just registered some of them; the next pass matches them
            run(text(_DELETE_REGISTERED), span)
            targets.delete_unused(self._connection, run(text(_DROP_NEW_TARGETS), span).scalars().all())
        for statement in (_ALIASES, _FACTORS, _PRIOR_WORK):
            run(text(statement), span)
        return jobs.request_all(self._connection, jobs.TEST_COFACTOR, run(text(_UNTESTED), span).scalars())


def _span(first: int, last: int) -> dict[str, int]:
    return {"first": first, "last": last}
