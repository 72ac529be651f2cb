"""Housekeeping of residues: releases lapsed claims, expires residues, completes unreported ones, collects files."""

from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import Engine, func, or_, select, update
from sqlalchemy.orm import aliased

from coordinator.base import audit, jobs
from coordinator.base.audit import Actor
from coordinator.base.errors import DomainError
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import eligibility, lease_lifecycle, superseding, targets
from coordinator.residues import residue_claims
from coordinator.residues.residue_storage import Storage
from models.limits import DEFAULT_B2
from models.tables import Composite, EcmAttempt, Residue

log = structlog.get_logger("residues")

# A file that has no row by then never gets one: the process that uploaded it is dead.
ORPHANED_AFTER = timedelta(hours=1)


def release_lapsed_claims(engine: Engine, now: datetime) -> int:
    """Release every claim that has lapsed by `now`; returns how many."""
    with unit_of_work(engine, "release_lapsed_claims") as connection:
        overdue = Residue.status == "claimed", Residue.claim_expires_at <= now
        ids = connection.execute(select(Residue.id).where(*overdue).with_for_update(skip_locked=True)).scalars().all()
        if ids:
            connection.execute(update(Residue).where(Residue.id.in_(ids)).values(residue_claims.UNCLAIMED))
    return len(ids)


def expire_residues(engine: Engine, now: datetime) -> tuple[int, list[jobs.JobRef]]:
    """Expire residues that nobody claimed within their days of storage; returns how many, and jobs to publish."""
    with engine.connect() as connection:
        overdue = (Residue.status == "available", Residue.expires_at <= now)
        ids = connection.execute(select(Residue.id).where(*overdue).order_by(Residue.id)).scalars().all()
    to_publish: list[jobs.JobRef] = []
    for residue_id in ids:
        with unit_of_work(engine, "expire_residue", residue=residue_id) as connection:
            residue = residue_claims.lock_residue(connection, residue_id)
            is_unclaimed = (Residue.id == residue_id) & (Residue.status == "available")
            why = "no client claimed it in time"
            to_publish += superseding.close_residues(connection, is_unclaimed, superseding.EXPIRED, why)
            lease_lifecycle.refresh_eligibility(connection, targets.ids_of(connection, [residue.composite_id]))
    return len(ids), to_publish


def complete_unreported(engine: Engine) -> list[jobs.JobRef]:
    """Complete claims whose client has sent the result of stage 2, but neither named the residue nor completed it."""
    is_stage2 = (
        EcmAttempt.client_id == Residue.claimed_by,
        EcmAttempt.method == eligibility.ECM,
        EcmAttempt.b1 == Residue.b1,
        EcmAttempt.parametrization == Residue.parametrization,
        EcmAttempt.residue_id.is_(None),
        EcmAttempt.voided_at.is_(None),
        EcmAttempt.id > Residue.stage1_attempt_id,  # so that only the latest of a long history are read
        EcmAttempt.created_at >= Residue.claimed_at,
        EcmAttempt.curves >= residue_claims.ENOUGH_CURVES * Residue.curve_count,
        or_(EcmAttempt.b2 == DEFAULT_B2, EcmAttempt.b2 >= residue_claims.ENOUGH_B2 * EcmAttempt.b1),
    )
    own, sharing = aliased(Composite), aliased(Composite)
    with engine.connect() as connection:
        pairs = connection.execute(
            select(Residue.id, Residue.claimed_by, func.min(EcmAttempt.id).label("attempt"))
            .join(own, own.id == Residue.composite_id)
            .join(sharing, or_(sharing.id == own.id, sharing.target_id == own.target_id))
            .join(EcmAttempt, EcmAttempt.composite_id == sharing.id)
            .where(Residue.status == "claimed", *is_stage2)
            .group_by(Residue.id, Residue.claimed_by)
            .order_by(Residue.id)
        ).all()
    to_publish: list[jobs.JobRef] = []
    for pair in pairs:
        try:
            to_publish += residue_claims.complete_residue(engine, pair.id, pair.claimed_by, pair.attempt).to_publish
        except DomainError:  # the residue has changed meanwhile, or another residue has this attempt
            continue
    return to_publish


# Files ----------------------------------------------------------------------------------------------------------------


class GarbageReport(NamedTuple):
    """How many files had no residue and were deleted, how many residues had no file and were closed."""

    files: int
    residues: int
    to_publish: list[jobs.JobRef]


def delete_file(engine: Engine, storage: Storage, residue_id: int) -> None:
    """Delete the file of a closed residue; does nothing if the file is gone or the residue is open."""
    is_closed = (Residue.id == residue_id, Residue.has_file, Residue.status.not_in(superseding.OPEN_STATUSES))
    with engine.connect() as connection:
        name = connection.execute(select(Residue.file_name).where(*is_closed)).scalar_one_or_none()
    if name is None:
        return
    storage.delete(name)
    with unit_of_work(engine, "drop_residue_file", residue=residue_id) as connection:
        connection.execute(update(Residue).where(*is_closed).values(has_file=False))


def collect_garbage(engine: Engine, storage: Storage, now: datetime) -> GarbageReport:
    """Delete files without a residue, and close residues without a file."""
    files = storage.stored()  # before the rows: a file that is stored later is left to the next call
    with engine.connect() as connection:
        rows = connection.execute(select(Residue.id, Residue.file_name, Residue.status).where(Residue.has_file)).all()
    known = {row.file_name for row in rows}
    orphans = [file for file in files if file.name not in known and file.modified < now - ORPHANED_AFTER]
    for file in orphans:
        log.info("Residue file without a residue deleted", file=file.name)
        storage.delete(file.name)
    stored = {file.name for file in files}
    to_publish: list[jobs.JobRef] = []
    lost = [row for row in rows if row.status in superseding.OPEN_STATUSES and row.file_name not in stored]
    lost = [row for row in lost if not storage.exists(row.file_name)]
    for row in lost:
        to_publish += close_residue(engine, row.id, "its file is lost")
    return GarbageReport(len(orphans), len(lost), to_publish)


def close_residue(engine: Engine, residue_id: int, why: str, actor: Actor | None = None) -> list[jobs.JobRef]:
    """Close an open residue for a reason that clients can read; returns jobs to publish. Raises NotFoundError."""
    with unit_of_work(engine, "close_residue", residue=residue_id) as connection:
        residue = residue_claims.lock_residue(connection, residue_id)
        to_publish = superseding.close_residues(connection, Residue.id == residue_id, superseding.CLOSED, why)
        lease_lifecycle.refresh_eligibility(connection, targets.ids_of(connection, [residue.composite_id]))
        if actor is not None and to_publish:
            after = {"status": superseding.CLOSED, "reason": why}
            audit.record(
                connection, actor, "close", f"residue {residue_id}", before={"status": residue.status}, after=after
            )
    return to_publish
