"""The life of a lease: the changes that its client, a result, the clock or an operator make to it.

    assigned -> claimed -> running -> completed    all its curves came in, its client completed it, or it is superfluous
                                      failed       its client gave it up, or an operator cancelled it
                                      timeout      its time ran out; a late result still counts and completes it

Code that opens or closes a lease locks its composite, the target, and then the lease, and afterwards recomputes the
eligibility of the target (coordinator/composites/eligibility.py). coordinator/leases/claims.py makes the leases.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Engine, Select, Table, bindparam, case, func, null, or_, select, true, update

from coordinator import effort
from coordinator.base.unit_of_work import repeats_after_deadlock, unit_of_work
from coordinator.composites import eligibility, holds, superseding, targets
from models.limits import STAGE1_ONLY
from models.tables import Composite, Residue, Target, WorkAssignment
from models.types import AnyRow
from models.wire.results import SubmitResult

EXPIRY_BATCH = 100
MAX_MESSAGE = 500
TARGET_REACHED = "its curves are not needed any more: the number has reached its target"
LEASED_BY_ANOTHER = "its number has the same cofactor as another one now, which somebody works on as a whole"
NOTHING_LEFT = "nothing is left to do on this number"

ELIGIBILITY_COLUMNS = tuple(
    getattr(Target, name) for name in ("id", *eligibility.EligibilityInputs._fields, *eligibility.Eligibility._fields)
)
_LEASE_COLUMNS = (
    WorkAssignment.id,
    WorkAssignment.composite_id,
    WorkAssignment.target_id,
    WorkAssignment.client_id,
    WorkAssignment.method,
    WorkAssignment.b1,
    WorkAssignment.b2,
    WorkAssignment.parametrization,
    WorkAssignment.curves,
    WorkAssignment.curves_completed,
    WorkAssignment.curves_submitted,
    WorkAssignment.status,
    WorkAssignment.is_cancelled,
    WorkAssignment.message,
    WorkAssignment.created_at,
    WorkAssignment.expires_at,
    WorkAssignment.closed_at,
    WorkAssignment.lease_seconds,
)

_READ_ELIGIBILITY = select(*ELIGIBILITY_COLUMNS).where(Target.id.in_(bindparam("ids", expanding=True)))
_STORE_ELIGIBILITY = update(cast(Table, Target.__table__)).where(Target.id == bindparam("target"))
_OPEN_LEASES = (
    select(*_LEASE_COLUMNS)
    .where(WorkAssignment.target_id.in_(bindparam("ids", expanding=True)), WorkAssignment.closed_at.is_(None))
    .order_by(WorkAssignment.created_at, WorkAssignment.id)
)


class LeaseNotFoundError(Exception):
    """The lease does not exist or belongs to another client; the message is for people."""


# By results ----------------------------------------------------------------------------------------------------------


class NamedLease(NamedTuple):
    """The lease that a result names, if it is this client's; `composite_id` is the number that was leased."""

    id: uuid.UUID
    composite_id: int


def find_lease(connection: Connection, work_id: str, client_id: str) -> tuple[NamedLease | None, str | None]:
    """Return (the lease that a result names, None), or (None, the reason why that lease is not used).

    Locks nothing, because the client and the composite of a lease never change.
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
    return NamedLease(lease_id, lease.composite_id), None


def count_curves(connection: Connection, lease_id: uuid.UUID, result: SubmitResult) -> None:
    """Add a result's curves to a lease whose composite is locked.

    On a lease of a number of curves, only curves with at least its bounds count, and the last one completes the lease,
    also if its time ran out before. A lease of a whole number stays open until its client completes it or the number is
    finished.
    """
    lease = _lease(connection, lease_id)
    if result.method != eligibility.ECM or (lease.curves is not None and not _covers_lease(result, lease)):
        return
    submitted = WorkAssignment.curves_submitted + result.curves
    is_complete = (WorkAssignment.curves <= submitted) & WorkAssignment.status.not_in(("completed", "failed"))
    connection.execute(
        update(WorkAssignment)
        .where(WorkAssignment.id == lease_id)
        .values(
            curves_submitted=submitted,
            curves_completed=func.greatest(WorkAssignment.curves_completed, submitted),
            status=case((is_complete, "completed"), else_=WorkAssignment.status),
            closed_at=case((is_complete, func.now()), else_=WorkAssignment.closed_at),
            # An earlier message, such as that its time ran out, is not the reason why it is closed now.
            message=case((is_complete, null()), else_=WorkAssignment.message),
        )
    )


def _covers_lease(result: SubmitResult, lease: AnyRow) -> bool:
    """Return whether a run's B1 is at least that of the lease, and whether it had a stage 2 if the lease has one."""
    if (result.parameters.b1 or 0) < lease.b1:
        return False
    return result.b2 != STAGE1_ONLY or lease.b2 == STAGE1_ONLY


