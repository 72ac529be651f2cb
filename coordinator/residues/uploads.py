"""Registering residues: a stored file becomes a residue, or is refused, and then nothing is registered."""

from typing import Any, NamedTuple

from gmpy2 import mpz
from sqlalchemy import Connection, Engine, Row, func, select
from sqlalchemy.dialects.postgresql import insert

from coordinator.base import clock
from coordinator.base.errors import DomainError, InvalidClaimError, NotFoundError
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import eligibility, lease_lifecycle, registry, superseding, targets
from coordinator.numbers.expressions import decimal, shorten
from coordinator.residues import residue_claims
from coordinator.residues.save_files import SaveFile
from models.limits import STAGE1_ONLY
from models.tables import Composite, EcmAttempt, Residue


class RegisteredUpload(NamedTuple):
    """The row of a new residue, and a sentence about it for the client."""

    residue: Row[Any]
    message: str


def _raise_if_known(connection: Connection, sha256: bytes) -> None:
    """Raise DomainError if an open or completed residue has this file."""
    live = Residue.status.in_((*superseding.OPEN_STATUSES, superseding.COMPLETED))
    known = connection.execute(select(Residue.id).where(Residue.sha256 == sha256, live)).scalar_one_or_none()
    if known is not None:
        raise DomainError("duplicate_residue", f"Duplicate residue (checksum matches residue ID {known})")


def require_known(engine: Engine, number: mpz, max_digits: int) -> None:
    """Raise NotFoundError if `number` is no number of this server, nor a cofactor of one."""
    written = decimal(number)
    with engine.connect() as connection:
        if registry.find(connection, written, max_digits) is None:
            raise _unknown(written)


def _unknown(written: str) -> NotFoundError:
    return NotFoundError("unknown_composite", f"N, {shorten(written)}, is not a number of this server; load it first")


def register_upload(
    engine: Engine,
    client_id: str,
    file: SaveFile,
    file_name: str,
    *,
    stage1_attempt_id: int | None,
    expiry_days: float,
    max_digits: int,
) -> RegisteredUpload:
    """Register a stored file as a residue. Raises DomainError, and then registers nothing.

    Without `stage1_attempt_id` the residue is linked to this client's latest stage-1 attempt of the same number, B1,
    parametrization and number of curves that has no residue.
    """
    with unit_of_work(engine, "upload_residue", client=client_id) as connection:
        _raise_if_known(connection, file.sha256)
        written = decimal(file.number)
        found = registry.find(connection, written, max_digits)
        if found is None:
            raise _unknown(written)
        registry.lock_group(connection, found.root_id)
        columns: tuple[Any, ...] = (Composite.id, Composite.is_fully_factored, Composite.target_id)
        chosen = select(*columns).where(Composite.id == found.id)
        composite: Row[Any] | None = connection.execute(chosen).one_or_none()
        if composite is None:
            raise NotFoundError("unknown_composite", f"N, {shorten(written)}, has just been deleted")
        if composite.is_fully_factored:
            raise DomainError("composite_finished", f"{shorten(written)} is finished; nothing is left for stage 2")
        attempt = _stage1_attempt(connection, client_id, composite, file, stage1_attempt_id)
        residue_id = connection.execute(
            insert(Residue)
            .values(
                composite_id=composite.id,
                client_id=client_id,
                stage1_attempt_id=attempt,
                number=written,
                b1=file.b1,
                parametrization=file.parametrization,
                curve_count=file.curves,
                sha256=file.sha256,
                file_name=file_name,
                file_size_bytes=file.size,
                expires_at=clock.after(86400 * expiry_days),
            )
            .on_conflict_do_nothing()
            .returning(Residue.id)
        ).scalar_one_or_none()
        if residue_id is None:  # another request is registering the same file
            _raise_if_known(connection, file.sha256)
            raise residue_claims.RetryLaterError(
                "duplicate_residue", "The same file is being uploaded by another request; ask again"
            )
        target_ids = targets.ids_of(connection, [composite.id])
        superseding.recount_open_residues(connection, target_ids)
        lease_lifecycle.refresh_eligibility(connection, target_ids)
        residue = residue_claims.residue_row(connection, residue_id)
    return RegisteredUpload(residue, f"Residue {residue_id} of attempt {attempt} waits for its stage 2")


def _stage1_attempt(
    connection: Connection, client_id: str, composite: Row[Any], file: SaveFile, attempt_id: int | None
) -> int:
    """Return the attempt that is the stage 1 of this file. Raises DomainError.

    It may be an attempt on another number with the same target: its curves are curves on this one.
    """
    sharing = {composite.id}
    if composite.target_id is not None:
        sharing.update(targets.composites_of(connection, [composite.target_id]))
    linked = select(func.coalesce(func.sum(Residue.curve_count), 0)).where(
        Residue.stage1_attempt_id == EcmAttempt.id,
        Residue.status.in_((*superseding.OPEN_STATUSES, superseding.COMPLETED)),
    )
    free = (EcmAttempt.curves - linked.correlate(EcmAttempt).scalar_subquery()).label("free")
    if attempt_id is None:
        fitting = (
            EcmAttempt.client_id == client_id,
            EcmAttempt.composite_id.in_(sharing),
            EcmAttempt.method == eligibility.ECM,
            EcmAttempt.b1 == file.b1,
            EcmAttempt.b2 == STAGE1_ONLY,
            EcmAttempt.parametrization == file.parametrization,
            EcmAttempt.curves == file.curves,
            EcmAttempt.voided_at.is_(None),
            free == EcmAttempt.curves,
        )
        latest = select(EcmAttempt.id).where(*fitting).order_by(EcmAttempt.id.desc()).limit(1)
        known = connection.execute(latest).scalar_one_or_none()
        if known is None:
            detail = (
                f"{client_id} has no stage-1 attempt (B2 = 0) of this number with B1 = {file.b1}, parametrization"
                f" {file.parametrization} and {file.curves} curves that has no residue; submit that result first"
            )
            raise residue_claims.missing_attempt_error(connection, client_id, detail)
        return int(known)
    attempt = connection.execute(select(EcmAttempt, free).where(EcmAttempt.id == attempt_id)).one_or_none()
    if attempt is None:
        raise residue_claims.missing_attempt_error(
            connection, client_id, f"There is no attempt {attempt_id}; submit its result first", attempt_id
        )
    is_stage1 = attempt.method == eligibility.ECM and attempt.b2 == STAGE1_ONLY and attempt.voided_at is None
    wrong = [
        problem
        for problem, fits in (
            (f"is {attempt.client_id}'s", attempt.client_id == client_id),
            (f"is of composite {attempt.composite_id}, not {composite.id}", attempt.composite_id in sharing),
            ("is no stage 1 (ecm with B2 = 0)", is_stage1),
            (f"has B1 = {attempt.b1}, the file {file.b1}", attempt.b1 == file.b1),
            (
                f"has parametrization {attempt.parametrization}, the file {file.parametrization}",
                attempt.parametrization == file.parametrization,
            ),
            (f"has {attempt.free} curves without a residue, the file {file.curves}", attempt.free >= file.curves),
        )
        if not fits
    ]
    if wrong:
        raise InvalidClaimError("not_its_stage1", f"Attempt {attempt_id} {wrong[0]}")
    return attempt_id
