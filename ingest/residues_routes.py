"""Residues over HTTP: clients upload stage 1; others claim, download and complete stage 2."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from flask import Response, request
from sqlalchemy import Row

from coordinator.base.errors import DomainError
from coordinator.residues import residue_claims as registry
from coordinator.residues import uploads
from coordinator.residues.residue_storage import Storage, StorageError, storage
from coordinator.residues.save_files import SaveFileError, read_save_file
from ingest import openapi
from ingest.problems import RETRY, ProblemError, checked_name
from ingest.request_bodies import read_body, uploaded_file
from ingest.security_headers import forbid_storing
from ingest.view_context import engine, json_of, settings
from models.wire.common import ResiduePath
from models.wire.residues import (
    ResidueCompleted,
    ResiduesSummary,
    ResidueState,
    ResidueWork,
    ResidueWorkQuery,
    Stage2Done,
    UploadedResidue,
    UploadQuery,
)
from tasks.publishing import publish_jobs

residues = openapi.client_blueprint("residues", openapi.RESIDUES)

HEADER = "X-Client-ID"
CLAIM_HOURS = 24.0
ASK_AGAIN = 300
PIECE = 256 * 1024
# Bytes of a multipart body beside its file.
ENVELOPE = 64 * 1024
UNKNOWN: dict[Any, Any] = {404: openapi.problem("`unknown_residue`")}
NOT_YOURS: dict[Any, Any] = {409: openapi.problem("`not_claimed`: not by this client")}
FILE = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}


residues.after_request(forbid_storing)


@residues.post(
    "/residues/upload",
    operation_id="upload_residue",
    openapi_extensions=openapi.reads_headers(HEADER),
    request_body={"required": True, "content": {"multipart/form-data": {"schema": FILE}}},
    responses={
        200: UploadedResidue,
        400: openapi.problem("`bad_residue`, `duplicate_residue`, `unknown_attempt`, `not_its_stage1`, ..."),
        404: openapi.problem("`unknown_composite`: N is no number of this server"),
        409: openapi.problem("`result_pending`: the result of stage 1 is not applied yet; upload again in a moment"),
        415: openapi.problem("`unsupported_media_type`: compressed, or no multipart/form-data"),
    },
)
def upload(query: UploadQuery) -> Response:
    """Upload a file of `ecm -save`: each line is checked, and the whole file is stored or nothing."""
    client, files = _client(), _storage()
    request.max_content_length = settings().max_residue + ENVELOPE
    sent = uploaded_file("c155.save")
    try:
        with files.writing() as (name, target):
            # The file is checked while it is stored, so that both see the same bytes.
            saved = read_save_file(
                sent.stream,  # type: ignore[arg-type]
                max_digits=settings().max_digits,
                b1=query.b1,
                keep=_limited(target),
                check_number=lambda number: uploads.require_known(engine(), number, settings().max_digits),
            )
    except SaveFileError as error:
        raise ProblemError(400, "bad_residue", f"{error}.") from error
    except OSError as error:
        raise ProblemError(
            503, "storage_away", "The residue storage does not take the file; send it again later.", headers=RETRY
        ) from error
    try:
        made = uploads.register_upload(
            engine(),
            client,
            saved,
            name,
            stage1_attempt_id=query.stage1_attempt_id,
            expiry_days=query.expiry_days or settings().residue_expiry_days,
            max_digits=settings().max_digits,
        )
    except DomainError:
        # After other faults the row may be committed; housekeeping deletes files without a row.
        files.delete(name)
        raise
    row = made.residue
    fields = {**_fields(row), "expires_at": row.expires_at, "message": made.message}
    return json_of(UploadedResidue, fields)


def _limited(target: BinaryIO) -> Any:
    most, taken = settings().max_residue, 0

    def keep(piece: bytes) -> None:
        nonlocal taken
        taken += len(piece)
        if taken > most:
            detail = f"The file is larger than {most:,} bytes; split it, and the result of stage 1 with it."
            raise ProblemError(413, "body_too_large", detail)
        target.write(piece)

    return keep


@residues.get(
    "/residues/work",
    operation_id="residue_work",
    openapi_extensions=openapi.reads_headers(HEADER),
    responses={200: ResidueWork, 409: openapi.problem("`too_many_claims`")},
)
def work(query: ResidueWorkQuery) -> Response:
    """Claim a residue for stage 2: the highest priority first, then the oldest."""
    filters = query.model_dump(exclude={"claim_timeout_hours"})
    request_ = registry.ResidueRequest(_client(), query.claim_timeout_hours or CLAIM_HOURS, **filters)
    row = registry.claim_residue(engine(), request_, settings().max_work_per_client)
    nothing = dict.fromkeys(ResidueWork.model_fields)
    if row is None:
        return json_of(ResidueWork, nothing | {"retry_after": ASK_AGAIN, "message": registry.NO_RESIDUE})
    more = {
        "digit_length": row.digit_length,
        "current_t_level": row.current_t_level,
        "target_t_level": row.target_t_level,
        "download_url": f"{openapi.API}/residues/{row.id}/download",
        "suggested_b2": registry.suggested_b2(row.b1),
        "expires_at": row.claim_expires_at,
        "message": f"Residue {row.id} is yours until {row.claim_expires_at:%Y-%m-%d %H:%M} UTC",
    }
    return json_of(ResidueWork, nothing | _fields(row) | more)


@residues.get(
    "/residues/<int:residue_id>/download",
    operation_id="download_residue",
    openapi_extensions=openapi.reads_headers(HEADER),
    responses={
        200: {
            "description": "The file, byte for byte",
            "headers": {"X-Residue-SHA256": {}},
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        410: openapi.problem("`file_lost`: the file is gone"),
        **UNKNOWN,
        **NOT_YOURS,
    },
)
def download(path: ResiduePath) -> Response:
    """Download the file of a residue that this client has claimed, byte for byte as it was uploaded."""
    row = registry.claimed_file(engine(), path.residue_id, _client())
    try:
        file = _storage().open(row.file_name)
    except FileNotFoundError as error:
        raise ProblemError(410, "file_lost", f"The file of residue {row.id} is gone; claim another one.") from error
    answer = Response(_pieces(file), 200, content_type="application/octet-stream")
    answer.headers["Content-Length"] = str(row.file_size_bytes)
    answer.headers["Content-Disposition"] = f"attachment; filename=residue-{row.id}.save"
    answer.headers["X-Residue-SHA256"] = row.sha256.hex()
    return answer


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece


@residues.post(
    "/residues/<int:residue_id>/complete",
    operation_id="complete_residue",
    openapi_extensions=openapi.reads_headers(HEADER),
    request_body=openapi.takes(Stage2Done),
    responses={
        200: ResidueCompleted,
        400: openapi.problem("`unknown_attempt`, `not_its_stage2`, `stage2_too_small`"),
        **UNKNOWN,
        **NOT_YOURS,
    },
)
def complete(path: ResiduePath) -> Response:
    """Link the attempt of stage 2 to its residue. Idempotent; a result that names the residue has linked it already."""
    body = read_body(Stage2Done)
    done = registry.complete_residue(engine(), path.residue_id, _client(), body.stage2_attempt_id)
    publish_jobs(done.to_publish)
    row = done.residue
    fields = {
        "residue_id": row.id,
        "stage1_attempt_id": row.stage1_attempt_id,
        "stage2_attempt_id": row.stage2_attempt_id,
        "composite_id": row.composite_id,
        "new_t_level": done.t_level,
        "message": done.message,
    }
    return json_of(ResidueCompleted, fields)


@residues.delete(
    "/residues/<int:residue_id>/claim",
    operation_id="release_residue",
    openapi_extensions=openapi.reads_headers(HEADER),
    responses={200: ResidueState, **UNKNOWN, **NOT_YOURS},
)
def release(path: ResiduePath) -> Response:
    """Release a claim. Idempotent."""
    return residue_state(registry.release_claim(engine(), path.residue_id, _client()))


@residues.get("/residues/<int:residue_id>", operation_id="residue", responses={200: ResidueState, **UNKNOWN})
def one(path: ResiduePath) -> Response:
    """Return the state of a residue."""
    return residue_state(registry.read_residue(engine(), path.residue_id))


@residues.get("/residues/stats/summary", operation_id="residues_summary", responses={200: ResiduesSummary})
def summary() -> Response:
    """Return how many residues there are by status."""
    return json_of(ResiduesSummary, registry.summarize_residues(engine()))


def residue_state(row: Row[Any]) -> Response:
    """Return the public state of a residue."""
    return json_of(ResidueState, {**row._asdict(), "checksum": row.sha256.hex()})


def _fields(row: Row[Any]) -> dict[str, Any]:
    return {
        "residue_id": row.id,
        "composite_id": row.composite_id,
        "composite": row.number,
        "b1": row.b1,
        "parametrization": row.parametrization,
        "curve_count": row.curve_count,
        "file_size_bytes": row.file_size_bytes,
        "checksum": row.sha256.hex(),
        "stage1_attempt_id": row.stage1_attempt_id,
    }


def _client() -> str:
    given = request.headers.get(HEADER)
    if given is None:
        detail = f"Send the name of the client in the header {HEADER}."
        raise ProblemError(422, "invalid", detail, errors=[{"field": HEADER, "message": "is required"}])
    return checked_name(HEADER, given)


def _storage() -> Storage:
    try:
        return storage(settings())
    except StorageError as error:
        raise ProblemError(503, "storage_away", f"{error}.", headers=RETRY) from error
