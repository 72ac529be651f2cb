"""What operators send and read: numbers, factors, attempts, projects, leases, failed results, recalculation."""

import json
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from models.wire.common import (
    MOST_DIGITS,
    Hold,
    Name,
    OrBlank,
    Priority,
    Reason,
    Remark,
    SubmissionState,
    UtcTime,
    WireModel,
)
from models.wire.work import Assignment

MOST_FACTORS = 1000
MOST_METADATA = 64 * 1024

FactorText = Annotated[str, StringConstraints(min_length=1, max_length=MOST_DIGITS)]


class WhyQuery(WireModel):
    """Why something is done, for the audit log."""

    reason: OrBlank[Remark] = None


# Numbers -----------------------------------------------------------------------------------------------------------


class FindQuery(WireModel):
    """What to look for."""

    q: str = Field(
        min_length=1,
        max_length=MOST_DIGITS,
        description="An id, or a value that the number has had (decimal or expression).",
    )


class PriorityQuery(WireModel):
    """A priority in the query."""

    priority: Priority | None = Field(None, description="The new priority, if the body does not have it.")


class NewPriority(WireModel):
    """A priority in the body."""

    priority: Priority


class Completion(WireModel):
    """What finishes a number, beside the factors that the server knows."""

    factors: list[FactorText] = Field(default_factory=list, max_length=MOST_FACTORS)
    cofactor_is_prime: bool = Field(False, description="The cofactor is prime, even if the server has not tested it.")
    source: Remark | None = None
    found_at: UtcTime | None = None


class CompositeShort(WireModel):
    """A number in a list for operators."""

    composite_id: int
    number: str
    current_composite: str
    digit_length: int
    is_prime: bool | None
    is_fully_factored: bool
    priority: int
    current_t_level: float
    target_t_level: float
    attempt_count: int
    hold: str | None
    parent_id: int | None
    open_leases: int


class CompositesFound(WireModel):
    """The numbers that a search found."""

    composites: list[CompositeShort]


class CompositesStatus(WireModel):
    """How many numbers there are of each kind.

    Needs are counted by cofactor: a cofactor that several numbers have counts once. All others are counts of numbers.
    """

    total: int
    finished: int
    primality_unknown: int
    wanting_ecm: int = Field(description="Cofactors that need ECM.")
    wanting_pm1: int = Field(description="Cofactors that need P-1.")
    wanting_pp1: int = Field(description="Cofactors that need P+1.")
    parts: int = Field(description="Numbers that were split from another number.")
    paused: int = Field(description="Numbers that an operator paused, also by another number with the same cofactor.")
    parked: int = Field(description="Numbers that the server set aside because several clients gave them up.")
    estimated: bool = Field(description="Large tables are estimated instead of counted.")


class CompositeDetail(WireModel):
    """A number with all its records, by the names of the columns."""

    composite_id: int
    number: str
    current_composite: str
    factors: list[dict[str, Any]]
    effort: list[dict[str, Any]]
    open_work: list[dict[str, Any]]
    projects: list[str]
    parts: list[int] = Field(description="The ids of the numbers that were split from it and have their own work.")


class PriorityState(WireModel):
    """The priority of a number."""

    composite_id: int
    priority: int
    message: str


class CompositeDeleted(WireModel):
    """How many rows of each table were deleted or changed."""

    deleted: dict[str, int]
    message: str


# Factors and attempts ----------------------------------------------------------------------------------------------


class KnownFactors(WireModel):
    """Factors known from elsewhere, without curves."""

    composite: FactorText = Field(
        description="The number, in decimal or as an expression, by any value that it has had."
    )
    factors: list[FactorText] = Field(
        min_length=1,
        max_length=MOST_FACTORS,
        description="Factors in decimal or as expressions; a single one may be sent as a text.",
    )
    source: Remark | None = Field(None, description="Where the factors come from: a table, a person, a paper.")
    found_at: UtcTime | None = Field(None, description="When they were found; UTC without a time zone.")

    @field_validator(
        "factors",
        mode="before",
        json_schema_input_type=FactorText | Annotated[list[FactorText], Field(min_length=1, max_length=MOST_FACTORS)],
    )
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class FactorsAdded(WireModel):
    """What the factors changed."""

    composite_id: int
    new_factors: list[str]
    known_factors: list[str]
    current_composite: str
    is_fully_factored: bool
    message: str


class FactorDeleted(WireModel):
    """A factor that was deleted, and the cofactor without it."""

    factor_id: int
    composite_id: int
    current_composite: str
    message: str


class AttemptDeleted(WireModel):
    """An attempt that was deleted, and the t-level without it."""

    attempt_id: int
    composite_id: int
    current_t_level: float
    message: str


