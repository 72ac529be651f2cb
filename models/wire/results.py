"""Results that clients send, and what they are answered.

Numbers and factors are strings, because they outgrow every JSON number.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, ConfigDict, Field, StrictInt, StringConstraints, field_validator, model_validator

from models.limits import DEFAULT_B2, MAX_B1, MAX_B2, MAX_CURVES, MIN_B1, STAGE1_ONLY
from models.wire.common import ONE_LINE, Method, Name, SubmissionState, WireModel, printable_or_empty

SIGMA = re.compile(r"(?:(?P<parametrization>[0-9]+):)?(?P<value>[0-9]{1,100})")
METHOD_SYNONYMS = {"siqs": "qs", "auto": "other"}
METHODS_WITH_B1 = frozenset({"ecm", "pm1", "pp1"})
MOST_SIGMAS = 10_000


def split_sigma(sigma: str) -> tuple[int | None, str]:
    """Return (parametrization or None, value) of a sigma as GMP-ECM prints it: "1:123456", or a bare value.

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
    """Return a sigma as a text, and check its form; some wrappers send bare numbers."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > 332:  # 100 digits; also keeps str() from its own limit
            raise ValueError("sigma should have at most 100 digits")
        value = str(value)
    if isinstance(value, str):
        split_sigma(value)
    return value


def _or_null(schema: dict[str, Any]) -> None:
    """Document that null means the default."""
    schema["anyOf"] = [{"$ref": schema.pop("$ref")}, {"type": "null"}]


# What may be sent as a sigma beside a text, as JSON Schema says it: some wrappers send bare numbers.
_SIGMA_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "pattern": r"^\s*([0-3]:)?[0-9]{1,100}\s*$"},
        {"type": "integer", "minimum": 0, "maximum": 2**332 - 1},
    ]
}
_BLANK_OR_NULL: list[dict[str, Any]] = [{"type": "string", "maxLength": 0}, {"type": "null"}]

# A text of one line, as programs call themselves; it may be empty.
Line = Annotated[
    str,
    StringConstraints(max_length=200),
    AfterValidator(printable_or_empty),
    Field(json_schema_extra={"pattern": ONE_LINE}),
]


class RunParameters(WireModel):
    """How the run was made."""

    b1: StrictInt | None = Field(None, ge=MIN_B1, le=MAX_B1, description="Required for ecm, pm1 and pp1.")
    b2: StrictInt | None = Field(
        None, ge=DEFAULT_B2, le=MAX_B2, description="null or -1: GMP-ECM's default for this B1; 0: stage 1 only."
    )
    curves: StrictInt | None = Field(None, ge=0, le=MAX_CURVES, description="The planned number of curves.")
    parametrization: StrictInt | None = Field(None, ge=0, le=3, description="As in GMP-ECM's option -param.")
    sigma: str | list[str] | None = Field(
        None,
        description='"parametrization:value", a bare value, or a list of them',
        examples=["1:123456"],
        json_schema_extra={
            "anyOf": [
                _SIGMA_SCHEMA,
                {"type": "array", "items": _SIGMA_SCHEMA, "maxItems": MOST_SIGMAS},
                *_BLANK_OR_NULL,
            ]
        },
    )

    @field_validator("sigma", mode="before")
    @classmethod
    def _sigma(cls, value: Any) -> Any:
        if isinstance(value, list):
            if len(value) > MOST_SIGMAS:
                raise ValueError("at most 10,000 sigmas go into one result")
            return [sigma_text(item) for item in value] or None
        return sigma_text(value) if value != "" else None


class FoundFactor(WireModel):
    """A factor, and the sigma of the curve that found it."""

    factor: str = Field(min_length=1, examples=["123456789"])
    sigma: str | None = Field(
        None, examples=["1:123456"], json_schema_extra={"anyOf": [_SIGMA_SCHEMA, *_BLANK_OR_NULL]}
    )

    @field_validator("sigma", mode="before")
    @classmethod
    def _sigma(cls, value: Any) -> Any:
        return sigma_text(value) if value != "" else None


class RunResults(WireModel):
    """What the run did and found."""

    curves_completed: StrictInt | None = Field(
        None, ge=0, le=MAX_CURVES, description="Default: `parameters.curves`, else 1."
    )
    execution_time: float | None = Field(None, ge=0, le=1e12, allow_inf_nan=False, description="In seconds.")
    factor_found: str | None = Field(None, description="One factor; `factors_found` overrides it.")
    factors_found: list[FoundFactor] | None = Field(None, max_length=1000)


# Without a method it is ecm, and these methods need a B1: `_bounds` below, as JSON Schema says it.
_B1_IF_NEEDED: dict[str, Any] = {
    "if": {"properties": {"method": {"enum": sorted(METHODS_WITH_B1)}}},
    "then": {
        "required": ["parameters"],
        "properties": {"parameters": {"type": "object", "required": ["b1"], "properties": {"b1": {"type": "integer"}}}},
    },
}


class SubmitResult(WireModel):
    """The result of one run."""

    model_config = ConfigDict(json_schema_extra=_B1_IF_NEEDED)

    client_id: Name = Field(description="The name of the client that made the run.")
    composite: str = Field(min_length=1, description="The number in decimal, or an expression such as 2^1277-1.")
    project: Name | None = Field(None, description="The project of a new number; an unknown one is created.")
    method: Method = Field("ecm", json_schema_extra={"enum": [*get_args(Method), *METHOD_SYNONYMS]})
    program: Line | None = None
    program_version: Line | None = None
    parameters: RunParameters = Field(RunParameters(), json_schema_extra=_or_null)
    results: RunResults = Field(RunResults(), json_schema_extra=_or_null)
    work_id: Annotated[Line, StringConstraints(max_length=100)] | None = Field(
        None, description="The lease that the result belongs to."
    )
    residue_id: StrictInt | None = Field(None, ge=1, le=2**63 - 1, description="The residue whose stage 2 this is.")
    residue_checksum: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$")] | None = Field(
        None, description="The SHA-256 of that residue's file."
    )
    raw_output: str | None = Field(
        None, description="What the program printed; its last MAX_RAW_OUTPUT bytes are kept."
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
        """The number of curves that were run: `curves_completed`, else the planned number, else 1."""
        for count in (self.results.curves_completed, self.parameters.curves):
            if count is not None:
                return count
        return 1

    @property
    def sigmas(self) -> list[tuple[int | None, str]]:
        """The (parametrization or None, value) of every sigma of the run."""
        given = self.parameters.sigma
        return [split_sigma(sigma) for sigma in ([given] if isinstance(given, str) else given or [])]

    @property
    def parametrization(self) -> int:
        """The run's parametrization: the field, else the first sigma's prefix, else 3 with a sigma and 1 without."""
        if self.parameters.parametrization is not None:
            return self.parameters.parametrization
        sigmas = self.sigmas
        if not sigmas:
            return 1
        return 3 if sigmas[0][0] is None else sigmas[0][0]

    @property
    def b2(self) -> int:
        """B2 as the tables store it: -1 for GMP-ECM's default, 0 for stage 1 only (B2 is at most B1)."""
        given = self.parameters.b2
        if given is None or given == DEFAULT_B2:
            return DEFAULT_B2
        return STAGE1_ONLY if given <= (self.parameters.b1 or 0) else given

    @property
    def claims(self) -> list[FoundFactor]:
        """The claimed factors; a single `factor_found` gets the sigma of the run, if there is exactly one."""
        if self.results.factors_found:
            return self.results.factors_found
        if not self.results.factor_found:
            return []
        given = self.parameters.sigma
        return [FoundFactor(factor=self.results.factor_found, sigma=given if isinstance(given, str) else None)]


