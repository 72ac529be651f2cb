"""Updates registered composites with the fields that a list gives, and the targets that new numbers share.

 1. `plan` finds, without locks, everything that will change for the numbers that were registered before, and computes
    the effort that their targets will have (coordinator/composites/planned_effort.py).
 2. `lock_known_numbers` locks it: composites, roots before children, then by id; then targets.
 3. Now the new numbers are inserted (coordinator/loading/staging.py). A result that divides one of the known numbers
    may register one of the new ones: it would wait for the load, and the load for it, were the order another.
 4. `update_known_numbers` finds and locks what the new numbers share with others, and changes everything.

Unchanged rows are not touched. A list that gives nothing new locks and changes nothing. The number of statements does
not depend on the number of known numbers; only numbers that have to be divided by a factor of the list take statements
of their own.
"""

from collections.abc import Iterable
from typing import Any

import gmpy2
from gmpy2 import mpz
from sqlalchemy import Connection, select, text

from coordinator.base import jobs
from coordinator.base.unit_of_work import step
from coordinator.composites import (
    families,
    lease_lifecycle,
    ledger,
    planned_effort,
    registry,
    target_changes,
    targets,
)
from coordinator.composites.families import Divisor
from coordinator.composites.targets import IS_UNFINISHED
from coordinator.numbers.expressions import decimal, evaluate_stored
from models.tables import Composite
from models.types import AnyRow

