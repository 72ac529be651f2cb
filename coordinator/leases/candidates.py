"""The statements with which a claim finds a composite and locks it.

Each statement is built once for every combination of filters that clients use, because building a statement costs
more than running it. `filters` are names from FILTERS; their values are parameters of the statement.
"""

from functools import lru_cache
from typing import Any, cast

from sqlalchemy import ColumnElement, Select, Table, bindparam, func, select

from coordinator.base.advisory_locks import COMPOSITE_LOCK
from coordinator.composites.eligibility import ECM
from models.tables import Composite, Project, ProjectComposite, WorkAssignment

# This many simultaneous claims find a number each without waiting for one another.
CANDIDATES = 40

# Plain tables: reading rows through the ORM costs more than these statements do.
COMPOSITES, LEASES = (cast(Table, table.__table__) for table in (Composite, WorkAssignment))
composites, leases = COMPOSITES.c, LEASES.c
members, projects = ProjectComposite.__table__.c, Project.__table__.c

# Among equal numbers the smaller one comes first, so PostgreSQL applies filters by size inside the index.
ORDERS: dict[str, tuple[ColumnElement[Any], ...]] = {
    "standard": (composites.digit_length.asc(), composites.id.asc()),
    "progressive": (composites.planned_t_level.asc(), composites.digit_length.asc(), composites.id.asc()),
    "priority": (composites.priority.desc(), composites.digit_length.asc(), composites.id.asc()),
    "best": (composites.work_value.desc(), composites.digit_length.asc(), composites.id.asc()),
}

_ecm_leases = (
    select(func.count())
    .where(leases.composite_id == composites.id, leases.closed_at.is_(None), leases.method == ECM)
    .correlate(COMPOSITES)
    .scalar_subquery()
)
_of_project = select(members.composite_id).where(members.project_id == bindparam("project_id"))

# The condition that each filter puts on a composite; the eligibility column comes on top of them.
FILTERS: dict[str, ColumnElement[bool]] = {
    "min_digits": composites.digit_length >= bindparam("min_digits"),
    "max_digits": composites.digit_length <= bindparam("max_digits"),
    "min_priority": composites.priority >= bindparam("min_priority"),
    "min_target": composites.target_t_level >= bindparam("min_target"),
    "max_target": composites.target_t_level <= bindparam("max_target"),
    "max_current": composites.current_t_level <= bindparam("max_current"),
    "project_id": composites.id.in_(_of_project),
    # A client gets a composite to itself only while nobody has curves of it on lease; P-1 and P+1 do not matter.
    # PostgreSQL counts in the index of open leases, after all other filters, and without reading the composite's row.
    # "Less than one": for "equals zero" the query planner expects so few rows that it would read and sort all of them.
    "alone": _ecm_leases < 1,
    "passed": composites.id.not_in(bindparam("passed", expanding=True)),
}

FilterNames = tuple[str, ...]

PROJECT_ID = select(projects.id).where(projects.name == bindparam("project"))


@lru_cache(maxsize=1000)
def select_candidates(eligible: str, order: str, filters: FilterNames) -> Select[int]:
    """Return SQL for the ids of the first CANDIDATES composites, in `order`, that pass `filters` and are `eligible`."""
    found = select(composites.id).where(composites[eligible], *(FILTERS[name] for name in filters))
    return found.order_by(*ORDERS[order]).limit(CANDIDATES)


@lru_cache(maxsize=1000)
def select_first_free(eligible: str, order: str, filters: FilterNames) -> Select[int]:
    """Return SQL for the first candidate whose advisory lock is free.

    The statement takes that lock, and no other, until the end of the transaction.
    """
    candidate = select_candidates(eligible, order, filters).subquery("candidate").c
    can_lock = func.pg_try_advisory_xact_lock(COMPOSITE_LOCK, func.hashint8(candidate.id))
    return select(candidate.id).where(can_lock).limit(1)


@lru_cache(maxsize=1000)
def select_locked(filters: FilterNames, *, wait: bool) -> Select[Any]:
    """Return SELECT ... FOR NO KEY UPDATE of composite `id` if it passes `filters`; wait=False adds SKIP LOCKED."""
    found = select(COMPOSITES).where(composites.id == bindparam("id"), *(FILTERS[name] for name in filters))
    return found.with_for_update(key_share=True, skip_locked=not wait, of=COMPOSITES)
