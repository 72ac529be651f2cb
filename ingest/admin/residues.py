"""Residues, for operators: given up, given back, cleaned up."""

from datetime import UTC, datetime

from flask import Response

from coordinator import residue_upkeep
from coordinator import residues as registry
from coordinator.residue_storage import storage
from ingest import openapi
from ingest.admin.blueprints import by, make
from ingest.answers import engine, json_of, settings
from ingest.residues import UNKNOWN, residue_state
from models.wire.administration import WhyQuery
from models.wire.common import ResiduePath
from models.wire.residues import OrphansCleaned, ResiduesCleaned, ResidueState
from tasks.doorbell import ring_jobs

admin_residues = make("admin_residues", openapi.ADMIN_RESIDUES)


@admin_residues.delete(
    "/residues/<int:residue_id>", operation_id="admin_close_residue", responses={200: ResidueState, **UNKNOWN}
)
def close(path: ResiduePath, query: WhyQuery) -> Response:
    """Close a residue: its file is deleted, and nobody runs its stage 2. The curves of its stage 1 stay."""
    why = query.reason or "an operator closed it"
    ring_jobs(residue_upkeep.close(engine(), path.residue_id, why, by()))
    return residue_state(registry.find(engine(), path.residue_id))


@admin_residues.delete(
    "/residues/<int:residue_id>/release",
    operation_id="admin_release_residue",
    responses={200: ResidueState, **UNKNOWN},
)
def release(path: ResiduePath) -> Response:
    """End the claim of any client on a residue."""
    return residue_state(registry.release(engine(), path.residue_id, None, by()))


@admin_residues.post("/residues/cleanup", operation_id="admin_cleanup_residues", responses={200: ResiduesCleaned})
def cleanup() -> Response:
    """End claims that ran out, and expire residues that nobody claimed, without waiting for the periodic task."""
    now = datetime.now(UTC)
    lapsed = residue_upkeep.lapse(engine(), now)
    expired, rings = residue_upkeep.expire(engine(), now)
    ring_jobs(rings)
    said = f"{lapsed} claims ran out, {expired} residues were let go of"
    return json_of(ResiduesCleaned, {"lapsed": lapsed, "expired": expired, "message": said})


@admin_residues.post("/residues/cleanup-orphaned", operation_id="admin_sweep_residues", responses={200: OrphansCleaned})
def cleanup_orphaned() -> Response:
    """Delete files (older than an hour) that belong to no residue, and close residues whose file is missing."""
    swept = residue_upkeep.sweep(engine(), storage(settings()), datetime.now(UTC))
    ring_jobs(swept.rings)
    said = f"{swept.files} files without a residue were deleted, {swept.residues} residues without a file closed"
    return json_of(OrphansCleaned, {"files": swept.files, "residues": swept.residues, "message": said})
