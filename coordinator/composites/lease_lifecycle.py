"""The life of a lease: the changes that its client, a result, the clock or an operator make to it.

    assigned -> claimed -> running -> completed    all its curves came in, its client completed it, or it is superfluous
                                      failed       its client gave it up, or an operator cancelled it
                                      timeout      its time ran out; a late result still counts and completes it

Code that opens or closes a lease locks its composite, the target, and then the lease, and afterwards recomputes the
eligibility of the target (coordinator/composites/eligibility.py). coordinator/leases/claims.py makes the leases.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    Select,
    Table,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    func,
    null,
    or_,
    select,
    true,
    union_all,
    update,
)

from coordinator import effort
from coordinator.base import clock
from coordinator.base.many_rows import arrays, is_in_list, is_one_of, rows_of_arrays, update_rows
from coordinator.base.unit_of_work import repeats_after_deadlock, unit_of_work
from coordinator.composites import eligibility, holds, superseding, targets
from coordinator.composites.eligibility import EligibilityInputs
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

_READ_ELIGIBILITY = select(*ELIGIBILITY_COLUMNS).where(is_in_list(Target.id))
_OPEN_LEASES = (
    select(*_LEASE_COLUMNS)
    .where(is_in_list(WorkAssignment.target_id), WorkAssignment.closed_at.is_(None))
    .order_by(WorkAssignment.created_at, WorkAssignment.id)
)
_ONE_LEASE = select(*_LEASE_COLUMNS).where(WorkAssignment.id == bindparam("lease"))

# Requests of clients. These statements use plain tables, because reading rows through the ORM costs more than the rows.
_COMPOSITES, _TARGETS, _LEASES = (cast(Table, table.__table__) for table in (Composite, Target, WorkAssignment))
_leases = _LEASES.c
_LEASE_FIELDS = tuple(_leases[column.key] for column in _LEASE_COLUMNS)
_IS_CLIENTS = and_(
    _leases.id == bindparam("lease", type_=Uuid),
    # NULL: whoever knows the lease's id.
    _leases.client_id == func.coalesce(bindparam("client", type_=Text), _leases.client_id),
    _leases.method.not_in(eligibility.RESERVATION_METHODS),
)
_ADVANCE = (
    update(_LEASES)
    .where(_IS_CLIENTS, _leases.status.in_(bindparam("allowed", expanding=True)))
    .values(status=bindparam("new"))
    .returning(*_LEASE_FIELDS)
)
_completed = func.least(bindparam("completed", type_=BigInteger), _leases.curves)  # NULL curves: no bound
_extended = func.now() + clock.interval(_leases.lease_seconds)
_HEARTBEAT = (
    update(_LEASES)
    .where(_IS_CLIENTS, _leases.closed_at.is_(None))
    .values(
        status="running",
        curves_completed=func.greatest(_leases.curves_completed, _completed),
        expires_at=case(
            (_completed > _leases.curves_completed, func.greatest(_leases.expires_at, _extended)),
            else_=_leases.expires_at,
        ),
        message=func.coalesce(bindparam("said", type_=Text), _leases.message),
    )
    .returning(*_LEASE_FIELDS)
)
# PostgreSQL locks the rows in the order of the list, composite before target, as every unit of work does, and reads
# what they contain once they are locked. No row is returned if the composite got another target meanwhile.
_LOCK_TARGET_OF_LEASE = (
    select(*(_TARGETS.c[column.key] for column in ELIGIBILITY_COLUMNS))
    .join_from(_LEASES, _COMPOSITES, _COMPOSITES.c.id == _leases.composite_id)
    .join(_TARGETS, _TARGETS.c.id == _COMPOSITES.c.target_id)
    .where(_IS_CLIENTS, _leases.closed_at.is_(None))
    .with_for_update(key_share=True, of=[_COMPOSITES, _TARGETS])
)
_closed = (
    update(_LEASES)
    .where(_leases.id == bindparam("lease", type_=Uuid), _leases.closed_at.is_(None))
    .values(
        status=bindparam("new"),
        closed_at=func.now(),
        is_cancelled=False,
        message=func.coalesce(bindparam("said", type_=Text), _leases.message),
    )
    .returning(*_LEASE_FIELDS)
    .cte("closed")
)
_CLOSE_AND_READ_OTHERS = union_all(
    select(_closed),
    select(*_LEASE_FIELDS).where(
        _leases.target_id == bindparam("target"),
        _leases.closed_at.is_(None),
        _leases.id != bindparam("lease", type_=Uuid),
    ),
).order_by("created_at", "id")
# Two queries for ids, and an index has the rows of each in order, however many leases the client has had.
_recent = [
    select(_leases.id)
    .where(_leases.client_id == bindparam("client"), condition)
    .order_by(_leases.created_at.desc())
    .limit(bindparam("most"))
    .subquery()
    for condition in (_leases.closed_at.is_(None), true())
]
_CLIENT_LEASES = (
    select(
        *_LEASE_FIELDS,
        _COMPOSITES.c.current_composite,
        _COMPOSITES.c.digit_length,
        _COMPOSITES.c.current_t_level,
        _COMPOSITES.c.target_t_level,
    )
    .join(_COMPOSITES, _COMPOSITES.c.id == _leases.composite_id)
    .where(or_(*(_leases.id.in_(select(ids.c.id)) for ids in _recent)))
    .order_by(_leases.closed_at.is_not(None), _leases.created_at.desc(), _leases.id)
    .limit(bindparam("most"))
)
_STORE_ELIGIBILITY = update(_TARGETS).where(_TARGETS.c.id == bindparam("target"))


class LeaseNotFoundError(Exception):
    """The lease does not exist or belongs to another client; the message is for people."""


# By results ----------------------------------------------------------------------------------------------------------


_NAMED_LEASE = select(
    WorkAssignment.id,
    WorkAssignment.client_id,
    WorkAssignment.composite_id,
    WorkAssignment.b1,
    WorkAssignment.b2,
    WorkAssignment.curves,
).where(WorkAssignment.id == bindparam("lease"))
# The curves that results add to leases whose targets are locked; only these change a lease's count.
_COUNTED = ("id", "curves_submitted")
_counted = rows_of_arrays(_LEASES, _COUNTED, alias="counted")
_submitted = _leases.curves_submitted + _counted.c.curves_submitted
_is_complete = and_(_leases.curves <= _submitted, _leases.status.not_in(("completed", "failed")))
COUNT_CURVES = (
    update(_LEASES)
    .where(_leases.id == _counted.c.id)
    .values(
        curves_submitted=_submitted,
        curves_completed=func.greatest(_leases.curves_completed, _submitted),
        status=case((_is_complete, "completed"), else_=_leases.status),
        closed_at=case((_is_complete, func.now()), else_=_leases.closed_at),
        # An earlier message, such as that its time ran out, is not the reason why it is closed now.
        message=case((_is_complete, null()), else_=_leases.message),
    )
)


def find_lease(connection: Connection, work_id: str, client_id: str) -> tuple[AnyRow | None, str | None]:
    """Return (the lease that a result names, None), or (None, the reason why that lease is not used).

    The row has id, client_id, composite_id (the number that was leased), b1, b2 and curves. Locks nothing, because none
    of these ever changes.
    """
    try:
        lease_id = uuid.UUID(work_id)
    except ValueError:
        return None, f"work_id {work_id[:60]!r} is no lease of this server; the result counts without it"
    lease: AnyRow | None = connection.execute(_NAMED_LEASE, {"lease": lease_id}).one_or_none()
    if lease is None:
        return None, f"work_id {lease_id} is unknown; the result counts without it"
    if lease.client_id != client_id:
        return None, f"work_id {lease_id} is another client's lease; the result counts without it"
    return lease, None


def count_curves(connection: Connection, results: Iterable[tuple[AnyRow, Sequence[SubmitResult]]]) -> None:
    """Add the curves of results to the lease that each names (`find_lease`); their targets are locked.

    On a lease of a number of curves, only curves with at least its bounds count, and the last one completes the lease,
    also if its time ran out before. A lease of a whole number stays open until its client completes it or the number is
    finished.
    """
    counted = curves_of_leases(results)
    if counted:
        connection.execute(COUNT_CURVES, counted_curves(counted))


def curves_of_leases(results: Iterable[tuple[AnyRow, Sequence[SubmitResult]]]) -> dict[uuid.UUID, int]:
    """Return the number of curves that results add to the lease that each names, by the lease's id."""
    curves: dict[uuid.UUID, int] = {}
    for lease, of_lease in results:
        for result in of_lease:
            if result.method == eligibility.ECM and (lease.curves is None or _covers_lease(result, lease)):
                curves[lease.id] = curves.get(lease.id, 0) + result.curves
    return curves


