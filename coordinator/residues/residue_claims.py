"""Residues: stage 1 of one client's curves, kept for the stage 2 of another client.

    available -> claimed -> completed    its stage 2 came in: for three quarters of its curves, or with a factor
              <-            closed       its number is finished, an operator closed it, or its stage 1 is gone
                            expired      nobody claimed it within its days of storage

A result that names its residue settles it in its own unit of work (`settle_stage2`). For a client that names none,
`complete_residue` does the same afterwards, and housekeeping does it where the client died between the two. Each curve
counts once in every case: a curve that had its stage 2 counts in full and no longer as stage 1, and a stage 2 that was
run twice counts once. Locks are taken in the common order, the composite's first; a claim changes nothing but the
residue, so it locks only the residue.
"""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, Row, bindparam, exists, func, select, update
from sqlalchemy.orm import aliased

from coordinator import effort
from coordinator.base import advisory_locks, audit, clock, jobs
from coordinator.base.audit import Actor
from coordinator.base.errors import ConflictError, DomainError, InvalidClaimError, NotFoundError
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import eligibility, lease_lifecycle, ledger, registry, superseding, targets
from models.limits import DEFAULT_B2
from models.tables import (
    Composite,
    EcmAttempt,
    Factor,
    Project,
    ProjectComposite,
    Residue,
    Submission,
    Target,
    WorkAssignment,
)
from models.wire.results import SubmitResult

# Without a factor, a residue is completed by stage 2 of this share of its curves, to a B2 of this many times its B1.
ENOUGH_CURVES, ENOUGH_B2 = 0.75, 100
UNCLAIMED = {"status": "available", "claimed_by": None, "claimed_at": None, "claim_expires_at": None}
NO_RESIDUE = "no residue waits that passes these filters"


class RetryLaterError(ConflictError):
    """The request is refused now, and may succeed in a moment."""


class ResidueCompletion(NamedTuple):
    """A residue after a stage 2; `is_completed` is False while too few of its curves have had their stage 2."""

    residue: Row[Any]
    is_completed: bool
    t_level: float
    message: str
    to_publish: list[jobs.JobRef]


def missing_attempt_error(
    connection: Connection, client_id: str, detail: str, attempt_id: int | None = None
) -> DomainError:
    """Return the error for a missing attempt: RetryLaterError while a result of this client waits to be applied."""
    waiting = select(Submission.id).where(Submission.client_id == client_id, Submission.state == "received")
    if attempt_id is not None:
        waiting = waiting.where(Submission.attempt_id == attempt_id)
    if connection.execute(waiting.limit(1)).first() is not None:
        return RetryLaterError(
            "result_pending", "The result that it belongs to is not applied yet; send the same again in a moment"
        )
    return DomainError("unknown_attempt", detail)


def suggested_b2(b1: int) -> int:
    """Return the B2 to run stage 2 with: GMP-ECM's default for this B1."""
    return int(effort.default_b2(b1))


def read_residue(engine: Engine, residue_id: int) -> Row[Any]:
    """Return a residue's row. Raises NotFoundError."""
    with engine.connect() as connection:
        return residue_row(connection, residue_id)


def residue_row(connection: Connection, residue_id: int, *, lock: bool = False) -> Row[Any]:
    """Return a residue's row, locked on request. Raises NotFoundError."""
    statement = select(*Residue.__table__.columns).where(Residue.id == residue_id)
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    if row is None:
        raise NotFoundError("unknown_residue", f"There is no residue {residue_id}")
    return row


def summarize_residues(engine: Engine) -> dict[str, Any]:
    """Count the residues and their curves by status, and add up the bytes of the stored files."""
    counted = select(Residue.status, func.count().label("residues"), func.sum(Residue.curve_count).label("curves"))
    kept = select(func.coalesce(func.sum(Residue.file_size_bytes), 0)).where(Residue.has_file)
    with engine.connect() as connection:
        rows = connection.execute(counted.group_by(Residue.status)).all()
        size = int(connection.execute(kept).scalar_one())
    return {
        "residues": {row.status: row.residues for row in rows},
        "curves": {row.status: int(row.curves) for row in rows},
        "file_size_bytes": size,
    }


# Claims ---------------------------------------------------------------------------------------------------------------


