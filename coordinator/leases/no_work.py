"""The answers of a claim that makes no lease: why there is no work, and when to ask again."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, func, select

from coordinator.composites import eligibility, lease_lifecycle
from coordinator.composites.eligibility import ECM
from coordinator.composites.holds import PARKED
from coordinator.leases.work_request import NoWork, WorkRequest
from coordinator.numbers.expressions import shorten
from models.tables import Composite, Target, WorkAssignment

# Seconds until the client asks again. While leases are open, any of them may end and free work at any time.
ASK_AGAIN_SOONEST, ASK_AGAIN_WHILE_LEASED, ASK_AGAIN_LATEST = 30, 120, 600


def too_many_leases(open_leases: int, limit: int) -> NoWork:
    """Return the answer for a client that has `limit` open leases or more."""
    message = f"You hold {open_leases} leases, and {limit} is the most; complete or abandon some."
    return NoWork(message, ASK_AGAIN_SOONEST)


def unknown_number(written: str) -> NoWork:
    """Return the answer for a named number that is not registered."""
    return NoWork(f"{shorten(written)} is not a number of this server.", ASK_AGAIN_LATEST)


def named_number_unavailable(connection: Connection, composite_id: int, request: WorkRequest) -> NoWork:
    """Return the answer for a named number that this client cannot lease, with the plainest reason."""
    own = (
        Composite.is_fully_factored,
        Composite.is_prime.label("cofactor_is_prime"),
        (Composite.current_composite == "1").label("has_no_cofactor"),
        *Target.__table__.columns,
    )
    of_target = select(*own).outerjoin(Target, Target.id == Composite.target_id)
    row = connection.execute(of_target.where(Composite.id == composite_id)).one()
    reason = next(_reasons(connection, row, request))
    return NoWork(f"{shorten(request.composite or '')} {reason}.", ASK_AGAIN_LATEST)


def nothing_matches(connection: Connection) -> NoWork:
    """Return the answer when no target matches.

    The client should ask again when the next lease expires, but within ASK_AGAIN_WHILE_LEASED: leases also end early.
    """
    soonest = select(func.min(WorkAssignment.expires_at), func.clock_timestamp())
    expires_at, now = connection.execute(soonest.where(WorkAssignment.closed_at.is_(None))).one()
    seconds = ASK_AGAIN_LATEST if expires_at is None else (expires_at - now).total_seconds()
    latest = ASK_AGAIN_LATEST if expires_at is None else ASK_AGAIN_WHILE_LEASED
    retry_after = int(min(max(seconds, ASK_AGAIN_SOONEST), latest))
    return NoWork(f"No matching work right now; ask again in {retry_after} seconds.", retry_after)


def _reasons(connection: Connection, row: Row[Any], request: WorkRequest) -> Iterator[str]:
    """Yield why a number has no work for this client, each as the end of a sentence, the plainest first."""
    if row.is_fully_factored or row.id is None:
        yield "is fully factored"
    if row.cofactor_is_prime is None:
        yield "waits for a primality test"
    if row.has_no_cofactor or row.cofactor_is_prime or not eligibility.needs_curves(row):
        yield "has no composite cofactor left that needs curves"
    if row.hold is not None:
        hold = "set aside" if row.hold == PARKED else row.hold
        yield f"is {hold}: {row.hold_reason or 'no reason given'}"
    leases = lease_lifecycle.open_leases(connection, [row.id]).get(row.id, [])
    if any(lease.method in eligibility.RESERVATION_METHODS for lease in leases):
        yield "is reserved for another method"
    if request.method != ECM and not any(getattr(row, column) for column in request.eligibility_columns):
        yield f"has had P-1 and P+1 up to B1 = {row.p1_target_b1:,}, or they are out on lease"
    if request.method == ECM:
        if row.current_t_level >= row.target_t_level:
            yield f"has reached its target of t{row.target_t_level:.1f}"
        ecm_leases = sum(lease.method == ECM for lease in leases)
        if ecm_leases and not (request.shared and row.ecm_eligible):
            yield f"has open leases ({ecm_leases}), which leave no curves for this request"
    yield "does not match the other filters"
