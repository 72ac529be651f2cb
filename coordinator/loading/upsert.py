"""Updates registered composites with the fields that a list gives, and the targets that new numbers share.

Everything that will change is found first, without locks, then locked (composites, roots before children, then by id;
then targets), then changed. Unchanged rows are not touched. A list that gives nothing new locks and changes nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import gmpy2
from gmpy2 import mpz
from sqlalchemy import Connection, select, text, update

from coordinator import effort
from coordinator.base import jobs
from coordinator.composites import families, lease_lifecycle, ledger, registry, target_changes, targets, values
from coordinator.composites.families import Divisor
from coordinator.composites.targets import IS_UNFINISHED
from coordinator.numbers.expressions import decimal, evaluate_number
from models.tables import Composite
from models.types import AnyRow

BATCH = 500

# The composites whose fields change, with the new values. For each field the last line that gives it counts.
_FIND_CHANGED_FIELDS = """
CREATE TEMP TABLE changed_fields ON COMMIT DROP AS
SELECT s.* FROM (
    SELECT m.composite_id,
           (array_agg(listed_priority ORDER BY line DESC) FILTER (WHERE listed_priority IS NOT NULL))[1] AS priority,
           (array_agg(i.has_snfs_form ORDER BY line DESC) FILTER (WHERE i.has_snfs_form IS NOT NULL))[1]
               AS has_snfs_form,
           (array_agg(i.snfs_difficulty ORDER BY line DESC) FILTER (WHERE i.snfs_difficulty IS NOT NULL))[1]
               AS snfs_difficulty,
           (array_agg(i.explicit_target ORDER BY line DESC) FILTER (WHERE i.explicit_target IS NOT NULL))[1]
               AS explicit_target
    FROM line_matches m JOIN incoming i USING (line),
         LATERAL (SELECT coalesce(i.priority, CAST(:priority AS integer)) AS listed_priority) AS g
    WHERE NOT m.is_loaded
      AND (listed_priority IS NOT NULL OR i.has_snfs_form IS NOT NULL OR i.snfs_difficulty IS NOT NULL
           OR i.explicit_target IS NOT NULL)
    GROUP BY m.composite_id) s
JOIN composites c ON c.id = s.composite_id
WHERE s.priority <> c.priority OR s.has_snfs_form <> c.has_snfs_form
   OR s.snfs_difficulty IS DISTINCT FROM coalesce(c.snfs_difficulty, s.snfs_difficulty - 1)
      AND s.snfs_difficulty IS NOT NULL
   OR s.explicit_target IS DISTINCT FROM coalesce(c.explicit_target_t_level, s.explicit_target - 1)
      AND s.explicit_target IS NOT NULL
"""
_RUNS_OF_LINE = """
SELECT array_agg((b1, b2, parametrization, curves) ORDER BY b1, b2, parametrization)
FROM incoming_runs r WHERE r.line = last.line
"""
_RUNS_OF_VALUE = """
SELECT array_agg((b1, b2, parametrization, prior_curves) ORDER BY b1, b2, parametrization)
FROM value_effort e WHERE e.value_id = v.id AND e.prior_curves > 0
"""
# The composites whose prior work changes, with the line that has it: for each value the last line counts. The prior
# work of a composite is unchanged if one of its values has exactly that, and the others have none; that of values which
# other numbers have had may be theirs. A migrated number of which only parts are left may have no target.
_FIND_CHANGED_PRIOR_WORK = f"""
CREATE TEMP TABLE changed_prior_work ON COMMIT DROP AS
SELECT last.composite_id, last.line, CAST(NULL AS bigint) AS value_id FROM (
    SELECT DISTINCT ON (CASE WHEN {IS_UNFINISHED} THEN t.value_sha256 ELSE c.value_sha256 END)
           c.id AS composite_id, m.line
    FROM line_matches m JOIN composites c ON c.id = m.composite_id LEFT JOIN targets t ON t.id = c.target_id
    WHERE EXISTS (SELECT FROM incoming_runs r WHERE r.line = m.line) AND NOT c.is_fully_factored
    ORDER BY CASE WHEN {IS_UNFINISHED} THEN t.value_sha256 ELSE c.value_sha256 END, m.line DESC) last
