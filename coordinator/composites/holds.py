"""Numbers kept from work: paused by an operator, or parked because client after client gave them up."""

from typing import Any

import structlog
from sqlalchemy import Connection, Row, func, select, update

from config.settings import settings
from models.tables import Composite, EcmAttempt, WorkAssignment

log = structlog.get_logger("holds")

PAUSED, PARKED = "paused", "parked"
# Leases that ended some other way without a curve say nothing about the number, but are few.
LOOKED_AT = 50


def park_if_abandoned(connection: Connection, composite_id: int) -> None:
    """Park a locked composite when several different clients in a row have given it up without a single curve.

    In a row: since the last lease that brought curves or was completed, and since it was last resumed. Leases that ran
    out say nothing: machines are switched off.
    """
    composite = connection.execute(
        select(Composite.hold, Composite.resumed_at).where(Composite.id == composite_id)
    ).one()
    if composite.hold is not None:
        return
    past = connection.execute(
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
        .limit(LOOKED_AT)
    )
    reasons: dict[str, str] = {}
    for lease in past:
        if lease.status == "completed" or lease.curves_submitted or _sent_curves(connection, lease):
            break
        if lease.status == "failed" and not lease.is_cancelled:
            reasons.setdefault(lease.client_id, lease.message or "no reason given")
    if len(reasons) >= settings().hold_after:
        why = "; ".join(f"{client}: {reason}" for client, reason in reasons.items())[:2000]
        set_hold(connection, composite_id, PARKED, why)
        log.warning("A number is parked: clients give it up", composite=composite_id, reasons=why[:300])


def _sent_curves(connection: Connection, lease: Row) -> bool:
    """Whether its client has sent curves of that number since: not every client names the lease with its results."""
    recent = (
        select(EcmAttempt.composite_id, EcmAttempt.curves, EcmAttempt.created_at)
        .where(EcmAttempt.client_id == lease.client_id)
        .order_by(EcmAttempt.id.desc())
        .limit(LOOKED_AT)
        .subquery()
        .c
    )
    found = select(recent.curves).where(
        recent.composite_id == lease.composite_id, recent.created_at >= lease.created_at, recent.curves > 0
    )
    return connection.execute(found.limit(1)).first() is not None


def set_hold(connection: Connection, composite_id: int, kind: str, reason: str | None) -> None:
    """Keep a locked composite from work until it is resumed; open leases go on."""
    values: dict[str, Any] = {"hold": kind, "hold_reason": reason, "held_at": func.now()}
    connection.execute(update(Composite).where(Composite.id == composite_id).values(values))


def clear_hold(connection: Connection, composite_id: int) -> None:
    """Let a locked composite be worked on again, with its past forgiven."""
    values: dict[str, Any] = {"hold": None, "hold_reason": None, "held_at": None, "resumed_at": func.clock_timestamp()}
    connection.execute(update(Composite).where(Composite.id == composite_id).values(values))
