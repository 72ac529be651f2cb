"""What crosses the wire in administration: numbers, their factors and attempts, projects, dead letters, maintenance."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from models.wire import BLANK, Name, Priority, Wire, printable

MOST_FACTORS = 1000
LONGEST = 1_000_000
# As ids are in the database.
Id = Annotated[int, Field(ge=0, lt=2**63)]


def _in_utc(value: datetime) -> datetime:
    """A moment without a time zone is one of UTC."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Moment = Annotated[datetime, AfterValidator(_in_utc)]
Words = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000), AfterValidator(printable)
]
FactorText = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST)]


class CompositePath(Wire):
    composite_id: Id


class AttemptPath(Wire):
    attempt_id: Id


class FactorPath(Wire):
    factor_id: Id


class ProjectPath(Wire):
    project_id: Id


class ProjectNamePath(Wire):
    name: Annotated[str, AfterValidator(printable)] = Field(description="may contain /")


class SubmissionPath(Wire):
    submission_id: Id


class WhyQuery(Wire):
    reason: Annotated[Words | None, BLANK] = None


class FindQuery(Wire):
    q: str = Field(
        min_length=1, max_length=LONGEST, description="any value it has had (number or expression), or an id"
    )


class PriorityQuery(Wire):
    priority: int | None = Field(None, ge=-(2**31), lt=2**31, description="or in the body")


class NewPriority(Wire):
    priority: Priority


class Completion(Wire):
    """What finishes a number, beside the factors that are known."""

    factors: list[FactorText] = Field(default_factory=list, max_length=MOST_FACTORS)
    cofactor_is_prime: bool = Field(False, description="take my word for it, where it has not been tested yet")
    source: Words | None = None
    found_at: Moment | None = None


class KnownFactors(Wire):
    """Factors known from elsewhere, without curves."""

    composite: FactorText = Field(description="the number: decimal or expression, any value it has had")
    factors: list[FactorText] = Field(min_length=1, max_length=MOST_FACTORS)
    source: Words | None = Field(None, description="who says so: a table, a person, a paper")
    found_at: Moment | None = Field(None, description="since when it is known; UTC unless it says otherwise")

    @field_validator("factors", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Voiding(Wire):
    """Which attempts of a client are taken back: what it sent from `from` to before `to`."""

    client_id: Name
    since: Moment = Field(alias="from", description="when they were received")
    until: Moment | None = Field(None, alias="to", description="default: now")
    program: Name | None = Field(None, description="only what this program did")
    reason: Words

    @model_validator(mode="after")
    def _in_order(self) -> "Voiding":
        if self.until is not None and self.until <= self.since:
            raise ValueError(
                f"from is {self.since.isoformat()}, to is {self.until.isoformat()}: nothing is within that"
            )
        return self


class NewProject(Wire):
    name: Name

    _printable = field_validator("name")(printable)


SubmissionState = Literal["received", "applied", "duplicate", "rejected", "failed"]


class SubmissionsQuery(Wire):
    state: Annotated[SubmissionState | None, BLANK] = Field(None, description="default: rejected and failed")
    limit: int = Field(100, ge=1, le=1000)
    cursor: Annotated[Annotated[str, StringConstraints(pattern=r"^[01]-[0-9]{1,18}$")] | None, BLANK] = Field(
        None, description="the `next` of the page before"
    )


class RetryQuery(Wire):
    accept_factors: bool = Field(False, description="use the true factors of a rejected one; it stays rejected")


class RecalculateQuery(Wire):
    recalculate_all: bool = Field(False, description="else only those with attempts but without a t-level")


class CompositeShort(Wire):
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


class CompositesFound(Wire):
    composites: list[CompositeShort]


class CompositesStatus(Wire):
    """How many numbers there are of each kind."""

    total: int
    finished: int
    primality_unknown: int
    wanting_ecm: int
    wanting_pm1: int
    wanting_pp1: int
    parts: int
    paused: int
    parked: int
    estimated: bool = Field(description="a large table is not counted but estimated")


class CompositeDetail(Wire):
    """A number with all that hangs on it, by the names of the columns."""

    composite_id: int
    number: str
    current_composite: str
    factors: list[dict[str, Any]]
    effort: list[dict[str, Any]]
    open_work: list[dict[str, Any]]
    projects: list[str]
    parts: list[int] = Field(description="ids of the numbers split off it that have work of their own")


class PriorityState(Wire):
    composite_id: int
    priority: int
    message: str


class FactorsAdded(Wire):
    composite_id: int
    new_factors: list[str]
    known_factors: list[str]
    current_composite: str
    is_fully_factored: bool
    message: str


class Deleted(Wire):
    """What went, in rows of each table."""

    deleted: dict[str, int]
    message: str


class AttemptDeleted(Wire):
    attempt_id: int
    composite_id: int
    current_t_level: float
    message: str


class FactorDeleted(Wire):
    factor_id: int
    composite_id: int
    current_composite: str
    message: str


class AttemptsVoided(Wire):
    attempts: int
    curves: int
    composites: int
    waiting: int = Field(description="received in that time, not applied yet, and so not voided")
    message: str


class ProjectState(Wire):
    project_id: int
    name: str
    composites: int
    message: str


class Summary(Wire):
    composites: int
    factors: int
    attempts: int
    submissions: int
    clients: int
    projects: int
    open_work: int
    rejected: int = Field(description="counted up to 100,000")
    inbox: dict[str, Any]
    last_attempt_at: datetime | None
    estimated: list[str] = Field(description="which of these are estimates")


class Letter(Wire):
    submission_id: int
    client_id: str
    state: SubmissionState
    reason: str | None
    detail: str | None
    true_factors: list[str] = Field(description="of a rejected one: what divides all the same")
    composite: str
    composite_id: int | None
    tries: int
    created_at: datetime
    settled_at: datetime | None


class Letters(Wire):
    submissions: list[Letter]
    next: str | None = Field(description="the `cursor` of the next page, if there may be one")


class Retried(Wire):
    submission_id: int
    state: SubmissionState
    accepted_factors: list[str]
    new_factors: list[str]
    message: str


class Recalculated(Wire):
    composite_id: int
    previous_t_level: float
    current_t_level: float
    message: str


class RecalculationState(Wire):
    """The latest recalculation; all null but `state` ("none") when there was none yet."""

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
