"""What crosses the wire about work: what clients ask for, and the leases they get."""

import json
import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from models.limits import MAX_B1, MAX_CURVES, MIN_B1
from models.wire import BLANK, MaybePriority, Name, Wire, printable

MOST_DIGITS = 1_000_000
HIGHEST_T_LEVEL = 100
LONGEST_REASON = 500
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
MOST_METADATA = 64 * 1024

Digits = Annotated[Annotated[int, Field(ge=1, le=MOST_DIGITS)] | None, BLANK]
Level = Annotated[Annotated[float, Field(ge=0, le=HIGHEST_T_LEVEL)] | None, BLANK]
Days = Annotated[Annotated[float, Field(gt=0, le=365)] | None, BLANK]


def one_line(value: Any) -> Any:
    """A text with its line breaks and control characters made spaces, shortened: no reason is refused for its looks."""
    if not isinstance(value, str):
        return value
    return " ".join(UNPRINTABLE.sub(" ", value).split())[:LONGEST_REASON] or None


Reason = Annotated[str | None, BeforeValidator(one_line)]
# An empty switch is one that was not given.
Switch = Annotated[bool, BeforeValidator(lambda value: False if value == "" else value)]
WorkType = Literal["standard", "progressive", "priority", "best"]


class ClientQuery(Wire):
    client_id: Name

    _printable = field_validator("client_id", "project", check_fields=False)(
        lambda value: value if not value else printable(value)
    )


class WorkFilters(ClientQuery):
    """Which numbers; what is left out leaves it open."""

    min_digits: Digits = Field(None, description="of the cofactor")
    max_digits: Digits = None
    priority: MaybePriority = Field(None, description="the least")
    project: Annotated[Name | None, BLANK] = None
    min_target_tlevel: Level = None
    max_target_tlevel: Level = None
    max_current_tlevel: Level = None
    composite: Annotated[Annotated[str, StringConstraints(max_length=MOST_DIGITS)] | None, BLANK] = Field(
        None, description="one number, as an expression or in decimal"
    )
    timeout_days: Days = Field(None, description="how long the lease lasts (default 5; a shared one: by its length)")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _check_range("min_digits", self.min_digits, "max_digits", self.max_digits)
        _check_range("min_target_tlevel", self.min_target_tlevel, "max_target_tlevel", self.max_target_tlevel)
        return self


def _check_range(low: str, least: float | None, high: str, most: float | None) -> None:
    if least is not None and most is not None and least > most:
        raise ValueError(f"{low} is {least}, {high} is {most}: no number is within that")


class EcmWorkQuery(WorkFilters):
    work_type: Annotated[WorkType | None, BLANK] = Field(
        None,
        description="standard (smallest first), progressive (least done first), priority, best (most value per second)",
    )
    shared: Switch = Field(False, description="a number of curves, on a number that others work on too")
    requested_b1: Annotated[Annotated[int, Field(ge=MIN_B1, le=MAX_B1)] | None, BLANK] = None
    stage1_only: Switch = False


class P1WorkQuery(WorkFilters):
    method: Annotated[Literal["pm1", "pp1", "p1"], BeforeValidator(lambda value: value or "p1")] = Field(
        "p1", description="p1: both, or the one of them that the number lacks"
    )


class AnyWorkQuery(ClientQuery):
    methods: str = Field("ecm", description="of ecm, pm1, pp1, with commas: the first that there is work for")
    min_digits: Digits = None
    max_digits: Digits = None

    @field_validator("methods")
    @classmethod
    def _methods(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",") if name.strip()] or ["ecm"]
        if unknown := [name for name in names if name not in ("ecm", "pm1", "pp1")]:
            raise ValueError(f"{unknown[0][:40]!r} is no method that work is leased for; use ecm, pm1 or pp1")
        return ",".join(dict.fromkeys(names))

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _check_range("min_digits", self.min_digits, "max_digits", self.max_digits)
        return self


class ProgressQuery(ClientQuery):
    curves_completed: int = Field(ge=0, le=MAX_CURVES, description="of this lease, all together")
    message: Reason = None


class AbandonQuery(Wire):
    client_id: Annotated[Name | None, BLANK] = None
    reason: Reason = None

    _printable = field_validator("client_id")(lambda value: value if not value else printable(value))


class ReasonQuery(Wire):
    reason: Reason = None


class EcmWork(Wire):
    """A lease, or all null but `message` and `retry_after` (seconds) when there is none.

    `curves` of a lease that is not shared are where to begin: all of the number is leased. `b2` null is GMP-ECM's
    default for b1.
    """

    work_id: str | None = None
    composite_id: int | None = None
    composite: str | None = Field(None, description="the cofactor left, in decimal")
    digit_length: int | None = None
    current_t_level: float | None = None
    target_t_level: float | None = None
    prior_t_level: float | None = None
    expires_at: datetime | None = None
    method: str | None = None
    b1: int | None = None
    b2: int | None = None
    curves: int | None = None
    parametrization: int | None = None
    shared: bool | None = None
    message: str
    retry_after: int | None = None


class P1Work(Wire):
    """As EcmWork; `pm1_b1` and `pp1_b1` are null where that method is not wanted."""

    work_id: str | None = None
    composite_id: int | None = None
    composite: str | None = None
    digit_length: int | None = None
    current_t_level: float | None = None
    target_t_level: float | None = None
    expires_at: datetime | None = None
    method: str | None = None
    pm1_b1: int | None = None
    pp1_b1: int | None = None
    message: str
    retry_after: int | None = None


class AnyWork(Wire):
    work_id: str | None = None
    composite_id: int | None = None
    composite: str | None = None
    method: str | None = None
    parameters: dict[str, Any] | None = None
    estimated_time_minutes: float | None = None
    expires_at: datetime | None = None
    message: str
    retry_after: int | None = None


class LeaseState(Wire):
    work_id: str
    status: Literal["assigned", "claimed", "running", "completed", "failed", "timeout"]
    curves_completed: int
    curves_submitted: int
    expires_at: datetime
    message: str


class Assignment(Wire):
    work_id: str
    composite_id: int
    composite: str
    digit_length: int
    current_t_level: float
    target_t_level: float
    method: str
    b1: int | None
    b2: int | None
    curves: int | None = Field(description="null: the whole number")
    parametrization: int | None
    shared: bool
    curves_completed: int
    curves_submitted: int
    status: str
    created_at: datetime
    expires_at: datetime
    closed_at: datetime | None
    message: str | None


class ClientWork(Wire):
    client_id: str
    assignments: list[Assignment]


class Reservation(Wire):
    """A number to be reserved for another method elsewhere."""

    composite_identifier: str = Field(min_length=1, description="the number (decimal or expression), or its id")
    client_id: Name
    method: Literal["nfs", "snfs", "gnfs", "other"] = "nfs"
    duration_hours: float = Field(24 * 30, gt=0, le=24 * 365 * 5)
    metadata: dict[str, Any] | None = None

    _printable = field_validator("client_id")(printable)

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


class Reserved(Wire):
    work_id: str
    composite_id: int
    composite: str
    method: str
    client_id: str
    expires_at: datetime
    message: str


class HoldState(Wire):
    composite_id: int
    hold: Literal["paused", "parked"] | None
    hold_reason: str | None
    message: str


class OpenWork(Wire):
    assignments: list[Assignment]


class CleanedUp(Wire):
    expired: int
    message: str
