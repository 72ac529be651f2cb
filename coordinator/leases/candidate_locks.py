"""Finding a target for a claim and locking it, while other claims do the same.

A claim has a target to itself when it holds the target's advisory lock; results do not take that lock. The row
lock comes after it. Every wait for a lock ends after LOCK_TIMEOUT_MS, except the wait in `lock_client`.
"""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import Connection, Executable, Row, text
from sqlalchemy.exc import DBAPIError

from coordinator.base.advisory_locks import CLIENT_LOCK, TARGET_LOCK
from coordinator.base.unit_of_work import savepoint
from coordinator.composites.eligibility import ECM
from coordinator.leases import candidates
from coordinator.leases.work_request import WorkRequest

LOCK_TIMEOUT_MS = 250
# How many targets a claim passes over because something longer than a result's unit of work has locked them.
MAX_PASSED = 10
LOCK_NOT_AVAILABLE = "55P03"

# The fields of a request that are filters of candidates.FILTERS by themselves.
FILTER_FIELDS = ("min_digits", "max_digits", "min_priority", "min_target", "max_target", "max_current")
NO_PROJECT = -1

LockedRows = list[Row[Any]]


class ClaimFilters(NamedTuple):
    """Names from candidates.FILTERS, and the bind values of those that have one."""

    names: tuple[str, ...]
    values: dict[str, Any]


def lock_client(connection: Connection, client_id: str) -> int:
    """Let this client's claims go one after another; return how many open leases it has, and set the lock timeout."""
    values = {"lock": CLIENT_LOCK, "client": client_id, "timeout": f"{LOCK_TIMEOUT_MS}ms"}
    open_leases: int = connection.execute(_LOCK_CLIENT_AND_COUNT, values).one().open_leases
    return open_leases


# Two statements, sent together. The first one waits before the lock timeout is set: claims of one client wait for one
# another for as long as it takes. The second one sees what other claims committed while the first one waited.
_LOCK_CLIENT_AND_COUNT = text(
    "SELECT pg_advisory_xact_lock(:lock, hashtext(:client));"
    " SELECT count(*) AS open_leases, set_config('lock_timeout', :timeout, true) FROM work_assignments"
    " WHERE client_id = :client AND closed_at IS NULL"
)


def build_filters(connection: Connection, request: WorkRequest) -> ClaimFilters:
    """Return the filters of a request, without its eligibility column."""
    values = {name: value for name in FILTER_FIELDS if (value := getattr(request, name)) is not None}
    if request.project is not None:
        # By the project's id: the query planner knows how many numbers each id has.
        project_id = connection.execute(candidates.PROJECT_ID, {"project": request.project}).scalar_one_or_none()
        values["project_id"] = NO_PROJECT if project_id is None else project_id
    alone = ("alone",) if request.method == ECM and not request.shared else ()
    return ClaimFilters((*values, *alone), values)


def candidate_ids(connection: Connection, request: WorkRequest, filters: ClaimFilters) -> list[int]:
    """Return the ids of the first targets that match the request, also if other claims hold them."""
    order = _order(request)
    for eligible in request.eligibility_columns:
        found = connection.execute(candidates.select_candidates(eligible, order, filters.names), filters.values)
        if ids := list(found.scalars()):
            return ids
    return []


def lock_first_at_once(connection: Connection, request: WorkRequest, filters: ClaimFilters) -> LockedRows:
    """Lock the first matching target that no other claim holds, in one statement; no row if that one is locked."""
    order = _order(request)
    for eligible in request.eligibility_columns:
        statement = candidates.select_first_locked(eligible, order, filters.names)
        if locked := connection.execute(statement, filters.values).all():
            return list(locked)
    return []


def lock_first(connection: Connection, request: WorkRequest, filters: ClaimFilters) -> LockedRows | None:
    """Lock the first matching target that no other claim holds; None if other claims hold all of them.

    Returns its row, or no row if it no longer matches. The claim waits for a result that is being applied to the first
    one, which takes milliseconds. If something longer has locked it, the claim tries the next MAX_PASSED ones without
    waiting; when those are locked too, it waits for the first one once more.
    """
    first: int | None = None
    for passed, target_id in enumerate(_free_candidates(connection, request, filters)):
        locked = lock_target(connection, target_id, filters, wait=first is None)
        if locked is not None:
            return locked
        if first is None:
            first = target_id
        if passed == MAX_PASSED:
            break
    return None if first is None else lock_target(connection, first, filters, wait=True)


def lock_contended(connection: Connection, request: WorkRequest, filters: ClaimFilters) -> LockedRows | None:
    """Wait for one of the matching targets that other claims hold, and lock it; None if that takes too long.

    Chooses one at random, because other claims wait at the same time. Returns its row, or no row if it no longer
    matches.
    """
    ids = candidate_ids(connection, request, filters)
    if not ids:
        return None
    target_id = random.choice(ids)
    if not wait_for_claims(connection, target_id):
        return None
    return lock_target(connection, target_id, filters, wait=True)


def wait_for_claims(connection: Connection, target_id: int) -> bool:
    """Take the advisory lock of a target; returns False if other claims hold it for LOCK_TIMEOUT_MS."""
    keys = {"lock": TARGET_LOCK, "id": target_id}
    return _execute_with_lock_timeout(connection, _LOCK_TARGET, keys) is not None


_LOCK_TARGET = text("SELECT pg_advisory_xact_lock(:lock, hashint8(:id))")


def lock_target(connection: Connection, target_id: int, filters: ClaimFilters, *, wait: bool) -> LockedRows | None:
    """Lock a target's row; None if another transaction has locked it.

    Returns the row, or no row if the target no longer passes the filters. With wait=False, None means locked or no
    longer matching.
    """
    values = {**filters.values, "id": target_id}
    at_once = connection.execute(candidates.select_locked(filters.names, wait=False), values).all()
    if at_once or not wait:
        return list(at_once) or None
    return _execute_with_lock_timeout(connection, candidates.select_locked(filters.names, wait=True), values)


def _order(request: WorkRequest) -> str:
    return request.order if request.method == ECM else "standard"


def _free_candidates(connection: Connection, request: WorkRequest, filters: ClaimFilters) -> Iterator[int]:
    """Yield the ids of matching targets that no other claim holds, in order; takes the advisory lock of each."""
    order = _order(request)
    for eligible in request.eligibility_columns:
        statement = candidates.select_first_free(eligible, order, filters.names)
        free = connection.execute(statement, filters.values).scalar_one_or_none()
        passed: list[int] = []
        while free is not None:
            yield free
            passed.append(free)
            others = candidates.select_first_free(eligible, order, (*filters.names, "passed"))
            free = connection.execute(others, {**filters.values, "passed": passed}).scalar_one_or_none()


def _execute_with_lock_timeout(
    connection: Connection, statement: Executable, parameters: dict[str, Any]
) -> LockedRows | None:
    """Execute a statement that waits for a lock; returns its rows, or None if LOCK_TIMEOUT_MS passed first."""
    try:
        with savepoint(connection):
            return list(connection.execute(statement, parameters))
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) != LOCK_NOT_AVAILABLE:
            raise
        return None
