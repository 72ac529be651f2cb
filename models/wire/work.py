"""Leases: the work that clients ask for, and the state of what they have."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from models.limits import MAX_CURVES
from models.wire.common import (
    B1,
    MOST_DIGITS,
    Digits,
    Name,
    OrBlank,
    Priority,
    Reason,
    Switch,
    TLevel,
    WireModel,
)

Days = Annotated[float, Field(gt=0, le=365, allow_inf_nan=False)]
WorkType = Literal["standard", "progressive", "priority", "best"]
LeaseStatus = Literal["assigned", "claimed", "running", "completed", "failed", "timeout"]
LEASED_METHODS = ("ecm", "pm1", "pp1")


class ClientQuery(WireModel):
    """Who asks."""

    client_id: Name = Field(description="The client's name.")


class WorkFilters(ClientQuery):
    """Which numbers to choose from. Filters that are left out choose all."""

    min_digits: OrBlank[Digits] = Field(None, description="The digits of the cofactor.")
    max_digits: OrBlank[Digits] = None
    priority: OrBlank[Priority] = Field(None, description="The lowest priority.")
    project: OrBlank[Name] = None
    min_target_tlevel: OrBlank[TLevel] = None
    max_target_tlevel: OrBlank[TLevel] = None
    max_current_tlevel: OrBlank[TLevel] = None
    composite: OrBlank[Annotated[str, StringConstraints(max_length=MOST_DIGITS)]] = Field(
        None, description="One number, in decimal or as an expression."
    )
    timeout_days: OrBlank[Days] = Field(
        None,
        description="For how long the lease lasts; default: 5, or for a shared lease according to its length.",
    )

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _check_range("min_digits", self.min_digits, "max_digits", self.max_digits)
        _check_range("min_target_tlevel", self.min_target_tlevel, "max_target_tlevel", self.max_target_tlevel)
        return self


def _check_range(low: str, least: float | None, high: str, most: float | None) -> None:
    if least is not None and most is not None and least > most:
        raise ValueError(f"{low} is {least}, {high} is {most}: no number is within that")


class EcmWorkQuery(WorkFilters):
    """Which ECM work to lease."""

    work_type: OrBlank[WorkType] = Field(
        None,
        description="standard: the smallest number first; progressive: the number with the lowest t-level first; "
        "priority: the highest priority first; best: the most value per second first.",
    )
    shared: Switch = Field(
        False, description="Lease a number of curves; other clients may work on the same number at the same time."
    )
    requested_b1: OrBlank[B1] = None
    stage1_only: Switch = False


class P1WorkQuery(WorkFilters):
    """Which P-1 or P+1 work to lease."""

    method: Annotated[
        Literal["pm1", "pp1", "p1"],
        BeforeValidator(lambda value: value or "p1"),
        Field(json_schema_extra={"enum": ["pm1", "pp1", "p1", ""]}),
    ] = Field("p1", description="p1: both methods, or the one that the number still needs.")


class AnyWorkQuery(ClientQuery):
    """Which work of several methods to lease."""

    methods: str = Field(
        "ecm",
        description="Methods (ecm, pm1, pp1) separated by commas; the first one that has work is leased.",
        json_schema_extra={"pattern": r"^[\s,]*((ecm|pm1|pp1)[\s]*(,[\s,]*|$))*$"},
    )
    min_digits: OrBlank[Digits] = None
    max_digits: OrBlank[Digits] = None

    @field_validator("methods")
    @classmethod
    def _methods(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",") if name.strip()] or ["ecm"]
        if unknown := [name for name in names if name not in LEASED_METHODS]:
            raise ValueError(f"{unknown[0][:40]!r} is no method that work is leased for; use ecm, pm1 or pp1")
        return ",".join(dict.fromkeys(names))

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _check_range("min_digits", self.min_digits, "max_digits", self.max_digits)
        return self


class ProgressQuery(ClientQuery):
    """A heartbeat."""

    curves_completed: int = Field(ge=0, le=MAX_CURVES, description="The curves of this lease so far, in all.")
    message: Reason = None


class AbandonQuery(WireModel):
    """Who gives a lease up, and why."""

    client_id: OrBlank[Name] = None
    reason: Reason = Field(None, description="Shown to operators; control characters become spaces.")


class EcmWork(WireModel):
    """An ECM lease. If there is no work, only `message` and `retry_after` are set.

    A lease that is not shared holds the whole number; its `curves` are only where to begin.
    """

    work_id: str | None = None
    composite_id: int | None = None
    composite: str | None = Field(None, description="The cofactor, in decimal.")
    digit_length: int | None = None
    current_t_level: float | None = None
    target_t_level: float | None = None
    prior_t_level: float | None = None
    expires_at: datetime | None = None
    method: str | None = None
    b1: int | None = None
    b2: int | None = Field(None, description="null: GMP-ECM's default for this B1.")
    curves: int | None = None
    parametrization: int | None = None
    shared: bool | None = None
    message: str
    retry_after: int | None = Field(None, description="The number of seconds after which to ask again.")


class P1Work(WireModel):
    """A P-1 or P+1 lease. If there is no work, only `message` and `retry_after` are set."""

    work_id: str | None = None
    composite_id: int | None = None
    composite: str | None = Field(None, description="The cofactor, in decimal.")
    digit_length: int | None = None
    current_t_level: float | None = None
    target_t_level: float | None = None
    expires_at: datetime | None = None
    method: str | None = None
    pm1_b1: int | None = Field(None, description="null: P-1 is not needed.")
    pp1_b1: int | None = Field(None, description="null: P+1 is not needed.")
    message: str
    retry_after: int | None = Field(None, description="The number of seconds after which to ask again.")


class AnyWork(WireModel):
    """A lease of one run with its parameters. If there is no work, only `message` and `retry_after` are set."""

    work_id: str | None = None
    composite_id: int | None = None
    composite: str | None = Field(None, description="The cofactor, in decimal.")
    method: str | None = None
    parameters: dict[str, Any] | None = None
    estimated_time_minutes: float | None = None
    expires_at: datetime | None = None
    message: str
    retry_after: int | None = Field(None, description="The number of seconds after which to ask again.")


class LeaseState(WireModel):
    """The state of a lease."""

    work_id: str
    status: LeaseStatus
    curves_completed: int
    curves_submitted: int
    expires_at: datetime
    message: str


class Assignment(WireModel):
    """A lease with its number."""

    work_id: str
    composite_id: int
    composite: str
    digit_length: int
    current_t_level: float
    target_t_level: float
    method: str
    b1: int | None
    b2: int | None
    curves: int | None = Field(description="null: the lease holds the whole number.")
    parametrization: int | None
    shared: bool
    curves_completed: int
    curves_submitted: int
    status: LeaseStatus
    created_at: datetime
    expires_at: datetime
    closed_at: datetime | None
    message: str | None


class ClientWork(WireModel):
    """The leases of a client."""

    client_id: str
    assignments: list[Assignment]
