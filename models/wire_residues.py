"""What crosses the wire for residues: stage 1 here, stage 2 there."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StrictInt

from models.limits import MAX_B1, MIN_B1
from models.wire import BLANK, MaybeName, MaybePriority, Wire
from models.wire_admin import Id

Digits = Annotated[Annotated[int, Field(ge=1, le=1_000_000)] | None, BLANK]
Level = Annotated[Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None, BLANK]
B1 = Annotated[Annotated[int, Field(ge=MIN_B1, le=MAX_B1)] | None, BLANK]
Status = Literal["available", "claimed", "completed", "closed", "expired"]


class ResiduePath(Wire):
    residue_id: Id


class UploadQuery(Wire):
    stage1_attempt_id: Annotated[Id | None, BLANK] = Field(
        None, description="default: this client's latest stage 1 of the same number, B1 and curves without a residue"
    )
    expiry_days: Annotated[Annotated[float, Field(gt=0, le=3650, allow_inf_nan=False)] | None, BLANK] = Field(
        None, description="how long it is kept if nobody claims it"
    )
    b1: B1 = Field(None, description="of files that say none, as Prime95's")


class Uploaded(Wire):
    residue_id: int
    composite_id: int
    composite: str = Field(description="the file's N, in decimal")
    b1: int
    parametrization: int
    curve_count: int
    file_size_bytes: int
    expires_at: datetime
    checksum: str = Field(description="SHA-256 of the file")
    stage1_attempt_id: int | None
    message: str


class ResidueWorkQuery(Wire):
    min_digits: Digits = None
    max_digits: Digits = None
    min_priority: MaybePriority = None
    min_target_tlevel: Level = None
    max_target_tlevel: Level = None
    min_b1: B1 = None
    max_b1: B1 = None
    project: MaybeName = None
    claim_timeout_hours: Annotated[Annotated[float, Field(gt=0, le=24 * 90, allow_inf_nan=False)] | None, BLANK] = (
        Field(None, description="default: 24")
    )


class ResidueWork(Wire):
    """A residue to run stage 2 of, claimed until `expires_at`; all null but `message` when there is none."""

    residue_id: int | None
    composite_id: int | None
    composite: str | None
    digit_length: int | None
    b1: int | None
    parametrization: int | None
    curve_count: int | None
    file_size_bytes: int | None
    checksum: str | None
    stage1_attempt_id: int | None
    download_url: str | None
    suggested_b2: int | None
    current_t_level: float | None
    target_t_level: float | None
    expires_at: datetime | None
    retry_after: int | None = Field(None, description="seconds after which to ask again")
    message: str


class Stage2Done(Wire):
    stage2_attempt_id: Annotated[StrictInt, Field(ge=0, lt=2**63)]


class ResidueCompleted(Wire):
    residue_id: int
    stage1_attempt_id: int | None
    stage2_attempt_id: int | None
    composite_id: int
    new_t_level: float
    message: str


class ResidueState(Wire):
    residue_id: int = Field(validation_alias="id")
    composite_id: int
    composite: str = Field(validation_alias="number")
    client_id: str
    b1: int
    parametrization: int
    curve_count: int
    file_size_bytes: int
    checksum: str
    status: Status
    claimed_by: str | None
    claim_expires_at: datetime | None
    stage1_attempt_id: int | None
    stage2_attempt_id: int | None
    stage2_message: str | None = Field(validation_alias="message")
    created_at: datetime
    expires_at: datetime
    closed_at: datetime | None


class ResiduesSummary(Wire):
    """How many residues there are of each status, with how many curves; bytes are those of files still kept."""

    residues: dict[Status, int]
    curves: dict[Status, int]
    file_size_bytes: int


class ResiduesCleaned(Wire):
    lapsed: int = Field(description="claims that ran out")
    expired: int = Field(description="residues that nobody wanted for as long as they were to be kept")
    message: str


class OrphansCleaned(Wire):
    files: int = Field(description="that no residue has")
    residues: int = Field(description="whose file was gone")
    message: str
