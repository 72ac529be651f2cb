"""The life of a lease: what its client, a result, the clock or an operator do to it.

    assigned -> claimed -> running -> completed    all its curves came in, its client said so, or nothing is left to do
                                      failed       its client gave it up, or an operator cancelled it
                                      timeout      its time ran out; a late result still counts, and completes it

Whatever opens or closes a lease holds the lock of its composite, then that of the lease, and says anew what the
composite wants (coordinator/demand.py). Leases are handed out in coordinator/claims.py.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, case, func, null, select, update

from coordinator import demand, effort, parking
from coordinator.unit_of_work import unit_of_work
from models.tables import Composite, WorkAssignment

EXPIRY_BATCH = 100
OPEN = ("assigned", "claimed", "running")
LONGEST_MESSAGE = 500
TARGET_REACHED = "its curves are not needed any more: the number has reached its target"
NOTHING_LEFT = "nothing is left to do on this number"

_DEMAND_COLUMNS = (
    Composite.id,
    Composite.effort,
    Composite.digit_length,
    Composite.is_prime,
    Composite.is_fully_factored,
    Composite.target_t_level,
    Composite.hold,
    Composite.pm1_b1,
    Composite.pp1_b1,
    Composite.open_leases,
    Composite.wants_ecm,
    Composite.wants_pm1,
    Composite.wants_pp1,
    Composite.wanted_p1_b1,
    Composite.planned_t_level,
    Composite.work_value,
)
_LEASE_COLUMNS = (
    WorkAssignment.id,
    WorkAssignment.composite_id,
    WorkAssignment.client_id,
    WorkAssignment.method,
    WorkAssignment.b1,
    WorkAssignment.b2,
    WorkAssignment.parametrization,
    WorkAssignment.curves,
    WorkAssignment.curves_completed,
    WorkAssignment.curves_submitted,
    WorkAssignment.status,
    WorkAssignment.message,
    WorkAssignment.created_at,
    WorkAssignment.expires_at,
    WorkAssignment.closed_at,
    WorkAssignment.lease_seconds,
)


class UnknownLease(Exception):
    """There is no such lease, or it is another client's; the message is for people."""


