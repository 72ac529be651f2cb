"""The effort that targets will have after a long write, computed before the long write locks anything.

 1. The long write says in temporary tables what it is about to change: sums of curves, sources of targets, attempts
    that will be voided, target t-levels. In the same snapshot it notes the version of every target that this concerns
    (`watch`).
 2. `compute` reads everything else without locks, batch after batch, and computes effort and eligibility as they will
    be. No transaction is open meanwhile.
 3. Under its locks the long write changes the sums, and calls `rebuild`: one statement stores what was computed for
    those targets that still have the version that was seen. The others, few, are computed again.

A version is the row's xmin. Whatever changes something that the computation reads (sums, sources, attempts, leases, the
target itself) updates the row of the target, under its lock.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, select, text

from coordinator import effort
from coordinator.base.many_rows import batches, copy_into, copy_text, is_in_list
from coordinator.base.unit_of_work import step
from coordinator.composites import eligibility, lease_lifecycle, ledger, targets
from coordinator.composites.ledger import Difference, TargetEffort
from models.tables import Target
from models.types import AnyRow

# The targets that are computed at once: less than a second of computation.
BATCH = 1000

_EFFORT = TargetEffort._fields
_ELIGIBILITY = eligibility.Eligibility._fields
_COLUMNS = ("target_id", "priority", "target_t_level", *_EFFORT, *_ELIGIBILITY, "stored_t_level", "difference")
_TABLES = {
    # What the long write is about to change; `curves` are added to a sum. `planned_restored` has stage-1 attempts with
    # the curves that count again.
    "planned_voids": "attempt_id bigint PRIMARY KEY",
    "planned_restored": "attempt_id bigint PRIMARY KEY, curves bigint",
    "planned_sums": "value_sha256 bytea, b1 bigint, b2 numeric(22), parametrization smallint, curves bigint",
    "planned_sources": "target_id bigint, value_sha256 bytea",
    "planned_levels": "target_id bigint PRIMARY KEY, priority integer, target_t_level double precision",
    "seen_targets": "target_id bigint PRIMARY KEY, version xid",
    "planned_targets": (
        "target_id bigint PRIMARY KEY, priority integer, target_t_level double precision, effort bytea,"
        " current_t_level double precision, attempt_count bigint, last_attempt_at timestamptz, pm1_b1 bigint,"
        " pp1_b1 bigint, open_leases smallint, ecm_eligible boolean, pm1_eligible boolean, pp1_eligible boolean,"
        " p1_target_b1 bigint, planned_t_level double precision, work_value double precision,"
        " stored_t_level double precision, difference text"
    ),
}
_SOURCES = """
WITH sources AS (
    SELECT s.target_id, v.value_sha256, v.id AS value_id
    FROM target_sources s JOIN worked_values v ON v.id = s.value_id WHERE s.target_id = ANY(:ids)
    UNION
    SELECT s.target_id, s.value_sha256, v.id
    FROM planned_sources s LEFT JOIN worked_values v USING (value_sha256) WHERE s.target_id = ANY(:ids)
)
"""
_SUMS = f"""
{_SOURCES}
SELECT target_id, b1, b2, parametrization, sum(curves)::bigint AS curves FROM (
    SELECT target_id, b1, b2, parametrization, curves + prior_curves AS curves
    FROM sources JOIN value_effort USING (value_id)
    UNION ALL
    SELECT target_id, b1, b2, parametrization, curves FROM sources JOIN planned_sums USING (value_sha256)
) counted
GROUP BY target_id, b1, b2, parametrization HAVING sum(curves) > 0
ORDER BY target_id, b1, b2, parametrization
"""
_IS_COMPLETE = "method = '{}' AND b2 <> 0 AND curves > 0"
_ATTEMPTS = f"""
{_SOURCES}
SELECT target_id, count(*) AS attempts, max(created_at) AS last,
       coalesce(max(b1) FILTER (WHERE {_IS_COMPLETE.format("pm1")}), 0) AS pm1_b1,
       coalesce(max(b1) FILTER (WHERE {_IS_COMPLETE.format("pp1")}), 0) AS pp1_b1
