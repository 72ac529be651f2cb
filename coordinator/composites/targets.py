"""The rows of targets: locks, the composites that point to them, and what these composites repeat.

A target is an unfinished value. Several composites may have it as their cofactor: they point to one target, which is
leased once, and whose effort all of them show. Every unit of work locks composites first, then targets by id, then
leases; whoever changes the `target_id` of a composite holds the locks of both targets.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, delete, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from coordinator import effort
from coordinator.base.many_rows import is_in_list, is_one_of
from models.tables import Composite, Target, TargetSource, WorkedValue
from models.types import AnyRow

# SQL: whether a composite `c` has an unfinished cofactor, so that it points to an unfinished target.
IS_UNFINISHED = "NOT c.is_fully_factored AND c.current_composite <> '1' AND c.is_prime IS NOT TRUE"
LOCKED_COLUMNS = (
    Target.id,
    Target.value_sha256,
    Target.is_prime,
    Target.is_finished,
    Target.effort,
    Target.current_t_level,
    Target.target_t_level,
    Target.attempt_count,
)
_LOCK = select(*LOCKED_COLUMNS).where(is_in_list(Target.id)).order_by(Target.id).with_for_update(key_share=True)
_LOCK_IDS = select(Target.id).where(is_in_list(Target.id)).order_by(Target.id).with_for_update(key_share=True)
_OF_COMPOSITES = (
    select(Composite.target_id).where(is_in_list(Composite.id), Composite.target_id.is_not(None)).distinct()
)
# The columns of a target that its composites repeat.
REPEATED = ("target_t_level", "current_t_level", "attempt_count", "last_attempt_at")
_differs = or_(*(getattr(Composite, name).is_distinct_from(getattr(Target, name)) for name in REPEATED))
_COPY = (
    update(Composite)
    .where(Composite.target_id == Target.id, is_in_list(Target.id), _differs)
    .values({name: getattr(Target, name) for name in REPEATED})
    .execution_options(synchronize_session=False)
)


def lock_ids(connection: Connection, target_ids: Iterable[int]) -> list[int]:
    """Lock targets by id and return the ids of those that are not gone; their vectors are not read."""
    return list(connection.execute(_LOCK_IDS, {"ids": sorted(target_ids)}).scalars())


def lock(connection: Connection, target_ids: Iterable[int]) -> list[AnyRow]:
    """Lock targets by id and return their LOCKED_COLUMNS; targets that are gone are left out."""
    return list(connection.execute(_LOCK, {"ids": sorted(target_ids)}))


def ids_of(connection: Connection, composite_ids: Iterable[int]) -> list[int]:
    """Return the ids of the targets that these composites point to, in order."""
    found = connection.execute(_OF_COMPOSITES, {"ids": list(composite_ids)}).scalars()
    return sorted(target_id for target_id in found if target_id is not None)


def lock_of(connection: Connection, composite_ids: Iterable[int]) -> list[int]:
    """Lock the targets of locked composites, and return their ids."""
    return lock_ids(connection, ids_of(connection, composite_ids))


def composites_of(connection: Connection, target_ids: Iterable[int]) -> list[int]:
    """Return the ids of all composites that point to these targets, in order."""
    chosen = select(Composite.id).where(is_one_of(Composite.target_id, list(target_ids))).order_by(Composite.id)
    return list(connection.execute(chosen).scalars())


def find_or_add(connection: Connection, value_sha256: bytes, digits: int, is_prime: bool | None) -> tuple[int, bool]:
    """Lock the target of a value, which is inserted if there is none; returns (its id, whether it is new)."""
    add = (
        insert(Target)
        .values(
            value_sha256=value_sha256,
            digit_length=digits,
            is_prime=is_prime,
            target_t_level=effort.target_t_level(digits),
            effort=effort.no_effort(),
        )
        .on_conflict_do_nothing(index_elements=[Target.value_sha256])
        .returning(Target.id)
    )
    known = select(Target.id).where(Target.value_sha256 == value_sha256).with_for_update(key_share=True)
    while True:  # the target that another unit of work has inserted may be deleted before this one locks it
        found = connection.execute(known).scalar_one_or_none()
        if found is not None:
            return found, False
        added = connection.execute(add).scalar_one_or_none()
        if added is not None:
            return added, True


def copy_to_composites(connection: Connection, target_ids: Iterable[int]) -> None:
    """Store t-levels and counts of locked targets in the rows of their composites, where they differ."""
    connection.execute(_COPY, {"ids": list(target_ids)})


def wrongly_repeated(connection: Connection, target_ids: Iterable[int]) -> set[int]:
    """Return the ids of those of these targets whose composites do not repeat what the target has."""
    both = select(Composite.target_id).join(Target, Target.id == Composite.target_id)
    found = connection.execute(both.where(is_one_of(Target.id, list(target_ids)), _differs)).scalars()
    return {target_id for target_id in found if target_id is not None}


# The target t-level of a composite, as effort.target_t_level computes it, unless an operator has set another one.
LISTED_TARGET = """coalesce({explicit}, least(greatest(
    CAST(:share AS double precision) * least(t.digit_length, coalesce({snfs}, t.digit_length)),
    :smallest), :largest))"""
TARGET_LEVELS = {"share": effort.TARGET_SHARE, "smallest": effort.SMALLEST_TARGET, "largest": effort.LARGEST_TARGET}
# Leases from before `target_set_at` were sized for the target t-level of that time.
_RESTATE = f"""
UPDATE targets t SET priority = of_composites.priority, target_t_level = level,
    target_set_at = CASE WHEN level = old_level THEN target_set_at ELSE clock_timestamp() END
