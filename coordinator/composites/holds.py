"""Holds: targets get no work because an operator paused them or because several clients in a row gave them up."""

from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import structlog
from sqlalchemy import Connection, bindparam, func, literal_column, or_, select, true, update

from config.settings import settings
from models.tables import Composite, EcmAttempt, Target, TargetSource, WorkAssignment
from models.types import AnyRow

log = structlog.get_logger("holds")

PAUSED, PARKED = "paused", "parked"
# The number of past leases of a number, or of past attempts of a client, that are examined. Most leases end with curves
# or are given up.
EXAMINED_ROWS = 50


def hold_if_abandoned(connection: Connection, target_id: int) -> bool:
    """Set a locked target aside when HOLD_AFTER different clients in a row gave it up without a single curve.

    Returns whether that happened. Only leases closed after the last completed one, the last with curves, and the last
    resume are counted. Leases that ran out do not count, because machines are switched off; neither do leases that an
    operator cancelled.
    """
    closed = connection.execute(_LAST_CLOSED_LEASES, {"target": target_id}).all()
    last = list(takewhile(lambda lease: lease.status != "completed" and not lease.curves_submitted, closed))
    if len(_reasons(last)) < settings().hold_after:
        return False
    # Only now the attempts of these clients are examined: not every client names the lease in its results.
    with_curves = (place for place, lease in enumerate(last) if _sent_curves(connection, target_id, lease))
    reasons = _reasons(last[: next(with_curves, None)])
    if len(reasons) < settings().hold_after:
        return False
    hold_reason = "; ".join(f"{client}: {reason}" for client, reason in reasons.items())[:2000]
    set_hold(connection, target_id, PARKED, hold_reason)
    sharing = select(Composite.id).where(Composite.target_id == target_id)
    composite_id = connection.execute(sharing.order_by(Composite.id).limit(1)).scalar_one()
    log.warning("Number set aside: clients gave it up", composite=composite_id, reasons=hold_reason[:300])
    return True


def _reasons(leases: Iterable[AnyRow]) -> dict[str, str]:
    """Return the reason of each client that gave one of these leases up."""
    reasons: dict[str, str] = {}
    for lease in leases:
        if lease.status == "failed" and not lease.is_cancelled:
            reasons.setdefault(lease.client_id, lease.message or "no reason given")
    return reasons


# The last EXAMINED_ROWS closed leases of a target's composites since the target was resumed, the latest first; none if
# it has a hold. Of each composite no more are read, in the order of an index: some composites have very many.
_target, _lease = Target.__table__.c, WorkAssignment.__table__.c
_last = (
    select(
        _lease.client_id,
        _lease.status,
        _lease.is_cancelled,
        _lease.message,
        _lease.composite_id,
        _lease.created_at,
        _lease.closed_at,
        _lease.curves_submitted,
    )
    .where(
        _lease.composite_id == Composite.__table__.c.id,
        _lease.closed_at > func.coalesce(_target.resumed_at, literal_column("timestamptz '-infinity'")),
    )
    .order_by(_lease.closed_at.desc())
    .limit(EXAMINED_ROWS)
    .correlate(Composite.__table__, Target.__table__)
    .lateral("last")
)
_LAST_CLOSED_LEASES = (
    select(_last)
    .select_from(Target.__table__)
    .join(Composite.__table__, Composite.__table__.c.target_id == _target.id)
    .join(_last, true())
    .where(_target.id == bindparam("target"), _target.hold.is_(None))
    .order_by(_last.c.closed_at.desc())
    .limit(EXAMINED_ROWS)
)


def _sent_curves(connection: Connection, target_id: int, lease: AnyRow) -> bool:
    """Return whether the lease's client sent curves that count for its target or its composite since it was made.

    A result without a lease belongs to the oldest number with that cofactor, which need not be the one that was leased.
    """
    values = {
        "client": lease.client_id,
        "composite": lease.composite_id,
        "target": target_id,
        "since": lease.created_at,
    }
    return connection.execute(_CURVES_SENT, values).first() is not None


_attempt, _source = EcmAttempt.__table__.c, TargetSource.__table__.c
_recent = (
    select(_attempt.composite_id, _attempt.value_id, _attempt.curves, _attempt.created_at)
    .where(_attempt.client_id == bindparam("client"))
    .order_by(_attempt.id.desc())
    .limit(EXAMINED_ROWS)
    .subquery("recent")
    .c
)
_CURVES_SENT = (
    select(_recent.curves)
    .where(
        or_(
            _recent.composite_id == bindparam("composite"),
            _recent.value_id.in_(select(_source.value_id).where(_source.target_id == bindparam("target"))),
        ),
        _recent.created_at >= bindparam("since"),
        _recent.curves > 0,
    )
    .limit(1)
)


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
