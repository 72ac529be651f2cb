"""Holds: targets get no work because an operator paused them or because several clients in a row gave them up."""

from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Connection, func, or_, select, true, update

from config.settings import settings
from models.tables import Composite, EcmAttempt, Target, TargetSource, WorkAssignment
from models.types import AnyRow

log = structlog.get_logger("holds")

PAUSED, PARKED = "paused", "parked"
# The number of past leases of a number, or of past attempts of a client, that are examined. Most leases end with curves
# or are given up.
EXAMINED_ROWS = 50


def hold_if_abandoned(connection: Connection, target_id: int) -> None:
    """Set a locked target aside when HOLD_AFTER different clients in a row gave it up without a single curve.

    Only leases closed after the last completed one, the last with curves, and the last resume are counted. Leases that
    ran out do not count, because machines are switched off; neither do leases that an operator cancelled.
    """
    target = connection.execute(select(Target.hold, Target.resumed_at).where(Target.id == target_id)).one()
    if target.hold is not None:
        return
    reasons: dict[str, str] = {}
    for lease in _last_closed_leases(connection, target_id, target.resumed_at):
        if lease.status == "completed" or lease.curves_submitted or _sent_curves(connection, target_id, lease):
            break
        if lease.status == "failed" and not lease.is_cancelled:
            reasons.setdefault(lease.client_id, lease.message or "no reason given")
    if len(reasons) >= settings().hold_after:
        hold_reason = "; ".join(f"{client}: {reason}" for client, reason in reasons.items())[:2000]
        set_hold(connection, target_id, PARKED, hold_reason)
        sharing = select(Composite.id).where(Composite.target_id == target_id)
        composite_id = connection.execute(sharing.order_by(Composite.id).limit(1)).scalar_one()
        log.warning("Number set aside: clients gave it up", composite=composite_id, reasons=hold_reason[:300])


def _last_closed_leases(connection: Connection, target_id: int, after: datetime | None) -> list[AnyRow]:
    """Return the last EXAMINED_ROWS leases of a target's composites that were closed `after` a time, the latest first.

    Of each composite no more are read than that, in the order of an index: some composites have very many.
    """
    is_closed = [WorkAssignment.composite_id == Composite.id, WorkAssignment.closed_at.is_not(None)]
    last = (
        select(
            WorkAssignment.client_id,
            WorkAssignment.status,
            WorkAssignment.is_cancelled,
            WorkAssignment.message,
            WorkAssignment.composite_id,
            WorkAssignment.created_at,
            WorkAssignment.closed_at,
            WorkAssignment.curves_submitted,
        )
        .where(*is_closed, *([] if after is None else [WorkAssignment.closed_at > after]))
        .order_by(WorkAssignment.closed_at.desc())
        .limit(EXAMINED_ROWS)
        .correlate(Composite)
        .lateral("last")
    )
    of_target = select(last).select_from(Composite).join(last, true()).where(Composite.target_id == target_id)
    return list(connection.execute(of_target.order_by(last.c.closed_at.desc()).limit(EXAMINED_ROWS)))


def _sent_curves(connection: Connection, target_id: int, lease: AnyRow) -> bool:
    """Return whether the lease's client sent curves that count for its target or its composite since it was made.

    Not every client names the lease in its results, so the client's last attempts are examined. A result without a
    lease belongs to the oldest number with that cofactor, which need not be the one that was leased.
    """
    recent = (
        select(EcmAttempt.composite_id, EcmAttempt.value_id, EcmAttempt.curves, EcmAttempt.created_at)
        .where(EcmAttempt.client_id == lease.client_id)
        .order_by(EcmAttempt.id.desc())
        .limit(EXAMINED_ROWS)
        .subquery()
        .c
    )
    sources = select(TargetSource.value_id).where(TargetSource.target_id == target_id)
    with_curves = select(recent.curves).where(
        or_(recent.composite_id == lease.composite_id, recent.value_id.in_(sources)),
        recent.created_at >= lease.created_at,
        recent.curves > 0,
    )
    return connection.execute(with_curves.limit(1)).first() is not None


def set_hold(connection: Connection, target_id: int, kind: str, reason: str | None) -> None:
    """Put a hold on a locked target: it gets no more work until it is resumed. Open leases continue."""
    values: dict[str, Any] = {"hold": kind, "hold_reason": reason, "held_at": func.now()}
    connection.execute(update(Target).where(Target.id == target_id).values(values))


def clear_hold(connection: Connection, target_id: int) -> None:
    """Remove the hold on a locked target; clients that gave it up before do not count any more."""
    values: dict[str, Any] = {"hold": None, "hold_reason": None, "held_at": None, "resumed_at": func.clock_timestamp()}
    connection.execute(update(Target).where(Target.id == target_id).values(values))


def carry_hold(connection: Connection, old_id: int, new_id: int, *, is_new: bool) -> None:
    """Copy the hold of a target to the one that its composite points to from now on.

    A target that other composites had before keeps its own state, unless an operator has paused this composite.
    """
    columns = (Target.hold, Target.hold_reason, Target.held_at, Target.resumed_at)
    old = connection.execute(select(*columns).where(Target.id == old_id)).one()
    if is_new or old.hold == PAUSED:
        connection.execute(update(Target).where(Target.id == new_id).values(old._asdict()))
