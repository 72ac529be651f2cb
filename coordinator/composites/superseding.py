"""The two stages of the same curves: open residues of a target, and attempts that supersede others.

The n curves of a residue are an attempt with stage 1 only. A later attempt that does stage 2 of k of them counts k full
curves, and k of the n stage-1 curves count no longer: k is the `superseding_curves` of the later attempt and the
`superseded_curves` of the earlier one, which gets its curves back when the later one is voided or deleted. Callers have
locked the composites and their targets.
"""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, func, select, update
from sqlalchemy.orm import aliased

from coordinator.base import jobs
from coordinator.base.many_rows import is_one_of
from coordinator.composites import targets
from models.tables import Composite, EcmAttempt, Residue, Target
from models.types import AnyRow

OPEN_STATUSES = ("available", "claimed")
COMPLETED, CLOSED, EXPIRED = "completed", "closed", "expired"
STAGE1_VOIDED = "its stage 1 was taken back"


def close_residues(
    connection: Connection, chosen: ColumnElement[bool], status: str, reason: str | None
) -> list[jobs.JobRef]:
    """Close the open ones of the chosen residues. Returns the jobs that delete their files after the commit."""
    closed = connection.execute(
        update(Residue)
        .where(chosen, Residue.status.in_(OPEN_STATUSES))
        .values(status=status, message=reason, closed_at=func.now(), claim_expires_at=None)
        .returning(Residue.id, Residue.composite_id)
    ).all()
    recount_open_residues(connection, targets.ids_of(connection, {row.composite_id for row in closed}))
    return jobs.request_all(connection, jobs.DROP_RESIDUE, [row.id for row in closed])


def recount_open_residues(connection: Connection, target_ids: Sequence[int]) -> None:
    """Store the number of open residues of targets; the caller then calls lease_lifecycle.refresh_eligibility."""
    if target_ids:
        open_residues = (
            select(func.count())
            .select_from(Residue)
            .join(Composite, Composite.id == Residue.composite_id)
            .where(Composite.target_id == Target.id, Residue.status.in_(OPEN_STATUSES))
        )
        count = open_residues.correlate(Target).scalar_subquery()
        connection.execute(update(Target).where(is_one_of(Target.id, target_ids)).values(open_residues=count))


def count_stage2_curves(connection: Connection, residue_id: int) -> int:
    """Return how many of a residue's curves have had their stage 2."""
    stage2_curves = select(func.coalesce(func.sum(EcmAttempt.superseding_curves), 0)).where(
        EcmAttempt.residue_id == residue_id
    )
    return int(connection.execute(stage2_curves).scalar_one())


def stage1_values(connection: Connection, attempt_ids: Sequence[int]) -> list[int]:
    """Return the values of the stage-1 attempts that these attempts superseded."""
    stage2, stage1 = aliased(EcmAttempt), aliased(EcmAttempt)
    values = (
        select(stage1.value_id)
        .join(Residue, Residue.stage1_attempt_id == stage1.id)
        .join(stage2, stage2.residue_id == Residue.id)
        .where(is_one_of(stage2.id, attempt_ids))
        .distinct()
    )
    return list(connection.execute(values).scalars())


def revoke_superseding(connection: Connection, attempt_ids: Sequence[int]) -> list[AnyRow]:
    """Undo what these attempts superseded, before they are voided or deleted, and close the residues of their stage 1.

    Returns rows (id, value_id, b1, b2, parametrization, voided_at, curves) of the stage-1 attempts, except voided ones
    and `attempt_ids`. The caller adds these curves to the sums of their values.
    """
    ids = list(attempt_ids)
    stage2, stage1 = aliased(EcmAttempt), aliased(EcmAttempt)
    restored = (
        select(Residue.stage1_attempt_id.label("id"), func.sum(stage2.superseding_curves).label("curves"))
        .join(stage2, stage2.residue_id == Residue.id)
        .where(is_one_of(stage2.id, ids), stage2.superseding_curves > 0, Residue.stage1_attempt_id.is_not(None))
        .group_by(Residue.stage1_attempt_id)
        .subquery("restored")
    )
    rows = connection.execute(
        update(stage1)
        .where(stage1.id == restored.c.id)
        .values(superseded_curves=stage1.superseded_curves - restored.c.curves)
        .returning(
            stage1.id,
            stage1.value_id,
            stage1.b1,
            stage1.b2,
            stage1.parametrization,
            stage1.voided_at,
            restored.c.curves,
        )
    ).all()
    superseding = update(EcmAttempt).where(is_one_of(EcmAttempt.id, ids), EcmAttempt.superseding_curves > 0)
    connection.execute(superseding.values(superseding_curves=0))
    close_residues(connection, is_one_of(Residue.stage1_attempt_id, ids), CLOSED, STAGE1_VOIDED)
    own = set(ids)
    return [row for row in rows if row.voided_at is None and row.id not in own]
