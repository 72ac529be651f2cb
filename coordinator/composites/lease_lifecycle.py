"""The life of a lease: what its client, a result, the clock or an operator do to it.

    assigned -> claimed -> running -> completed    all its curves came in, its client said so, or nothing is left to do
                                      failed       its client gave it up, or an operator cancelled it
                                      timeout      its time ran out; a late result still counts, and completes it

Whatever opens or closes a lease holds the lock of its composite, then that of the lease, and says anew what the
composite wants (coordinator/composites/eligibility.py). Leases are handed out in coordinator/leases/claims.py.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Connection, Engine, Row, Select, Table, bindparam, case, func, null, or_, select, true, update

from coordinator import effort
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import eligibility, holds, superseding
from models.limits import STAGE1_ONLY
from models.tables import Composite, Residue, WorkAssignment
from models.wire import SubmitResult

EXPIRY_BATCH = 100
OPEN_STATUSES = ("assigned", "claimed", "running")
MAX_MESSAGE = 500
TARGET_REACHED = "its curves are not needed any more: the number has reached its target"
NOTHING_LEFT = "nothing is left to do on this number"

ELIGIBILITY_COLUMNS = (
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
    Composite.open_residues,
    Composite.ecm_eligible,
    Composite.pm1_eligible,
    Composite.pp1_eligible,
    Composite.p1_target_b1,
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

_READ_ELIGIBILITY = select(*ELIGIBILITY_COLUMNS).where(Composite.id.in_(bindparam("ids", expanding=True)))
_STORE_ELIGIBILITY = update(cast(Table, Composite.__table__)).where(Composite.id == bindparam("composite"))
_OPEN_LEASES = (
    select(*_LEASE_COLUMNS)
    .where(WorkAssignment.composite_id.in_(bindparam("ids", expanding=True)), WorkAssignment.closed_at.is_(None))
    .order_by(WorkAssignment.created_at, WorkAssignment.id)
)


class LeaseNotFoundError(Exception):
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


def count_curves(connection: Connection, lease_id: uuid.UUID, result: SubmitResult) -> None:
    """Count a result's curves on a lease whose composite is locked.

    On a lease of curves only those count that are as good as what was leased; it is completed when all of them are
    done, also when it ran out before. A lease of a whole number stays open until its client completes it or the number
    is finished.
    """
    lease = _lease(connection, lease_id)
    if result.method != eligibility.ECM or (lease.curves is not None and not _covers_lease(result, lease)):
        return
    done = WorkAssignment.curves_submitted + result.curves
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


def _covers_lease(result: SubmitResult, lease: Row) -> bool:
    """Whether a run's bounds are at least those of the lease; a given B2 for a default one is taken as it is."""
    if (result.parameters.b1 or 0) < lease.b1:
        return False
    return result.b2 != STAGE1_ONLY or lease.b2 == STAGE1_ONLY


def close_open_work(connection: Connection, composite_id: int, why: str) -> None:
    """End every open lease and residue of a composite that is locked and needs no more work."""
    _close(
        connection,
        select(WorkAssignment.id).where(
            WorkAssignment.composite_id == composite_id, WorkAssignment.closed_at.is_(None)
        ),
        "completed",
        why,
    )
    superseding.close_residues(connection, Residue.composite_id == composite_id, superseding.CLOSED, why)


def refresh_eligibility(connection: Connection, composite_ids: Iterable[int]) -> None:
    """Say anew what these locked composites want, and end leases whose curves nobody needs any more."""
    ids = list(composite_ids)
    leases = open_leases(connection, ids)
    for row in connection.execute(_READ_ELIGIBILITY, {"ids": ids}).all():
        needed, superfluous = _split_needed(row, leases.get(row.id, []))
        if superfluous:
            _close(connection, _still_open([lease.id for lease in superfluous]), "completed", TARGET_REACHED)
        store_eligibility(connection, row, needed)


def store_eligibility(connection: Connection, composite: Row, leases: Sequence[Row]) -> None:
    """Say anew what this locked composite wants, whose open leases are these."""
    now = eligibility.compute_eligibility(composite, leases)
    if any(getattr(composite, name) != value for name, value in now.items()):
        connection.execute(_STORE_ELIGIBILITY, {"composite": composite.id, **now})


def _split_needed(composite: Row, leases: list[Row]) -> tuple[list[Row], list[Row]]:
    """(the leases that it takes to reach the target, oldest first, those by curves that it does without)."""
    if effort.t_level(eligibility.add_leased_curves(composite.effort, leases)) < composite.target_t_level:
        return leases, []
    needed: list[Row] = []
    superfluous: list[Row] = []
    vector = composite.effort
    for lease in leases:
        of_curves = lease.method == eligibility.ECM and lease.curves is not None
        if of_curves and effort.t_level(vector) >= composite.target_t_level:
            superfluous.append(lease)
        else:
            needed.append(lease)
            vector = eligibility.add_leased_curves(vector, [lease])
    return needed, superfluous