class Voiding(WireModel):
    """Which attempts of a client to void: those received at `from` or later, and before `to`."""

    client_id: Name
    since: UtcTime = Field(alias="from", description="UTC without a time zone.")
    until: UtcTime | None = Field(None, alias="to", description="Default: now.")
    program: Name | None = Field(None, description="Only the attempts of this program.")
    reason: Remark

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.until is not None and self.until <= self.since:
            raise ValueError(
                f"from is {self.since.isoformat()}, to is {self.until.isoformat()}: nothing is within that"
            )
        return self


class AttemptsVoided(WireModel):
    """What was voided."""

    attempts: int
    curves: int
    composites: int
    waiting: int = Field(description="Results received in that time that are not applied yet, and so were not voided.")
    message: str


# Projects ----------------------------------------------------------------------------------------------------------


class NewProject(WireModel):
    """A project to create."""

    name: Name


class ProjectState(WireModel):
    """A project."""

    project_id: int
    name: str
    composites: int
    message: str


class Summary(WireModel):
    """Counts of the server's records, the state of its inbox, and the time of the latest attempt."""

    composites: int
    factors: int
    attempts: int
    submissions: int
    clients: int
    projects: int
    open_work: int
    rejected: int = Field(description="Counted up to 100,000.")
    inbox: dict[str, Any]
    last_attempt_at: datetime | None
    estimated: list[str] = Field(description="The names of the fields that are estimates.")


# Work --------------------------------------------------------------------------------------------------------------


class ReasonQuery(WireModel):
    """Why something is done, for the audit log."""

    reason: Reason = None


class Reservation(WireModel):
    """A number to reserve for another method that runs elsewhere."""

    composite_identifier: str = Field(min_length=1, description="The number (decimal or expression), or its id.")
    client_id: Name
    method: Literal["nfs", "snfs", "gnfs", "other"] = "nfs"
    duration_hours: float = Field(24 * 30, gt=0, le=24 * 365 * 5, allow_inf_nan=False)
    metadata: dict[str, Any] | None = Field(None, description="Notes; at most 65,536 characters as JSON.")

    @field_validator("metadata")
    @classmethod
    def _storable(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        # JSON has no infinity, but a number such as 1e400 is read as one.
        try:
            size = len(json.dumps(value, allow_nan=False))
        except ValueError as error:
            raise ValueError("should have no number as large as this one has") from error
        if size > MOST_METADATA:
            raise ValueError(f"should have at most {MOST_METADATA} characters as JSON; this has {size}")
        return value


class Reserved(WireModel):
    """A reservation."""

    work_id: str
    composite_id: int
    composite: str
    method: str
    client_id: str
    expires_at: datetime
    message: str


class HoldState(WireModel):
    """Whether a number gets work, and why not."""

    composite_id: int
    hold: Hold | None
    hold_reason: str | None
    message: str


class OpenWork(WireModel):
    """The open leases of all clients."""

    assignments: list[Assignment]


class OverdueEnded(WireModel):
    """How many overdue leases were ended."""

    expired: int
    message: str


# Rejected and failed results ---------------------------------------------------------------------------------------


class SubmissionsQuery(WireModel):
    """Which submissions to list."""

    state: OrBlank[SubmissionState] = Field(None, description="Default: rejected and failed.")
    limit: int = Field(100, ge=1, le=1000, description="The largest number of entries in the answer.")
    cursor: OrBlank[Annotated[str, StringConstraints(pattern=r"^[01]-[0-9]{1,18}$")]] = Field(
        None, description="The `next` of the previous page."
    )


class RetryQuery(WireModel):
    """How to retry."""

    accept_factors: bool = Field(
        False, description="Use the true factors of a rejected result; the result itself stays rejected."
    )


class DeadLetter(WireModel):
    """A rejected or failed result."""

    submission_id: int
    client_id: str
    state: SubmissionState
    reason: str | None
    detail: str | None
    true_factors: list[str] = Field(description="The claimed factors of a rejected result that do divide the number.")
    composite: str
    composite_id: int | None
    tries: int
    created_at: datetime
    settled_at: datetime | None


class DeadLetters(WireModel):
    """A page of submissions."""

    submissions: list[DeadLetter]
    next: str | None = Field(description="The `cursor` of the next page; null if there is certainly none.")


class SubmissionRetried(WireModel):
    """What a retry did."""

    submission_id: int
    state: SubmissionState
    accepted_factors: list[str]
    new_factors: list[str]
    message: str


# Recalculation -----------------------------------------------------------------------------------------------------


class RecalculateQuery(WireModel):
    """Which numbers to recalculate."""

    recalculate_all: bool = Field(False, description="All numbers; else those with attempts but without a t-level.")


class TLevelRecalculated(WireModel):
    """The t-level of a number before and after its recalculation."""

    composite_id: int
    previous_t_level: float
    current_t_level: float
    message: str


class RecalculationState(WireModel):
    """The latest recalculation. If there was none yet, `state` is "none" and all fields but `message` are null."""

    recalculation_id: int | None = None
    state: Literal["none", "computing", "writing", "done", "failed"]
    only_missing: bool | None = None
    total: int | None = None
    done: int | None = None
    changed: int | None = None
    error: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    message: str