WHERE last.line NOT IN (SELECT line FROM new_targets WHERE has_prior_work) AND NOT (
    EXISTS (
        SELECT FROM composite_aliases a JOIN worked_values v USING (value_sha256)
        WHERE a.composite_id = last.composite_id AND ({_RUNS_OF_VALUE}) = ({_RUNS_OF_LINE}))
    AND NOT EXISTS (
        SELECT FROM composite_aliases a JOIN worked_values v USING (value_sha256)
        WHERE a.composite_id = last.composite_id AND ({_RUNS_OF_VALUE}) IS DISTINCT FROM ({_RUNS_OF_LINE})
          AND EXISTS (SELECT FROM value_effort e WHERE e.value_id = v.id AND e.prior_curves > 0)
          AND NOT EXISTS (
            SELECT FROM composite_aliases other
            WHERE other.value_sha256 = a.value_sha256 AND other.composite_id <> a.composite_id)))
"""
# The new numbers with a value that another number, which works on another part, has or had: they exchange factors. A
# number that the list factors completely has no target.
_FIND_FORMER_VALUES = """
CREATE TEMP TABLE former_values ON COMMIT DROP AS
SELECT DISTINCT c.id, c.target_id, had.value = i.unfinished_sha256 AS is_unfinished
FROM line_matches m JOIN composites c ON c.id = m.composite_id JOIN incoming i USING (line),
     LATERAL (VALUES (i.value_sha256), (i.cofactor_sha256), (i.undivided_sha256)) had (value)
JOIN composite_aliases a ON a.value_sha256 = had.value JOIN composites other ON other.id = a.composite_id
WHERE m.is_loaded AND (c.target_id IS NOT NULL OR i.undivided_sha256 IS NOT NULL)
  AND other.target_id IS DISTINCT FROM c.target_id AND other.id <> c.id
"""
# The targets of new numbers that other composites have as well, or for which curves may count that were run before.
_FIND_SHARED_TARGETS = """
CREATE TEMP TABLE shared_targets ON COMMIT DROP AS
WITH loaded AS MATERIALIZED (
    SELECT c.id, c.target_id, i.value_sha256, i.cofactor_sha256, i.undivided_sha256
    FROM line_matches m JOIN composites c ON c.id = m.composite_id JOIN incoming i USING (line)
    WHERE m.is_loaded AND c.target_id IS NOT NULL
), with_former_work AS (
    SELECT l.target_id
    FROM loaded l, LATERAL (VALUES (l.value_sha256), (l.cofactor_sha256), (l.undivided_sha256)) had (value)
    JOIN worked_values v ON v.value_sha256 = had.value
    WHERE NOT EXISTS (SELECT FROM target_sources s WHERE s.target_id = l.target_id AND s.value_id = v.id)
    UNION
    SELECT target_id FROM former_values WHERE is_unfinished
)
SELECT target_id, min(id) AS composite_id, target_id IN (SELECT target_id FROM with_former_work) AS has_former_work
FROM loaded GROUP BY target_id
HAVING count(*) > 1 OR target_id NOT IN (SELECT target_id FROM new_targets)
    OR target_id IN (SELECT target_id FROM with_former_work)
"""
# New numbers with parts that need work of their own, and registered ones for which the list has a factor without a row.
_FIND_LINES_TO_DIVIDE = """
CREATE TEMP TABLE lines_to_divide ON COMMIT DROP AS
SELECT m.composite_id AS root_id, m.composite_id, m.line, m.is_loaded
FROM line_matches m JOIN incoming i USING (line) WHERE m.is_loaded AND NOT i.plain
UNION ALL
SELECT coalesce(c.parent_id, c.id), m.composite_id, m.line, m.is_loaded
FROM line_matches m JOIN composites c ON c.id = m.composite_id
WHERE NOT m.is_loaded AND EXISTS (
    SELECT FROM incoming_nodes node
    WHERE node.line = m.line AND NOT EXISTS (
        SELECT FROM factors f WHERE f.composite_id = m.composite_id AND f.factor_sha256 = node.factor_sha256))
