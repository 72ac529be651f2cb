"""Updates registered composites with the fields that a list gives; unchanged rows are not touched.

Everything that will change is found first, without locks, then locked (roots before children, then by id), then
changed. A list that gives nothing new locks and changes nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from gmpy2 import mpz
from sqlalchemy import Connection, bindparam, func, select, text, update

from coordinator import effort
from coordinator.base import jobs
from coordinator.composites import families, lease_lifecycle, ledger, registry
from coordinator.composites.families import Divisor
from models.tables import Composite, CompositeEffort

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
# The composites whose prior work changes, with the line that has it. A composite with a parent is left alone: its prior
# work is inherited, and a list does not know it.
_FIND_CHANGED_PRIOR_WORK = """
CREATE TEMP TABLE changed_prior_work ON COMMIT DROP AS
SELECT last.composite_id, last.line FROM (
    SELECT m.composite_id, max(m.line) AS line FROM line_matches m
    WHERE NOT m.is_loaded AND EXISTS (SELECT FROM incoming_runs r WHERE r.line = m.line)
    GROUP BY m.composite_id) last
JOIN composites c ON c.id = last.composite_id AND c.parent_id IS NULL
WHERE (SELECT array_agg((b1, b2, parametrization, curves) ORDER BY b1, b2, parametrization)
       FROM incoming_runs r WHERE r.line = last.line)
   IS DISTINCT FROM
      (SELECT array_agg((b1, b2, parametrization, prior_curves) ORDER BY b1, b2, parametrization)
       FROM composite_effort e WHERE e.composite_id = last.composite_id AND e.prior_curves > 0)
"""
# New numbers with parts that need work of their own, and registered ones for which the list has a factor without a row.
_FIND_LINES_TO_DIVIDE = """
CREATE TEMP TABLE lines_to_divide ON COMMIT DROP AS
SELECT coalesce(c.parent_id, c.id) AS root_id, m.composite_id, m.line, m.is_loaded
FROM line_matches m JOIN composites c ON c.id = m.composite_id
WHERE m.is_loaded AND NOT (SELECT plain FROM incoming i WHERE i.line = m.line)
   OR NOT m.is_loaded AND EXISTS (
        SELECT FROM incoming_nodes node
        WHERE node.line = m.line AND NOT EXISTS (
            SELECT FROM factors f WHERE f.composite_id = m.composite_id AND f.factor_sha256 = node.factor_sha256))
"""
_LOCK = """
SELECT c.id FROM composites c
WHERE c.id IN (
    SELECT composite_id FROM changed_fields UNION SELECT composite_id FROM changed_prior_work
    UNION SELECT root_id FROM lines_to_divide
    UNION SELECT child.id FROM composites child JOIN lines_to_divide ON child.parent_id = lines_to_divide.root_id)
