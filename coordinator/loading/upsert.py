"""What a list says of numbers that are known already: put there where it is something new.

Everything that will change is found first, without locks, then locked (roots before children, then by id), then
changed. A list that says nothing new locks and changes nothing.
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

# The last line that says something of a composite counts.
_FIELDS = """
CREATE TEMP TABLE said ON COMMIT DROP AS
SELECT s.* FROM (
    SELECT m.composite_id,
           (array_agg(given ORDER BY line DESC) FILTER (WHERE given IS NOT NULL))[1] AS priority,
           (array_agg(i.has_snfs_form ORDER BY line DESC) FILTER (WHERE i.has_snfs_form IS NOT NULL))[1]
               AS has_snfs_form,
           (array_agg(i.snfs_difficulty ORDER BY line DESC) FILTER (WHERE i.snfs_difficulty IS NOT NULL))[1]
               AS snfs_difficulty,
           (array_agg(i.explicit_target ORDER BY line DESC) FILTER (WHERE i.explicit_target IS NOT NULL))[1]
               AS explicit_target
    FROM matched m JOIN incoming i USING (line),
         LATERAL (SELECT coalesce(i.priority, CAST(:priority AS integer)) AS given) AS g
    WHERE NOT m.is_loaded
      AND (given IS NOT NULL OR i.has_snfs_form IS NOT NULL OR i.snfs_difficulty IS NOT NULL
           OR i.explicit_target IS NOT NULL)
    GROUP BY m.composite_id) s
JOIN composites c ON c.id = s.composite_id
WHERE s.priority <> c.priority OR s.has_snfs_form <> c.has_snfs_form
   OR s.snfs_difficulty IS DISTINCT FROM coalesce(c.snfs_difficulty, s.snfs_difficulty - 1)
      AND s.snfs_difficulty IS NOT NULL
   OR s.explicit_target IS DISTINCT FROM coalesce(c.explicit_target_t_level, s.explicit_target - 1)
      AND s.explicit_target IS NOT NULL
"""
# A composite that was split off another one has inherited its prior work, which nobody else knows of.
_PRIOR = """
CREATE TEMP TABLE prior ON COMMIT DROP AS
SELECT last.composite_id, last.line FROM (
    SELECT m.composite_id, max(m.line) AS line FROM matched m
    WHERE NOT m.is_loaded AND EXISTS (SELECT FROM incoming_runs r WHERE r.line = m.line)
    GROUP BY m.composite_id) last
JOIN composites c ON c.id = last.composite_id AND c.parent_id IS NULL
WHERE (SELECT array_agg((b1, b2, parametrization, curves) ORDER BY b1, b2, parametrization)
       FROM incoming_runs r WHERE r.line = last.line)
   IS DISTINCT FROM
      (SELECT array_agg((b1, b2, parametrization, prior_curves) ORDER BY b1, b2, parametrization)
       FROM composite_effort e WHERE e.composite_id = last.composite_id AND e.prior_curves > 0)
"""
# Numbers that have parts which need work of their own, and known numbers with a factor that they have no row of.
_DIVISIBLE = """
CREATE TEMP TABLE divisible ON COMMIT DROP AS
SELECT coalesce(c.parent_id, c.id) AS root_id, m.composite_id, m.line, m.is_loaded
FROM matched m JOIN composites c ON c.id = m.composite_id
WHERE m.is_loaded AND NOT (SELECT plain FROM incoming i WHERE i.line = m.line)
   OR NOT m.is_loaded AND EXISTS (
        SELECT FROM incoming_nodes p
        WHERE p.line = m.line AND NOT EXISTS (
            SELECT FROM factors f WHERE f.composite_id = m.composite_id AND f.factor_sha256 = p.factor_sha256))
"""
_LOCK = """
SELECT c.id FROM composites c
WHERE c.id IN (
    SELECT composite_id FROM said UNION SELECT composite_id FROM prior UNION SELECT root_id FROM divisible
    UNION SELECT child.id FROM composites child JOIN divisible ON child.parent_id = divisible.root_id)
