"""What operators do to leases and numbers: reserve, cancel, release, pause, resume, list."""

import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, select

from coordinator.base import audit, clock
from coordinator.base.audit import OPERATOR, Actor
from coordinator.base.errors import ConflictError, composite_not_found
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import eligibility, holds, identification, lease_lifecycle, registry, targets
from coordinator.numbers.expressions import shorten
from models.tables import Composite, Target, WorkAssignment
from models.types import AnyRow

_LEVELS = (Composite.current_t_level, Composite.target_t_level)


def reserve(
    engine: Engine,
    identifier: str | int,
    client_id: str,
    method: str,
    hours: float,
    *,
    details: dict[str, Any] | None,
    max_digits: int,
    actor: Actor = OPERATOR,
) -> AnyRow:
    """Reserve a number for `method` elsewhere: no client gets work on it until the reservation is released or expires.

    `identifier` is the number's value or id as a text, or its id as an int. Open leases go on, and their curves count.
    Returns the new lease with `open_leases`, the number of other open leases. Raises NotFoundError, ConflictError.
    """
    if isinstance(identifier, str):
        registry.evaluate_ahead(identifier, max_digits)
    with unit_of_work(engine, "reserve", client=client_id) as connection:
        composite_id = identification.identify(connection, identifier, max_digits)
        named = shorten(identifier) if isinstance(identifier, str) else f"composite {identifier}"
        lease_lifecycle.lock_composites(connection, [composite_id])
        target_ids = targets.lock_of(connection, [composite_id])
        state = select(Composite.is_fully_factored, Composite.current_composite).where(Composite.id == composite_id)
        row = connection.execute(state).one_or_none()
        if row is None:
            raise composite_not_found(composite_id)
        if row.is_fully_factored:
            detail = f"{named} is fully factored: there is nothing left to do on it"
            raise ConflictError("fully_factored", detail)
        if row.current_composite == "1" or not target_ids:
            detail = f"{named} has no cofactor left; reserve one of its composite factors instead"
            raise ConflictError("fully_factored", detail)
        (target_id,) = target_ids
        for lease in lease_lifecycle.open_leases(connection, [target_id]).get(target_id, []):
            if lease.method in eligibility.RESERVATION_METHODS:
                until = lease.expires_at.isoformat(timespec="minutes")
                detail = f"{named} is reserved by {lease.client_id} for {lease.method} until {until}"
                raise ConflictError("reserved", f"{detail}; release that first")
        work_id = uuid.uuid4()
        connection.execute(
            insert(WorkAssignment).values(
                id=work_id,
                composite_id=composite_id,
                target_id=target_id,
                client_id=client_id,
                method=method,
                status="claimed",
                created_at=func.clock_timestamp(),
                expires_at=clock.after(3600 * hours),
                lease_seconds=int(hours * 3600),
                details=details,
            )
        )
        lease_lifecycle.refresh_eligibility(connection, [target_id])
        after = {"client_id": client_id, "method": method, "hours": hours, "work_id": str(work_id)}
        audit.record(connection, actor, "reserve", f"composite {composite_id}", after=after)
        return connection.execute(
            select(WorkAssignment, Composite.current_composite, Target.open_leases)
            .join(Composite, Composite.id == WorkAssignment.composite_id)
            .join(Target, Target.id == Composite.target_id)
            .where(WorkAssignment.id == work_id)
        ).one()


def cancel(engine: Engine, work_id: uuid.UUID, reason: str | None, actor: Actor = OPERATOR) -> AnyRow:
    """Close any client's lease as failed, without a count against its number; a closed lease stays as it is.

    Returns the lease as it is then. Raises LeaseNotFoundError.
    """
    return _end(
        engine, "cancel", lease_lifecycle.cancel_lease, work_id, reason or "cancelled by an operator", actor=actor
    )


def release(engine: Engine, work_id: uuid.UUID, reason: str | None, actor: Actor = OPERATOR) -> AnyRow:
    """Close a reservation as completed; a closed one stays as it is. Returns the lease as it is then.

    Raises LeaseNotFoundError, also for a lease that is no reservation.
    """
    return _end(engine, "release", lease_lifecycle.release_reservation, work_id, reason or "released", actor=actor)