# The tables of what will change. `is_planned`: it was found before anything was locked.
_TABLES = {
    "met_targets": "target_id bigint PRIMARY KEY",
    "changed_fields": (
        "composite_id bigint PRIMARY KEY, is_planned boolean, priority integer, has_snfs_form boolean,"
        " snfs_difficulty integer, explicit_target double precision"
    ),
    "changed_prior_work": (
        "composite_id bigint PRIMARY KEY, is_planned boolean, line bigint, number text, value_sha256 bytea,"
        " planned_sha256 bytea, value_id bigint"
    ),
    "lines_to_divide": "root_id bigint, composite_id bigint, line bigint, is_loaded boolean, is_planned boolean",
    "divided_families": "root_id bigint, is_planned boolean",
    "changed_targets": "target_id bigint, is_planned boolean",
    "former_values": "id bigint, target_id bigint, is_unfinished boolean",
    "shared_targets": "target_id bigint, composite_id bigint, has_former_work boolean",
}
# The targets of registered numbers that new numbers will have, too. What the list gives for the registered numbers
# counts together with what it gives for the new ones, so it is found together with that.
_FIND_MET_TARGETS = """
INSERT INTO met_targets
SELECT DISTINCT t.id FROM incoming i JOIN targets t ON t.value_sha256 = i.unfinished_sha256
WHERE NOT EXISTS (SELECT FROM line_matches m WHERE m.line = i.line)
"""
_SET_PLANNED = """
UPDATE line_matches m SET is_planned = true FROM composites c
WHERE c.id = m.composite_id AND NOT EXISTS (SELECT FROM met_targets met WHERE met.target_id = c.target_id)
"""
_FORGET_DELETED = """
DELETE FROM line_matches m WHERE NOT EXISTS (SELECT FROM composites c WHERE c.id = m.composite_id)
"""
# The composites whose fields change, with the new values. For each field the last line that gives it counts.
_FIND_CHANGED_FIELDS = """
INSERT INTO changed_fields
SELECT s.* FROM (
    SELECT m.composite_id, bool_and(m.is_planned) AS is_planned,
           (array_agg(listed_priority ORDER BY line DESC) FILTER (WHERE listed_priority IS NOT NULL))[1] AS priority,
           (array_agg(i.has_snfs_form ORDER BY line DESC) FILTER (WHERE i.has_snfs_form IS NOT NULL))[1]
               AS has_snfs_form,
           (array_agg(i.snfs_difficulty ORDER BY line DESC) FILTER (WHERE i.snfs_difficulty IS NOT NULL))[1]
               AS snfs_difficulty,
           (array_agg(i.explicit_target ORDER BY line DESC) FILTER (WHERE i.explicit_target IS NOT NULL))[1]
               AS explicit_target
    FROM line_matches m JOIN incoming i USING (line),
         LATERAL (SELECT coalesce(i.priority, CAST(:priority AS integer)) AS listed_priority) AS g
    WHERE NOT m.is_loaded AND m.is_planned = :planned
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
INSERT INTO changed_prior_work
SELECT last.composite_id, :planned, last.line FROM (
    SELECT DISTINCT ON (CASE WHEN {IS_UNFINISHED} THEN t.value_sha256 ELSE c.value_sha256 END)
           c.id AS composite_id, m.line
    FROM line_matches m JOIN composites c ON c.id = m.composite_id LEFT JOIN targets t ON t.id = c.target_id
    WHERE EXISTS (SELECT FROM incoming_runs r WHERE r.line = m.line) AND NOT c.is_fully_factored
      AND m.is_planned = :planned
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
INSERT INTO former_values
SELECT DISTINCT c.id, c.target_id, had.value = i.unfinished_sha256 AS is_unfinished
FROM line_matches m JOIN composites c ON c.id = m.composite_id JOIN incoming i USING (line),
     LATERAL (VALUES (i.value_sha256), (i.cofactor_sha256), (i.undivided_sha256)) had (value)
JOIN composite_aliases a ON a.value_sha256 = had.value JOIN composites other ON other.id = a.composite_id
WHERE m.is_loaded AND (c.target_id IS NOT NULL OR i.undivided_sha256 IS NOT NULL)
  AND other.target_id IS DISTINCT FROM c.target_id AND other.id <> c.id
"""
# The targets of new numbers that other composites have as well, or for which curves may count that were run before.
_FIND_SHARED_TARGETS = """
INSERT INTO shared_targets
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
INSERT INTO lines_to_divide
SELECT m.composite_id AS root_id, m.composite_id, m.line, m.is_loaded, m.is_planned
FROM line_matches m JOIN incoming i USING (line) WHERE m.is_loaded AND NOT i.plain AND m.is_planned = :planned
UNION ALL
SELECT coalesce(c.parent_id, c.id), m.composite_id, m.line, m.is_loaded, m.is_planned
FROM line_matches m JOIN composites c ON c.id = m.composite_id
WHERE NOT m.is_loaded AND m.is_planned = :planned AND EXISTS (
    SELECT FROM incoming_nodes node
    WHERE node.line = m.line AND NOT EXISTS (
        SELECT FROM factors f WHERE f.composite_id = m.composite_id AND f.factor_sha256 = node.factor_sha256))
"""
# The families that share work with those to be divided (as in registry.lock_group).
_FIND_DIVIDED_FAMILIES = """
INSERT INTO divided_families
WITH roots AS (
    SELECT DISTINCT root_id FROM lines_to_divide WHERE is_planned = :planned
), family AS (
    SELECT c.id, c.target_id FROM composites c JOIN roots r ON c.id = r.root_id
    UNION
    SELECT c.id, c.target_id FROM composites c JOIN roots r ON c.parent_id = r.root_id
), sharing AS (
    SELECT id FROM family
    UNION SELECT c.id FROM composites c JOIN family USING (target_id)
    UNION SELECT f.composite_id FROM factors f JOIN family ON f.child_composite_id = family.id
    UNION SELECT f.child_composite_id FROM factors f JOIN family ON f.composite_id = family.id
    WHERE f.child_composite_id IS NOT NULL
)
SELECT DISTINCT coalesce(c.parent_id, c.id), :planned FROM composites c JOIN sharing USING (id)
"""
_TAKE_OVER = """
UPDATE composites SET registered_by = NULL
WHERE registered_by IS NOT NULL AND coalesce(parent_id, id) IN (
    SELECT coalesce(c.parent_id, c.id) FROM line_matches m JOIN composites c ON c.id = m.composite_id
    WHERE NOT m.is_loaded AND c.registered_by IS NOT NULL)
RETURNING id
"""
# The targets that change: those of the changed composites, those for which the prior work counts that they had before,
# and those that may gain it.
_FIND_CHANGED_TARGETS = """
INSERT INTO changed_targets
WITH had AS (
    SELECT a.composite_id, a.value_sha256 FROM changed_prior_work w JOIN composite_aliases a USING (composite_id)
    WHERE w.is_planned = :planned
), roots AS (
    SELECT DISTINCT coalesce(c.parent_id, c.id) AS id FROM had JOIN composite_aliases a USING (value_sha256)
    JOIN composites c ON c.id = a.composite_id
)
SELECT target_id, :planned FROM (
SELECT target_id FROM shared_targets
UNION SELECT target_id FROM met_targets WHERE :planned
UNION SELECT c.target_id FROM composites c JOIN changed_fields s ON s.composite_id = c.id AND s.is_planned = :planned
UNION SELECT s.target_id FROM had JOIN worked_values v USING (value_sha256) JOIN target_sources s ON s.value_id = v.id
UNION SELECT c.target_id FROM composites c JOIN roots USING (id)
UNION SELECT c.target_id FROM composites c JOIN roots ON c.parent_id = roots.id
) changing WHERE target_id IS NOT NULL
"""
_LOCK = """
SELECT c.id FROM composites c
WHERE c.id IN (
    SELECT composite_id FROM changed_fields WHERE is_planned = :planned
    UNION SELECT composite_id FROM changed_prior_work WHERE is_planned = :planned
    UNION SELECT changed.id FROM composites changed JOIN changed_targets t USING (target_id)
        WHERE t.is_planned = :planned
    UNION SELECT root_id FROM divided_families WHERE is_planned = :planned
    UNION SELECT child.id FROM composites child JOIN divided_families f ON child.parent_id = f.root_id
        WHERE f.is_planned = :planned)
ORDER BY c.parent_id IS NOT NULL, c.id
FOR NO KEY UPDATE OF c
"""
_LOCK_TARGETS = """
SELECT t.id FROM targets t
WHERE t.id IN (
    SELECT target_id FROM changed_targets WHERE is_planned = :planned
    UNION SELECT c.target_id FROM composites c WHERE c.id IN (
        SELECT composite_id FROM changed_fields WHERE is_planned = :planned
        UNION SELECT composite_id FROM changed_prior_work WHERE is_planned = :planned
        UNION SELECT root_id FROM divided_families WHERE is_planned = :planned)
    UNION SELECT c.target_id FROM composites c JOIN divided_families f ON c.parent_id = f.root_id
        WHERE f.is_planned = :planned)
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
# The value that the prior work of a composite counts for: its cofactor, or the number itself if only parts of it are
# left to work on. `number` is the latter in decimal.
_HAS_COFACTOR = "c.current_composite <> '1' AND c.is_prime IS NOT TRUE"
_SET_VALUES = f"""
UPDATE changed_prior_work w SET value_sha256 =
    CASE WHEN {_HAS_COFACTOR} THEN sha256(convert_to(c.current_composite, 'UTF8')) ELSE c.value_sha256 END