def close_open_work(connection: Connection, target_id: int) -> None:
    """Close every open lease and residue of a locked target that needs no more work."""
    is_open = (WorkAssignment.target_id == target_id, WorkAssignment.closed_at.is_(None))
    _close(connection, select(WorkAssignment.id).where(*is_open), "completed", NOTHING_LEFT)
    of_target = Residue.composite_id.in_(select(Composite.id).where(Composite.target_id == target_id))
    superseding.close_residues(connection, of_target, superseding.CLOSED, NOTHING_LEFT)


def close_second_whole_leases(connection: Connection, target_id: int) -> None:
    """Close all leases of a whole locked target but the oldest, after two numbers came to have the same cofactor."""
    leases = open_leases(connection, [target_id]).get(target_id, [])
    whole = [lease.id for lease in leases if lease.curves is None and lease.method not in eligibility.P1_METHODS]
    if len(whole) > 1:
        _close(connection, _still_open(whole[1:]), "completed", LEASED_BY_ANOTHER)


def refresh_eligibility(connection: Connection, target_ids: Iterable[int]) -> None:
    """Recompute the eligibility of locked targets, and close the leases that their target t-levels do not need."""
    ids = list(target_ids)
    leases = open_leases(connection, ids)
    for row in connection.execute(_READ_ELIGIBILITY, {"ids": ids}).all():
        needed, superfluous = _split_needed(row, leases.get(row.id, []))
        if superfluous:
            _close(connection, _still_open([lease.id for lease in superfluous]), "completed", TARGET_REACHED)
        store_eligibility(connection, row, needed)


def store_eligibility(connection: Connection, target: AnyRow, leases: Sequence[AnyRow]) -> None:
    """Store the eligibility of a locked target with these open leases, if it differs from its row."""
    computed = eligibility.compute_eligibility(target, leases)
    if any(getattr(target, name) != value for name, value in computed.items()):
        connection.execute(_STORE_ELIGIBILITY, {"target": target.id, **computed})


def _split_needed(target: AnyRow, leases: list[AnyRow]) -> tuple[list[AnyRow], list[AnyRow]]:
    """Return (the leases needed to reach the target, oldest first; the leases of curves beyond it)."""
    if effort.t_level(eligibility.add_leased_curves(target.effort, leases)) < target.target_t_level:
        return leases, []
    needed: list[AnyRow] = []
    superfluous: list[AnyRow] = []
    vector = target.effort
    for lease in leases:
        is_of_curves = lease.method == eligibility.ECM and lease.curves is not None
        if is_of_curves and effort.t_level(vector) >= target.target_t_level:
            superfluous.append(lease)
        else:
            needed.append(lease)
            vector = eligibility.add_leased_curves(vector, [lease])
    return needed, superfluous


def open_leases(connection: Connection, target_ids: Sequence[int]) -> dict[int, list[AnyRow]]:
    """Return the open leases of these targets by target id, oldest first."""
    leases: dict[int, list[AnyRow]] = {}
    for row in connection.execute(_OPEN_LEASES, {"ids": target_ids}):
        leases.setdefault(row.target_id, []).append(row)
    return leases


def lock_composites(connection: Connection, composite_ids: list[int], *, skip_locked: bool = False) -> list[int]:
    """Lock these composites and return the ids of those that are locked: missing rows are left out.

    `skip_locked` leaves out the composites that another transaction has locked.
    """
    # Every unit of work locks composites in this order: roots before children, then by id.
    ordered = select(Composite.id).where(Composite.id.in_(composite_ids))
    ordered = ordered.order_by(Composite.parent_id.is_not(None), Composite.id)
    return list(connection.execute(ordered.with_for_update(key_share=True, skip_locked=skip_locked)).scalars())


# By clients and operators --------------------------------------------------------------------------------------------


def advance(engine: Engine, work_id: uuid.UUID, client_id: str, status: str) -> AnyRow:
    """Set the status of a lease to claimed or running, and return the lease.

    Raises LeaseNotFoundError also if its status cannot become that: assigned -> claimed -> running is the only order.
    """
    allowed = {"claimed": ("assigned",), "running": ("assigned", "claimed")}[status]
    with unit_of_work(engine, f"set_lease_{status}", work=str(work_id)) as connection:
        lease = _clients_lease(connection, work_id, client_id, lock=True)
        if lease.status not in allowed:
            raise LeaseNotFoundError(
                f"Work {work_id} is {lease.status}; only {' or '.join(allowed)} work can become {status}"
            )
        connection.execute(update(WorkAssignment).where(WorkAssignment.id == work_id).values(status=status))
        return _lease(connection, work_id)