def counted_curves(curves: Mapping[uuid.UUID, int]) -> dict[str, list[Any]]:
    """Return the parameters of COUNT_CURVES for these curves by lease."""
    rows = [{"id": str(lease), "curves_submitted": count} for lease, count in sorted(curves.items())]
    return arrays(rows, _COUNTED, alias="counted")


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
    if not ids:
        return
    leases = open_leases(connection, ids)
    superfluous: list[uuid.UUID] = []
    changed: list[dict[str, Any]] = []
    for row in connection.execute(_READ_ELIGIBILITY, {"ids": ids}):
        needed, not_needed = split_needed(row, leases.get(row.id, []))
        superfluous += [lease.id for lease in not_needed]
        computed = eligibility.compute_eligibility(row, needed)
        if any(getattr(row, name) != value for name, value in computed.items()):
            changed.append({"id": row.id, **computed})
    if superfluous:
        _close(connection, _still_open(superfluous), "completed", TARGET_REACHED)
    update_rows(connection, cast(Table, Target.__table__), "id", changed)


def needed_eligibility(connection: Connection, target: EligibilityInputs | AnyRow, leases: list[Any]) -> dict[str, Any]:
    """Compute the fields of `Eligibility` of a locked target, and close those of its open leases that are not needed.

    A lease of curves is not needed if the curves before it reach the target t-level.
    """
    needed, superfluous = split_needed(target, leases)
    if superfluous:
        _close(connection, _still_open([lease.id for lease in superfluous]), "completed", TARGET_REACHED)
    return eligibility.compute_eligibility(target, needed)