FROM composites c WHERE c.id = w.composite_id
"""
_WITHOUT_COFACTOR = f"""
SELECT c.id, c.number FROM composites c JOIN changed_prior_work w ON c.id = w.composite_id
WHERE w.number IS NULL AND NOT ({_HAS_COFACTOR})
"""
_SET_NUMBERS = """
UPDATE changed_prior_work w SET number = new.number
FROM unnest(CAST(:ids AS bigint[]), CAST(:numbers AS text[])) new (id, number) WHERE new.id = w.composite_id
"""
# In hash order, so that no two units of work deadlock.
_ADD_VALUES = f"""
INSERT INTO worked_values (value_sha256, value)
SELECT DISTINCT ON (w.value_sha256) w.value_sha256, CASE WHEN {_HAS_COFACTOR} THEN c.current_composite ELSE w.number END
FROM changed_prior_work w JOIN composites c ON c.id = w.composite_id ORDER BY w.value_sha256
ON CONFLICT DO NOTHING
"""
_SET_VALUE_IDS = (
    "UPDATE changed_prior_work w SET value_id = v.id FROM worked_values v WHERE v.value_sha256 = w.value_sha256"
)
_ADD_PRIOR_WORK = """
INSERT INTO value_effort (value_id, b1, b2, parametrization, prior_curves)
SELECT DISTINCT ON (w.value_id, b1, b2, parametrization) w.value_id, b1, b2, parametrization, curves
FROM changed_prior_work w JOIN incoming_runs USING (line) WHERE w.value_id IS NOT NULL
ORDER BY w.value_id, b1, b2, parametrization, line DESC
ON CONFLICT (value_id, b1, b2, parametrization) DO UPDATE SET prior_curves = excluded.prior_curves
"""
_NEW_VALUES = "SELECT DISTINCT value_id FROM changed_prior_work WHERE value_id IS NOT NULL"
# Curves on a value count for every number that has had it.
_LINK_NUMBERS = """
INSERT INTO target_sources (target_id, value_id)
SELECT DISTINCT c.target_id, w.value_id FROM changed_prior_work w JOIN composite_aliases a USING (value_sha256)
JOIN composites c ON c.id = a.composite_id
WHERE w.value_id IS NOT NULL AND c.target_id IS NOT NULL
ORDER BY 1, 2
ON CONFLICT DO NOTHING
"""
# The other members of their families, which work on parts of these values.
_PARTS = f"""
FROM (
    SELECT DISTINCT w.value_sha256, coalesce(c.parent_id, c.id) AS root_id
    FROM changed_prior_work w JOIN composite_aliases a USING (value_sha256) JOIN composites c ON c.id = a.composite_id
) had
JOIN composites c ON c.id = had.root_id OR c.parent_id = had.root_id
WHERE c.target_id IS NOT NULL AND {IS_UNFINISHED} AND NOT EXISTS (
    SELECT FROM target_sources s JOIN worked_values v ON v.id = s.value_id
    WHERE s.target_id = c.target_id AND v.value_sha256 = had.value_sha256)
