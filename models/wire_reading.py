"""What crosses the wire when anybody reads: lists of numbers and factors, one of them, projects and clients."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictInt, StringConstraints, field_validator

from models.wire import BLANK, CompositeStats, MaybeName, MaybePriority, Wire, printable
from models.wire_admin import Moment

LONGEST = 1_000_000
MOST_NUMBERS = 1000
HIGHEST_INTEGER = 2**31 - 1

Digits = Annotated[Annotated[int, Field(ge=0, le=LONGEST)] | None, BLANK]
Level = Annotated[Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None, BLANK]
Share = Annotated[Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None, BLANK]
Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST), AfterValidator(printable)
]
Cursor = Annotated[Annotated[str, StringConstraints(max_length=1000)] | None, BLANK]

State = Literal["composite", "unknown", "prime", "fully_factored"]
Hold = Literal["paused", "parked"]
CompositeSort = Literal["id", "digits", "t_level", "progress", "priority", "created"]


class PageQuery(Wire):
    limit: int = Field(100, ge=1, le=1000)
    cursor: Cursor = Field(None, description="the `next` of the page before")


class CompositesQuery(PageQuery):
    state: Annotated[State | None, BLANK] = Field(None, description="unknown: its primality is not tested yet")
    min_digits: Digits = None
    max_digits: Digits = None
    min_t_level: Level = Field(None, description="in tenths, like the order by t-level")
    max_t_level: Level = None
    min_progress: Share = Field(None, description="the share of the target reached, in hundredths: 0.5 is half of it")
    max_progress: Share = None
    min_priority: MaybePriority = None
    max_priority: MaybePriority = None
    project: MaybeName = None
    text: Annotated[Text | None, BLANK] = Field(
        None, description="any value it has had (number or expression), else the beginning of how it is written"
    )
    sort: CompositeSort = Field("id", description="and then by id")
    descending: bool = False


class CompositeListed(Wire):
    """A number in a list; values of more than 1,000 digits have their middle left out."""

    composite_id: int = Field(validation_alias="id")
    number: str
    current_composite: str
    digit_length: int
    state: State
    priority: int
    current_t_level: float
    target_t_level: float
    progress: float | None = Field(description="the share of the target that is reached")
    has_snfs_form: bool
    snfs_difficulty: int | None
    attempts: int = Field(validation_alias="attempt_count")
    last_attempt_at: datetime | None
    hold: Hold | None
    parent_id: int | None = Field(description="the number that it was split from")
    created_at: datetime


class CompositesPage(Wire):
    composites: list[CompositeListed]
    next: str | None = Field(description="the `cursor` of the next page, if there is one")
    message: str


class Numbers(Wire):
    """Numbers, in decimal or as expressions, by any value that they have had."""

    numbers: list[Text] = Field(max_length=MOST_NUMBERS)


class NumberStanding(Wire):
    """How one of the numbers asked for stands; `composite` is null, with the reason, for one that is not known."""

    number: str = Field(description="as it was asked for, shortened")
    composite: CompositeListed | None
    message: str | None


class BatchStatus(Wire):
    results: list[NumberStanding] = Field(description="in the order in which they were asked for")
    found: int
    not_found: int


class TopProgress(Wire):
    """Which numbers to look among for those nearest to their targets; all is optional."""

    limit: StrictInt = Field(10, ge=1, le=1000)
    project_name: MaybeName = None
    min_priority: Annotated[StrictInt, Field(ge=-HIGHEST_INTEGER - 1, le=HIGHEST_INTEGER)] | None = None
    include_factored: StrictBool = False
    formulas: list[Text] | None = Field(None, max_length=MOST_NUMBERS, description="only these numbers")
    min_difficulty: Annotated[StrictInt, Field(ge=0, le=LONGEST)] | None = Field(
        None, description="of its special form, or else its digits"
    )
    max_difficulty: Annotated[StrictInt, Field(ge=0, le=LONGEST)] | None = None

    @field_validator("formulas", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        return value or None


class MostAdvanced(Wire):
    composites: list[CompositeListed]


class TreeFactor(Wire):
    """A factor in a number's tree: what it was split into lies beneath it."""

    factor_id: int = Field(validation_alias="id")
    factor: str
    digit_length: int
    multiplicity: int = Field(description="in what it lies beneath")
    is_prime: bool | None
    origin: str
    client_id: str | None
    split_from_id: int | None
    child_composite_id: int | None = Field(description="the number that has work for this factor")


class CompositeWhole(CompositeStats):
    composite_id: int
    state: State
    is_prime: bool | None
    is_fully_factored: bool
    progress: float | None
    factors: list[TreeFactor]
    pm1_b1: int = Field(description="the largest B1 of a whole P-1 run on it")
    pp1_b1: int
    open_leases: int
    wants: list[Literal["ecm", "pm1", "pp1"]]
    hold: Hold | None
    hold_reason: str | None
    parent_id: int | None
    created_at: datetime


class EffortPoint(Wire):
    digits: int
    missed: float = Field(description="the chance that a factor of so many digits, if there is one, was missed")


class CurvesDone(Wire):
    b1: int
    b2: int = Field(description="-1: GMP-ECM's default for B1; 0: stage 1 only")
    parametrization: int
    curves: int
    prior_curves: int = Field(description="from before this server, or done on the number that it was split from")


class CompositeEffortAnswer(Wire):
    composite_id: int
    digit_length: int
    current_t_level: float
    target_t_level: float
    points: list[EffortPoint]
    curves: list[CurvesDone]


class FactorFilters(Wire):
    project: MaybeName = None
    client_id: MaybeName = None


class FactorsQuery(PageQuery, FactorFilters):
    composite: Annotated[Text | None, BLANK] = Field(None, description="any value it has had (number or expression)")
    min_digits: Digits = None
    max_digits: Digits = None
    only_prime: bool = False
    order: Literal["newest", "largest"] = "newest"


class ExportQuery(FactorFilters):
    format: Literal["csv", "ndjson"] = "csv"
    since: Annotated[Moment | None, BLANK] = Field(None, description="only those recorded since then; UTC")


class FactorListed(Wire):
    """A factor, who found it and how; `number` is what it divides."""

    factor_id: int = Field(validation_alias="id")
    composite_id: int
    number: str
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
    source: str | None = Field(description="of one known from elsewhere: who says so")
    found_at: datetime | None
    group_order: str | None = Field(description="of the curve that found it")
    group_order_factors: str | None
    is_explained: bool | None = Field(description="whether B1 and B2 explain the find; null: not known")
    order_remark: str | None
    created_at: datetime


class FactorsPage(Wire):
    factors: list[FactorListed]
    next: str | None = Field(description="the `cursor` of the next page, which may be empty, if there may be one")


class ProjectListed(Wire):
    project_id: int = Field(validation_alias="id")
    name: str
    created_at: datetime
    composites: int = Field(description="how many numbers are in it, counted up to 10,000")


class ProjectsPage(Wire):
    projects: list[ProjectListed]
    next: str | None


class ClientsQuery(PageQuery):
    order: Literal["last_seen", "name"] = "last_seen"


class ClientListed(Wire):
    name: str
    first_seen: datetime
    last_seen: datetime


class ClientsPage(Wire):
    clients: list[ClientListed]
    next: str | None