ORDER BY c.parent_id IS NOT NULL, c.id
FOR NO KEY UPDATE OF c
"""
_NOTE_CHANGED = "INSERT INTO changed_composites SELECT composite_id FROM {} ON CONFLICT DO NOTHING"
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


def update_known_numbers(
    connection: Connection, *, priority: int | None, project: str | None, max_digits: int
) -> tuple[int, list[jobs.JobRef]]:
    """Update the composites that the staged list matched; returns how many changed, and the jobs to publish.

    `priority` and `project` apply to numbers for which the list gives none. This also divides the new numbers that have
    large composite parts.
    """
    run = connection.execute
    run(text("ANALYZE line_matches"))
    run(text(_FIND_CHANGED_FIELDS), {"priority": priority})
    run(text(_FIND_CHANGED_PRIOR_WORK))
    run(text(_FIND_LINES_TO_DIVIDE))
    run(text("ANALYZE changed_fields, changed_prior_work, lines_to_divide"))
    run(text(_LOCK)).close()
    _set_fields(connection)
    _set_prior_work(connection)
    to_publish = _divide(connection, max_digits)
    run(text(_INSERT_PROJECTS), {"project": project})
    run(text(_INSERT_MEMBERSHIPS), {"project": project})
    for table in ("changed_fields", "changed_prior_work"):
        run(text(_NOTE_CHANGED.format(table)))
    return run(text("SELECT count(*) FROM changed_composites")).scalar_one(), to_publish


def _set_fields(connection: Connection) -> None:
    update_fields = text(
        "UPDATE composites c SET priority = coalesce(s.priority, c.priority),"
        " has_snfs_form = coalesce(s.has_snfs_form, c.has_snfs_form),"
        " snfs_difficulty = coalesce(s.snfs_difficulty, c.snfs_difficulty),"
        " explicit_target_t_level = coalesce(s.explicit_target, c.explicit_target_t_level)"
        " FROM changed_fields s WHERE c.id = s.composite_id"
    )
    connection.execute(update_fields)
    with_target = text(
        "SELECT composite_id FROM changed_fields WHERE snfs_difficulty IS NOT NULL OR explicit_target IS NOT NULL"
    )
    for ids in _batches(connection.execute(with_target).scalars().all()):
        _set_targets(connection, ids)


def _set_targets(connection: Connection, ids: list[int]) -> None:
    """Give locked composites the targets that follow from their size, difficulty and explicit target."""
    columns = (Composite.digit_length, Composite.snfs_difficulty, Composite.explicit_target_t_level)
    rows = connection.execute(select(Composite.id, Composite.target_t_level, *columns).where(Composite.id.in_(ids)))
    targets = []
    for row in rows.all():
        target = row.explicit_target_t_level
        if target is None:
            target = effort.target_t_level(row.digit_length, row.snfs_difficulty)
        if target != row.target_t_level:
            targets.append({"composite": row.id, "target": target})
    if targets:
        statement = update(Composite).where(Composite.id == bindparam("composite"))
        # The time of the change, because leases from before it were sized for the old target.
        statement = statement.values(target_t_level=bindparam("target"), target_set_at=func.clock_timestamp())
        connection.execute(statement, targets)
        lease_lifecycle.refresh_eligibility(connection, [target["composite"] for target in targets])


def _set_prior_work(connection: Connection) -> None:
    rows = connection.execute(text("SELECT composite_id, line FROM changed_prior_work ORDER BY composite_id")).all()
    of_line = text("SELECT b1, b2, parametrization, curves FROM incoming_runs WHERE line = :line")
    insert_run = text(
        "INSERT INTO composite_effort (composite_id, b1, b2, parametrization, prior_curves)"
        " VALUES (:composite_id, :b1, :b2, :parametrization, :curves)"
        " ON CONFLICT (composite_id, b1, b2, parametrization) DO UPDATE SET prior_curves = excluded.prior_curves"
    )
    for composite_id, line in rows:
        # The prior work of a list replaces that of earlier lists, so loading a list twice adds nothing.
        sums = update(CompositeEffort).where(CompositeEffort.composite_id == composite_id)
        connection.execute(sums.values(prior_curves=0))
        runs = [dict(row._mapping) for row in connection.execute(of_line, {"line": line})]
        connection.execute(insert_run, [{**run, "composite_id": composite_id} for run in runs])
        ledger.rebuild(connection, composite_id)


def _divide(connection: Connection, max_digits: int) -> list[jobs.JobRef]:
    """Use the list's divisors on their factor families; put composites that gain a factor into `changed_composites`."""
    rows = connection.execute(text("SELECT * FROM lines_to_divide ORDER BY root_id, line")).all()
    of_line = text("SELECT factor, origin FROM incoming_nodes WHERE line = :line ORDER BY place")
    to_publish: list[jobs.JobRef] = []
    for row in rows:
        nodes = connection.execute(of_line, {"line": row.line}).all()
        divisors = [Divisor(mpz(node.factor), node.origin) for node in nodes]
        ids = [member.id for member in registry.lock_family(connection, row.root_id)]
        change = families.use_divisors(connection, families.load_family(connection, ids, max_digits), divisors)
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