"""
_FIND_PARTS = f"""
SELECT value.id AS value_id, value.value, part.target_id, part.current_composite
FROM (SELECT had.value_sha256, c.target_id, c.current_composite {_PARTS}) part
JOIN worked_values value USING (value_sha256)
"""
# What `planned_effort` has to know about the prior work that will change.
_PLAN_PRIOR_WORK = (
    """
INSERT INTO planned_sums
SELECT DISTINCT v.value_sha256, e.b1, e.b2, e.parametrization, -e.prior_curves
FROM changed_prior_work w JOIN composite_aliases a USING (composite_id)
JOIN worked_values v ON v.value_sha256 = a.value_sha256 JOIN value_effort e ON e.value_id = v.id
WHERE e.prior_curves > 0
""",
    """
INSERT INTO planned_sums
SELECT DISTINCT ON (w.value_sha256, b1, b2, parametrization) w.value_sha256, b1, b2, parametrization, curves
FROM changed_prior_work w JOIN incoming_runs USING (line)
ORDER BY w.value_sha256, b1, b2, parametrization, line DESC
""",
    """
INSERT INTO planned_sources
SELECT DISTINCT c.target_id, w.value_sha256
FROM changed_prior_work w JOIN composite_aliases a USING (value_sha256) JOIN composites c ON c.id = a.composite_id
WHERE c.target_id IS NOT NULL
""",
    "UPDATE changed_prior_work SET planned_sha256 = value_sha256",
)
# The target t-levels that follow from the changed fields.
_PLAN_LEVELS = f"""
INSERT INTO planned_levels
SELECT c.target_id, max(coalesce(s.priority, c.priority)), max({
    targets.LISTED_TARGET.format(
        explicit="s.explicit_target, c.explicit_target_t_level", snfs="s.snfs_difficulty, c.snfs_difficulty"
    )
})
FROM composites c JOIN targets t ON t.id = c.target_id LEFT JOIN changed_fields s ON s.composite_id = c.id
WHERE c.target_id IN (
    SELECT o.target_id FROM composites o JOIN changed_fields changed ON changed.composite_id = o.id
    WHERE changed.explicit_target IS NOT NULL OR changed.snfs_difficulty IS NOT NULL)
