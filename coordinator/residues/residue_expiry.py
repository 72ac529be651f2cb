"""What the clock does to residues: claims that lapse, residues that nobody wants, files that nobody needs."""

from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import Engine, func, or_, select, update

from coordinator.base import audit, jobs
from coordinator.base.audit import Actor
from coordinator.base.errors import DomainError
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import eligibility, lease_lifecycle, superseding
from coordinator.residues import residue_claims
from coordinator.residues.residue_storage import Storage
from models.limits import DEFAULT_B2
from models.tables import EcmAttempt, Residue

log = structlog.get_logger("residues")

# A file whose row has not come by then never will: what uploaded it is dead.
ORPHANED_AFTER = timedelta(hours=1)


def release_lapsed_claims(engine: Engine, now: datetime) -> int:
    """Give back every claim whose time has run out by `now`; how many."""
    with unit_of_work(engine, "lapse_residues") as connection:
        overdue = Residue.status == "claimed", Residue.claim_expires_at <= now
        ids = connection.execute(select(Residue.id).where(*overdue).with_for_update(skip_locked=True)).scalars().all()
        if ids:
            connection.execute(update(Residue).where(Residue.id.in_(ids)).values(residue_claims.UNCLAIMED))
    return len(ids)


def expire_residues(engine: Engine, now: datetime) -> tuple[int, list[jobs.JobRef]]:
    """Let go of residues that nobody has wanted for as long as they were to be kept: how many, what to ring for."""
    with engine.connect() as connection:
        overdue = (Residue.status == "available", Residue.expires_at <= now)
        ids = connection.execute(select(Residue.id).where(*overdue).order_by(Residue.id)).scalars().all()
    to_publish: list[jobs.JobRef] = []
    for residue_id in ids:
        with unit_of_work(engine, "expire_residue", residue=residue_id) as connection:
            residue = residue_claims.lock_residue(connection, residue_id)
            still = (Residue.id == residue_id) & (Residue.status == "available")
            to_publish += superseding.close_residues(connection, still, superseding.EXPIRED, "nobody wanted it")
            lease_lifecycle.refresh_eligibility(connection, [residue.composite_id])
    return len(ids), to_publish


def complete_unreported(engine: Engine) -> list[jobs.JobRef]:
    """Complete claims whose client has sent the whole stage 2 and said nothing more of it."""
    done = (
        EcmAttempt.client_id == Residue.claimed_by,
        EcmAttempt.composite_id == Residue.composite_id,
        EcmAttempt.method == eligibility.ECM,
        EcmAttempt.b1 == Residue.b1,
        EcmAttempt.parametrization == Residue.parametrization,
        EcmAttempt.residue_id.is_(None),
        EcmAttempt.voided_at.is_(None),
        EcmAttempt.id > Residue.stage1_attempt_id,  # of a number with a long history only the latest are looked at
        EcmAttempt.created_at >= Residue.claimed_at,
        EcmAttempt.curves >= residue_claims.ENOUGH_CURVES * Residue.curve_count,
        or_(EcmAttempt.b2 == DEFAULT_B2, EcmAttempt.b2 >= residue_claims.ENOUGH_B2 * EcmAttempt.b1),
    )
    with engine.connect() as connection:
        pairs = connection.execute(
            select(Residue.id, Residue.claimed_by, func.min(EcmAttempt.id).label("attempt"))
            .join(EcmAttempt, EcmAttempt.composite_id == Residue.composite_id)
            .where(Residue.status == "claimed", *done)
            .group_by(Residue.id, Residue.claimed_by)
            .order_by(Residue.id)
        ).all()
    to_publish: list[jobs.JobRef] = []
    for pair in pairs:
        try:
            to_publish += residue_claims.complete_residue(engine, pair.id, pair.claimed_by, pair.attempt).to_publish
        except DomainError:  # something has changed meanwhile: an attempt does for one residue only
            continue
    return to_publish


# Files ----------------------------------------------------------------------------------------------------------------


class GarbageReport(NamedTuple):
    """What a sweep found: files that no residue has, and residues whose file is gone."""

    files: int
    residues: int
    to_publish: list[jobs.JobRef]


def delete_file(engine: Engine, storage: Storage, residue_id: int) -> None:
    """Delete the file of a residue that is closed; harmless if it is gone, or the residue is open."""
    closed = (Residue.id == residue_id, Residue.has_file, Residue.status.not_in(superseding.OPEN_STATUSES))
    with engine.connect() as connection:
        name = connection.execute(select(Residue.file_name).where(*closed)).scalar_one_or_none()
    if name is None:
        return
    storage.delete(name)
    with unit_of_work(engine, "drop_residue_file", residue=residue_id) as connection:
        connection.execute(update(Residue).where(*closed).values(has_file=False))


def collect_garbage(engine: Engine, storage: Storage, now: datetime) -> GarbageReport:
    """Delete files that no residue has, and close residues whose file has gone."""
    files = storage.stored()  # before the rows: a file that comes later has time until the next sweep
    with engine.connect() as connection:
        rows = connection.execute(select(Residue.id, Residue.file_name, Residue.status).where(Residue.has_file)).all()
    known = {row.file_name for row in rows}
    orphans = [file for file in files if file.name not in known and file.modified < now - ORPHANED_AFTER]
    for file in orphans:
        log.info("Residue file that nobody has", file=file.name)
        storage.delete(file.name)
    stored = {file.name for file in files}
    to_publish: list[jobs.JobRef] = []
    lost = [row for row in rows if row.status in superseding.OPEN_STATUSES and row.file_name not in stored]
    lost = [row for row in lost if not storage.exists(row.file_name)]
    for row in lost:
        to_publish += close_residue(engine, row.id, "its file is lost")
    return GarbageReport(len(orphans), len(lost), to_publish)


def close_residue(engine: Engine, residue_id: int, why: str, actor: Actor | None = None) -> list[jobs.JobRef]:
    """Close an open residue, for a reason that its client is told; what to ring for. Raises Unknown."""
    with unit_of_work(engine, "close_residue", residue=residue_id) as connection:
        residue = residue_claims.lock_residue(connection, residue_id)
        to_publish = superseding.close_residues(connection, Residue.id == residue_id, superseding.CLOSED, why)
        lease_lifecycle.refresh_eligibility(connection, [residue.composite_id])
        if actor is not None and to_publish:
            after = {"status": superseding.CLOSED, "reason": why}
            audit.record(
                connection, actor, "close", f"residue {residue_id}", before={"status": residue.status}, after=after
            )
    return to_publish
