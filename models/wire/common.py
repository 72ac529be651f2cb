"""What the models of several subjects share: scalar types, the base class, path parameters, pages and errors.

Integers in JSON bodies are strict (1e6, "50000" and true are refused), and their ranges are those of models/limits.py.
Unknown fields and parameters are ignored.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StrictInt,
    StringConstraints,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from models.limits import MAX_B1, MIN_B1

PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+")
DATE = re.compile(r"\s*\d{4}-\d\d-\d\d")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
MOST_DIGITS = 1_000_000
HIGHEST_T_LEVEL = 100
LONGEST_REASON = 500

# What `printable` accepts, as JSON Schema says it; a text of spaces alone is empty once it is stripped.
_CONTROL = r"\u0000-\u001f\u007f-\u009f\u2028\u2029"
ONE_LINE = rf"^[^{_CONTROL}]*$"
_NON_BLANK_LINE = rf"^[^{_CONTROL}]*[^\s{_CONTROL}][^{_CONTROL}]*$"

Value = TypeVar("Value")


def printable(value: str) -> str:
    """Return `value` if it is one line of visible text; raises ValueError otherwise."""
    if not PRINTABLE.fullmatch(value):
        raise ValueError("should be printable text without control characters")
    return value


def printable_or_empty(value: str) -> str:
    """Return `value` if it is empty or one line of visible text; raises ValueError otherwise."""
    return value if not value else printable(value)


@dataclass(frozen=True)
class _BlankIsAbsent:
    """Annotation: an empty text means that no value was given."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_none_if_blank, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        variants = described.pop("anyOf", None) or [described]
        return {"anyOf": [*variants, {"type": "string", "maxLength": 0}]}


def _none_if_blank(value: Any) -> Any:
    return None if value == "" else value


def _false_if_blank(value: Any) -> Any:
    return False if value == "" else value


def one_line(value: Any) -> Any:
    """Return a text with its line breaks and control characters replaced by spaces, shortened to LONGEST_REASON."""
    if not isinstance(value, str):
        return value
    return " ".join(UNPRINTABLE.sub(" ", value).split())[:LONGEST_REASON] or None


def _time_text(value: Any) -> Any:
    """Refuse numbers: nobody knows whether they count seconds or milliseconds, or years."""
    if isinstance(value, datetime) or (isinstance(value, str) and DATE.match(value)):
        return value
    raise ValueError("should be a time such as 2026-01-31T12:00:00Z")


def _in_utc(value: datetime) -> datetime:
    """Read a time without a time zone as UTC."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# An optional value, which HTML forms and existing clients also send as an empty text.
OrBlank = Annotated[Value | None, _BlankIsAbsent()]

# Texts -------------------------------------------------------------------------------------------------------------

Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(printable),
    Field(json_schema_extra={"pattern": _NON_BLANK_LINE}),
]
Remark = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=2000),
    AfterValidator(printable),
    Field(json_schema_extra={"pattern": _NON_BLANK_LINE}),
]
WrittenNumber = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MOST_DIGITS),
    AfterValidator(printable),
    Field(json_schema_extra={"pattern": _NON_BLANK_LINE}),
]
# A reason is never refused for its looks.
Reason = Annotated[str | None, BeforeValidator(one_line)]

# Numbers and times -------------------------------------------------------------------------------------------------

# As the database keeps ids and priorities.
Id = Annotated[int, Field(ge=0, lt=2**63)]
StrictId = Annotated[StrictInt, Field(ge=0, lt=2**63)]
Priority = Annotated[int, Field(ge=-(2**31), lt=2**31)]
StrictPriority = Annotated[StrictInt, Field(ge=-(2**31), lt=2**31)]
Digits = Annotated[int, Field(ge=1, le=MOST_DIGITS)]
TLevel = Annotated[float, Field(ge=0, le=HIGHEST_T_LEVEL, allow_inf_nan=False)]
# Lists also take bounds that no number can fail.
ListedDigits = Annotated[int, Field(ge=0, le=MOST_DIGITS)]
ListedTLevel = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
B1 = Annotated[int, Field(ge=MIN_B1, le=MAX_B1)]
UtcTime = Annotated[datetime, BeforeValidator(_time_text), AfterValidator(_in_utc)]
Switch = Annotated[bool, BeforeValidator(_false_if_blank)]

# Words -------------------------------------------------------------------------------------------------------------

Method = Literal["ecm", "pm1", "pp1", "qs", "nfs", "other"]
SubmissionState = Literal["received", "applied", "duplicate", "rejected", "failed"]
Hold = Literal["paused", "parked"]


class WireModel(BaseModel):
    """The base of all models here."""

    # Never echo what was sent: `detail` quotes it, shortened, where that helps.
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    @classmethod
    def model_json_schema(cls, *args: Any, **named: Any) -> dict[str, Any]:
        """Return the schema, which callers must not change: it is made once.

        flask-openapi asks for it at every request that has a query. Making it takes longer than answering the request.
        """
        return _make_schema(cls, *args, **named)


@cache
def _make_schema(model: type[WireModel], *args: Any, **named: Any) -> dict[str, Any]:
    return super(WireModel, model).model_json_schema(*args, **named)


# Path parameters ---------------------------------------------------------------------------------------------------


class CompositePath(WireModel):
    composite_id: Id


class AttemptPath(WireModel):
    attempt_id: Id


class FactorPath(WireModel):
    factor_id: Id


class ProjectPath(WireModel):
    project_id: Id


class ProjectNamePath(WireModel):
    name: Annotated[str, AfterValidator(printable)] = Field(
        description="The project's name; it may contain slashes.", json_schema_extra={"pattern": ONE_LINE}
    )


class ResiduePath(WireModel):
    residue_id: Id


class SubmissionPath(WireModel):
    submission_id: Id = Field(description="The `submission_id` of an answer.")


class SubmissionStatePath(WireModel):
    # Of any size: a number that no id can be is as unknown as any other, and clients know 404.
    submission_id: int = Field(ge=0, description="The `submission_id` of an answer.")


class WorkPath(WireModel):
    work_id: str = Field(description="The `work_id` of a lease, a UUID.")


class ClientPath(WireModel):
    client_id: Name = Field(description="The client's name; it may contain slashes.")


class WrittenNumberPath(WireModel):
    composite: str = Field(description="A number in decimal, or an expression; it may contain slashes.")


# Pages -------------------------------------------------------------------------------------------------------------


class PageQuery(WireModel):
    limit: int = Field(100, ge=1, le=1000, description="The largest number of entries in the answer.")
    cursor: OrBlank[Annotated[str, StringConstraints(max_length=1000)]] = Field(
        None, description="The `next` of the previous page."
    )


# Errors ------------------------------------------------------------------------------------------------------------


class FieldError(WireModel):
    """What is wrong with one field."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    field: str
    message: str


class ProblemDetails(WireModel):
    """An error (RFC 9457). `reason` is a stable word for programs, `detail` a sentence for people."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str
    instance: str
    errors: list[FieldError] | None = Field(None, description="What is wrong with which field (422).")
    submission_id: int | None = Field(None, description="The submission of a rejected result.")
