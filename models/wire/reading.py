"""What anybody may read: lists of numbers and factors, one number, projects and clients."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictInt, field_validator

from models.wire.common import (
    MOST_DIGITS,
    Hold,
    ListedDigits,
    ListedTLevel,
    Name,
    OrBlank,
    PageQuery,
    Priority,
    StrictPriority,
    UtcTime,
    WireModel,
    WrittenNumber,
)

MOST_NUMBERS = 1000

Share = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
StrictDifficulty = Annotated[StrictInt, Field(ge=0, le=MOST_DIGITS)]
CompositeState = Literal["composite", "unknown", "prime", "fully_factored"]
CompositeSort = Literal["id", "digits", "t_level", "progress", "priority", "created"]


# One number --------------------------------------------------------------------------------------------------------


class LevelEffort(WireModel):
    """The number of ECM curves at one B1."""

    b1: int
    curves: int


class EcmEffort(WireModel):
    """The ECM runs on a number."""

    total_attempts: int
    total_curves: int
    effort_by_level: list[LevelEffort]
    last_attempt: str | None


class CompositeStats(WireModel):
    """One number with its factors and its ECM effort."""

    composite: str
    current_composite: str = Field(description="The cofactor.")
    digit_length: int
    has_snfs_form: bool
    snfs_difficulty: int | None
    target_t_level: float
    current_t_level: float
    priority: int
    status: Literal["composite", "prime", "fully_factored"]
    factors_found: list[str]
    ecm_work: EcmEffort
    projects: list[str]


class TreeFactor(WireModel):
    """A factor in a number's tree. A composite factor that was split has its own factors beneath it."""

    factor_id: int = Field(validation_alias="id")
    factor: str
    digit_length: int
    multiplicity: int = Field(description="How often it divides the value above it.")
    is_prime: bool | None
    origin: str
    client_id: str | None
    split_from_id: int | None
    child_composite_id: int | None = Field(description="The number that has the work on this factor.")


class SharingNumber(WireModel):
    """A number with the same cofactor as another."""

    composite_id: int
    composite: str = Field(description="The number as it was written; a very long one is shortened.")


class CompositeWhole(CompositeStats):
    """One number with its tree of factors, and the work that it has and needs."""

    composite_id: int
    state: CompositeState
    is_prime: bool | None
    is_fully_factored: bool
    progress: float | None = Field(description="current_t_level / target_t_level")
    factors: list[TreeFactor]
    pm1_b1: int = Field(description="The largest B1 of a complete P-1 run.")
    pp1_b1: int = Field(description="The largest B1 of a complete P+1 run.")
    open_leases: int
    wants: list[Literal["ecm", "pm1", "pp1"]] = Field(description="The methods that the number needs.")
    hold: Hold | None
    hold_reason: str | None
    parent_id: int | None = Field(description="The number that this one was split from.")
    shares_cofactor_with: list[SharingNumber] = Field(
        description="Other numbers with the same cofactor, at most 10: work on it counts for all of them."
    )
    sharing_count: int = Field(description="The number of other numbers with the same cofactor.")
    created_at: datetime


class EffortPoint(WireModel):
    """The effort on factors of one size."""

    digits: int
    missed: float = Field(description="The chance that the curves missed a factor of this size, if there is one.")


class CurvesDone(WireModel):
    """The curves with one choice of bounds and parametrization."""

    b1: int
    b2: int = Field(description="-1: GMP-ECM's default for this B1; 0: stage 1 only.")
    parametrization: int
    curves: int
    prior_curves: int = Field(description="Curves from before this server.")


class CompositeEffortAnswer(WireModel):
    """The effort on one number."""

    composite_id: int
    digit_length: int
    current_t_level: float
    target_t_level: float
    points: list[EffortPoint]
    curves: list[CurvesDone]


# Lists of numbers --------------------------------------------------------------------------------------------------


class CompositesQuery(PageQuery):
    """Filters and the order of a list of numbers."""

    state: OrBlank[CompositeState] = Field(None, description="unknown: the primality test has not run yet.")
    min_digits: OrBlank[ListedDigits] = None
    max_digits: OrBlank[ListedDigits] = None
    min_t_level: OrBlank[ListedTLevel] = Field(None, description="Compared in tenths, as the order by t-level is.")
    max_t_level: OrBlank[ListedTLevel] = None
    min_progress: OrBlank[Share] = Field(
        None, description="current_t_level / target_t_level, compared in hundredths; 0.5 is half of the target."
    )
    max_progress: OrBlank[Share] = None
    min_priority: OrBlank[Priority] = None
    max_priority: OrBlank[Priority] = None
    project: OrBlank[Name] = None
    text: OrBlank[WrittenNumber] = Field(
        None, description="A value that the number has had (decimal or expression), or the beginning of its text."
    )
    sort: CompositeSort = Field("id", description="Numbers with equal values are sorted by id.")
    descending: bool = False


class CompositeListed(WireModel):
    """A number in a list. A value of more than 1,000 digits is shortened in the middle."""

    composite_id: int = Field(validation_alias="id")
    number: str
    current_composite: str = Field(description="The cofactor.")
    digit_length: int
    state: CompositeState
    priority: int
    current_t_level: float
    target_t_level: float
    progress: float | None = Field(description="current_t_level / target_t_level")
    has_snfs_form: bool
    snfs_difficulty: int | None
    attempts: int = Field(validation_alias="attempt_count")
    last_attempt_at: datetime | None
    hold: Hold | None
    parent_id: int | None = Field(description="The number that this one was split from.")
    created_at: datetime