def end(engine: Engine, work_id: uuid.UUID, reason: str | None, actor: Actor = OPERATOR) -> AnyRow:
    """Release a reservation, cancel any other lease. Returns the lease as it is then. Raises LeaseNotFoundError."""
    with engine.connect() as connection:
        chosen = select(WorkAssignment.method).where(WorkAssignment.id == work_id)
        method = connection.execute(chosen).scalar_one_or_none()
    close = release if method in eligibility.RESERVATION_METHODS else cancel
    return close(engine, work_id, reason, actor)


def _end(
    engine: Engine,
    name: str,
    close: Callable[[Connection, uuid.UUID, str], tuple[AnyRow, AnyRow]],
    work_id: uuid.UUID,
    reason: str,
    *,
    actor: Actor,
) -> AnyRow:
    with unit_of_work(engine, name, work=str(work_id)) as connection:
        before, after = close(connection, work_id, reason)
        was, now = {"status": before.status}, {"status": after.status, "message": after.message}
        if was["status"] != now["status"]:
            audit.record(connection, actor, "end work", f"work {work_id}", before=was, after=now)
        return after


def pause(engine: Engine, composite_id: int, reason: str | None, actor: Actor = OPERATOR) -> AnyRow:
    """Hand out no work on a number until it is resumed; its open leases go on. Raises NotFoundError."""
    return _set_hold(engine, composite_id, reason or "paused by an operator", actor)


def resume(engine: Engine, composite_id: int, actor: Actor = OPERATOR) -> AnyRow:
    """Hand out work on a paused number, or one that was set aside, again. Idempotent. Raises NotFoundError."""
    return _set_hold(engine, composite_id, None, actor)


def _set_hold(engine: Engine, composite_id: int, reason: str | None, actor: Actor) -> AnyRow:
    with unit_of_work(engine, "resume" if reason is None else "pause", composite=composite_id) as connection:
        lease_lifecycle.lock_composites(connection, [composite_id])
        target_ids = targets.lock_of(connection, [composite_id])
        columns = (Target.hold, Target.hold_reason, Target.open_leases, Target.ecm_eligible)
        state = select(Composite.id, *columns).outerjoin(Target, Target.id == Composite.target_id)
        before = connection.execute(state.where(Composite.id == composite_id)).one_or_none()
        if before is None:
            raise composite_not_found(composite_id)
        if not target_ids:
            raise ConflictError("fully_factored", f"Composite {composite_id} is fully factored: it gets no work anyway")
        for target_id in target_ids:
            if reason is None:
                holds.clear_hold(connection, target_id)
            else:
                holds.set_hold(connection, target_id, holds.PAUSED, reason)
        lease_lifecycle.refresh_eligibility(connection, target_ids)
        row = connection.execute(state.where(Composite.id == composite_id)).one()
        action = "resume" if reason is None else "pause"
        was, now = ({"hold": at.hold, "hold_reason": at.hold_reason} for at in (before, row))
        audit.record(connection, actor, action, f"composite {composite_id}", before=was, after=now)
        return row


def list_open_leases(
    engine: Engine, *, client_id: str | None = None, reserving: bool | None = None, limit: int = 1000
) -> list[AnyRow]:
    """Return open leases with their numbers, ordered by when they expire.

    `reserving` True selects only reservations, False only other leases.
    """
    statement = (
        select(WorkAssignment, Composite.current_composite, Composite.digit_length, *_LEVELS)
        .join(Composite, Composite.id == WorkAssignment.composite_id)
        .where(WorkAssignment.closed_at.is_(None))
        .order_by(WorkAssignment.expires_at, WorkAssignment.id)
        .limit(limit)
    )
    if client_id is not None:
        statement = statement.where(WorkAssignment.client_id == client_id)
    if reserving is not None:
        statement = statement.where(WorkAssignment.method.in_(eligibility.RESERVATION_METHODS).is_(reserving))
    with engine.connect() as connection:
        return list(connection.execute(statement))


def held_composites(engine: Engine, limit: int = 1000) -> list[AnyRow]:
    """Return numbers that are paused or set aside, with the reason; the latest hold comes first."""
    columns = (Composite.id, Composite.number, Composite.digit_length)
    hold = (Target.hold, Target.hold_reason, Target.held_at)
    statement = select(*columns, *hold).join(Target, Target.id == Composite.target_id).where(Target.hold.is_not(None))
    statement = statement.order_by(Target.held_at.desc(), Composite.id)
    with engine.connect() as connection:
        return list(connection.execute(statement.limit(limit)))
