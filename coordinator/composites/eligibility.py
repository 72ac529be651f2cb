"""What work a number wants: the columns of `composites` that claims find it by.

ECM is wanted of a number whose cofactor is known to be composite and too large to be finished here, that has not
reached its target (curves out on lease taken as done), that nobody leased as a whole, reserved or holds back, that has
room for one more lease, and no curves that wait for their stage 2. Nothing in here knows the database.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from config.settings import settings
from coordinator import effort
from coordinator.effort import planning
from coordinator.numbers.arithmetic import SPLIT_AT_ONCE_DIGITS
from models.limits import DEFAULT_B2

ECM, PM1, PP1, BOTH_P1 = "ecm", "pm1", "pp1", "p1"
RESERVATION_METHODS = ("nfs", "snfs", "gnfs", "other")
NO_WORK_VALUE = -99.0

# Steps that the ordering columns are rounded to: most results stay within one and touch no index.
T_LEVEL_STEP, VALUE_STEP = 0.1, 0.02


class EligibilityColumns(Protocol):
    """The columns of a composite that decide what it wants."""

    @property
    def effort(self) -> np.ndarray: ...
    @property
    def digit_length(self) -> int: ...
    @property
    def is_prime(self) -> bool | None: ...
    @property
    def is_fully_factored(self) -> bool: ...
    @property
    def target_t_level(self) -> float: ...
    @property
    def hold(self) -> str | None: ...
    @property
    def pm1_b1(self) -> int: ...
    @property
    def pp1_b1(self) -> int: ...
    @property
    def open_residues(self) -> int: ...


class OpenLease(Protocol):
    """The columns of an open lease that decide what it leaves to others."""

    @property
    def method(self) -> str: ...
    @property
    def b1(self) -> int | None: ...
    @property
    def b2(self) -> int | None: ...
    @property
    def parametrization(self) -> int | None: ...
    @property
    def curves(self) -> int | None: ...
    @property
    def curves_submitted(self) -> int: ...


def needs_curves(composite: EligibilityColumns) -> bool:
    """Whether curves can do anything for a composite: a small cofactor is finished here."""
    composite_left = composite.is_prime is False and not composite.is_fully_factored
    return composite_left and composite.digit_length > SPLIT_AT_ONCE_DIGITS


def add_leased_curves(vector: np.ndarray, leases: Sequence[OpenLease]) -> np.ndarray:
    """The effort with all that is out on lease, by curves, taken as done."""
    curves: dict[tuple[int, int, int], int] = {}
    for lease in leases:
        if lease.method == ECM and lease.curves is not None and lease.b1 is not None:
            b2 = DEFAULT_B2 if lease.b2 is None else lease.b2
            run = (lease.b1, b2, lease.parametrization or planning.PARAMETRIZATION)
            curves[run] = curves.get(run, 0) + max(0, lease.curves - lease.curves_submitted)
    for run, left in curves.items():
        vector = effort.add_curves(vector, left, *run)
    return vector


def compute_eligibility(composite: EligibilityColumns, leases: Sequence[OpenLease]) -> dict[str, Any]:
    """The work columns of a composite with these open leases."""
    vector = add_leased_curves(composite.effort, leases)
    t_level = effort.t_level(vector)
    methods = [lease.method for lease in leases]
    available = (
        needs_curves(composite)
        and composite.hold is None
        and not any(method in RESERVATION_METHODS for method in methods)
    )
    whole = any(lease.method == ECM and lease.curves is None for lease in leases)
    room = methods.count(ECM) < settings().max_active_per_composite and not whole
    p1_b1 = planning.p1_b1(composite.target_t_level)
    return {
        "open_leases": len(leases),
        "ecm_eligible": available and room and t_level < composite.target_t_level and composite.open_residues == 0,
        "pm1_eligible": available and composite.pm1_b1 < p1_b1 and not {PM1, BOTH_P1} & set(methods),
        "pp1_eligible": available and composite.pp1_b1 < p1_b1 and not {PP1, BOTH_P1} & set(methods),
        "p1_target_b1": p1_b1,
        "planned_t_level": math.floor(t_level / T_LEVEL_STEP) * T_LEVEL_STEP,
        "work_value": _rounded_value(vector, composite.digit_length) if available else NO_WORK_VALUE,
    }


def _rounded_value(vector: np.ndarray, digits: int) -> float:
    value = planning.value_per_second(vector, digits)
    return round(math.log10(value) / VALUE_STEP) * VALUE_STEP if value > 0 else NO_WORK_VALUE
