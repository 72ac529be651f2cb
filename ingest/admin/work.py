"""Work, for operators: reservations, pauses, and leases to look at and cancel."""

from datetime import UTC, datetime
from typing import Any

import orjson
from flask import Response, current_app
from pydantic import BaseModel

from config.settings import Settings
from coordinator import reservations, upkeep
from ingest import openapi
from ingest.admin.access import require_key
from ingest.admin.blueprints import by
from ingest.bodies import read_body
from ingest.problems import Problem
from ingest.work import WorkPath, assignment, lease_state, with_lease
from models.wire_work import CleanedUp, HoldState, LeaseState, OpenWork, ReasonQuery, Reservation, Reserved

admin_work = openapi.admin_blueprint("admin_work", openapi.ADMIN_WORK)
admin_work.before_request(require_key)

UNKNOWN_WORK: dict[Any, Any] = {404: openapi.problem("`unknown_work`")}
UNKNOWN_COMPOSITE: dict[Any, Any] = {404: openapi.problem("`unknown_composite`")}


@admin_work.get("/work/assignments", operation_id="admin_assignments", responses={200: OpenWork})
def assignments() -> Response:
    """Open leases, those that run out first first (at most 1,000)."""
    rows = reservations.open_work(_engine())
    return _json({"assignments": [assignment(row) for row in rows]})


@admin_work.delete(
    "/work/assignments/<work_id>", operation_id="admin_cancel_work", responses={200: LeaseState, **UNKNOWN_WORK}
)
def cancel(path: WorkPath, query: ReasonQuery) -> Response:
    """Cancel anybody's lease; idempotent. Its client learns of it by its next heartbeat."""
    return _json(
        lease_state(with_lease(lambda id_: reservations.cancel(_engine(), id_, query.reason, by()), path.work_id))
    )


@admin_work.post("/work/cleanup", operation_id="admin_cleanup_work", responses={200: CleanedUp})
def cleanup() -> Response:
    """Time out overdue leases now, as beat does every few seconds."""
    expired = upkeep.expire_work(_engine(), datetime.now(UTC))
    return _json({"expired": expired, "message": f"{expired} overdue leases timed out"})


@admin_work.post(
    "/work/reserve",
    operation_id="admin_reserve",
    request_body=openapi.takes(Reservation),
    responses={200: Reserved, 409: openapi.problem("`reserved`: by somebody; `fully_factored`"), **UNKNOWN_COMPOSITE},
)
def reserve() -> Response:
    """Reserve a number for another method elsewhere: it gets no work meanwhile. Open leases go on, and count."""
    wish = read_body(Reservation)
    settings: Settings = current_app.config["SETTINGS"]
    try:
        row = reservations.reserve(
            _engine(),
            wish.composite_identifier,
            wish.client_id,
            wish.method,
            wish.duration_hours,
            details=wish.metadata,
            max_digits=settings.max_digits,
            by=by(),
        )
    except reservations.UnknownComposite as error:
        raise _unknown(error) from error
    except reservations.Taken as error:
        raise Problem(409, "reserved", f"{error}; release that first.") from error
    except reservations.Finished as error:
        raise Problem(409, "fully_factored", f"{error}.") from error
    others = row.open_leases - 1
    return _json(
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
    """Release a reservation; idempotent."""
    row = with_lease(lambda id_: reservations.release(_engine(), id_, query.reason, by()), path.work_id)
    return _json(lease_state(row))


class CompositePath(BaseModel):
    composite_id: int


@admin_work.post(
    "/composites/<int:composite_id>/pause",
    operation_id="admin_pause",
    responses={200: HoldState, **UNKNOWN_COMPOSITE},
)
def pause(path: CompositePath, query: ReasonQuery) -> Response:
    """No work on a number until it is resumed; open leases go on."""
    return _hold(path.composite_id, pausing=True, reason=query.reason)


@admin_work.post(
    "/composites/<int:composite_id>/resume",
    operation_id="admin_resume",
    responses={200: HoldState, **UNKNOWN_COMPOSITE},
)
def resume(path: CompositePath) -> Response:
    """Let a paused or parked number be worked on again; idempotent."""
    return _hold(path.composite_id, pausing=False, reason=None)


def _hold(composite_id: int, *, pausing: bool, reason: str | None) -> Response:
    if composite_id >= 2**63:
        raise Problem(404, "unknown_composite", f"There is no composite with id {str(composite_id)[:30]}.")
    try:
        row = (
            reservations.pause(_engine(), composite_id, reason, by())
            if pausing
            else reservations.resume(_engine(), composite_id, by())
        )
    except reservations.UnknownComposite as error:
        raise _unknown(error) from error
    message = "It gets no work until it is resumed" if pausing else "It gets work again"
    return _json({"composite_id": row.id, "hold": row.hold, "hold_reason": row.hold_reason, "message": message})


def _unknown(error: Exception) -> Problem:
    return Problem(404, "unknown_composite", f"{error}.")


def _engine() -> Any:
    return current_app.config["ENGINE"]


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), 200, content_type="application/json")
