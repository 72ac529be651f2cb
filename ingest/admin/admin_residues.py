"""Administration of residues: close, release a claim, and clean up."""

from flask import Response

from coordinator.base import clock
from coordinator.residues import residue_claims as registry
from coordinator.residues import residue_expiry
from coordinator.residues.residue_storage import storage
from ingest import openapi
from ingest.admin.blueprints import make, request_actor
from ingest.plurals import counted
from ingest.residues_routes import UNKNOWN, residue_state
from ingest.view_context import engine, json_of, settings
from models.wire.administration import WhyQuery
from models.wire.common import ResiduePath
from models.wire.residues import OrphansCleaned, ResiduesCleaned, ResidueState
from tasks.publishing import publish_jobs

admin_residues = make("admin_residues", openapi.ADMIN_RESIDUES)


@admin_residues.delete(
    "/residues/<int:residue_id>", operation_id="admin_close_residue", responses={200: ResidueState, **UNKNOWN}
)
def close(path: ResiduePath, query: WhyQuery) -> Response:
    """Close a residue and delete its file: nobody can claim its stage 2 any more. Idempotent; stage 1 still counts."""
    reason = query.reason or "an operator closed it"
    publish_jobs(residue_expiry.close_residue(engine(), path.residue_id, reason, request_actor()))
    return residue_state(registry.read_residue(engine(), path.residue_id))


@admin_residues.delete(
    "/residues/<int:residue_id>/release",
    operation_id="admin_release_residue",
    responses={200: ResidueState, **UNKNOWN},
)
def release(path: ResiduePath) -> Response:
    """Release the claim of a residue, whoever holds it. Idempotent."""
    return residue_state(registry.release_claim(engine(), path.residue_id, None, request_actor()))


@admin_residues.post("/residues/cleanup", operation_id="admin_cleanup_residues", responses={200: ResiduesCleaned})
def cleanup() -> Response:
    """Release claims that ran out and expire residues whose time is over, now, as housekeeping does."""
    now = clock.now(engine())
    lapsed = residue_expiry.release_lapsed_claims(engine(), now)
    expired, to_publish = residue_expiry.expire_residues(engine(), now)
    publish_jobs(to_publish)
    message = f"{counted(lapsed, 'claim')} ran out, {counted(expired, 'residue')} expired"
    return json_of(ResiduesCleaned, {"lapsed": lapsed, "expired": expired, "message": message})


@admin_residues.post("/residues/cleanup-orphaned", operation_id="admin_sweep_residues", responses={200: OrphansCleaned})
def cleanup_orphaned() -> Response:
    """Delete files without a residue (after an hour), and close residues without a file, as housekeeping does."""
    swept = residue_expiry.collect_garbage(engine(), storage(settings()), clock.now(engine()))
    publish_jobs(swept.to_publish)
    files, residues = counted(swept.files, "file"), counted(swept.residues, "residue")
    message = f"{files} without a residue deleted, {residues} without a file closed"
    return json_of(OrphansCleaned, {"files": swept.files, "residues": swept.residues, "message": message})