def open_leases(connection: Connection, composite_ids: Sequence[int]) -> dict[int, list[Row]]:
    """The open leases of these composites, oldest first."""
    leases: dict[int, list[Row]] = {}
    for row in connection.execute(_OPEN_LEASES, {"ids": composite_ids}):
        leases.setdefault(row.composite_id, []).append(row)
    return leases


def lock_composites(connection: Connection, composite_ids: list[int], *, skip_locked: bool = False) -> list[int]:
    """Lock these composites for this unit of work; the ids of those that exist, and that it has got."""
    # Roots before children, then by id: the order everybody locks composites in.
    ordered = select(Composite.id).where(Composite.id.in_(composite_ids))
    ordered = ordered.order_by(Composite.parent_id.is_not(None), Composite.id)
    return list(connection.execute(ordered.with_for_update(key_share=True, skip_locked=skip_locked)).scalars())


# What clients do -----------------------------------------------------------------------------------------------------


def advance(engine: Engine, work_id: uuid.UUID, client_id: str, status: str) -> Row:
    """assigned -> claimed -> running: the lease in its new `status`; raises UnknownLease for any other way."""
    before = {"claimed": ("assigned",), "running": ("assigned", "claimed")}[status]
    with unit_of_work(engine, status, work=str(work_id)) as connection:
        lease = _lock_lease(connection, work_id, client_id)
        if lease.status not in before:
            raise LeaseNotFoundError(
                f"Work {work_id} is {lease.status}; only {' or '.join(before)} work can become {status}"
            )
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
            changes["message"] = message[:MAX_MESSAGE]
        connection.execute(update(WorkAssignment).where(WorkAssignment.id == work_id).values(changes))
        return _lease(connection, work_id)


def complete(engine: Engine, work_id: uuid.UUID, client_id: str) -> Row:
    """Its client is done with it: whatever curves did not come in can be leased again. Idempotent; the lease then.

    Raises UnknownLease.
    """
    with unit_of_work(engine, "complete", work=str(work_id)) as connection:
        lease = _lease(connection, work_id, client_id, mine=True)
        _close_and_refresh(connection, lease, "completed", None)
        return _lease(connection, work_id)


def abandon(engine: Engine, work_id: uuid.UUID, client_id: str | None, reason: str | None) -> Row:
    """Its client (None: somebody who knows its id) gives it up. Idempotent; the lease then. Raises UnknownLease.

    A number that several clients in a row gave up without a single curve is parked (coordinator/composites/holds.py).
    """
    with unit_of_work(engine, "abandon", work=str(work_id)) as connection:
        lease = _lease(connection, work_id, client_id, mine=True)
        _close_and_refresh(connection, lease, "failed", reason or "abandoned")
        return _lease(connection, work_id)


def cancel_lease(connection: Connection, work_id: uuid.UUID, reason: str) -> tuple[Row[Any], Row[Any]]:
    """Close any client's lease as failed, without a count against its number (holds.py).

    Does nothing to a closed lease. Returns the lease before and after. Raises LeaseNotFoundError.
    """
    lease = _lease(connection, work_id)
    _close_and_refresh(connection, lease, "failed", reason, is_cancelled=True)
    return lease, _lease(connection, work_id)


def release_reservation(connection: Connection, work_id: uuid.UUID, reason: str) -> tuple[Row[Any], Row[Any]]:
    """Close a reservation as completed; does nothing to a closed one. Returns the lease before and after.

    Raises LeaseNotFoundError, also for a lease that is no reservation.
    """
    lease = _lease(connection, work_id)
    if lease.method not in eligibility.RESERVATION_METHODS:
        raise LeaseNotFoundError(f"Work {work_id} is {lease.method} and no reservation; cancel it instead")
    _close_and_refresh(connection, lease, "completed", reason)
    return lease, _lease(connection, work_id)


def _close_and_refresh(
    connection: Connection, lease: Row[Any], status: str, reason: str | None, *, is_cancelled: bool = False
) -> None:
    """Close a lease, if it is open, and make what it leaves available to others."""
    lock_composites(connection, [lease.composite_id])
    still_open = _still_open([lease.id])
    if not _close(connection, still_open, status, reason and reason[:MAX_MESSAGE], is_cancelled=is_cancelled):
        return
    if status == "failed" and not is_cancelled:
        holds.park_if_abandoned(connection, lease.composite_id)
    refresh_eligibility(connection, [lease.composite_id])


