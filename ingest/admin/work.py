"""Work, for operators: reservations, pauses, and leases to look at and cancel."""

from datetime import UTC, datetime
from typing import Any

from flask import Response
from sqlalchemy import Row

from coordinator.housekeeping import lease_expiry
from coordinator.leases import reservations
from ingest import openapi
from ingest.admin.blueprints import UNKNOWN_COMPOSITE, answer, make, request_actor
from ingest.answers import engine, settings
from ingest.bodies import read_body
from ingest.work import assignment, lease_state, with_lease
from models.wire.administration import HoldState, OpenWork, OverdueEnded, ReasonQuery, Reservation, Reserved
from models.wire.common import CompositePath, WorkPath
from models.wire.work import LeaseState

admin_work = make("admin_work", openapi.ADMIN_WORK)

UNKNOWN_WORK: dict[Any, Any] = {404: openapi.problem("`unknown_work`")}


@admin_work.get("/work/assignments", operation_id="admin_assignments", responses={200: OpenWork})
def assignments() -> Response:
    """List open leases (at most 1,000); the leases that run out first come first."""
    rows = reservations.list_open_leases(engine())
    return answer({"assignments": [assignment(row) for row in rows]})


@admin_work.delete(
    "/work/assignments/<work_id>", operation_id="admin_cancel_work", responses={200: LeaseState, **UNKNOWN_WORK}
)
def cancel(path: WorkPath, query: ReasonQuery) -> Response:
    """Cancel any client's lease: its status is `failed` and its message is `reason`.

    A closed lease stays as it is. The client is told at its next heartbeat.
    """
    return answer(
        lease_state(
            with_lease(lambda id_: reservations.cancel(engine(), id_, query.reason, request_actor()), path.work_id)
        )
    )


@admin_work.post("/work/cleanup", operation_id="admin_cleanup_work", responses={200: OverdueEnded})
def cleanup() -> Response:
    """End overdue leases without waiting for the periodic task."""
    expired = lease_expiry.expire_leases(engine(), datetime.now(UTC))
    return answer({"expired": expired, "message": f"{expired} overdue leases timed out"})


@admin_work.post(
    "/work/reserve",
    operation_id="admin_reserve",
    request_body=openapi.takes(Reservation),
    responses={200: Reserved, 409: openapi.problem("`reserved`: by somebody; `fully_factored`"), **UNKNOWN_COMPOSITE},
)
def reserve() -> Response:
    """Reserve a number for another method elsewhere: it gets no new work meanwhile. Open leases continue."""
    wish = read_body(Reservation)
    row = reservations.reserve(
        engine(),
        wish.composite_identifier,
        wish.client_id,
        wish.method,
        wish.duration_hours,
        details=wish.metadata,
        max_digits=settings().max_digits,
        actor=request_actor(),
    )
    others = row.open_leases - 1
    return answer(
        {
            "work_id": str(row.id),
            "composite_id": row.composite_id,
            "composite": row.current_composite,
            "method": row.method,
            "client_id": row.client_id,
            "expires_at": row.expires_at,
            "message": "Reserved" + (f"; {others} open leases on it go on, and count" if others else ""),
        }
    )


@admin_work.post("/work/release/<work_id>", operation_id="admin_release", responses={200: LeaseState, **UNKNOWN_WORK})
def release(path: WorkPath, query: ReasonQuery) -> Response:
    """Release a reservation. A reservation that is over already stays as it is."""
    row = with_lease(lambda id_: reservations.release(engine(), id_, query.reason, request_actor()), path.work_id)
    return answer(lease_state(row))


@admin_work.post(
    "/composites/<int:composite_id>/pause",
    operation_id="admin_pause",
    responses={200: HoldState, **UNKNOWN_COMPOSITE},
)
def pause(path: CompositePath, query: ReasonQuery) -> Response:
    """Pause a number: it gets no new work until it is resumed. Open leases continue."""
    row = reservations.pause(engine(), path.composite_id, query.reason, request_actor())
    return _hold(row, "It gets no work until it is resumed")


@admin_work.post(
    "/composites/<int:composite_id>/resume",
    operation_id="admin_resume",
    responses={200: HoldState, **UNKNOWN_COMPOSITE},
)
def resume(path: CompositePath) -> Response:
    """Resume a number that is paused or set aside."""
    return _hold(reservations.resume(engine(), path.composite_id, request_actor()), "It gets work again")


def _hold(row: Row[Any], message: str) -> Response:
    said = {"composite_id": row.id, "hold": row.hold, "hold_reason": row.hold_reason}
    return answer({**said, "message": message})
