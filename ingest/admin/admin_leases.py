"""Administration of work: list and cancel leases, reserve numbers, pause and resume them."""

from typing import Any

from flask import Response
from sqlalchemy import Row

from coordinator.base import clock
from coordinator.housekeeping import lease_expiry
from coordinator.leases import reservations
from ingest import openapi
from ingest.admin.blueprints import UNKNOWN_COMPOSITE, answer, make, request_actor
from ingest.leases_routes import assignment, lease_state, with_lease
from ingest.plurals import counted
from ingest.request_bodies import read_body
from ingest.view_context import engine, settings
from models.wire.administration import HoldState, OpenWork, OverdueEnded, ReasonQuery, Reservation, Reserved
from models.wire.common import CompositePath, WorkPath
from models.wire.work import LeaseState

admin_leases = make("admin_leases", openapi.ADMIN_WORK)

UNKNOWN_WORK: dict[Any, Any] = {404: openapi.problem("`unknown_work`")}


@admin_leases.get("/work/assignments", operation_id="admin_assignments", responses={200: OpenWork})
def assignments() -> Response:
    """Return at most 1,000 open leases, those that expire next first."""
    rows = reservations.list_open_leases(engine())
    return answer({"assignments": [assignment(row) for row in rows]})


@admin_leases.delete(
    "/work/assignments/<work_id>", operation_id="admin_cancel_work", responses={200: LeaseState, **UNKNOWN_WORK}
)
def cancel(path: WorkPath, query: ReasonQuery) -> Response:
    """Cancel a lease, whoever holds it. Idempotent. The client is told at its next heartbeat."""
    return answer(
        lease_state(
            with_lease(lambda id_: reservations.cancel(engine(), id_, query.reason, request_actor()), path.work_id)
        )
    )


@admin_leases.post("/work/cleanup", operation_id="admin_cleanup_work", responses={200: OverdueEnded})
def cleanup() -> Response:
    """Time out overdue leases now, as housekeeping does every few seconds."""
    expired = lease_expiry.expire_leases(engine(), clock.now(engine()))
    return answer({"expired": expired, "message": f"{counted(expired, 'overdue lease')} timed out"})


@admin_leases.post(
    "/work/reserve",
    operation_id="admin_reserve",
    request_body=openapi.takes(Reservation),
    responses={200: Reserved, 409: openapi.problem("`reserved`: by somebody; `fully_factored`"), **UNKNOWN_COMPOSITE},
)
def reserve() -> Response:
    """Reserve a number for another method elsewhere: it gets no new leases meanwhile. Open leases go on and count."""
    body = read_body(Reservation)
    row = reservations.reserve(
        engine(),
        body.composite_identifier,
        body.client_id,
        body.method,
        body.duration_hours,
        details=body.metadata,
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
            "message": "Reserved" + (f"; {_going_on(others)}" if others else ""),
        }
    )


@admin_leases.post("/work/release/<work_id>", operation_id="admin_release", responses={200: LeaseState, **UNKNOWN_WORK})
def release(path: WorkPath, query: ReasonQuery) -> Response:
    """Release a reservation. Idempotent."""
    row = with_lease(lambda id_: reservations.release(engine(), id_, query.reason, request_actor()), path.work_id)
    return answer(lease_state(row))


@admin_leases.post(
    "/composites/<int:composite_id>/pause",
    operation_id="admin_pause",
    responses={200: HoldState, **UNKNOWN_COMPOSITE},
)
def pause(path: CompositePath, query: ReasonQuery) -> Response:
    """Pause a number: it gets no new leases until it is resumed; open leases go on."""
    row = reservations.pause(engine(), path.composite_id, query.reason, request_actor())
    return _hold(row, "It gets no work until it is resumed")


@admin_leases.post(
    "/composites/<int:composite_id>/resume",
    operation_id="admin_resume",
    responses={200: HoldState, **UNKNOWN_COMPOSITE},
)
def resume(path: CompositePath) -> Response:
    """Resume a number that is paused or set aside. Idempotent."""
    return _hold(reservations.resume(engine(), path.composite_id, request_actor()), "It gets work again")


def _going_on(leases: int) -> str:
    verbs = "goes on and still counts" if leases == 1 else "go on and still count"
    return f"{counted(leases, 'open lease')} on it {verbs}"


def _hold(row: Row[Any], message: str) -> Response:
    return answer({"composite_id": row.id, "hold": row.hold, "hold_reason": row.hold_reason, "message": message})