"""
# The families that share work with those to be divided (as in registry.lock_group).
_FIND_DIVIDED_FAMILIES = """
CREATE TEMP TABLE divided_families ON COMMIT DROP AS
WITH family AS (
    SELECT c.id, c.target_id FROM composites c JOIN (SELECT DISTINCT root_id FROM lines_to_divide) r ON c.id = r.root_id
    UNION
    SELECT c.id, c.target_id FROM composites c
    JOIN (SELECT DISTINCT root_id FROM lines_to_divide) r ON c.parent_id = r.root_id
), sharing AS (
    SELECT id FROM family
    UNION SELECT c.id FROM composites c JOIN family USING (target_id)
    UNION SELECT f.composite_id FROM factors f JOIN family ON f.child_composite_id = family.id
    UNION SELECT f.child_composite_id FROM factors f JOIN family ON f.composite_id = family.id
    WHERE f.child_composite_id IS NOT NULL
)
SELECT DISTINCT coalesce(c.parent_id, c.id) AS root_id FROM composites c JOIN sharing USING (id)
"""
# The targets that change: those of the changed composites, those for which the prior work counts that they had before,
# and those that may gain it.
_FIND_CHANGED_TARGETS = """
CREATE TEMP TABLE changed_targets ON COMMIT DROP AS
WITH had AS (
    SELECT a.composite_id, a.value_sha256 FROM changed_prior_work w JOIN composite_aliases a USING (composite_id)
), roots AS (
    SELECT DISTINCT coalesce(c.parent_id, c.id) AS id FROM had JOIN composite_aliases a USING (value_sha256)
    JOIN composites c ON c.id = a.composite_id
)
SELECT target_id FROM shared_targets
UNION SELECT c.target_id FROM composites c JOIN changed_fields s ON s.composite_id = c.id
UNION SELECT s.target_id FROM had JOIN worked_values v USING (value_sha256) JOIN target_sources s ON s.value_id = v.id
UNION SELECT c.target_id FROM composites c JOIN roots USING (id)
UNION SELECT c.target_id FROM composites c JOIN roots ON c.parent_id = roots.id
"""
_LOCK = """
SELECT c.id FROM composites c
WHERE c.id IN (
    SELECT composite_id FROM changed_fields UNION SELECT composite_id FROM changed_prior_work
    UNION SELECT changed.id FROM composites changed JOIN changed_targets USING (target_id)
    UNION SELECT root_id FROM divided_families
    UNION SELECT child.id FROM composites child JOIN divided_families ON child.parent_id = divided_families.root_id)
ORDER BY c.parent_id IS NOT NULL, c.id
FOR NO KEY UPDATE OF c
"""
_LOCK_TARGETS = """
SELECT t.id FROM targets t
WHERE t.id IN (
    SELECT target_id FROM changed_targets
    UNION SELECT c.target_id FROM composites c WHERE c.id IN (
        SELECT composite_id FROM changed_fields UNION SELECT composite_id FROM changed_prior_work
        UNION SELECT root_id FROM divided_families)
    UNION SELECT c.target_id FROM composites c JOIN divided_families ON c.parent_id = divided_families.root_id)
