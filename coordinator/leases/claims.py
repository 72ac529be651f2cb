"""Claims: which target a client gets, and how much work on it.

A claim is one unit of work:

 1. claims of the same client wait for one another, so that none gets more than MAX_WORK_PER_CLIENT leases;
 2. an index of eligible targets gives the first ones in the order that the client asks for;
 3. the claim takes the advisory lock of the first one that no other claim holds, then locks its row and checks it
    again; it waits, rather than skips, while a result is being applied to that target: that takes milliseconds;
 4. it plans the lease, inserts it under the name of one of the unfinished numbers that have this target, and stores
    what the target is eligible for from now on.

When other claims hold all of those targets, the claim waits for any one of them and then searches again. No wait
takes longer than LOCK_TIMEOUT_MS. The answer is "no work" only when no target matches.
"""

from time import monotonic
from typing import NamedTuple

from sqlalchemy import Connection, Engine

from config.settings import Settings
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import registry, targets
from coordinator.leases import candidate_locks, new_leases, no_work
from coordinator.leases.candidate_locks import ClaimFilters, LockedRows
from coordinator.leases.new_leases import NamedBy
from coordinator.leases.work_request import Claim, NoWork, WorkRequest

# Seconds that a claim goes on while other claims hold every matching target.
CLAIM_TIMEOUT = 5.0


class ContendedError(Exception):
    """Other claims held every matching target for CLAIM_TIMEOUT seconds; the client should ask again at once."""


class _ClaimAttempt(NamedTuple):
    """What one attempt gave: an answer, or None (try again); `contended` if other claims held every target."""

    answer: Claim | NoWork | None = None
    contended: bool = False


def claim(engine: Engine, request: WorkRequest, settings: Settings) -> Claim | NoWork:
    """Lease the first target that matches, in the order of the request.

    Raises ContendedError, and ExpressionError if the request names something that is not a number.
    """
    if request.composite is not None:
        registry.evaluate_ahead(request.composite, settings.max_digits)
    deadline = monotonic() + CLAIM_TIMEOUT
    contended = False
    while True:
        with unit_of_work(engine, "claim", client=request.client_id, method=request.method) as connection:
            attempt = _attempt_claim(connection, request, settings, contended=contended)
        if attempt.answer is not None:
            return attempt.answer
        if monotonic() > deadline:
            raise ContendedError(f"other claims held every matching number for {CLAIM_TIMEOUT:g} s")
        contended = attempt.contended


def _attempt_claim(
    connection: Connection, request: WorkRequest, settings: Settings, *, contended: bool
) -> _ClaimAttempt:
    open_leases = candidate_locks.lock_client(connection, request.client_id)
    if open_leases >= settings.max_work_per_client:
        return _ClaimAttempt(no_work.too_many_leases(open_leases, settings.max_work_per_client))
    filters = candidate_locks.build_filters(connection, request)
    if request.composite is not None:
        return _claim_named(connection, request, request.composite, filters, settings)
    locked: LockedRows | None = None
    if not contended:  # almost always the first candidate is free, and its row, too
        locked = candidate_locks.lock_first_at_once(connection, request, filters)
    if not locked:
        if not candidate_locks.candidate_ids(connection, request, filters):
            return _ClaimAttempt(no_work.nothing_matches(connection))
        lock = candidate_locks.lock_contended if contended else candidate_locks.lock_first
        locked = lock(connection, request, filters)
    if locked is None:
        return _ClaimAttempt(contended=not contended)
    named = NamedBy(project_id=filters.values.get("project_id"))
    return _ClaimAttempt(_lease_locked(connection, locked, request, settings, named))


def _claim_named(
    connection: Connection, request: WorkRequest, written: str, filters: ClaimFilters, settings: Settings
) -> _ClaimAttempt:
    """Lease the number that the client names, or answer why that is not possible."""
    found = registry.find(connection, written, settings.max_digits)
    if found is None:
        return _ClaimAttempt(no_work.unknown_number(written))
    target_ids = targets.ids_of(connection, [found.id])
    if not target_ids:
        return _ClaimAttempt(no_work.named_number_unavailable(connection, found.id, request))
    if not candidate_locks.wait_for_claims(connection, target_ids[0]):
        return _ClaimAttempt()
    locked = candidate_locks.lock_target(connection, target_ids[0], filters, wait=True)
    if locked is None or targets.ids_of(connection, [found.id]) != target_ids:
        return _ClaimAttempt()
    made = _lease_locked(connection, locked, request, settings, NamedBy(found.id))
    return _ClaimAttempt(made or no_work.named_number_unavailable(connection, found.id, request))


def _lease_locked(
    connection: Connection, locked: LockedRows, request: WorkRequest, settings: Settings, named: NamedBy
) -> Claim | None:
    """Lease the target that this claim has locked, under the name of `named`; None if it no longer matches."""
    if not locked:
        return None
    (row,) = locked
    return new_leases.make_lease(connection, row, request, settings, named)