FactorStatus = Literal["new_factor", "known_factor", "no_factor", "duplicate"]


class ResultAnswer(WireModel):
    """The answer to a result. 200: it is settled. 202: it is stored and not settled yet; unknown fields are null.

    A result that could not be applied is 202, too, and `message` says why: it waits for an operator.
    """

    status: Literal["success", "accepted"]
    submission_id: int
    attempt_id: int | None
    composite_id: int | None
    factor_status: FactorStatus | None
    message: str
    current_t_level: float | None
    target_t_level: float | None
    residue_completed: bool | None = Field(None, description="Only for a result that names its residue.")
    new_t_level: float | None = Field(None, description="Only for a result that names its residue.")


class BatchVerdict(WireModel):
    """What happened to one item of a batch.

    accepted: the result is stored and not settled yet. success: the result was applied before or is a duplicate; the
    ids are those of the first one; `reason` and `detail` of an accepted result say that it could not be applied, and
    waits for an operator. refused: the result is invalid and not stored, or the first one was rejected.
    """

    index: int = Field(description="The item's position in the batch, from 0.")
    status: Literal["accepted", "success", "refused"]
    submission_id: int | None = None
    attempt_id: int | None = None
    reason: str | None = None
    detail: str | None = None


class BatchAnswer(WireModel):
    """One verdict per item of a batch. `accepted` counts the items that were not refused."""

    accepted: int
    refused: int
    results: list[BatchVerdict]


class SubmissionStatus(WireModel):
    """What happened to a submission."""

    submission_id: int
    client_id: str
    state: SubmissionState
    created_at: datetime
    settled_at: datetime | None
    tries: int
    attempt_id: int | None
    composite_id: int | None
    reason: str | None
    detail: str | None
    outcome: ResultAnswer | None = Field(description="The answer to the result, once it is applied.")