GROUP BY c.target_id
"""
_PLANNED_TARGETS = f"""
SELECT target_id FROM planned_levels
UNION SELECT target_id FROM planned_sources
UNION SELECT s.target_id FROM planned_sums JOIN worked_values v USING (value_sha256)
JOIN target_sources s ON s.value_id = v.id
EXCEPT SELECT c.target_id {_PARTS} AND NOT EXISTS (
    SELECT FROM planned_sources p WHERE p.target_id = c.target_id AND p.value_sha256 = had.value_sha256)
"""
# Numbers that were divided since they were planned, and those that were not planned: nothing that was computed for a
# target of any of their values is right.
_FORGET_UNPLANNED = """
DELETE FROM planned_targets WHERE target_id IN (
    WITH unplanned AS (
        SELECT composite_id, planned_sha256 FROM changed_prior_work WHERE planned_sha256 IS DISTINCT FROM value_sha256
    ), had AS (
        SELECT planned_sha256 AS value_sha256 FROM unplanned
        UNION SELECT value_sha256 FROM composite_aliases JOIN unplanned USING (composite_id)
    )
    SELECT target_id FROM planned_sources JOIN had USING (value_sha256)
    UNION
    SELECT s.target_id FROM had JOIN worked_values v USING (value_sha256) JOIN target_sources s ON s.value_id = v.id)
"""
_UPDATE_FIELDS = """
UPDATE composites c SET priority = coalesce(s.priority, c.priority),
    has_snfs_form = coalesce(s.has_snfs_form, c.has_snfs_form),
    snfs_difficulty = coalesce(s.snfs_difficulty, c.snfs_difficulty),
    explicit_target_t_level = coalesce(s.explicit_target, c.explicit_target_t_level)
FROM changed_fields s WHERE c.id = s.composite_id
RETURNING c.target_id
"""
# Numbers that have no target, because they were finished when they were loaded.
_SET_FINISHED_TARGETS = f"""
UPDATE composites t SET target_t_level =
    {targets.LISTED_TARGET.format(explicit="t.explicit_target_t_level", snfs="t.snfs_difficulty")}
FROM changed_fields s WHERE t.id = s.composite_id AND t.target_id IS NULL
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


def plan(connection: Connection, *, priority: int | None, max_digits: int) -> None:
    """Find, without locks, what the list changes for the numbers that it matches, and compute what follows from it.

    `connection` is the session of a staged list whose lines are matched. `priority` applies to numbers for which the
    list gives none.
    """
    planned_effort.start(connection)
    with step(connection):
        for name, columns in _TABLES.items():
            connection.execute(text(f"DROP TABLE IF EXISTS pg_temp.{name}"))
            connection.execute(text(f"CREATE TEMP TABLE {name} ({columns})"))
    with step(connection):
        planned_effort.use_one_snapshot(connection)
        for statement in (_FIND_MET_TARGETS, _SET_PLANNED):
            connection.execute(text(statement))
        _find(connection, priority, planned=True)
        connection.execute(text(_SET_VALUES))
        for statement in _PLAN_PRIOR_WORK:
            connection.execute(text(statement))
        connection.execute(text(_PLAN_LEVELS), targets.TARGET_LEVELS)
        planned_effort.watch(connection, _PLANNED_TARGETS)
        without_cofactor = connection.execute(text(_WITHOUT_COFACTOR)).all()
    numbers = _evaluate(without_cofactor, max_digits)
    with step(connection):
        connection.execute(text(_SET_NUMBERS), numbers)
    planned_effort.compute(connection)


def _find(connection: Connection, priority: int | None, *, planned: bool) -> None:
    """Find what changes: all that the lines planned so far give, or all that the other lines give."""

    def run(*statements: str) -> None:
        for statement in statements:
            # Without the parameters that it does not have.
            own = {name: value for name, value in parameters.items() if f":{name}" in statement}
            connection.execute(text(statement), own)

    parameters = {"planned": planned, "priority": priority}
    run("ANALYZE line_matches, new_targets", _FIND_CHANGED_FIELDS, _FIND_CHANGED_PRIOR_WORK, _FIND_LINES_TO_DIVIDE)
    if not planned:
        run(_FIND_FORMER_VALUES, _FIND_SHARED_TARGETS)
    run("ANALYZE changed_fields, changed_prior_work, lines_to_divide, shared_targets")
    run(_FIND_DIVIDED_FAMILIES, _FIND_CHANGED_TARGETS, "ANALYZE divided_families, changed_targets")