class ResidueRequest(NamedTuple):
    """The stage 2 that a client asks for; None leaves a condition open."""

    client_id: str
    hours: float = 24.0
    min_digits: int | None = None
    max_digits: int | None = None
    min_priority: int | None = None
    min_target_tlevel: float | None = None
    max_target_tlevel: float | None = None
    min_b1: int | None = None
    max_b1: int | None = None
    project: str | None = None


def claim_residue(engine: Engine, request: ResidueRequest, max_claims: int) -> Row[Any] | None:
    """Claim the oldest residue of the highest priority that passes the filters; None if no residue does.

    Filters and order are those of the residue's target, as for leases: its stage 2 serves every number that has the
    target, and `project` may be that of any of them. Returns the residue's row with the target's `digit_length`,
    `current_t_level` and `target_t_level`. Raises ConflictError for a client that holds `max_claims` claims.
    """
    chosen = [Residue.status == "available", Residue.expires_at > func.now(), Target.hold.is_(None), _not_reserved()]
    for bound, least, most in (
        (Target.digit_length, request.min_digits, request.max_digits),
        (Target.priority, request.min_priority, None),
        (Target.target_t_level, request.min_target_tlevel, request.max_target_tlevel),
        (Residue.b1, request.min_b1, request.max_b1),
    ):
        chosen += [] if least is None else [bound >= least]
        chosen += [] if most is None else [bound <= most]
    if request.project is not None:
        sharing = aliased(Composite)
        of_project = (
            select(sharing.target_id)
            .join(ProjectComposite, ProjectComposite.composite_id == sharing.id)
            .join(Project, Project.id == ProjectComposite.project_id)
            .where(Project.name == request.project)
        )
        chosen.append(Target.id.in_(of_project))
    with unit_of_work(engine, "claim_residue", client=request.client_id) as connection:
        advisory_locks.lock_client(connection, request.client_id)
        held = select(func.count()).where(Residue.status == "claimed", Residue.claimed_by == request.client_id)
        if connection.execute(held).scalar_one() >= max_claims:
            raise ConflictError(
                "too_many_claims", f"{request.client_id} has {max_claims} residues; complete or release some"
            )
        best = connection.execute(
            select(Residue.id)
            .join(Composite, Composite.id == Residue.composite_id)
            .join(Target, Target.id == Composite.target_id)
            .where(*chosen)
            .order_by(Target.priority.desc(), Residue.id)
            .limit(1)
            .with_for_update(of=Residue, skip_locked=True)
        ).scalar_one_or_none()
        if best is None:
            return None
        connection.execute(
            update(Residue)
            .where(Residue.id == best)
            .values(
                status="claimed",
                claimed_by=request.client_id,
                claimed_at=func.now(),
                claim_expires_at=clock.after(3600 * request.hours),
            )
        )
        columns: tuple[Any, ...] = (Residue, Target.digit_length, Target.current_t_level, Target.target_t_level)
        return connection.execute(
            select(*columns)
            .join(Composite, Composite.id == Residue.composite_id)
            .join(Target, Target.id == Composite.target_id)
            .where(Residue.id == best)
        ).one()


def _not_reserved() -> ColumnElement[bool]:
    reserved = WorkAssignment.closed_at.is_(None) & WorkAssignment.method.in_(eligibility.RESERVATION_METHODS)
    return ~exists().where(WorkAssignment.target_id == Composite.target_id, reserved)


def claimed_file(engine: Engine, residue_id: int, client_id: str) -> Row[Any]:
    """Return the residue if this client has claimed it and so may download its file.

    Raises NotFoundError, and ConflictError for any other client.
    """
    row = read_residue(engine, residue_id)
    if row.status != "claimed" or row.claimed_by != client_id:
        raise ConflictError("not_claimed", f"Residue {residue_id} is {row.status}, and not claimed by {client_id}")
    return row


def release_claim(engine: Engine, residue_id: int, client_id: str | None, actor: Actor | None = None) -> Row[Any]:
    """Release a claim, and return the residue's row; does nothing to a residue that is not claimed.

    `client_id` is None when an operator (`actor`) releases it, whoever claimed it. Raises NotFoundError, and
    ConflictError for another client's claim.
    """
    with unit_of_work(engine, "release_residue", residue=residue_id) as connection:
        row = residue_row(connection, residue_id, lock=True)
        if row.status != "claimed":
            return row
        if client_id is not None and row.claimed_by != client_id:
            raise ConflictError("not_claimed", f"Residue {residue_id} is claimed by another client")
        if actor is not None:
            audit.record(connection, actor, "release", f"residue {residue_id}", before={"claimed_by": row.claimed_by})
        return connection.execute(
            update(Residue).where(Residue.id == residue_id).values(UNCLAIMED).returning(*Residue.__table__.columns)
        ).one()


