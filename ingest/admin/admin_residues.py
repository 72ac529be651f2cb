"""Residues, for operators: given up, given back, cleaned up."""

from datetime import UTC, datetime

from flask import Response

from coordinator.residues import residue_claims as registry
from coordinator.residues import residue_expiry
from coordinator.residues.residue_storage import storage
from ingest import openapi
from ingest.admin.blueprints import make, request_actor
from ingest.residues_routes import UNKNOWN, residue_state
from ingest.view_context import engine, json_of, settings
from models.wire_admin import WhyQuery
from models.wire_residues import OrphansCleaned, ResiduePath, ResiduesCleaned, ResidueState
from tasks.publishing import publish_jobs

admin_residues = make("admin_residues", openapi.ADMIN_RESIDUES)


@admin_residues.delete(
    "/residues/<int:residue_id>", operation_id="admin_close_residue", responses={200: ResidueState, **UNKNOWN}
)
def close(path: ResiduePath, query: WhyQuery) -> Response:
    """Close a residue: nobody runs its stage 2 any more, and its file goes. Idempotent; the curves' stage 1 stays."""
    why = query.reason or "an operator closed it"
    publish_jobs(residue_expiry.close_residue(engine(), path.residue_id, why, request_actor()))
    return residue_state(registry.read_residue(engine(), path.residue_id))


@admin_residues.delete(
    "/residues/<int:residue_id>/release",
    operation_id="admin_release_residue",
    responses={200: ResidueState, **UNKNOWN},
)
def release(path: ResiduePath) -> Response:
    """Give anybody's claim back; idempotent."""
    return residue_state(registry.release_claim(engine(), path.residue_id, None, request_actor()))


@admin_residues.post("/residues/cleanup", operation_id="admin_cleanup_residues", responses={200: ResiduesCleaned})
def cleanup() -> Response:
    """Give back claims that ran out, and let go of residues that nobody wanted, now, as beat does."""
    now = datetime.now(UTC)
    lapsed = residue_expiry.release_lapsed_claims(engine(), now)
    expired, to_publish = residue_expiry.expire_residues(engine(), now)
    publish_jobs(to_publish)
    said = f"{lapsed} claims ran out, {expired} residues were let go of"
    return json_of(ResiduesCleaned, {"lapsed": lapsed, "expired": expired, "message": said})


@admin_residues.post("/residues/cleanup-orphaned", operation_id="admin_sweep_residues", responses={200: OrphansCleaned})
def cleanup_orphaned() -> Response:
    """Delete files that no residue has (after an hour), and close residues whose file is gone, as beat does."""
    swept = residue_expiry.collect_garbage(engine(), storage(settings()), datetime.now(UTC))
    publish_jobs(swept.to_publish)
    said = f"{swept.files} files without a residue were deleted, {swept.residues} residues without a file closed"
    return json_of(OrphansCleaned, {"files": swept.files, "residues": swept.residues, "message": said})