def client_leases(engine: Engine, client_id: str, limit: int) -> list[Row]:
    """A client's last leases with what they are of, open ones first, then the newest."""
    columns = (Composite.current_composite, Composite.digit_length, Composite.current_t_level, Composite.target_t_level)
    # Two questions, each of which an index answers in order, however many leases there have been.
    chosen = [
        select(WorkAssignment.id)
        .where(WorkAssignment.client_id == client_id, condition)
        .order_by(WorkAssignment.created_at.desc())
        .limit(limit)
        .subquery()
        for condition in (WorkAssignment.closed_at.is_(None), true())
    ]
    either = or_(*(WorkAssignment.id.in_(select(ids.c.id)) for ids in chosen))
    statement = (
        select(*_LEASE_COLUMNS, *columns)
        .join(Composite, Composite.id == WorkAssignment.composite_id)
        .where(either)
        .order_by(WorkAssignment.closed_at.is_not(None), WorkAssignment.created_at.desc(), WorkAssignment.id)
        .limit(limit)
    )
    with engine.connect() as connection:
        return list(connection.execute(statement))


# What the clock does -------------------------------------------------------------------------------------------------


def overdue_leases(connection: Connection, now: datetime) -> list[Row]:
    """(id, composite_id) of open leases whose time has run out, oldest first, a batch of them."""
    return list(
        connection.execute(
            select(WorkAssignment.id, WorkAssignment.composite_id)
            .where(WorkAssignment.closed_at.is_(None), WorkAssignment.expires_at <= now)
            .order_by(WorkAssignment.expires_at)
            .limit(EXPIRY_BATCH)
        )
    )


def expire_leases(connection: Connection, leases: Sequence[Row], now: datetime, *, wait: bool) -> tuple[int, list[Row]]:
    """Time out those of `leases` that are still open and overdue now that they are locked: (how many, those left).

    What they have not brought can be leased again. Unless this is to `wait`, the leases of numbers that somebody has
    locked are left: while it waited for one, it would hold up all the others.
    """
    ids = {lease.composite_id for lease in leases}
    locked = set(lock_composites(connection, sorted(ids), skip_locked=not wait))
    here = [lease.id for lease in leases if lease.composite_id in locked]
    expired = _close(
        connection, _still_open(here).where(WorkAssignment.expires_at <= now), "timeout", "its time ran out"
    )
    if expired:
        refresh_eligibility(connection, locked)
    return expired, [lease for lease in leases if lease.composite_id not in locked]


# Inside --------------------------------------------------------------------------------------------------------------


def _still_open(lease_ids: list[uuid.UUID]) -> Select:
    return select(WorkAssignment.id).where(WorkAssignment.id.in_(lease_ids), WorkAssignment.closed_at.is_(None))


def _lease(connection: Connection, work_id: uuid.UUID, client_id: str | None = None, *, mine: bool = False) -> Row:
    """A lease; `mine`: for a client, whose it must be if it says who it is."""
    found = connection.execute(select(*_LEASE_COLUMNS).where(WorkAssignment.id == work_id)).one_or_none()
    return _require_owner(found, work_id, client_id, mine=mine)


def _lock_lease(connection: Connection, work_id: uuid.UUID, client_id: str) -> Row:
    locked = select(*_LEASE_COLUMNS).where(WorkAssignment.id == work_id).with_for_update(key_share=True)
    return _require_owner(connection.execute(locked).one_or_none(), work_id, client_id, mine=True)


def _require_owner(lease: Row | None, work_id: uuid.UUID, client_id: str | None, *, mine: bool) -> Row:
    if lease is None:
        raise LeaseNotFoundError(f"There is no work {work_id}; ask for new work")
    if mine and lease.method in eligibility.RESERVATION_METHODS:
        raise LeaseNotFoundError(f"Work {work_id} is a reservation, which only an operator ends")
    if client_id is not None and lease.client_id != client_id:
        raise LeaseNotFoundError(f"Work {work_id} is not leased to {client_id[:60]!r}; use the name that leased it")
    return lease


def _close(
    connection: Connection,
    chosen: Select[tuple[uuid.UUID]],
    status: str,
    reason: str | None,
    *,
    is_cancelled: bool = False,
) -> int:
    """Close the chosen leases; returns how many they are."""
    # Locked one by one in id order before any is changed: the order everybody locks leases in.
    lock = chosen.order_by(WorkAssignment.id).with_for_update(key_share=True)
    locked = list(connection.execute(lock).scalars())
    if not locked:
        return 0
    values: dict[str, Any] = {"status": status, "closed_at": func.now(), "is_cancelled": is_cancelled}
    if reason:
        values["message"] = reason
    connection.execute(update(WorkAssignment).where(WorkAssignment.id.in_(locked)).values(values))
    return len(locked)
