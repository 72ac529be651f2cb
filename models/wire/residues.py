"""Residues: one client uploads what its stage 1 left, and another client runs stage 2 on it."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from models.wire.common import B1, Digits, Id, ListedTLevel, Name, OrBlank, Priority, StrictId, WireModel

ResidueStatus = Literal["available", "claimed", "completed", "closed", "expired"]


class UploadQuery(WireModel):
    """The parameters of an upload that are not in the residue file."""

    stage1_attempt_id: OrBlank[Id] = Field(
        None,
        description="The attempt of stage 1. Default: this client's latest stage-1 attempt on the same number with the "
        "same B1 and curves that has no residue yet.",
    )
    expiry_days: OrBlank[Annotated[float, Field(gt=0, le=3650, allow_inf_nan=False)]] = Field(
        None, description="For how long the residue is kept if nobody claims it; default: RESIDUE_EXPIRY_DAYS."
    )
    b1: OrBlank[B1] = Field(None, description="B1, for files that do not name it, such as Prime95's.")


class UploadedResidue(WireModel):
    """A residue that was stored."""

    residue_id: int
    composite_id: int
    composite: str = Field(description="The N of the file, in decimal.")
    b1: int
    parametrization: int
    curve_count: int
    file_size_bytes: int
    expires_at: datetime
    checksum: str = Field(description="The SHA-256 of the file.")
    stage1_attempt_id: int | None
    message: str


class ResidueWorkQuery(WireModel):
    """Which residues to choose from. Filters that are left out choose all."""

    min_digits: OrBlank[Digits] = None
    max_digits: OrBlank[Digits] = None
    min_priority: OrBlank[Priority] = None
    min_target_tlevel: OrBlank[ListedTLevel] = None
    max_target_tlevel: OrBlank[ListedTLevel] = None
    min_b1: OrBlank[B1] = None
    max_b1: OrBlank[B1] = None
    project: OrBlank[Name] = None
    claim_timeout_hours: OrBlank[Annotated[float, Field(gt=0, le=24 * 90, allow_inf_nan=False)]] = Field(
        None, description="For how long the claim lasts; default: 24."
    )


class ResidueWork(WireModel):
    """A residue for stage 2, claimed until `expires_at`. If there is none, only `message` and `retry_after` are set."""

    residue_id: int | None
    composite_id: int | None
    composite: str | None
    digit_length: int | None
    b1: int | None
    parametrization: int | None
    curve_count: int | None
    file_size_bytes: int | None
    checksum: str | None = Field(description="The SHA-256 of the file.")
    stage1_attempt_id: int | None
    download_url: str | None
    suggested_b2: int | None
    current_t_level: float | None
    target_t_level: float | None
    expires_at: datetime | None
    retry_after: int | None = Field(None, description="The number of seconds after which to ask again.")
    message: str


class Stage2Done(WireModel):
    """The attempt that ran stage 2 of a residue."""

    stage2_attempt_id: StrictId


class ResidueCompleted(WireModel):
    """A residue whose stage 2 is complete."""

    residue_id: int
    stage1_attempt_id: int | None
    stage2_attempt_id: int | None
    composite_id: int
    new_t_level: float
    message: str


class ResidueState(WireModel):
    """A residue."""

    residue_id: int = Field(validation_alias="id")
    composite_id: int
    composite: str = Field(validation_alias="number")
    client_id: str
    b1: int
    parametrization: int
    curve_count: int
    file_size_bytes: int
    checksum: str = Field(description="The SHA-256 of the file.")
    status: ResidueStatus
    claimed_by: str | None
    claim_expires_at: datetime | None
    stage1_attempt_id: int | None
    stage2_attempt_id: int | None
    stage2_message: str | None = Field(validation_alias="message")
    created_at: datetime
    expires_at: datetime
    closed_at: datetime | None


class ResiduesSummary(WireModel):
    """The number of residues and of their curves by status."""

    residues: dict[ResidueStatus, int]
    curves: dict[ResidueStatus, int]
    file_size_bytes: int = Field(description="The size of all files that are still stored.")


class ResiduesCleaned(WireModel):
    """What a cleanup of residues changed."""

    lapsed: int = Field(description="The number of claims that ran out.")
    expired: int = Field(description="The number of residues that expired because nobody claimed them.")
    message: str


class OrphansCleaned(WireModel):
    """What a cleanup of residue files changed."""

    files: int = Field(description="The number of deleted files that belonged to no residue.")
    residues: int = Field(description="The number of closed residues whose file was missing.")
    message: str
