"""Leases: who works on which composite until when, and what a result or the clock does to them."""

import uuid
from datetime import datetime

from sqlalchemy import Connection, Select, case, func, select, update

from models.tables import WorkAssignment

EXPIRY_BATCH = 500


def find_lease(
    connection: Connection, work_id: str, client_id: str, composite_ids: set[int]
) -> tuple[uuid.UUID | None, str | None]:
    """(The lease that a result names, None), or (None, why it is left alone).

    Nothing is locked: whose a lease is, and of which composite, never changes.
    """
    try:
        lease_id = uuid.UUID(work_id)
    except ValueError:
        return None, f"work_id {work_id[:60]!r} is no lease of this server; the result counts without it"
    lease = connection.execute(
        select(WorkAssignment.client_id, WorkAssignment.composite_id).where(WorkAssignment.id == lease_id)
    ).one_or_none()
    if lease is None:
        return None, f"work_id {lease_id} is unknown; the result counts without it"
    if lease.client_id != client_id:
        return None, f"work_id {lease_id} is another client's lease; the result counts without it"
    if lease.composite_id not in composite_ids:
        return None, f"work_id {lease_id} leases another number; the result counts without it"
    return lease_id, None


def count_curves(connection: Connection, lease_id: uuid.UUID, curves: int) -> None:
    """Count curves on a lease.

    A lease of curves is completed when all of them are done, also when it ran out before; a lease of a whole number
    stays open until its client completes it or the number is finished.
    """
    done = WorkAssignment.curves_completed + curves
    all_done = (WorkAssignment.curves <= done) & WorkAssignment.status.not_in(("completed", "failed"))
    connection.execute(
        update(WorkAssignment)
        .where(WorkAssignment.id == lease_id)
        .values(
            curves_completed=done,
            status=case((all_done, "completed"), else_=WorkAssignment.status),
            closed_at=case((all_done, func.now()), else_=WorkAssignment.closed_at),
        )
    )


def close_all(connection: Connection, composite_id: int, why: str) -> None:
    """Complete every open lease of a composite that is locked and needs no more work."""
    _close(
        connection,
        select(WorkAssignment.id).where(
            WorkAssignment.composite_id == composite_id, WorkAssignment.closed_at.is_(None)
        ),
        "completed",
        why,
    )


def overdue(connection: Connection, now: datetime) -> list[uuid.UUID]:
    """Open leases whose time has run out, oldest first, a batch of them."""
    return list(
        connection.execute(
            select(WorkAssignment.id)
            .where(WorkAssignment.closed_at.is_(None), WorkAssignment.expires_at <= now)
            .order_by(WorkAssignment.expires_at)
            .limit(EXPIRY_BATCH)
        ).scalars()
    )


def expire(connection: Connection, lease_ids: list[uuid.UUID], now: datetime) -> int:
    """Time out those of `lease_ids` that are still open and overdue now that they are locked; returns how many.

    Those that somebody else has locked are left to the next time: a result that closes several leases, its own among
    them, need not lock them in expiry's order.
    """
    return _close(
        connection,
        select(WorkAssignment.id).where(
            WorkAssignment.id.in_(lease_ids), WorkAssignment.closed_at.is_(None), WorkAssignment.expires_at <= now
        ),
        "timeout",
        None,
        skip_locked=True,
    )


def _close(connection: Connection, chosen: Select, status: str, why: str | None, skip_locked: bool = False) -> int:
    # Locked one by one in id order before any is changed: the order everybody locks leases in.
    lock = chosen.order_by(WorkAssignment.id).with_for_update(key_share=True, skip_locked=skip_locked)
    locked = list(connection.execute(lock).scalars())
    if not locked:
        return 0
    values: dict = {"status": status, "closed_at": func.now()}
    if why:
        values["message"] = why
    connection.execute(update(WorkAssignment).where(WorkAssignment.id.in_(locked)).values(values))
    return len(locked)
