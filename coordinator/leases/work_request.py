"""What a client asks for, and the two answers that a claim can have."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from coordinator.composites.eligibility import BOTH_P1, ECM, PM1, PP1
from coordinator.effort.planning import Plan


@dataclass(frozen=True)
class WorkRequest:
    """What a client asks for; a field that is None restricts nothing. `composite` names a number, to lease its target.

    `method` is ecm, pm1, pp1 or p1 (both). `days` is how long the lease lasts. With `shared` the client gets a number
    of curves and others may work on the same target; without it the client gets the target to itself.
    The other fields restrict the choice of the target, also when the request names a number.
    """

    client_id: str
    method: str = ECM
    order: str = "standard"
    shared: bool = False
    composite: str | None = None
    min_digits: int | None = None
    max_digits: int | None = None
    min_priority: int | None = None
    project: str | None = None
    min_target: float | None = None
    max_target: float | None = None
    max_current: float | None = None
    b1: int | None = None
    stage1_only: bool = False
    days: float | None = None

    @property
    def eligibility_columns(self) -> tuple[str, ...]:
        """Return the columns of `targets` that mark one eligible for this work, in the order of trial."""
        methods = (PM1, PP1) if self.method == BOTH_P1 else (self.method,)
        return tuple(f"{method}_eligible" for method in methods)


@dataclass(frozen=True)
class Claim:
    """A new lease: what the client runs, and the composite that names the target (candidates.NAMED_COLUMNS).

    `plan` has the curves of a shared lease, and the first curves of a lease without a number of curves. `minutes` is
    how long the plan should take this client. `pm1_b1` and `pp1_b1` are the bounds of the methods that are leased.
    """

    work_id: uuid.UUID
    composite: Row[Any]
    method: str
    plan: Plan | None
    shared: bool
    expires_at: datetime
    prior_t_level: float = 0.0
    pm1_b1: int | None = None
    pp1_b1: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class NoWork:
    """No target matches the request now. The client should ask again after `retry_after` seconds."""

    message: str
    retry_after: int
