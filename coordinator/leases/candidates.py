"""The statements by which a claim finds a number and locks it.

Each statement is built once for every combination of filters that clients use.
`filters` are names of FILTERS, whose values are parameters of the statement.
"""

from functools import lru_cache
from typing import Any, cast

from sqlalchemy import ColumnElement, Select, Table, bindparam, func, select

from coordinator.base.advisory_locks import COMPOSITE_LOCK
from coordinator.composites.eligibility import ECM
from models.tables import Composite, Project, ProjectComposite, WorkAssignment

# As many claims at a time find a number of their own without waiting.
CANDIDATES = 40

# Plain tables: the ORM's own way of reading rows costs more than these statements do.
COMPOSITES, LEASES = (cast(Table, table.__table__) for table in (Composite, WorkAssignment))
composites, leases = COMPOSITES.c, LEASES.c
members, projects = ProjectComposite.__table__.c, Project.__table__.c

# Of two that are equal the smaller comes first: so filters by size are steps through the index.
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

# What a number must satisfy but for wanting such work, by what is asked.
FILTERS: dict[str, ColumnElement[bool]] = {
    "min_digits": composites.digit_length >= bindparam("min_digits"),
    "max_digits": composites.digit_length <= bindparam("max_digits"),
    "min_priority": composites.priority >= bindparam("min_priority"),
    "min_target": composites.target_t_level >= bindparam("min_target"),
    "max_target": composites.target_t_level <= bindparam("max_target"),
    "max_current": composites.current_t_level <= bindparam("max_current"),
    "project_id": composites.id.in_(_of_project),
    # All of a number is leased only when nobody has curves of it; P-1 and P+1 are something else. Counted in the index
    # of open leases, for numbers that satisfy all else: the row, which most filters do without, is not read for it.
    # "Less than one": the query planner takes equality for so rare that it would read all there is, and sort it.
    "alone": _ecm_leases < 1,
    "passed": composites.id.not_in(bindparam("passed", expanding=True)),
}

FilterNames = tuple[str, ...]

PROJECT_ID = select(projects.id).where(projects.name == bindparam("project"))


@lru_cache(maxsize=1000)
def candidate_ids(wants: str, order: str, filters: FilterNames) -> Select:
    """The ids of the first numbers in that order that are like that and whose column `wants` says so."""
    found = select(composites.id).where(composites[wants], *(FILTERS[name] for name in filters))
    return found.order_by(*ORDERS[order]).limit(CANDIDATES)


@lru_cache(maxsize=1000)
def lock_first_free(wants: str, order: str, filters: FilterNames) -> Select:
    """The id of the first of those that no other claim is at: this one is at it from now on.

    They are tried in their order, one by one, until one can be locked: no more than that one is.
    """
    candidate = candidate_ids(wants, order, filters).subquery("candidate").c
    can_lock = func.pg_try_advisory_xact_lock(COMPOSITE_LOCK, func.hashint8(candidate.id))
    return select(candidate.id).where(can_lock).limit(1)


@lru_cache(maxsize=1000)
def lock_candidate(filters: FilterNames, *, wait: bool) -> Select:
    """The number of that `id`, locked, if it is still like that; if this does not wait, only when nobody has it."""
    found = select(COMPOSITES).where(composites.id == bindparam("id"), *(FILTERS[name] for name in filters))
    return found.with_for_update(key_share=True, skip_locked=not wait, of=COMPOSITES)