# Stage 2 --------------------------------------------------------------------------------------------------------------


def settle_stage2(
    connection: Connection, attempt_id: int, result: SubmitResult, *, found: bool
) -> tuple[ResidueCompletion | None, str | None]:
    """Count the stage 2 of a result that names its residue; returns (completion, None), or (None, a note).

    The note says why the residue does not fit; then it is left alone. Runs in the result's unit of work, which has
    locked the composite, after the attempt was recorded and its effort added in full.
    """
    is_named = Residue.id == result.residue_id
    if result.residue_id is None:
        is_named = Residue.sha256 == bytes.fromhex(result.residue_checksum or "")
    # A file that was closed and uploaded again has several residues: the latest is meant.
    latest = select(Residue).where(is_named).order_by(Residue.id.desc()).limit(1).with_for_update()
    residue = connection.execute(latest).one_or_none()
    if residue is None:
        return None, "the residue that it names is unknown; the result counts without it"
    attempt = connection.execute(select(EcmAttempt).where(EcmAttempt.id == attempt_id)).one()
    mismatch = _mismatch(connection, residue, attempt)
    if mismatch:
        return None, f"residue {residue.id} {mismatch}; the result counts without it"
    return _count_stage2(connection, residue, attempt, found=found), None


def _mismatch(connection: Connection, residue: Row[Any], attempt: Row[Any]) -> str | None:
    if not share_target(connection, residue.composite_id, attempt.composite_id):
        return f"is of composite {residue.composite_id}, and attempt {attempt.id} of {attempt.composite_id}"
    if attempt.voided_at is not None:
        return f"had no stage 2 by attempt {attempt.id}: that was taken back"
    if attempt.method != eligibility.ECM or attempt.b1 != residue.b1:
        return f"is of ECM curves with B1 = {residue.b1}"
    if attempt.parametrization != residue.parametrization:
        return f"is of curves with parametrization {residue.parametrization}"
    if attempt.residue_id not in (None, residue.id):
        return f"is not the one that attempt {attempt.id} did"
    return None


def share_target(connection: Connection, one_id: int, other_id: int) -> bool:
    """Return whether two composites are one, or point to the same target."""
    if one_id == other_id:
        return True
    found = list(connection.execute(_TARGETS_OF, {"ids": [one_id, other_id]}).scalars())
    return len(found) == 2 and found[0] is not None and found[0] == found[1]


_TARGETS_OF = select(Composite.target_id).where(Composite.id.in_(bindparam("ids", expanding=True)))


def _count_stage2(connection: Connection, residue: Row[Any], attempt: Row[Any], *, found: bool) -> ResidueCompletion:
    """Count a stage 2 of a locked residue once: curves that had their stage 2, or too small a B2, add nothing."""
    to_publish: list[jobs.JobRef] = []
    if attempt.residue_id is None:
        _count_once(connection, residue, attempt, is_enough=found or _enough_b2(attempt))
    done = superseding.count_stage2_curves(connection, residue.id)
    if residue.status in superseding.OPEN_STATUSES and (found or done >= ENOUGH_CURVES * residue.curve_count):
        to_publish = superseding.close_residues(connection, Residue.id == residue.id, superseding.COMPLETED, None)
        connection.execute(update(Residue).where(Residue.id == residue.id).values(stage2_attempt_id=attempt.id))
        lease_lifecycle.refresh_eligibility(connection, targets.ids_of(connection, [residue.composite_id]))
    now = residue_row(connection, residue.id)
    level = select(Composite.current_t_level).where(Composite.id == residue.composite_id)
    t_level = connection.execute(level).scalar_one()
    completed = now.status == superseding.COMPLETED
    message = f"residue {residue.id}: {done} of its {residue.curve_count} curves have had their stage 2"
    if not completed and not _enough_b2(attempt):
        message += f"; it takes a B2 of {ENOUGH_B2 * residue.b1} or more, or the default"
    return ResidueCompletion(now, completed, t_level, message, to_publish)


