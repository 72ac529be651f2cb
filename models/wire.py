"""What crosses the wire: the bodies that clients send and the answers they get, validated and documented from here.

Numbers and factors are strings (they outgrow every JSON number), integers are strict (1e6, "50000" and true are
refused), and ranges are those of models/limits.py. Unknown body fields are ignored.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StringConstraints,
    field_validator,
    model_validator,
)

from models.limits import DEFAULT_B2, MAX_B1, MAX_B2, MAX_CURVES, MIN_B1, STAGE1_ONLY

PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+")
SIGMA = re.compile(r"(?:(?P<parametrization>[0-9]+):)?(?P<value>[0-9]{1,100})")


def printable(value: str) -> str:
    """`value`, if it is one line of visible text."""
    if not PRINTABLE.fullmatch(value):
        raise ValueError("should be printable text without control characters")
    return value


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
# In a query an empty value is one that was not given.
BLANK = BeforeValidator(lambda value: None if value == "" else value)
MaybeName = Annotated[Annotated[Name, AfterValidator(printable)] | None, BLANK]
# As the database keeps it.
Priority = Annotated[int, Field(ge=-(2**31), lt=2**31)]
MaybePriority = Annotated[Priority | None, BLANK]
Method = Literal["ecm", "pm1", "pp1", "qs", "nfs", "other"]
METHOD_SYNONYMS = {"siqs": "qs", "auto": "other"}
METHODS_WITH_B1 = frozenset({"ecm", "pm1", "pp1"})


class Wire(BaseModel):
    # Never echo what was sent: `detail` quotes it, shortened, where that helps.
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


def split_sigma(sigma: str) -> tuple[int | None, str]:
    """The (parametrization or None, value) of a sigma as GMP-ECM prints it: "1:123456" or a bare value.

    Raises ValueError for anything else, and for a parametrization that GMP-ECM does not have.
    """
    match = SIGMA.fullmatch(sigma.strip())
    if not match:
        raise ValueError(f'sigma {sigma[:60]!r} should be "parametrization:value" or a value, in decimal digits')
    if match["parametrization"] is None:
        return None, match["value"]
    if match["parametrization"] not in ("0", "1", "2", "3"):
        raise ValueError(f"sigma {sigma[:60]!r} names a parametrization other than 0, 1, 2 or 3")
    return int(match["parametrization"]), match["value"]


def sigma_text(value: Any) -> Any:
    """Numbers are taken as sigmas too: some wrappers send them bare."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > 332:  # 100 digits; also keeps str() from its own limit
            raise ValueError("sigma should have at most 100 digits")
        value = str(value)
    if isinstance(value, str):
        split_sigma(value)
    return value


Sigma = Annotated[str, Field(examples=["1:123456"])]


class RunParameters(Wire):
    """How the run was made. `b2` absent, null or -1: GMP-ECM's default for that B1; 0: stage 1 only."""

    b1: StrictInt | None = Field(None, ge=MIN_B1, le=MAX_B1)
    b2: StrictInt | None = Field(None, ge=DEFAULT_B2, le=MAX_B2)
    curves: StrictInt | None = Field(None, ge=0, le=MAX_CURVES)
    parametrization: StrictInt | None = Field(None, ge=0, le=3)
    sigma: Sigma | list[Sigma] | None = Field(None, description='"parametrization:value", a value, or a list of them')

    @field_validator("sigma", mode="before")
    @classmethod
    def _sigma(cls, value: Any) -> Any:
        if isinstance(value, list):
            if len(value) > 10_000:
                raise ValueError("at most 10,000 sigmas go into one result")
            return [sigma_text(item) for item in value] or None
        return sigma_text(value) if value != "" else None


class FoundFactor(Wire):
    factor: str = Field(min_length=1, examples=["123456789"])
    sigma: Sigma | None = None

    @field_validator("sigma", mode="before")
    @classmethod
    def _sigma(cls, value: Any) -> Any:
        return sigma_text(value) if value != "" else None


class RunResults(Wire):
    curves_completed: StrictInt | None = Field(None, ge=0, le=MAX_CURVES)
    execution_time: float | None = Field(None, ge=0, le=1e12, allow_inf_nan=False, description="seconds")
    factor_found: str | None = Field(None, description="one factor; factors_found wins over it")
    factors_found: list[FoundFactor] | None = Field(None, max_length=1000)