ORDER BY t.id
FOR NO KEY UPDATE
"""
# Targets that were finished when new numbers came to have them: the numbers are divided by a job.
_FIND_FINISHED = f"""
SELECT c.id, c.target_id, c.is_prime FROM shared_targets JOIN targets t ON t.id = target_id AND t.is_finished
JOIN composites c USING (target_id) JOIN line_matches m ON m.composite_id = c.id AND m.is_loaded
WHERE {IS_UNFINISHED} ORDER BY c.id
"""
# One of the numbers with an untested cofactor may tell that it is composite.
_KNOW_COMPOSITE = (
    "UPDATE targets t SET is_prime = false FROM shared_targets"
    " WHERE t.id = target_id AND t.is_prime IS NULL AND EXISTS"
    f" (SELECT FROM composites c WHERE c.target_id = t.id AND c.is_prime IS FALSE AND {IS_UNFINISHED})",
    "UPDATE composites c SET is_prime = false FROM shared_targets JOIN targets t ON t.id = target_id"
    f" WHERE c.target_id = t.id AND t.is_prime IS FALSE AND c.is_prime IS NULL AND {IS_UNFINISHED}",
)
_TAKE_BACK_PRIOR_WORK = """
UPDATE value_effort e SET prior_curves = 0
FROM worked_values v JOIN composite_aliases a USING (value_sha256) JOIN changed_prior_work USING (composite_id)
WHERE v.id = e.value_id AND e.prior_curves > 0
RETURNING e.value_id
"""
_SET_VALUES = """
UPDATE changed_prior_work w SET value_id = new.value_id
FROM unnest(CAST(:composites AS bigint[]), CAST(:values AS bigint[])) new (composite_id, value_id)
WHERE w.composite_id = new.composite_id
"""
_ADD_PRIOR_WORK = """
INSERT INTO value_effort (value_id, b1, b2, parametrization, prior_curves)
SELECT DISTINCT ON (w.value_id, b1, b2, parametrization) w.value_id, b1, b2, parametrization, curves
FROM changed_prior_work w JOIN incoming_runs USING (line) WHERE w.value_id IS NOT NULL
ORDER BY w.value_id, b1, b2, parametrization, line DESC
ON CONFLICT (value_id, b1, b2, parametrization) DO UPDATE SET prior_curves = excluded.prior_curves
"""
# Curves on a value count for every number that has had it.
_LINK_NUMBERS = """
INSERT INTO target_sources (target_id, value_id)
SELECT DISTINCT c.target_id, v.id FROM worked_values v JOIN composite_aliases a USING (value_sha256)
JOIN composites c ON c.id = a.composite_id
WHERE v.id = ANY(:values) AND c.target_id IS NOT NULL
ORDER BY 1, 2
ON CONFLICT DO NOTHING
"""
# The other members of their families, which work on parts of these values.
_FIND_PARTS = f"""
WITH had AS (
    SELECT v.id AS value_id, v.value, coalesce(c.parent_id, c.id) AS root_id
    FROM worked_values v JOIN composite_aliases a USING (value_sha256) JOIN composites c ON c.id = a.composite_id
    WHERE v.id = ANY(:values)
)
SELECT had.value_id, had.value, c.target_id, c.current_composite FROM had
JOIN composites c ON c.id = had.root_id OR c.parent_id = had.root_id
WHERE c.target_id IS NOT NULL AND {IS_UNFINISHED} AND NOT EXISTS (
    SELECT FROM target_sources s WHERE s.target_id = c.target_id AND s.value_id = had.value_id)
"""
# A new number is not a changed one, unless a later line of the list has it, too.
_NOTE_CHANGED = """
INSERT INTO changed_composites
SELECT composite_id FROM {} WHERE composite_id IN (SELECT composite_id FROM line_matches WHERE NOT is_loaded)
ON CONFLICT DO NOTHING
"""
_INSERT_PROJECTS = """
INSERT INTO projects (name)
SELECT DISTINCT coalesce(i.project, CAST(:project AS text)) FROM incoming i
WHERE coalesce(i.project, CAST(:project AS text)) IS NOT NULL
EXCEPT SELECT name FROM projects ORDER BY 1
ON CONFLICT DO NOTHING
"""
_INSERT_MEMBERSHIPS = """
WITH joined AS (
    INSERT INTO project_composites (project_id, composite_id)
    SELECT DISTINCT p.id, m.composite_id FROM line_matches m JOIN incoming i USING (line)
    JOIN projects p ON p.name = coalesce(i.project, CAST(:project AS text))
    ORDER BY 1, 2
    ON CONFLICT DO NOTHING
    RETURNING composite_id)
INSERT INTO changed_composites SELECT DISTINCT composite_id FROM joined
WHERE composite_id NOT IN (SELECT composite_id FROM line_matches WHERE is_loaded)
ON CONFLICT DO NOTHING
"""
# The new numbers that have the unfinished part of an older number, and the oldest one.
_SHARED_NUMBERS = f"""
FROM line_matches m JOIN composites c ON c.id = m.composite_id JOIN targets t ON t.id = c.target_id
CROSS JOIN LATERAL (
    SELECT o.number, o.value_sha256 FROM composites o
    WHERE o.target_id = t.id AND o.id < c.id AND {IS_UNFINISHED.replace("c.", "o.")} ORDER BY o.id LIMIT 1
) other
WHERE m.is_loaded AND {IS_UNFINISHED}
  AND (c.target_id IN (SELECT target_id FROM shared_targets) OR m.line IN (SELECT line FROM lines_to_divide))
