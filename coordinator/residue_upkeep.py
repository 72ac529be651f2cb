"""What the clock does to residues: claims that lapse, residues that nobody wants, files that nobody needs."""

from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from sqlalchemy import Engine, func, or_, select, update

from coordinator import demand, jobs, residues, stages, work
from coordinator.audit import By
from coordinator.refusals import Refusal
from coordinator.residue_storage import Storage
from coordinator.unit_of_work import unit_of_work
from models.limits import DEFAULT_B2
from models.tables import EcmAttempt, Residue

log = structlog.get_logger("residues")

# A file whose row has not come by then never will: what uploaded it is dead.
ORPHANED_AFTER = timedelta(hours=1)


def lapse(engine: Engine, now: datetime) -> int:
    """Give back every claim whose time has run out by `now`; how many."""
    with unit_of_work(engine, "lapse_residues") as connection:
        overdue = Residue.status == "claimed", Residue.claim_expires_at <= now
        ids = connection.execute(select(Residue.id).where(*overdue).with_for_update(skip_locked=True)).scalars().all()
        if ids:
            connection.execute(update(Residue).where(Residue.id.in_(ids)).values(residues.UNCLAIMED))
    return len(ids)


def expire(engine: Engine, now: datetime) -> tuple[int, list[jobs.Ring]]:
    """Let go of residues that nobody has wanted for as long as they were to be kept: how many, what to ring for."""
    with engine.connect() as connection:
        overdue = (Residue.status == "available", Residue.expires_at <= now)
        ids = connection.execute(select(Residue.id).where(*overdue).order_by(Residue.id)).scalars().all()
    rings: list[jobs.Ring] = []
    for residue_id in ids:
        with unit_of_work(engine, "expire_residue", residue=residue_id) as connection:
            residue = residues.lock(connection, residue_id)
            still = (Residue.id == residue_id) & (Residue.status == "available")
            rings += stages.close(connection, still, stages.EXPIRED, "nobody wanted it")
            work.refresh(connection, [residue.composite_id])
    return len(ids), rings


def complete_forgotten(engine: Engine) -> list[jobs.Ring]:
    """Complete claims whose client has sent the whole stage 2 and said nothing more of it."""
    done = (
        EcmAttempt.client_id == Residue.claimed_by,
        EcmAttempt.composite_id == Residue.composite_id,
        EcmAttempt.method == demand.ECM,
        EcmAttempt.b1 == Residue.b1,
        EcmAttempt.parametrization == Residue.parametrization,
        EcmAttempt.residue_id.is_(None),
        EcmAttempt.voided_at.is_(None),
        EcmAttempt.id > Residue.stage1_attempt_id,  # of a number with a long history only the latest are looked at
        EcmAttempt.created_at >= Residue.claimed_at,
        EcmAttempt.curves >= residues.ENOUGH_CURVES * Residue.curve_count,
        or_(EcmAttempt.b2 == DEFAULT_B2, EcmAttempt.b2 >= residues.ENOUGH_B2 * EcmAttempt.b1),
    )
    with engine.connect() as connection:
        pairs = connection.execute(
            select(Residue.id, Residue.claimed_by, func.min(EcmAttempt.id).label("attempt"))
            .join(EcmAttempt, EcmAttempt.composite_id == Residue.composite_id)
            .where(Residue.status == "claimed", *done)
            .group_by(Residue.id, Residue.claimed_by)
            .order_by(Residue.id)
        ).all()
    rings: list[jobs.Ring] = []
    for pair in pairs:
        try:
            rings += residues.complete(engine, pair.id, pair.claimed_by, pair.attempt).rings
        except Refusal:  # something has changed meanwhile: an attempt does for one residue only
            continue
    return rings


# Files ----------------------------------------------------------------------------------------------------------------


class Swept(NamedTuple):
    """What a sweep found: files that no residue has, and residues whose file is gone."""

    files: int
    residues: int
    rings: list[jobs.Ring]


def drop_file(engine: Engine, storage: Storage, residue_id: int) -> None:
    """Delete the file of a residue that is closed; harmless if it is gone, or the residue is open."""
    closed = (Residue.id == residue_id, Residue.has_file, Residue.status.not_in(stages.OPEN))
    with engine.connect() as connection:
        name = connection.execute(select(Residue.file_name).where(*closed)).scalar_one_or_none()
    if name is None:
        return
    storage.delete(name)
    with unit_of_work(engine, "drop_residue_file", residue=residue_id) as connection:
        connection.execute(update(Residue).where(*closed).values(has_file=False))


def sweep(engine: Engine, storage: Storage, now: datetime) -> Swept:
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
    rings: list[jobs.Ring] = []
    lost = [row for row in rows if row.status in stages.OPEN and row.file_name not in stored]
    lost = [row for row in lost if not storage.exists(row.file_name)]
    for row in lost:
        rings += close(engine, row.id, "its file is lost")
    return Swept(len(orphans), len(lost), rings)


def close(engine: Engine, residue_id: int, why: str, by: By | None = None) -> list[jobs.Ring]:
    """Close an open residue, for a reason that its client is told; what to ring for. Raises Unknown."""
    with unit_of_work(engine, "close_residue", residue=residue_id) as connection:
        residue = residues.lock(connection, residue_id)
        rings = stages.close(connection, Residue.id == residue_id, stages.CLOSED, why)
        work.refresh(connection, [residue.composite_id])
        if by is not None and rings:
            after = {"status": stages.CLOSED, "reason": why}
            by.did(connection, "close", f"residue {residue_id}", before={"status": residue.status}, after=after)
    return rings