def store_eligibility(connection: Connection, target: AnyRow, leases: Sequence[AnyRow]) -> None:
    """Store the eligibility of a locked target with these open leases, if it differs from its row."""
    _store_if_changed(connection, target, eligibility.compute_eligibility(target, leases))


def _store_if_changed(connection: Connection, target: AnyRow, computed: dict[str, Any]) -> None:
    if any(getattr(target, name) != value for name, value in computed.items()):
        connection.execute(_STORE_ELIGIBILITY, {"target": target.id, **computed})


def split_needed(target: EligibilityInputs | AnyRow, leases: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return (the leases needed to reach the target, oldest first; the leases of curves beyond it)."""
    if effort.t_level(eligibility.add_leased_curves(target.effort, leases)) < target.target_t_level:
        return leases, []
    needed: list[Any] = []
    superfluous: list[Any] = []
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
    for row in connection.execute(_OPEN_LEASES, {"ids": list(target_ids)}):
        leases.setdefault(row.target_id, []).append(row)
    return leases


def lock_composites(connection: Connection, composite_ids: list[int], *, skip_locked: bool = False) -> list[int]:
    """Lock these composites and return the ids of those that are locked: missing rows are left out.

    `skip_locked` leaves out the composites that another transaction has locked.
    """
    # Every unit of work locks composites in this order: roots before children, then by id.
    ordered = select(Composite.id).where(is_one_of(Composite.id, composite_ids))
    ordered = ordered.order_by(Composite.parent_id.is_not(None), Composite.id)
    return list(connection.execute(ordered.with_for_update(key_share=True, skip_locked=skip_locked)).scalars())


# By clients and operators --------------------------------------------------------------------------------------------


def advance(engine: Engine, work_id: uuid.UUID, client_id: str, status: str) -> AnyRow:
    """Set the status of a lease to claimed or running, and return the lease.

    Raises LeaseNotFoundError also if its status cannot become that: assigned -> claimed -> running is the only order.
    """
    allowed = {"claimed": ("assigned",), "running": ("assigned", "claimed")}[status]
    values = {"lease": work_id, "client": client_id, "allowed": allowed, "new": status}
    with unit_of_work(engine, f"set_lease_{status}", work=str(work_id)) as connection:
        advanced = connection.execute(_ADVANCE, values).one_or_none()
        if advanced is None:
            lease = _clients_lease(connection, work_id, client_id)
            raise LeaseNotFoundError(
                f"Work {work_id} is {lease.status}; only {' or '.join(allowed)} work can become {status}"
            )
        return advanced


def heartbeat(
    engine: Engine, work_id: uuid.UUID, client_id: str, curves_completed: int, message: str | None = None
) -> AnyRow:
    """Store the progress of a lease, extend the lease if there is progress, and return it.

    A closed lease stays as it is; its message gives the reason. Progress counts up to the number of leased curves, so
    that no client can keep a lease for ever. Raises LeaseNotFoundError.
    """
    values = {
        "lease": work_id,
        "client": client_id,
        "completed": curves_completed,
        "said": message[:MAX_MESSAGE] if message else None,
    }
    with unit_of_work(engine, "heartbeat", work=str(work_id)) as connection:
        running = connection.execute(_HEARTBEAT, values).one_or_none()
        return running or _clients_lease(connection, work_id, client_id)


@repeats_after_deadlock
def complete(engine: Engine, work_id: uuid.UUID, client_id: str) -> AnyRow:
    """Close a lease that its client is done with, and return it; a closed lease stays as it is.

    Curves that did not come in can be leased again. Raises LeaseNotFoundError.
    """
    with unit_of_work(engine, "complete_lease", work=str(work_id)) as connection:
        return _end(connection, work_id, client_id, "completed", None)


@repeats_after_deadlock
def abandon(engine: Engine, work_id: uuid.UUID, client_id: str | None, reason: str | None) -> AnyRow:
    """Close a lease that its client gives up, and return it; a closed lease stays as it is.

    `client_id` None: the caller knows only the lease's id. A number that several clients in a row gave up without a
    single curve is set aside (coordinator/composites/holds.py). Raises LeaseNotFoundError.
    """
    with unit_of_work(engine, "abandon_lease", work=str(work_id)) as connection:
        return _end(connection, work_id, client_id, "failed", reason or "abandoned")


def _end(connection: Connection, work_id: uuid.UUID, client_id: str | None, status: str, reason: str | None) -> AnyRow:
    """Close a client's lease, make what it leaves available to others, and return it; a closed lease stays as it is.

    `client_id` None: any client's. Raises LeaseNotFoundError.
    """
    values = {"lease": work_id, "client": client_id}
    target = connection.execute(_LOCK_TARGET_OF_LEASE, values).one_or_none()
    if (
        target is None
    ):  # the lease is another client's or closed, or its number has got another target or none meanwhile
        lease = _clients_lease(connection, work_id, client_id)
        if lease.closed_at is not None:
            return lease
        _close_and_refresh(connection, lease, status, reason)
        return _lease(connection, work_id)
    closing = {"lease": work_id, "target": target.id, "new": status, "said": reason and reason[:MAX_MESSAGE]}
    rows = connection.execute(_CLOSE_AND_READ_OTHERS, closing).all()
    closed = [row for row in rows if row.id == work_id]
    if not closed:  # it was closed while this waited for the target
        return _lease(connection, work_id)
    others = [row for row in rows if row.id != work_id]
    is_held = status == "failed" and holds.hold_if_abandoned(connection, target.id)
    superfluous = split_needed(target, others)[1]
    if is_held or superfluous:
        refresh_eligibility(connection, [target.id])
    else:
        store_eligibility(connection, target, others)
    return closed[0]


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
    with engine.connect() as connection:
        return list(connection.execute(_CLIENT_LEASES, {"client": client_id, "most": limit}))


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


def _lease(connection: Connection, work_id: uuid.UUID) -> AnyRow:
    """Return a lease, whoever holds it. Raises LeaseNotFoundError."""
    row: AnyRow | None = connection.execute(_ONE_LEASE, {"lease": work_id}).one_or_none()
    if row is None:
        raise LeaseNotFoundError(f"There is no work {work_id}; ask for new work")
    return row


def _clients_lease(connection: Connection, work_id: uuid.UUID, client_id: str | None) -> AnyRow:
    """Return a lease, which must be no reservation and, unless `client_id` is None, this client's.

    Raises LeaseNotFoundError.
    """
    lease = _lease(connection, work_id)
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