def _count_once(connection: Connection, residue: Row[Any], attempt: Row[Any], *, is_enough: bool) -> None:
    """Link a stage-2 attempt to its residue, and count its new curves as full curves instead of stage 1."""
    stage1 = connection.execute(select(EcmAttempt).where(EcmAttempt.id == residue.stage1_attempt_id)).one_or_none()
    own = attempt.curves - attempt.superseded_curves
    left = residue.curve_count - superseding.count_stage2_curves(connection, residue.id)
    moved = min(own, left) if is_enough else 0
    if stage1 is not None:
        moved = min(moved, stage1.curves - stage1.superseded_curves)
    # Curves run twice, or to too small a B2, add nothing: their stage 1, or the other stage 2, goes on counting.
    if own > moved:
        ledger.supersede(connection, attempt.id, own - moved)
    link = update(EcmAttempt).where(EcmAttempt.id == attempt.id)
    connection.execute(link.values(residue_id=residue.id, superseding_curves=moved))
    if stage1 is None or not moved:
        return
    if stage1.voided_at is None:
        ledger.supersede(connection, stage1.id, moved)
    else:  # a voided attempt counts for nothing, but both rows must agree on the number of curves
        more = update(EcmAttempt).where(EcmAttempt.id == stage1.id)
        connection.execute(more.values(superseded_curves=EcmAttempt.superseded_curves + moved))


def _enough_b2(attempt: Row[Any]) -> bool:
    return attempt.b2 == DEFAULT_B2 or (attempt.b2 or 0) >= ENOUGH_B2 * (attempt.b1 or 0)


def complete_residue(engine: Engine, residue_id: int, client_id: str, stage2_attempt_id: int) -> ResidueCompletion:
    """Link a stage-2 attempt to a residue; does nothing if its result has linked it.

    The client that claimed the residue may do this, and after a claim has lapsed, any client until another one claims
    the residue. Raises DomainError.
    """
    with unit_of_work(engine, "complete_residue", residue=residue_id, attempt=stage2_attempt_id) as connection:
        residue = lock_residue(connection, residue_id)
        attempt = connection.execute(select(EcmAttempt).where(EcmAttempt.id == stage2_attempt_id)).one_or_none()
        if attempt is None:
            detail = f"There is no attempt {stage2_attempt_id}; submit the result of stage 2 first"
            raise missing_attempt_error(connection, client_id, detail, stage2_attempt_id)
        if attempt.client_id != client_id:
            raise InvalidClaimError("not_its_stage2", f"Attempt {attempt.id} is another client's")
        if mismatch := _mismatch(connection, residue, attempt):
            raise InvalidClaimError("not_its_stage2", f"Residue {residue_id} {mismatch}")
        if residue.status == "claimed" and residue.claimed_by != client_id and attempt.residue_id is None:
            raise ConflictError("not_claimed", f"Residue {residue_id} is claimed by another client")
        found = _found_a_factor(connection, attempt.id)
        if not found and attempt.residue_id is None:
            _raise_if_too_little(residue, attempt)
        return _count_stage2(connection, residue, attempt, found=found)


def lock_residue(connection: Connection, residue_id: int) -> Row[Any]:
    """Lock the group of a residue's composite and then the residue; returns its row. Raises NotFoundError."""
    composite_id: int = residue_row(connection, residue_id).composite_id
    (root_id,) = registry.roots_of(connection, [composite_id]) or [composite_id]
    registry.lock_group(connection, root_id)
    return residue_row(connection, residue_id, lock=True)


def _found_a_factor(connection: Connection, attempt_id: int) -> bool:
    return connection.execute(select(Factor.id).where(Factor.attempt_id == attempt_id).limit(1)).first() is not None


def _raise_if_too_little(residue: Row[Any], attempt: Row[Any]) -> None:
    """Raise InvalidClaimError if an attempt without a factor has too few curves or too small a B2."""
    needed = -int(-ENOUGH_CURVES * residue.curve_count // 1)
    if attempt.curves < needed:
        detail = f"Attempt {attempt.id} has {attempt.curves} curves; {needed} of the residue's {residue.curve_count}"
        raise InvalidClaimError("stage2_too_small", f"{detail} are needed, or a factor")
    if not _enough_b2(attempt):
        detail = f"Attempt {attempt.id} has B2 = {attempt.b2}; {ENOUGH_B2 * residue.b1} or more is needed"
        raise InvalidClaimError("stage2_too_small", f"{detail}, or GMP-ECM's default (-1)")
