"""Pointing composites to targets: when a number is registered, divided, made whole again, or finished.

The caller holds the locks of the composite's family. Each function leaves the targets that it touches with the effort
of all curves that count for them.
"""

from collections.abc import Iterable
from typing import Any

import gmpy2
from gmpy2 import mpz
from sqlalchemy import Connection, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from coordinator.composites import holds, lease_lifecycle, ledger, superseding, targets
from coordinator.composites.values import sha256
from coordinator.numbers.arithmetic import digit_count
from coordinator.numbers.expressions import decimal
from models.tables import Composite, CompositeAlias, Target, TargetSource, WorkAssignment, WorkedValue


def point(
    connection: Connection, composite_id: int, value: mpz, is_prime: bool | None, *, split_from: Iterable[int] = ()
) -> int:
    """Point a locked composite to the target of its cofactor `value`, and return the id of that target.

    The target is locked, and made if there is none. Curves count for it that were run on `value` or on a multiple of
    it: a former cofactor or the number itself, of this composite, of others with the same cofactor, and of the targets
    `split_from`. Open leases and holds follow the composite.
    """
    value_sha256 = sha256(decimal(value))
    old_id = connection.execute(select(Composite.target_id).where(Composite.id == composite_id)).scalar_one()
    target_id, is_new = targets.find_or_add(connection, value_sha256, digit_count(value), is_prime)
    if target_id == old_id:
        return target_id
    if not is_new:  # the value is unfinished now, also if all numbers that had it were finished
        finished = update(Target).where(Target.id == target_id, Target.is_finished)
        connection.execute(finished.values(is_finished=False))
    connection.execute(update(Composite).where(Composite.id == composite_id).values(target_id=target_id))
    is_open = (WorkAssignment.composite_id == composite_id, WorkAssignment.closed_at.is_(None))
    moved = connection.execute(update(WorkAssignment).where(*is_open).values(target_id=target_id)).rowcount
    old_ids = [] if old_id is None else [old_id]
    if old_id is not None:
        holds.carry_hold(connection, old_id, target_id, is_new=is_new)
    is_fed = add_sources(connection, target_id, value, of_targets=[*old_ids, *split_from], of_composites=[composite_id])
    if moved or is_fed:
        # Its open leases were sized for other sums, or together with others.
        sized_again = update(Target).where(Target.id == target_id).values(target_set_at=func.clock_timestamp())
        connection.execute(sized_again)
    if moved and not is_new:
        lease_lifecycle.close_second_whole_leases(connection, target_id)
    superseding.recount_open_residues(connection, [target_id])
    targets.restate(connection, [target_id])
    ledger.rebuild(connection, [target_id])
    leave(connection, old_ids)
    return target_id


_ONLY_FINISHED = f"""
SELECT t.id FROM targets t WHERE t.id = ANY(:ids) AND NOT t.is_finished
    AND NOT EXISTS (SELECT FROM composites c WHERE c.target_id = t.id AND {targets.IS_UNFINISHED})
ORDER BY t.id
"""


def leave(connection: Connection, target_ids: Iterable[int]) -> None:
    """Bring targets up to date that some composites do not point to any more.

    Those without a composite are deleted, and those that only finished numbers have are finished.
    """
    ids = sorted(set(target_ids))
    left = sorted(set(ids) - targets.delete_unused(connection, ids)) if ids else []
    if left:
        for target_id in connection.execute(text(_ONLY_FINISHED), {"ids": left}).scalars().all():
            finish(connection, target_id)
        superseding.recount_open_residues(connection, left)
        targets.restate(connection, left)
        lease_lifecycle.refresh_eligibility(connection, left)