class CompositesPage(WireModel):
    """A page of numbers."""

    composites: list[CompositeListed]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")
    message: str


class Numbers(WireModel):
    """Numbers to look up, each in decimal or as an expression, by any value that it has had."""

    numbers: list[WrittenNumber] = Field(max_length=MOST_NUMBERS)


class NumberStatus(WireModel):
    """The status of one of the numbers in the request."""

    number: str = Field(description="The number as it was sent, shortened.")
    composite: CompositeListed | None = Field(description="null for a number that this server does not have.")
    message: str | None = Field(description="Why `composite` is null.")


class BatchStatus(WireModel):
    """The status of several numbers."""

    results: list[NumberStatus] = Field(description="In the order of the request.")
    found: int
    not_found: int


class TopProgress(WireModel):
    """Which numbers are compared for their progress. All fields are optional."""

    limit: StrictInt = Field(10, ge=1, le=1000)
    project_name: OrBlank[Name] = None
    min_priority: StrictPriority | None = None
    include_factored: StrictBool = False
    formulas: list[WrittenNumber] | None = Field(
        None, max_length=MOST_NUMBERS, description="Only these numbers, if the list is not empty."
    )
    min_difficulty: StrictDifficulty | None = Field(
        None, description="The SNFS difficulty of a number with a special form, else its digits."
    )
    max_difficulty: StrictDifficulty | None = None

    @field_validator("formulas", mode="after")
    @classmethod
    def _none_if_empty(cls, value: list[str] | None) -> list[str] | None:
        return value or None


class MostAdvanced(WireModel):
    """The numbers that are nearest to their targets."""

    composites: list[CompositeListed]


# Factors -----------------------------------------------------------------------------------------------------------


class FactorFilters(WireModel):
    project: OrBlank[Name] = None
    client_id: OrBlank[Name] = None


class FactorsQuery(PageQuery, FactorFilters):
    """Filters and the order of a list of factors."""

    composite: OrBlank[WrittenNumber] = Field(
        None, description="A value that the number has had (decimal or expression)."
    )
    min_digits: OrBlank[ListedDigits] = None
    max_digits: OrBlank[ListedDigits] = None
    only_prime: bool = False
    order: Literal["newest", "largest"] = "newest"


class ExportQuery(FactorFilters):
    """Which factors are exported, and how."""

    format: Literal["csv", "ndjson"] = "csv"
    since: OrBlank[UtcTime] = Field(None, description="Only factors recorded since then; UTC without a time zone.")


class FactorListed(WireModel):
    """A factor, who found it, and how."""

    factor_id: int = Field(validation_alias="id")
    composite_id: int
    number: str = Field(description="The number that the factor divides.")
    factor: str
    digit_length: int
    multiplicity: int
    is_prime: bool | None
    origin: Literal["submitted", "known", "split", "cofactor"]
    split_from_id: int | None
    child_composite_id: int | None
    client_id: str | None
    method: str | None
    b1: int | None
    b2: int | None
    sigma: str | None
    parametrization: int | None
    attempt_id: int | None
    source: str | None = Field(description="Where a factor that no client found comes from.")
    found_at: datetime | None
    group_order: str | None = Field(description="The group order of the curve that found it.")
    group_order_factors: str | None
    is_explained: bool | None = Field(description="Whether B1 and B2 explain the find; null: it is not known.")
    order_remark: str | None
    created_at: datetime


class FactorsPage(WireModel):
    """A page of factors."""

    factors: list[FactorListed]
    next: str | None = Field(
        description="The `cursor` of the next page, which may be empty; null if there is certainly none."
    )


# Projects and clients ----------------------------------------------------------------------------------------------


class ProjectListed(WireModel):
    """A project."""

    project_id: int = Field(validation_alias="id")
    name: str
    created_at: datetime
    composites: int = Field(description="The number of composites in it, counted up to 10,000.")


class ProjectsPage(WireModel):
    """A page of projects."""

    projects: list[ProjectListed]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


class ClientsQuery(PageQuery):
    """The order of a list of clients."""

    order: Literal["last_seen", "name"] = "last_seen"


class ClientListed(WireModel):
    """A client."""

    name: str
    first_seen: datetime
    last_seen: datetime


class ClientsPage(WireModel):
    """A page of clients."""

    clients: list[ClientListed]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


# The installation --------------------------------------------------------------------------------------------------


class Health(WireModel):
    """The process answers."""

    status: Literal["ok"]


class Readiness(WireModel):
    """Results can be taken."""

    status: Literal["ready"]


class ComponentStatus(WireModel):
    """Whether a component of the installation does its work, and more about it."""

    model_config = ConfigDict(extra="allow")

    ok: bool


class InstallationStatus(WireModel):
    """Every component of the installation. `degraded`: at least one does not do its work."""

    status: Literal["ok", "degraded"]
    database: ComponentStatus
    broker: ComponentStatus
    workers: ComponentStatus
    beat: ComponentStatus