def heartbeat(
    engine: Engine, work_id: uuid.UUID, client_id: str, curves_completed: int, message: str | None = None
) -> AnyRow:
    """Store the progress of a lease, extend the lease if there is progress, and return it.

    A closed lease stays as it is; its message gives the reason. Progress counts up to the number of leased curves, so
    that no client can keep a lease for ever. Raises LeaseNotFoundError.
    """
    with unit_of_work(engine, "heartbeat", work=str(work_id)) as connection:
        lease = _clients_lease(connection, work_id, client_id, lock=True)
        if lease.closed_at is not None:
            return lease
        changes: dict[str, Any] = {"status": "running"}
        completed = curves_completed if lease.curves is None else min(curves_completed, lease.curves)
        if completed > lease.curves_completed:
            extended = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, lease.lease_seconds)
            changes |= {"curves_completed": completed, "expires_at": func.greatest(WorkAssignment.expires_at, extended)}
        if message:
            changes["message"] = message[:MAX_MESSAGE]
        connection.execute(update(WorkAssignment).where(WorkAssignment.id == work_id).values(changes))
        return _lease(connection, work_id)


@repeats_after_deadlock
def complete(engine: Engine, work_id: uuid.UUID, client_id: str) -> AnyRow:
    """Close a lease that its client is done with, and return it; a closed lease stays as it is.

    Curves that did not come in can be leased again. Raises LeaseNotFoundError.
    """
    with unit_of_work(engine, "complete_lease", work=str(work_id)) as connection:
        lease = _clients_lease(connection, work_id, client_id)
        _close_and_refresh(connection, lease, "completed", None)
        return _lease(connection, work_id)


@repeats_after_deadlock
def abandon(engine: Engine, work_id: uuid.UUID, client_id: str | None, reason: str | None) -> AnyRow:
    """Close a lease that its client gives up, and return it; a closed lease stays as it is.

    `client_id` None: the caller knows only the lease's id. A number that several clients in a row gave up without a
    single curve is set aside (coordinator/composites/holds.py). Raises LeaseNotFoundError.
    """
    with unit_of_work(engine, "abandon_lease", work=str(work_id)) as connection:
        lease = _clients_lease(connection, work_id, client_id)
        _close_and_refresh(connection, lease, "failed", reason or "abandoned")
        return _lease(connection, work_id)


def cancel_lease(connection: Connection, work_id: uuid.UUID, reason: str) -> tuple[AnyRow, AnyRow]:
    """Close any client's lease as failed, without a count against its number (holds.py).

    Does nothing to a closed lease. Returns the lease before and after. Raises LeaseNotFoundError.
    """
    lease = _lease(connection, work_id)
    _close_and_refresh(connection, lease, "failed", reason, is_cancelled=True)
    return lease, _lease(connection, work_id)


def release_reservation(connection: Connection, work_id: uuid.UUID, reason: str) -> tuple[AnyRow, AnyRow]:
    """Close a reservation as completed; does nothing to a closed one. Returns the lease before and after.

    Raises LeaseNotFoundError, also for a lease that is no reservation.
    """
    lease = _lease(connection, work_id)
    if lease.method not in eligibility.RESERVATION_METHODS:
        raise LeaseNotFoundError(f"Work {work_id} is {lease.method} and no reservation; cancel it instead")
    _close_and_refresh(connection, lease, "completed", reason)
    return lease, _lease(connection, work_id)


def _close_and_refresh(
    connection: Connection, lease: AnyRow, status: str, reason: str | None, *, is_cancelled: bool = False
) -> None:
    """Close a lease, if it is open, and make what it leaves available to others."""
    lock_composites(connection, [lease.composite_id])
    target_ids = targets.lock_of(connection, [lease.composite_id])
    still_open = _still_open([lease.id])
    if not _close(connection, still_open, status, reason and reason[:MAX_MESSAGE], is_cancelled=is_cancelled):
        return
    if status == "failed" and not is_cancelled:
        for target_id in target_ids:
            holds.hold_if_abandoned(connection, target_id)
    refresh_eligibility(connection, target_ids)


