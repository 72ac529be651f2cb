"""The statements with which a claim finds a target and locks it.

Each statement is built once for every combination of filters that clients use, because building a statement costs
more than running it. `filters` are names from FILTERS; their values are parameters of the statement.
"""

from functools import lru_cache
from typing import Any, cast

from sqlalchemy import ColumnElement, Select, Table, and_, bindparam, func, select

from coordinator.base.advisory_locks import TARGET_LOCK
from coordinator.composites.eligibility import ECM
from models.tables import Composite, Project, ProjectComposite, Target, WorkAssignment

# This many simultaneous claims find a target each without waiting for one another.
CANDIDATES = 40

# Plain tables: reading rows through the ORM costs more than these statements do.
TARGETS, COMPOSITES, LEASES = (cast(Table, table.__table__) for table in (Target, Composite, WorkAssignment))
targets, composites, leases = TARGETS.c, COMPOSITES.c, LEASES.c
members, projects = ProjectComposite.__table__.c, Project.__table__.c

# Among equal targets the smaller one comes first, so PostgreSQL applies filters by size inside the index.
ORDERS: dict[str, tuple[ColumnElement[Any], ...]] = {
    "standard": (targets.digit_length.asc(), targets.id.asc()),
    "progressive": (targets.planned_t_level.asc(), targets.digit_length.asc(), targets.id.asc()),
    "priority": (targets.priority.desc(), targets.digit_length.asc(), targets.id.asc()),
    "best": (targets.work_value.desc(), targets.digit_length.asc(), targets.id.asc()),
}

_ecm_leases = (
    select(func.count())
    .where(leases.target_id == targets.id, leases.closed_at.is_(None), leases.method == ECM)
    .correlate(TARGETS)
    .scalar_subquery()
)
# A finished number keeps its last target. Where another number still needs that target, it is leased under the name of
# that one, because a client gets the cofactor of the number that the lease names.
_IS_UNFINISHED = and_(
    ~composites.is_fully_factored, composites.is_prime.is_not(True), composites.current_composite != "1"
)
_of_project = (
    select(composites.target_id)
    .join(ProjectComposite.__table__, members.composite_id == composites.id)
    .where(members.project_id == bindparam("project_id"), _IS_UNFINISHED)
)

# The condition that each filter puts on a target; the eligibility column comes on top of them.
FILTERS: dict[str, ColumnElement[bool]] = {
    "min_digits": targets.digit_length >= bindparam("min_digits"),
    "max_digits": targets.digit_length <= bindparam("max_digits"),
    "min_priority": targets.priority >= bindparam("min_priority"),
    "min_target": targets.target_t_level >= bindparam("min_target"),
    "max_target": targets.target_t_level <= bindparam("max_target"),
    "max_current": targets.current_t_level <= bindparam("max_current"),
    "project_id": targets.id.in_(_of_project),
    # A client gets a target to itself only while nobody has curves of it on lease; P-1 and P+1 do not matter.
    # PostgreSQL counts in the index of open leases, after all other filters, and without reading the target's row.
    # "Less than one": for "equals zero" the query planner expects so few rows that it would read and sort all of them.
    "alone": _ecm_leases < 1,
    "passed": targets.id.not_in(bindparam("passed", expanding=True)),
}

FilterNames = tuple[str, ...]

PROJECT_ID = select(projects.id).where(projects.name == bindparam("project"))


@lru_cache(maxsize=1000)
def select_candidates(eligible: str, order: str, filters: FilterNames) -> Select[int]:
    """Return SQL for the ids of the first CANDIDATES targets, in `order`, that pass `filters` and are `eligible`."""
    found = select(targets.id).where(targets[eligible], *(FILTERS[name] for name in filters))
    return found.order_by(*ORDERS[order]).limit(CANDIDATES)


@lru_cache(maxsize=1000)
def select_first_free(eligible: str, order: str, filters: FilterNames) -> Select[int]:
    """Return SQL for the first candidate whose advisory lock is free.

    The statement takes that lock, and no other, until the end of the transaction.
    """
    candidate = select_candidates(eligible, order, filters).subquery("candidate").c
    can_lock = func.pg_try_advisory_xact_lock(TARGET_LOCK, func.hashint8(candidate.id))
    return select(candidate.id).where(can_lock).limit(1)


@lru_cache(maxsize=1000)
def select_first_locked(eligible: str, order: str, filters: FilterNames) -> Select[Any]:
    """Return SELECT ... FOR NO KEY UPDATE SKIP LOCKED of the target that `select_first_free` finds, as one statement.

    A row that changed since the statement began is checked against the filters again, but not against new rows of other
    tables: the caller checks for new leases.
    """
    free = select_first_free(eligible, order, filters).cte("free")
    found = select(TARGETS).join(free, free.c.id == targets.id).where(*(FILTERS[name] for name in filters))
    return found.with_for_update(key_share=True, skip_locked=True, of=TARGETS)


@lru_cache(maxsize=1000)
def select_locked(filters: FilterNames, *, wait: bool) -> Select[Any]:
    """Return SELECT ... FOR NO KEY UPDATE of target `id` if it passes `filters`; wait=False adds SKIP LOCKED."""
    found = select(TARGETS).where(targets.id == bindparam("id"), *(FILTERS[name] for name in filters))
    return found.with_for_update(key_share=True, skip_locked=not wait, of=TARGETS)


def _named(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Return SQL for the composite that names a target's lease: the oldest unfinished number that points to it."""
    own = select(*NAMED_COLUMNS).where(composites.target_id == bindparam("target"), _IS_UNFINISHED, *conditions)
    return own.order_by(composites.parent_id.is_not(None), composites.id).limit(1)


# The columns of a composite that the answer to a claim shows.
NAMED_COLUMNS: tuple[Any, ...] = (
    composites.id,
    composites.number,
    composites.current_composite,
    composites.digit_length,
    composites.current_t_level,
    composites.target_t_level,
)
_members = select(members.composite_id).where(members.project_id == bindparam("project_id"))
NAMED, NAMED_OF_PROJECT = _named(), _named(composites.id.in_(_members))
NAMED_BY_ID = _named(composites.id == bindparam("id"))