# What results do -----------------------------------------------------------------------------------------------------


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
    """Count a result's curves on a lease whose composite is locked.

    A lease of curves is completed when all of them are done, also when it ran out before; a lease of a whole number
    stays open until its client completes it or the number is finished.
    """
    done = WorkAssignment.curves_submitted + curves
    all_done = (WorkAssignment.curves <= done) & WorkAssignment.status.not_in(("completed", "failed"))
    connection.execute(
        update(WorkAssignment)
        .where(WorkAssignment.id == lease_id)
        .values(
            curves_submitted=done,
            curves_completed=func.greatest(WorkAssignment.curves_completed, done),
            status=case((all_done, "completed"), else_=WorkAssignment.status),
            closed_at=case((all_done, func.now()), else_=WorkAssignment.closed_at),
            # What was said of it until then, such as that its time ran out, is not why it is closed.
            message=case((all_done, null()), else_=WorkAssignment.message),
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


def refresh(connection: Connection, composite_ids: Iterable[int]) -> None:
    """Say anew what these locked composites want, and end leases whose curves nobody needs any more."""
    ids = list(composite_ids)
    leases = open_leases(connection, ids)
    for row in connection.execute(select(*_DEMAND_COLUMNS).where(Composite.id.in_(ids))).all():
        needed, superfluous = _parted(row, leases.get(row.id, []))
        if superfluous:
            _close(connection, _still_open([lease.id for lease in superfluous]), "completed", TARGET_REACHED)
        now = demand.wants(row, needed)
        if any(getattr(row, name) != value for name, value in now.items()):
            connection.execute(update(Composite).where(Composite.id == row.id).values(now))


def _parted(composite: Row, leases: list[Row]) -> tuple[list[Row], list[Row]]:
    """(the leases that it takes to reach the target, oldest first, those by curves that it does without)."""
    needed: list[Row] = []
    superfluous: list[Row] = []
    vector = composite.effort
    for lease in leases:
        of_curves = lease.method == demand.ECM and lease.curves is not None
        if of_curves and effort.t_level(vector) >= composite.target_t_level:
            superfluous.append(lease)
        else:
            needed.append(lease)
            vector = demand.planned(vector, [lease])
    return needed, superfluous


def open_leases(connection: Connection, composite_ids: Sequence[int]) -> dict[int, list[Row]]:
    """The open leases of these composites, oldest first."""
    leases: dict[int, list[Row]] = {}
    statement = (
        select(*_LEASE_COLUMNS)
        .where(WorkAssignment.composite_id.in_(composite_ids), WorkAssignment.closed_at.is_(None))
        .order_by(WorkAssignment.created_at, WorkAssignment.id)
    )
    for row in connection.execute(statement):
        leases.setdefault(row.composite_id, []).append(row)
    return leases


def lock_composites(connection: Connection, composite_ids: list[int]) -> None:
    """Lock these composites for this unit of work."""
    # Roots before children, then by id: the order everybody locks composites in.
    connection.execute(
        select(Composite.id)
        .where(Composite.id.in_(composite_ids))
        .order_by(Composite.parent_id.is_not(None), Composite.id)
        .with_for_update(key_share=True)
    )


# What clients do -----------------------------------------------------------------------------------------------------


def advance(engine: Engine, work_id: uuid.UUID, client_id: str, status: str) -> Row:
    """assigned -> claimed -> running: the lease in its new `status`; raises UnknownLease for any other way."""
    before = {"claimed": ("assigned",), "running": ("assigned", "claimed")}[status]
    with unit_of_work(engine, status, work=str(work_id)) as connection:
        lease = _lock_lease(connection, work_id, client_id)
        if lease.status not in before:
            raise UnknownLease(f"Work {work_id} is {lease.status}; only {' or '.join(before)} work can become {status}")
        connection.execute(update(WorkAssignment).where(WorkAssignment.id == work_id).values(status=status))
        return _lease(connection, work_id)


def heartbeat(
    engine: Engine, work_id: uuid.UUID, client_id: str, curves_completed: int, message: str | None = None
) -> Row:
    """Record how far a lease is, and extend it if that is further than before; the lease then.

    A lease that is closed stays as it is, and its message says why. Progress counts up to the lease's curves, so that
    no lease can be kept for ever. Raises UnknownLease.
    """
    with unit_of_work(engine, "heartbeat", work=str(work_id)) as connection:
        lease = _lock_lease(connection, work_id, client_id)
        if lease.closed_at is not None:
            return lease
        changes: dict[str, Any] = {"status": "running"}
        done = curves_completed if lease.curves is None else min(curves_completed, lease.curves)
        if done > lease.curves_completed:
            extended = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, lease.lease_seconds)
            changes |= {"curves_completed": done, "expires_at": func.greatest(WorkAssignment.expires_at, extended)}
        if message:
            changes["message"] = message[:LONGEST_MESSAGE]
        connection.execute(update(WorkAssignment).where(WorkAssignment.id == work_id).values(changes))
        return _lease(connection, work_id)


def complete(engine: Engine, work_id: uuid.UUID, client_id: str) -> Row:
    """Its client is done with it: whatever curves did not come in can be leased again. Idempotent; the lease then.

    Raises UnknownLease.
    """
    with unit_of_work(engine, "complete", work=str(work_id)) as connection:
        lease = _lease(connection, work_id, client_id)
        _end(connection, lease, "completed", None)
        return _lease(connection, work_id)


def abandon(engine: Engine, work_id: uuid.UUID, client_id: str | None, reason: str | None) -> Row:
    """Its client (None: somebody who knows its id) gives it up. Idempotent; the lease then. Raises UnknownLease.

    A number that several clients in a row gave up without a single curve is parked (coordinator/parking.py).
    """
    with unit_of_work(engine, "abandon", work=str(work_id)) as connection:
        lease = _lease(connection, work_id, client_id)
        if _end(connection, lease, "failed", reason or "abandoned"):
            parking.park_if_given_up(connection, lease.composite_id)
            refresh(connection, [lease.composite_id])
        return _lease(connection, work_id)


def release(engine: Engine, work_id: uuid.UUID, reason: str, methods: Sequence[str] | None) -> Row:
    """An operator ends a lease (of one of `methods`, if given). Idempotent; the lease then. Raises UnknownLease."""
    with unit_of_work(engine, "release", work=str(work_id)) as connection:
        lease = _lease(connection, work_id)
        if methods is not None and lease.method not in methods:
            raise UnknownLease(f"Work {work_id} is {lease.method} and no reservation; cancel it instead")
        # Completed, and not failed: that would tell against the number.
        _end(connection, lease, "completed", reason)
        return _lease(connection, work_id)


def _end(connection: Connection, lease: Row, status: str, why: str | None) -> bool:
    """Close a lease, if it is open, and let others have what it leaves; whether it was."""
    lock_composites(connection, [lease.composite_id])
    if not _close(connection, _still_open([lease.id]), status, why and why[:LONGEST_MESSAGE]):
        return False
    refresh(connection, [lease.composite_id])
    return True


def of_client(engine: Engine, client_id: str, limit: int) -> list[Row]:
    """A client's last leases with what they are of, open ones first, then the newest."""
    with engine.connect() as connection:
        return list(
            connection.execute(
                select(
                    *_LEASE_COLUMNS,
                    Composite.current_composite,
                    Composite.digit_length,
                    Composite.current_t_level,
                    Composite.target_t_level,
                )
                .join(Composite, Composite.id == WorkAssignment.composite_id)
                .where(WorkAssignment.client_id == client_id)
                .order_by(WorkAssignment.closed_at.is_not(None), WorkAssignment.created_at.desc(), WorkAssignment.id)
                .limit(limit)
            )
        )


# What the clock does -------------------------------------------------------------------------------------------------


def overdue(connection: Connection, now: datetime) -> list[Row]:
    """(id, composite_id) of open leases whose time has run out, oldest first, a batch of them."""
    return list(
        connection.execute(
            select(WorkAssignment.id, WorkAssignment.composite_id)
            .where(WorkAssignment.closed_at.is_(None), WorkAssignment.expires_at <= now)
            .order_by(WorkAssignment.expires_at)
            .limit(EXPIRY_BATCH)
        )
    )


def expire(connection: Connection, leases: list[Row], now: datetime) -> int:
    """Time out those of `leases` that are still open and overdue now that they are locked; returns how many.

    What they have not brought can be leased again.
    """
    composite_ids = sorted({lease.composite_id for lease in leases})
    lock_composites(connection, composite_ids)
    still_overdue = _still_open([lease.id for lease in leases]).where(WorkAssignment.expires_at <= now)
    expired = _close(connection, still_overdue, "timeout", "its time ran out")
    if expired:
        refresh(connection, composite_ids)
    return expired


# Inside --------------------------------------------------------------------------------------------------------------


def _still_open(lease_ids: list[uuid.UUID]) -> Select:
    return select(WorkAssignment.id).where(WorkAssignment.id.in_(lease_ids), WorkAssignment.closed_at.is_(None))


def _lease(connection: Connection, work_id: uuid.UUID, client_id: str | None = None) -> Row:
    return _checked(
        connection.execute(select(*_LEASE_COLUMNS).where(WorkAssignment.id == work_id)).one_or_none(),
        work_id,
        client_id,
    )


def _lock_lease(connection: Connection, work_id: uuid.UUID, client_id: str) -> Row:
    locked = select(*_LEASE_COLUMNS).where(WorkAssignment.id == work_id).with_for_update(key_share=True)
    return _checked(connection.execute(locked).one_or_none(), work_id, client_id)


def _checked(lease: Row | None, work_id: uuid.UUID, client_id: str | None) -> Row:
    if lease is None:
        raise UnknownLease(f"There is no work {work_id}; ask for new work")
    if client_id is not None and lease.client_id != client_id:
        raise UnknownLease(f"Work {work_id} is not leased to {client_id[:60]!r}; use the name that leased it")
    return lease


def _close(connection: Connection, chosen: Select, status: str, why: str | None) -> int:
    # Locked one by one in id order before any is changed: the order everybody locks leases in.
    lock = chosen.order_by(WorkAssignment.id).with_for_update(key_share=True)
    locked = list(connection.execute(lock).scalars())
    if not locked:
        return 0
    values: dict[str, Any] = {"status": status, "closed_at": func.now()}
    if why:
        values["message"] = why
    connection.execute(update(WorkAssignment).where(WorkAssignment.id.in_(locked)).values(values))
    return len(locked)
