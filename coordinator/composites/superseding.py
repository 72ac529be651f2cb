"""The two stages of the same curves: which residues wait on a composite, and which attempts supersede which.

A residue's n curves are an attempt with stage 1 only. An attempt that did stage 2 of k of them counts those k in full,
and k of the n count no longer (`superseding_curves` of the one, `superseded_curves` of the other), so that whatever
takes the one back gives the other its curves again. Who calls anything here has locked the composite.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select, update
from sqlalchemy.orm import aliased

from coordinator.base import jobs
from models.tables import Composite, EcmAttempt, Residue

OPEN_STATUSES = ("available", "claimed")
COMPLETED, CLOSED, EXPIRED = "completed", "closed", "expired"
STAGE1_TAKEN_BACK = "its stage 1 was taken back"


def close_residues(
    connection: Connection, chosen: ColumnElement[bool], status: str, why: str | None
) -> list[jobs.JobRef]:
    """End those of the chosen residues that are open; what to ring for, so that their files go after the commit."""
    closed = connection.execute(
        update(Residue)
        .where(chosen, Residue.status.in_(OPEN_STATUSES))
        .values(status=status, message=why, closed_at=func.now(), claim_expires_at=None)
        .returning(Residue.id, Residue.composite_id)
    ).all()
    recount_open_residues(connection, sorted({row.composite_id for row in closed}))
    return [job for row in closed for job in jobs.request(connection, jobs.DROP_RESIDUE, row.id)]


def recount_open_residues(connection: Connection, composite_ids: Sequence[int]) -> None:
    """Count anew the open residues of composites; `work.refresh` says then what they want."""
    if composite_ids:
        waiting = select(func.count()).where(Residue.composite_id == Composite.id, Residue.status.in_(OPEN_STATUSES))
        counted = waiting.correlate(Composite).scalar_subquery()
        connection.execute(update(Composite).where(Composite.id.in_(list(composite_ids))).values(open_residues=counted))


def count_stage2_curves(connection: Connection, residue_id: int) -> int:
    """How many of a residue's curves have had their stage 2."""
    done = select(func.coalesce(func.sum(EcmAttempt.superseding_curves), 0)).where(EcmAttempt.residue_id == residue_id)
    return int(connection.execute(done).scalar_one())


def revoke_superseding(connection: Connection, attempt_ids: Sequence[int]) -> list[Row[Any]]:
    """Before these attempts are taken back: what they superseded counts again, and residues of theirs are closed.

    The attempts that got curves back (id, composite_id, b1, b2, parametrization, curves), which their composites' sums
    lack as yet; those that were taken back themselves count for nothing, and are not among them.
    """
    ids = list(attempt_ids)
    taken, stage1 = aliased(EcmAttempt), aliased(EcmAttempt)
    back = (
        select(Residue.stage1_attempt_id.label("id"), func.sum(taken.superseding_curves).label("curves"))
        .join(taken, taken.residue_id == Residue.id)
        .where(taken.id.in_(ids), taken.superseding_curves > 0, Residue.stage1_attempt_id.is_not(None))
        .group_by(Residue.stage1_attempt_id)
        .subquery("back")
    )
    given = connection.execute(
        update(stage1)
        .where(stage1.id == back.c.id)
        .values(superseded_curves=stage1.superseded_curves - back.c.curves)
        .returning(
            stage1.id,
            stage1.composite_id,
            stage1.b1,
            stage1.b2,
            stage1.parametrization,
            stage1.voided_at,
            back.c.curves,
        )
    ).all()
    connection.execute(update(EcmAttempt).where(EcmAttempt.id.in_(ids)).values(superseding_curves=0))
    close_residues(connection, Residue.stage1_attempt_id.in_(ids), CLOSED, STAGE1_TAKEN_BACK)
    return [row for row in given if row.voided_at is None and row.id not in set(ids)]