def lock_known_numbers(connection: Connection) -> None:
    """Lock what `plan` has found. A line whose number was deleted meanwhile matches nothing any more."""
    _lock(connection, planned=True)
    connection.execute(text(_FORGET_DELETED))


def _lock(connection: Connection, *, planned: bool) -> None:
    for statement in (_LOCK, _LOCK_TARGETS):
        connection.execute(text(statement), {"planned": planned}).close()


def update_known_numbers(
    connection: Connection, *, priority: int | None, project: str | None, max_digits: int
) -> tuple[int, list[jobs.JobRef]]:
    """Update the composites that the staged list matched; returns how many changed, and the jobs to publish.

    `priority` and `project` apply to numbers for which the list gives none. This also divides the new numbers that have
    large composite parts.
    """
    run = connection.execute
    _find(connection, priority, planned=False)
    _lock(connection, planned=False)
    to_publish = _share_targets(connection)
    changed = {target_id for target_id in run(text(_UPDATE_FIELDS)).scalars() if target_id is not None}
    with_new_curves = _set_prior_work(connection, max_digits)
    stored = planned_effort.store(connection, changed | with_new_curves)
    with_new_level = targets.restate(connection, changed)
    ledger.rebuild(connection, with_new_curves - stored)
    lease_lifecycle.refresh_eligibility(connection, with_new_level)
    run(text(_SET_FINISHED_TARGETS), targets.TARGET_LEVELS)
    to_publish += _divide(connection, max_digits)
    to_publish += _take_over(connection)
    run(text(_INSERT_PROJECTS), {"project": project})
    run(text(_INSERT_MEMBERSHIPS), {"project": project})
    for changes in ("changed_fields", "changed_prior_work"):
        run(text(_NOTE_CHANGED.format(changes)))
    return run(text("SELECT count(*) FROM changed_composites")).scalar_one(), to_publish


def _take_over(connection: Connection) -> list[jobs.JobRef]:
    """Make numbers that results registered numbers of the operators, whose jobs come first; returns jobs to publish."""
    taken = connection.execute(text(_TAKE_OVER)).scalars().all()
    return jobs.take_over(connection, taken) if taken else []


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
    ids = [row.target_id for row in rows]
    targets.restate(connection, ids)
    ledger.rebuild(connection, ids)
    return to_publish


def _set_prior_work(connection: Connection, max_digits: int) -> set[int]:
    """Replace the prior work of composites by that of the list, so that loading a list twice adds nothing.

    Returns the ids of the targets whose effort has to be rebuilt.
    """
    run = connection.execute
    changed_values = set(run(text(_TAKE_BACK_PRIOR_WORK)).scalars())
    run(text(_SET_VALUES))
    run(text(_FORGET_UNPLANNED))
    run(text(_SET_NUMBERS), _evaluate(run(text(_WITHOUT_COFACTOR)).all(), max_digits))
    for statement in (_ADD_VALUES, _SET_VALUE_IDS, _LINK_NUMBERS):
        run(text(statement))
    parts = [
        {"target_id": row.target_id, "value_id": row.value_id}
        for row in run(text(_FIND_PARTS))
        if gmpy2.is_divisible(mpz(row.value), mpz(row.current_composite))
    ]
    target_changes.link(connection, parts)
    run(text(_ADD_PRIOR_WORK))
    changed_values.update(run(text(_NEW_VALUES)).scalars())
    return set(targets.of_values(connection, changed_values))


def _evaluate(rows: Iterable[AnyRow], max_digits: int) -> dict[str, list[Any]]:
    """Return the ids of composites, and their numbers in decimal."""
    numbers = {row.id: decimal(evaluate_stored(row.number, max_digits)) for row in rows}
    return {"ids": list(numbers), "numbers": list(numbers.values())}


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