def client_leases(engine: Engine, client_id: str, limit: int) -> list[AnyRow]:
    """Return a client's last leases with columns of their composites: open leases, then closed ones, newest first."""
    columns = (Composite.current_composite, Composite.digit_length, Composite.current_t_level, Composite.target_t_level)
    # Two queries, and an index has the rows of each in order, however many leases the client has had.
    recent = [
        select(WorkAssignment.id)
        .where(WorkAssignment.client_id == client_id, condition)
        .order_by(WorkAssignment.created_at.desc())
        .limit(limit)
        .subquery()
        for condition in (WorkAssignment.closed_at.is_(None), true())
    ]
    either = or_(*(WorkAssignment.id.in_(select(ids.c.id)) for ids in recent))
    statement = (
        select(*_LEASE_COLUMNS, *columns)
        .join(Composite, Composite.id == WorkAssignment.composite_id)
        .where(either)
        .order_by(WorkAssignment.closed_at.is_not(None), WorkAssignment.created_at.desc(), WorkAssignment.id)
        .limit(limit)
    )
    with engine.connect() as connection:
        return list(connection.execute(statement))


# By the clock --------------------------------------------------------------------------------------------------------


def overdue_leases(connection: Connection, now: datetime) -> list[AnyRow]:
    """Return (id, composite_id) of up to EXPIRY_BATCH open leases whose time has run out, the longest overdue first."""
    return list(
        connection.execute(
            select(WorkAssignment.id, WorkAssignment.composite_id)
            .where(WorkAssignment.closed_at.is_(None), WorkAssignment.expires_at <= now)
            .order_by(WorkAssignment.expires_at)
            .limit(EXPIRY_BATCH)
        )
    )


def expire_leases(
    connection: Connection, leases: Sequence[AnyRow], now: datetime, *, wait: bool
) -> tuple[int, list[AnyRow]]:
    """Time out those `leases` that are still open and overdue.

    Returns (number timed out, leases skipped because locked). Their missing curves can be leased again. Without
    `wait`, the leases of composites that another transaction has locked are skipped, because waiting for one of them
    would hold up all the others.
    """
    ids = {lease.composite_id for lease in leases}
    locked = set(lock_composites(connection, sorted(ids), skip_locked=not wait))
    target_ids = targets.lock_of(connection, locked)
    lease_ids = [lease.id for lease in leases if lease.composite_id in locked]
    expired = _close(
        connection, _still_open(lease_ids).where(WorkAssignment.expires_at <= now), "timeout", "its time ran out"
    )
    if expired:
        refresh_eligibility(connection, target_ids)
    return expired, [lease for lease in leases if lease.composite_id not in locked]


# Reading, locking and closing rows -----------------------------------------------------------------------------------


def _still_open(lease_ids: list[uuid.UUID]) -> Select[uuid.UUID]:
    return select(WorkAssignment.id).where(WorkAssignment.id.in_(lease_ids), WorkAssignment.closed_at.is_(None))


def _lease(connection: Connection, work_id: uuid.UUID, *, lock: bool = False) -> AnyRow:
    """Return a lease, whoever holds it, and lock it on demand. Raises LeaseNotFoundError."""
    statement = select(*_LEASE_COLUMNS).where(WorkAssignment.id == work_id)
    row = connection.execute(statement.with_for_update(key_share=True) if lock else statement).one_or_none()
    if row is None:
        raise LeaseNotFoundError(f"There is no work {work_id}; ask for new work")
    return row


def _clients_lease(connection: Connection, work_id: uuid.UUID, client_id: str | None, *, lock: bool = False) -> AnyRow:
    """Return a lease, which must be no reservation and, unless `client_id` is None, this client's.

    Raises LeaseNotFoundError.
    """
    lease = _lease(connection, work_id, lock=lock)
    if lease.method in eligibility.RESERVATION_METHODS:
        raise LeaseNotFoundError(f"Work {work_id} is a reservation, which only an operator ends")
    if client_id is not None and lease.client_id != client_id:
        raise LeaseNotFoundError(f"Work {work_id} is not leased to {client_id[:60]!r}; use the name that leased it")
    return lease


def _close(
    connection: Connection,
    chosen: Select[uuid.UUID],
    status: str,
    reason: str | None,
    *,
    is_cancelled: bool = False,
) -> int:
    """Close the chosen leases; returns how many they are."""
    # Every unit of work locks leases one by one in the order of their ids, before it changes any of them.
    lock = chosen.order_by(WorkAssignment.id).with_for_update(key_share=True)
    locked = list(connection.execute(lock).scalars())
    if not locked:
        return 0
    values: dict[str, Any] = {"status": status, "closed_at": func.now(), "is_cancelled": is_cancelled}
    if reason:
        values["message"] = reason
    connection.execute(update(WorkAssignment).where(WorkAssignment.id.in_(locked)).values(values))
    return len(locked)