FROM (
    SELECT t.id, t.target_t_level AS old_level, max(c.priority) AS priority,
           max({LISTED_TARGET.format(explicit="c.explicit_target_t_level", snfs="c.snfs_difficulty")}) AS level
    FROM composites c JOIN targets t ON t.id = c.target_id WHERE c.target_id = ANY(:ids) GROUP BY t.id
) of_composites
WHERE t.id = of_composites.id AND (t.priority, old_level) <> (of_composites.priority, level)
RETURNING t.id, level <> old_level AS has_new_level
"""


def restate(connection: Connection, target_ids: Iterable[int]) -> list[int]:
    """Set the priority and the target t-level of locked targets to the largest of their composites.

    Returns the ids of the targets whose target t-level has changed; the caller recomputes their eligibility.
    """
    ids = list(target_ids)
    rows = connection.execute(text(_RESTATE), {"ids": ids, **TARGET_LEVELS}).all()
    copy_to_composites(connection, ids)
    return [row.id for row in rows if row.has_new_level]


def delete_unused(connection: Connection, target_ids: Sequence[int]) -> set[int]:
    """Delete those of these targets to which no composite points any more; returns their ids."""
    ids = sorted(target_ids)
    # Composites refer to a target under a key share lock: after this lock no new one can.
    connection.execute(select(Target.id).where(Target.id.in_(ids)).order_by(Target.id).with_for_update()).all()
    is_used = select(Composite.id).where(Composite.target_id == Target.id).exists()
    gone = delete(Target).where(Target.id.in_(ids), ~is_used).returning(Target.id)
    return set(connection.execute(gone).scalars())


def sources(connection: Connection, target_ids: Iterable[int]) -> dict[int, str]:
    """Return the values whose curves count for these targets, as decimal texts by the ids of their rows."""
    chosen = (
        select(WorkedValue.id, WorkedValue.value)
        .join(TargetSource, TargetSource.value_id == WorkedValue.id)
        .where(is_one_of(TargetSource.target_id, list(target_ids)))
    )
    return {row.id: row.value for row in connection.execute(chosen)}


def lock_of_values(connection: Connection, value_ids: Iterable[int]) -> list[int]:
    """Lock the targets for which curves on these values count, and return their ids.

    Whoever adds curves to a value, or makes it the source of another target, holds these locks. So a target that
    becomes one of them meanwhile is found when the locks are held.
    """
    ids = list(value_ids)
    wanted = of_values(connection, ids)
    while True:
        locked = lock_ids(connection, wanted)
        now = of_values(connection, ids)
        if now == wanted:
            return locked
        wanted = now


def of_values(connection: Connection, value_ids: Iterable[int]) -> list[int]:
    """Return the ids of the targets for which curves on these values count, in order."""
    chosen = select(TargetSource.target_id).where(is_one_of(TargetSource.value_id, list(value_ids))).distinct()
    return sorted(connection.execute(chosen).scalars())