FROM sources JOIN ecm_attempts a USING (value_id)
WHERE voided_at IS NULL AND NOT EXISTS (SELECT FROM planned_voids p WHERE p.attempt_id = a.id)
GROUP BY target_id
"""
_WRONG_SUMS = f"{_SOURCES} SELECT DISTINCT target_id FROM sources JOIN planned_sums USING (value_sha256)"
# The sums as the attempts give them (ledger.correct_sums), without the attempts that will be voided.
_CORRECT_SUMS = """
INSERT INTO planned_sums
SELECT v.value_sha256, b1, b2, parametrization, sum(curves) FROM (
    SELECT a.value_id, coalesce(b1, 0) AS b1, coalesce(b2, 0) AS b2, coalesce(parametrization, 0) AS parametrization,
           a.curves - superseded_curves + coalesce(r.curves, 0) AS curves
    FROM ecm_attempts a LEFT JOIN planned_restored r ON r.attempt_id = a.id
    WHERE a.value_id IN ({values}) AND method = 'ecm' AND voided_at IS NULL
      AND NOT EXISTS (SELECT FROM planned_voids p WHERE p.attempt_id = a.id)
    UNION ALL
    SELECT value_id, b1, b2, parametrization, -curves FROM value_effort WHERE value_id IN ({values})
) counted
JOIN worked_values v ON v.id = value_id
GROUP BY v.value_sha256, b1, b2, parametrization HAVING sum(curves) <> 0
"""
_STORED = ("priority", "target_t_level", *_EFFORT, *_ELIGIBILITY)
_STORE = f"""
UPDATE targets t SET {", ".join(f"{name} = p.{name}" for name in _STORED)},
    target_set_at = CASE WHEN p.target_t_level = t.target_t_level THEN t.target_set_at ELSE clock_timestamp() END
FROM planned_targets p JOIN seen_targets s USING (target_id)
WHERE t.id = p.target_id AND t.xmin = s.version AND t.id = ANY(:ids)
RETURNING t.id
"""
_DIFFERENCES = """
SELECT (SELECT coalesce(min(c.id), 0) FROM composites c WHERE c.target_id = p.target_id) AS composite_id,
       difference, stored_t_level, current_t_level
FROM planned_targets p WHERE target_id = ANY(:ids) AND difference <> '' ORDER BY target_id
"""


def start(connection: Connection) -> None:
    """Start a plan in a session: its temporary tables are empty."""
    with step(connection):
        for name, columns in _TABLES.items():
            connection.execute(text(f"DROP TABLE IF EXISTS pg_temp.{name}"))
            connection.execute(text(f"CREATE TEMP TABLE {name} ({columns})"))


def use_one_snapshot(connection: Connection) -> None:
    """Let all statements of the transaction that begins here see the same state."""
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))


def watch(connection: Connection, chosen: str, **parameters: Any) -> None:
    """Note the versions of the targets whose ids the SQL text `chosen` selects."""
    statement = "INSERT INTO seen_targets SELECT id, xmin FROM targets WHERE id IN ({}) ON CONFLICT DO NOTHING"
    connection.execute(text(statement.format(chosen)), parameters)


def watch_targets_of(connection: Connection, values: str, **parameters: Any) -> None:
    """Note the versions of the targets for which curves on the values count whose ids the SQL text selects."""
    watch(connection, f"SELECT target_id FROM target_sources WHERE value_id IN ({values})", **parameters)


def correct_sums(connection: Connection, values: str, **parameters: Any) -> None:
    """Plan to set the sums of the values whose ids the SQL text selects to those of the attempts that stay."""
    connection.execute(text(_CORRECT_SUMS.format(values=values)), parameters)


def compute(connection: Connection) -> None:
    """Compute the effort and eligibility of all watched targets, outside of any transaction."""
    with step(connection):
        for name in _TABLES:
            connection.execute(text(f"ANALYZE {name}"))
        ids = connection.execute(text("SELECT target_id FROM seen_targets ORDER BY target_id")).scalars().all()
    for batch in batches(ids, BATCH):
        with step(connection):
            targets_read = _read(connection, batch)
        computed = [row for one in targets_read if (row := _plan(one)) is not None]
        with step(connection):
            copy_into(connection, "planned_targets", _COLUMNS, copy_text(computed))
    with step(connection):
        connection.execute(text("ANALYZE planned_targets"))


class _ReadTarget(NamedTuple):
    """A target's row, and what counts for it as it will be."""

    row: AnyRow
    priority: int
    target_t_level: float
    sums: list[tuple[int, int, int, int]]
    attempts: AnyRow | None
    leases: list[AnyRow]
    has_wrong_sums: bool


