"""Holds: numbers get no work because an operator paused them or because several clients in a row gave them up."""

from typing import Any

import structlog
from sqlalchemy import Connection, func, select, update

from config.settings import settings
from models.tables import Composite, EcmAttempt, WorkAssignment
from models.types import AnyRow

log = structlog.get_logger("holds")

PAUSED, PARKED = "paused", "parked"
# The number of past leases or attempts that are examined. Most leases end with curves or are given up.
EXAMINED_ROWS = 50


def hold_if_abandoned(connection: Connection, composite_id: int) -> None:
    """Set a locked composite aside when HOLD_AFTER different clients in a row gave it up without a single curve.

    Only leases closed after the last completed one, the last with curves, and the last resume are counted. Leases that
    ran out do not count, because machines are switched off; neither do leases that an operator cancelled.
    """
    composite = connection.execute(
        select(Composite.hold, Composite.resumed_at).where(Composite.id == composite_id)
    ).one()
    if composite.hold is not None:
        return
    closed_leases = connection.execute(
        select(
            WorkAssignment.client_id,
            WorkAssignment.status,
            WorkAssignment.is_cancelled,
            WorkAssignment.message,
            WorkAssignment.composite_id,
            WorkAssignment.created_at,
            WorkAssignment.curves_submitted,
        )
        .where(
            WorkAssignment.composite_id == composite_id,
            WorkAssignment.closed_at.is_not(None),
            *([WorkAssignment.closed_at > composite.resumed_at] if composite.resumed_at else []),
        )
        .order_by(WorkAssignment.closed_at.desc())
        .limit(EXAMINED_ROWS)
    )
    reasons: dict[str, str] = {}
    for lease in closed_leases:
        if lease.status == "completed" or lease.curves_submitted or _sent_curves(connection, lease):
            break
        if lease.status == "failed" and not lease.is_cancelled:
            reasons.setdefault(lease.client_id, lease.message or "no reason given")
    if len(reasons) >= settings().hold_after:
        hold_reason = "; ".join(f"{client}: {reason}" for client, reason in reasons.items())[:2000]
        set_hold(connection, composite_id, PARKED, hold_reason)
        log.warning("Number set aside: clients gave it up", composite=composite_id, reasons=hold_reason[:300])


def _sent_curves(connection: Connection, lease: AnyRow) -> bool:
    """Return whether the lease's client sent curves of its composite since the lease was made.

    Not every client names the lease in its results, so the client's last attempts are examined.
    """
    recent = (
        select(EcmAttempt.composite_id, EcmAttempt.curves, EcmAttempt.created_at)
        .where(EcmAttempt.client_id == lease.client_id)
        .order_by(EcmAttempt.id.desc())
        .limit(EXAMINED_ROWS)
        .subquery()
        .c
    )
    with_curves = select(recent.curves).where(
        recent.composite_id == lease.composite_id, recent.created_at >= lease.created_at, recent.curves > 0
    )
    return connection.execute(with_curves.limit(1)).first() is not None


def set_hold(connection: Connection, composite_id: int, kind: str, reason: str | None) -> None:
    """Put a hold on a locked composite: it gets no more work until it is resumed. Open leases continue."""
    values: dict[str, Any] = {"hold": kind, "hold_reason": reason, "held_at": func.now()}
    connection.execute(update(Composite).where(Composite.id == composite_id).values(values))


def clear_hold(connection: Connection, composite_id: int) -> None:
    """Remove the hold on a locked composite; clients that gave it up before do not count any more."""
    values: dict[str, Any] = {"hold": None, "hold_reason": None, "held_at": None, "resumed_at": func.clock_timestamp()}
    connection.execute(update(Composite).where(Composite.id == composite_id).values(values))