"""


def update_known_numbers(
    connection: Connection, *, priority: int | None, project: str | None, max_digits: int
) -> tuple[int, list[jobs.JobRef]]:
    """Update the composites that the staged list matched; returns how many changed, and the jobs to publish.

    `priority` and `project` apply to numbers for which the list gives none. This also divides the new numbers that have
    large composite parts.
    """
    run = connection.execute
    run(text("ANALYZE line_matches, new_targets"))
    run(text(_FIND_CHANGED_FIELDS), {"priority": priority})
    for statement in (_FIND_CHANGED_PRIOR_WORK, _FIND_LINES_TO_DIVIDE, _FIND_FORMER_VALUES, _FIND_SHARED_TARGETS):
        run(text(statement))
    run(text("ANALYZE changed_fields, changed_prior_work, lines_to_divide, shared_targets"))
    run(text(_FIND_DIVIDED_FAMILIES))
    run(text(_FIND_CHANGED_TARGETS))
    run(text("ANALYZE divided_families, changed_targets"))
    run(text(_LOCK)).close()
    run(text(_LOCK_TARGETS)).close()
    to_publish = _share_targets(connection)
    _set_fields(connection)
    _set_prior_work(connection, max_digits)
    to_publish += _divide(connection, max_digits)
    run(text(_INSERT_PROJECTS), {"project": project})
    run(text(_INSERT_MEMBERSHIPS), {"project": project})
    for table in ("changed_fields", "changed_prior_work"):
        run(text(_NOTE_CHANGED.format(table)))
    return run(text("SELECT count(*) FROM changed_composites")).scalar_one(), to_publish


def find_shared(connection: Connection, most: int) -> tuple[int, list[AnyRow]]:
    """Return (how many new numbers share their unfinished part with an older one, the first `most` in list order).

    The rows have: line, number, whether the number is the unfinished part itself (`is_value`); the oldest number with
    that part (`other`), and whether that one is the part itself (`other_is_value`).
    """
    count = connection.execute(text(f"SELECT count(*) {_SHARED_NUMBERS}")).scalar_one()
    columns = "m.line, c.number, c.value_sha256 = t.value_sha256 AS is_value, other.number AS other"
    shown = f"SELECT {columns}, other.value_sha256 = t.value_sha256 AS other_is_value {_SHARED_NUMBERS}"
    if not count:
        return 0, []
    return count, list(connection.execute(text(f"{shown} ORDER BY m.line LIMIT :most"), {"most": most}))


def _share_targets(connection: Connection) -> list[jobs.JobRef]:
    """Bring the targets up to date that new numbers share with others; returns the jobs to publish."""
    divided = set(connection.execute(text("SELECT id FROM former_values")).scalars())
    for row in connection.execute(text(_FIND_FINISHED)).all():
        target_changes.set_open(connection, row.target_id, row.is_prime)
        divided.add(row.id)
    to_publish = [job for one in sorted(divided) for job in jobs.request(connection, jobs.SHARE_FACTORS, one)]
    for statement in _KNOW_COMPOSITE:
        connection.execute(text(statement))
    rows = connection.execute(text("SELECT * FROM shared_targets ORDER BY target_id")).all()
    for row in rows:
        if row.has_former_work:
            value = select(Composite.current_composite).where(Composite.id == row.composite_id)
            cofactor = mpz(connection.execute(value).scalar_one())
            target_changes.add_sources(connection, row.target_id, cofactor, of_composites=[row.composite_id])
    for ids in _batches([row.target_id for row in rows]):
        targets.restate(connection, ids)
        ledger.rebuild(connection, ids)
    return to_publish


def _set_fields(connection: Connection) -> None:
    update_fields = text(
        "UPDATE composites c SET priority = coalesce(s.priority, c.priority),"
        " has_snfs_form = coalesce(s.has_snfs_form, c.has_snfs_form),"
        " snfs_difficulty = coalesce(s.snfs_difficulty, c.snfs_difficulty),"
        " explicit_target_t_level = coalesce(s.explicit_target, c.explicit_target_t_level)"
        " FROM changed_fields s WHERE c.id = s.composite_id"
    )
    connection.execute(update_fields)
    changed = connection.execute(text("SELECT composite_id FROM changed_fields")).scalars().all()
    for ids in _batches(changed):
        target_ids = targets.ids_of(connection, ids)
        targets.restate(connection, target_ids)
        lease_lifecycle.refresh_eligibility(connection, target_ids)
        _set_finished_targets(connection, ids)


def _set_finished_targets(connection: Connection, ids: list[int]) -> None:
    """Store the target t-level of numbers that have no target, because they were finished when they were loaded."""
    columns = (Composite.id, Composite.digit_length, Composite.snfs_difficulty, Composite.explicit_target_t_level)
    chosen = select(*columns, Composite.target_t_level).where(Composite.id.in_(ids), Composite.target_id.is_(None))
    rows = connection.execute(chosen).all()
    for row in rows:
        level = effort.target_t_level(row.digit_length, row.snfs_difficulty, row.explicit_target_t_level)
        if level != row.target_t_level:
            connection.execute(update(Composite).where(Composite.id == row.id).values(target_t_level=level))


def _set_prior_work(connection: Connection, max_digits: int) -> None:
    """Replace the prior work of composites by that of the list, so that loading a list twice adds nothing."""
    run = connection.execute
    changed_values = set(run(text(_TAKE_BACK_PRIOR_WORK)).scalars())
    composites = run(text("SELECT composite_id FROM changed_prior_work ORDER BY composite_id")).scalars().all()
    for ids in _batches(composites):
        value_ids = _find_values(connection, ids, max_digits)
        pairs = {"composites": list(value_ids), "values": list(value_ids.values())}
        run(text(_SET_VALUES), pairs)
        run(text(_LINK_NUMBERS), pairs)
        parts = [
            {"target_id": row.target_id, "value_id": row.value_id}
            for row in run(text(_FIND_PARTS), pairs)
            if gmpy2.is_divisible(mpz(row.value), mpz(row.current_composite))
        ]
        target_changes.link(connection, parts)
        changed_values.update(value_ids.values())
    run(text(_ADD_PRIOR_WORK))
    for ids in _batches(targets.of_values(connection, changed_values)):
        ledger.rebuild(connection, ids)


def _find_values(connection: Connection, composite_ids: list[int], max_digits: int) -> dict[int, int]:
    """Return, by locked composite, the id of the value that its prior work counts for.

    That is its cofactor, or the number itself if only parts of it are left to work on.
    """
    columns = (Composite.id, Composite.number, Composite.current_composite, Composite.is_prime)
    texts = {}
    for row in connection.execute(select(*columns).where(Composite.id.in_(composite_ids))):
        has_cofactor = row.current_composite != "1" and row.is_prime is not True
        texts[row.id] = row.current_composite if has_cofactor else decimal(evaluate_number(row.number, max_digits))
    hashes = {composite_id: values.sha256(value) for composite_id, value in texts.items()}
    found = values.find_or_add_worked(connection, {hashes[composite_id]: texts[composite_id] for composite_id in texts})
    return {composite_id: found[value] for composite_id, value in hashes.items()}


def _divide(connection: Connection, max_digits: int) -> list[jobs.JobRef]:
    """Use the list's divisors on their factor families; put composites that gain a factor into `changed_composites`."""
    rows = connection.execute(text("SELECT * FROM lines_to_divide ORDER BY root_id, line")).all()
    # A new number was inserted with the other nodes of its line as its factors.
    of_line = text(
        "SELECT factor, origin FROM incoming_nodes WHERE line = :line AND (is_divisor OR NOT :is_loaded)"
        " ORDER BY is_divisor, place"
    )
    to_publish: list[jobs.JobRef] = []
    for row in rows:
        nodes = connection.execute(of_line, {"line": row.line, "is_loaded": row.is_loaded}).all()
        divisors = [Divisor(mpz(node.factor), node.origin) for node in nodes]
        ids = [member.id for member in registry.lock_group(connection, row.root_id)]
        if not ids:  # deleted meanwhile
            continue
        members = families.load_family(connection, ids, max_digits)
        change = families.use_divisors(connection, members, divisors, found_on=row.composite_id)
        to_publish += change.to_publish
        if change.new and not row.is_loaded:
            connection.execute(
                text("INSERT INTO changed_composites VALUES (:id) ON CONFLICT DO NOTHING"), {"id": row.composite_id}
            )
    return to_publish


def _batches(ids: Sequence[int]) -> Iterator[list[int]]:
    rest: Iterable[int] = iter(ids)
    while batch := list(islice(rest, BATCH)):
        yield batch