class SubmitResult(Wire):
    """One run's result."""

    client_id: Name
    composite: str = Field(min_length=1, description="decimal, or an expression such as 2^1277-1")
    project: Name | None = None
    method: Method = "ecm"
    program: Annotated[str, StringConstraints(max_length=200)] | None = None
    program_version: Annotated[str, StringConstraints(max_length=200)] | None = None
    parameters: RunParameters = RunParameters()
    results: RunResults = RunResults()
    work_id: Annotated[str, StringConstraints(max_length=100)] | None = None
    residue_id: StrictInt | None = Field(None, ge=1, le=2**63 - 1)
    residue_checksum: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$")] | None = None
    raw_output: str | None = Field(None, description="what the program printed; its tail is kept (MAX_RAW_OUTPUT)")

    _printable = field_validator("client_id", "project", "program", "program_version", "work_id")(
        lambda value: value if not value else printable(value)
    )

    @field_validator("method", mode="before")
    @classmethod
    def _synonyms(cls, value: Any) -> Any:
        return METHOD_SYNONYMS.get(value, value) if isinstance(value, str) else value

    @field_validator("parameters", "results", mode="before")
    @classmethod
    def _absent(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.method in METHODS_WITH_B1 and self.parameters.b1 is None:
            raise ValueError(f"parameters.b1 is required for method {self.method}")
        return self

    # What the fields mean together -------------------------------------------------------------------------------

    @property
    def curves(self) -> int:
        """Curves that were run: `curves_completed`, else the planned number, else 1."""
        for count in (self.results.curves_completed, self.parameters.curves):
            if count is not None:
                return count
        return 1

    @property
    def sigmas(self) -> list[tuple[int | None, str]]:
        """(parametrization or None, value) of every sigma given for the run."""
        given = self.parameters.sigma
        return [split_sigma(sigma) for sigma in ([given] if isinstance(given, str) else given or [])]

    @property
    def parametrization(self) -> int:
        """The run's parametrization: as stated, else the sigma's prefix, else 3 with a sigma and 1 without."""
        if self.parameters.parametrization is not None:
            return self.parameters.parametrization
        sigmas = self.sigmas
        if not sigmas:
            return 1
        return 3 if sigmas[0][0] is None else sigmas[0][0]

    @property
    def b2(self) -> int:
        """B2 as the tables keep it: -1 for the default, 0 for stage 1 only (also when it does not exceed B1)."""
        given = self.parameters.b2
        if given is None or given == DEFAULT_B2:
            return DEFAULT_B2
        return STAGE1_ONLY if given <= (self.parameters.b1 or 0) else given

    @property
    def claims(self) -> list[FoundFactor]:
        """The factors claimed; a single `factor_found` has the run's (first) sigma."""
        if self.results.factors_found:
            return self.results.factors_found
        if not self.results.factor_found:
            return []
        given = self.parameters.sigma
        return [FoundFactor(factor=self.results.factor_found, sigma=given if isinstance(given, str) else None)]


FactorStatus = Literal["new_factor", "known_factor", "no_factor", "duplicate"]


class ResultAnswer(Wire):
    """The answer to a result: settled (200), or stored and not settled yet (202, null where not known yet)."""

    status: Literal["success", "accepted"]
    submission_id: int
    attempt_id: int | None
    composite_id: int | None
    factor_status: FactorStatus | None
    message: str
    current_t_level: float | None
    target_t_level: float | None
    # Of a result that names its residue.
    residue_completed: bool | None = None
    new_t_level: float | None = None


class BatchVerdict(Wire):
    """What became of one item of a batch.

    accepted: stored, not settled yet. success: a replay of one that was applied, with the ids of the first, or a
    duplicate. refused: not stored, or a replay of one that was rejected (with its submission), and the reason.
    """

    index: int
    status: Literal["accepted", "success", "refused"]
    submission_id: int | None = None
    attempt_id: int | None = None
    reason: str | None = None
    detail: str | None = None


class BatchAnswer(Wire):
    """`accepted` counts all that was not refused."""

    accepted: int
    refused: int
    results: list[BatchVerdict]


class SubmissionState(Wire):
    submission_id: int
    client_id: str
    state: Literal["received", "applied", "duplicate", "rejected", "failed"]
    created_at: str
    settled_at: str | None
    tries: int
    attempt_id: int | None
    composite_id: int | None
    reason: str | None
    detail: str | None
    outcome: ResultAnswer | None


class LevelEffort(Wire):
    b1: int
    curves: int


class EcmWork(Wire):
    total_attempts: int
    total_curves: int
    effort_by_level: list[LevelEffort]
    last_attempt: str | None


class CompositeStats(Wire):
    composite: str
    current_composite: str
    digit_length: int
    has_snfs_form: bool
    snfs_difficulty: int | None
    target_t_level: float
    current_t_level: float
    priority: int
    status: Literal["composite", "prime", "fully_factored"]
    factors_found: list[str]
    ecm_work: EcmWork
    projects: list[str]


class FieldProblem(Wire):
    field: str
    message: str


class Problem(Wire):
    """RFC 9457; `reason` is a stable word for programs, `detail` a sentence for people."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str
    instance: str
    errors: list[FieldProblem] | None = None
    submission_id: int | None = None