ORDER BY c.parent_id IS NOT NULL, c.id
FOR NO KEY UPDATE OF c
"""
_TOUCH = "INSERT INTO touched SELECT composite_id FROM {} ON CONFLICT DO NOTHING"
_PROJECTS = """
INSERT INTO projects (name)
SELECT DISTINCT coalesce(i.project, CAST(:project AS text)) FROM incoming i
WHERE coalesce(i.project, CAST(:project AS text)) IS NOT NULL
EXCEPT SELECT name FROM projects ORDER BY 1
ON CONFLICT DO NOTHING
"""
_MEMBERS = """
WITH joined AS (
    INSERT INTO project_composites (project_id, composite_id)
    SELECT DISTINCT p.id, m.composite_id FROM matched m JOIN incoming i USING (line)
    JOIN projects p ON p.name = coalesce(i.project, CAST(:project AS text))
    ORDER BY 1, 2
    ON CONFLICT DO NOTHING
    RETURNING composite_id)
INSERT INTO touched SELECT DISTINCT composite_id FROM joined
WHERE composite_id NOT IN (SELECT composite_id FROM matched WHERE is_loaded)
ON CONFLICT DO NOTHING
"""


def update_known_numbers(
    connection: Connection, *, priority: int | None, project: str | None, max_digits: int
) -> tuple[int, list[jobs.JobRef]]:
    """Put what the staged list says into the composites that it matched; how many changed, and what to ring for.

    `priority` and `project` are for numbers of which the list says none. New numbers that have large composite parts
    are divided here, too.
    """
    run = connection.execute
    run(text("ANALYZE matched"))
    run(text(_FIELDS), {"priority": priority})
    run(text(_PRIOR))
    run(text(_DIVISIBLE))
    run(text("ANALYZE said, prior, divisible"))
    run(text(_LOCK)).close()
    _set_fields(connection)
    _set_prior_work(connection)
    to_publish = _divide(connection, max_digits)
    run(text(_PROJECTS), {"project": project})
    run(text(_MEMBERS), {"project": project})
    for table in ("said", "prior"):
        run(text(_TOUCH.format(table)))
    return run(text("SELECT count(*) FROM touched")).scalar_one(), to_publish


def _set_fields(connection: Connection) -> None:
    changed = text(
        "UPDATE composites c SET priority = coalesce(s.priority, c.priority),"
        " has_snfs_form = coalesce(s.has_snfs_form, c.has_snfs_form),"
        " snfs_difficulty = coalesce(s.snfs_difficulty, c.snfs_difficulty),"
        " explicit_target_t_level = coalesce(s.explicit_target, c.explicit_target_t_level)"
        " FROM said s WHERE c.id = s.composite_id"
    )
    connection.execute(changed)
    aimed = text("SELECT composite_id FROM said WHERE snfs_difficulty IS NOT NULL OR explicit_target IS NOT NULL")
    for ids in _batches(connection.execute(aimed).scalars().all()):
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
        moved = update(Composite).where(Composite.id == bindparam("composite"))
        # A moment of the clock, for leases that were handed out before it were sized by another target.
        moved = moved.values(target_t_level=bindparam("target"), target_set_at=func.clock_timestamp())
        connection.execute(moved, targets)
        lease_lifecycle.refresh_eligibility(connection, [target["composite"] for target in targets])


def _set_prior_work(connection: Connection) -> None:
    rows = connection.execute(text("SELECT composite_id, line FROM prior ORDER BY composite_id")).all()
    of_line = text("SELECT b1, b2, parametrization, curves FROM incoming_runs WHERE line = :line")
    put = text(
        "INSERT INTO composite_effort (composite_id, b1, b2, parametrization, prior_curves)"
        " VALUES (:composite_id, :b1, :b2, :parametrization, :curves)"
        " ON CONFLICT (composite_id, b1, b2, parametrization) DO UPDATE SET prior_curves = excluded.prior_curves"
    )
    for composite_id, line in rows:
        # What a list says of the work before the registry replaces what was said before: loading it twice adds nothing.
        sums = update(CompositeEffort).where(CompositeEffort.composite_id == composite_id)
        connection.execute(sums.values(prior_curves=0))
        runs = [dict(row._mapping) for row in connection.execute(of_line, {"line": line})]
        connection.execute(put, [{**run, "composite_id": composite_id} for run in runs])
        ledger.rebuild(connection, composite_id)


def _divide(connection: Connection, max_digits: int) -> list[jobs.JobRef]:
    """Use the divisors that the list brings on their families; the composites of which one is new are touched."""
    rows = connection.execute(text("SELECT * FROM divisible ORDER BY root_id, line")).all()
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
                text("INSERT INTO touched VALUES (:id) ON CONFLICT DO NOTHING"), {"id": row.composite_id}
            )
    return to_publish


def _batches(ids: Sequence[int]) -> Iterator[list[int]]:
    rest: Iterable[int] = iter(ids)
    while batch := list(islice(rest, BATCH)):
        yield batch