_READ = select(
    Target.priority, Target.attempt_count, Target.current_t_level, *lease_lifecycle.ELIGIBILITY_COLUMNS
).where(is_in_list(Target.id))
_LEVELS = "SELECT * FROM planned_levels WHERE target_id = ANY(:ids)"


def _read(connection: Connection, ids: list[int]) -> list[_ReadTarget]:
    own = {"ids": ids}
    levels = {row.target_id: row for row in connection.execute(text(_LEVELS), own)}
    sums: dict[int, list[tuple[int, int, int, int]]] = {}
    for row in connection.execute(text(_SUMS), own):
        sums.setdefault(row.target_id, []).append((row.b1, int(row.b2), row.parametrization, row.curves))
    attempts = {row.target_id: row for row in connection.execute(text(_ATTEMPTS), own)}
    wrong_sums = set(connection.execute(text(_WRONG_SUMS), own).scalars())
    leases = lease_lifecycle.open_leases(connection, ids)
    read = []
    for row in connection.execute(_READ, own):
        level = levels.get(row.id, row)
        counts = (sums.get(row.id, []), attempts.get(row.id), leases.get(row.id, []))
        read.append(_ReadTarget(row, level.priority, level.target_t_level, *counts, row.id in wrong_sums))
    return read


def _plan(target: _ReadTarget) -> tuple[Any, ...] | None:
    """Return a row of `planned_targets`; None if leases have to be closed, which only happens under the locks."""
    row, own = target.row, target.attempts
    vector: np.ndarray = effort.effort_of(target.sums)
    counts: tuple[Any, ...] = (0, None, 0, 0) if own is None else (own.attempts, own.last, own.pm1_b1, own.pp1_b1)
    new = TargetEffort(vector, effort.t_level(vector), *counts)
    inputs = eligibility.EligibilityInputs(
        effort=vector,
        digit_length=row.digit_length,
        is_prime=row.is_prime,
        is_finished=row.is_finished,
        target_t_level=target.target_t_level,
        hold=row.hold,
        pm1_b1=new.pm1_b1,
        pp1_b1=new.pp1_b1,
        open_residues=row.open_residues,
    )
    if target.leases and lease_lifecycle.split_needed(inputs, target.leases)[1]:
        return None
    wrong = [name for name in ("sums" if target.has_wrong_sums else "", new.difference_from(row)) if name]
    stored = np.asarray(vector, dtype="<f8").tobytes() if np.any(vector) else b""
    return (
        row.id,
        target.priority,
        target.target_t_level,
        stored,
        *new[1:],
        *eligibility.compute_eligibility(inputs, target.leases).values(),
        row.current_t_level,
        " and ".join(wrong) or "t-level",
    )


def store(connection: Connection, target_ids: Iterable[int]) -> set[int]:
    """Store what was computed for those of these locked targets that have not changed since; returns their ids."""
    stored = connection.execute(text(_STORE), {"ids": list(target_ids)}).scalars().all()
    targets.copy_to_composites(connection, stored)
    return set(stored)


def rebuild(connection: Connection, target_ids: Iterable[int]) -> None:
    """Do what ledger.rebuild does, with what was computed before as far as it is still right."""
    ids = set(target_ids)
    ledger.rebuild(connection, ids - store(connection, ids))


def differences(connection: Connection, target_ids: Iterable[int]) -> list[Difference]:
    """Return in what the stored effort of these targets differed from the computed one."""
    return [Difference(*row) for row in connection.execute(text(_DIFFERENCES), {"ids": list(target_ids)})]