def add_sources(
    connection: Connection,
    target_id: int,
    value: mpz,
    *,
    of_targets: Iterable[int] = (),
    of_composites: Iterable[int] = (),
) -> bool:
    """Add the multiples of a locked target's value among the worked values to its sources; returns whether one is new.

    They are looked for among the sources of `of_targets`, and among the values that `of_composites`, their parents, and
    the other composites with this value have had. The caller then rebuilds the target.
    """
    candidates = targets.sources(connection, of_targets)
    own = select(CompositeAlias.composite_id).where(CompositeAlias.value_sha256 == sha256(decimal(value)))
    ids = {*of_composites, *connection.execute(own).scalars()}
    parents = select(Composite.parent_id).where(Composite.id.in_(ids), Composite.parent_id.is_not(None))
    worked = (
        select(WorkedValue.id, WorkedValue.value)
        .join(CompositeAlias, CompositeAlias.value_sha256 == WorkedValue.value_sha256)
        .where(or_(CompositeAlias.composite_id.in_(ids), CompositeAlias.composite_id.in_(parents)))
    )
    candidates |= {row.id: row.value for row in connection.execute(worked)}
    multiples = sorted(value_id for value_id, text in candidates.items() if gmpy2.is_divisible(mpz(text), value))
    targets.lock_of_values(connection, multiples)
    return link(connection, [{"target_id": target_id, "value_id": value_id} for value_id in multiples])


# The unfinished parts of the composites that have had a value, and of the numbers that these are parts of; also parts
# that are registered as numbers of another family.
_PARTS = """
WITH had AS (
    SELECT DISTINCT coalesce(c.parent_id, c.id) AS root_id FROM composites c
    WHERE c.id = :composite OR c.id IN (SELECT composite_id FROM composite_aliases WHERE value_sha256 = :value_sha256)
), family AS (
    SELECT c.id FROM composites c JOIN had ON c.id = had.root_id
    UNION SELECT c.id FROM composites c JOIN had ON c.parent_id = had.root_id
)
SELECT DISTINCT t.id, c.current_composite FROM composites c JOIN targets t ON t.id = c.target_id AND NOT t.is_finished
WHERE c.current_composite <> '1' AND c.is_prime IS NOT TRUE
  AND c.id IN (SELECT id FROM family
               UNION SELECT f.child_composite_id FROM factors f JOIN family ON f.composite_id = family.id)
"""
# A finished number shows the effort of its last target, which divides every value that the number has had.
_FINISHED = """
SELECT DISTINCT t.id FROM composite_aliases a JOIN composites c ON c.id = a.composite_id
JOIN targets t ON t.id = c.target_id AND t.is_finished WHERE a.value_sha256 = :value_sha256
"""


def link_value(connection: Connection, value_id: int, value: mpz, composite_id: int) -> None:
    """Make a value that was never worked on a source of all targets for which its curves count.

    `composite_id` is a locked composite that the value belongs to. The caller then locks the targets.
    """
    own = {"composite": composite_id, "value_sha256": sha256(decimal(value))}
    counting = {
        row.id for row in connection.execute(text(_PARTS), own) if gmpy2.is_divisible(value, mpz(row.current_composite))
    }
    counting.update(connection.execute(text(_FINISHED), own).scalars())
    link(connection, [{"target_id": target, "value_id": value_id} for target in sorted(counting)])


def link(connection: Connection, rows: list[dict[str, Any]]) -> bool:
    """Insert rows of `target_sources`; returns whether one of them is new."""
    if not rows:
        return False
    added = insert(TargetSource).values(rows).on_conflict_do_nothing().returning(TargetSource.value_id)
    return bool(connection.execute(added).all())


def set_open(connection: Connection, target_id: int, is_prime: bool | None) -> None:
    """Store whether the value of a locked target is prime, and that the value is the cofactor of a number now."""
    differs = or_(Target.is_prime.is_distinct_from(is_prime), Target.is_finished)
    chosen = update(Target).where(Target.id == target_id, differs)
    connection.execute(chosen.values(is_prime=is_prime, is_finished=False))


def finish(connection: Connection, target_id: int) -> None:
    """Mark a locked target as finished, and close all open work on it."""
    connection.execute(update(Target).where(Target.id == target_id).values(is_finished=True))
    lease_lifecycle.close_open_work(connection, target_id)
