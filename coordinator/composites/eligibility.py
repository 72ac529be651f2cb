"""The eligibility of a target for work: the columns of `targets` that claims find it by.

`EligibilityInputs` and `Eligibility` are the only lists of these columns; statements that read or write them are made
from the two. A target is eligible for ECM if all of this is true:

 1. its value is known to be composite and has more than SPLIT_AT_ONCE_DIGITS digits (smaller ones are split here);
 2. it has not reached its target t-level, with the curves out on lease counted as done;
 3. no client has leased all of it, nobody has reserved it, and there is no hold on it;
 4. it has fewer open ECM leases than MAX_ACTIVE_PER_COMPOSITE, and no residue whose stage 2 is still to be done.

This module does not use the database.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from config.settings import settings
from coordinator import effort
from coordinator.effort import planning
from coordinator.numbers.arithmetic import SPLIT_AT_ONCE_DIGITS
from models.limits import DEFAULT_B2
from models.types import AnyRow

ECM, PM1, PP1, BOTH_P1 = "ecm", "pm1", "pp1", "p1"
P1_METHODS = (PM1, PP1, BOTH_P1)
RESERVATION_METHODS = ("nfs", "snfs", "gnfs", "other")
NO_WORK_VALUE = -99.0

# The ordering columns are rounded to these steps: most results stay within one step and change no index.
T_LEVEL_STEP, VALUE_STEP = 0.1, 0.02


class EligibilityInputs(NamedTuple):
    """The columns of a target that determine its eligibility; the defaults are those of a new target."""

    effort: np.ndarray
    digit_length: int
    is_prime: bool | None
    is_finished: bool
    target_t_level: float
    hold: str | None = None
    pm1_b1: int = 0
    pp1_b1: int = 0
    open_residues: int = 0


class Eligibility(NamedTuple):
    """The columns of a target that `compute_eligibility` determines (models/tables.py explains each)."""

    open_leases: int
    ecm_eligible: bool
    pm1_eligible: bool
    pp1_eligible: bool
    p1_target_b1: int
    planned_t_level: float
    work_value: float


class OpenLease(Protocol):
    """The columns of an open lease that determine how much work it leaves to other clients."""

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


def needs_curves(target: EligibilityInputs | AnyRow) -> bool:
    """Return whether the value is known to be composite and too large to be split here at once."""
    is_unfinished_composite = target.is_prime is False and not target.is_finished
    return is_unfinished_composite and target.digit_length > SPLIT_AT_ONCE_DIGITS


def add_leased_curves(vector: np.ndarray, leases: Sequence[OpenLease | AnyRow]) -> np.ndarray:
    """Return the effort vector with the outstanding curves of these leases added as if they were done."""
    outstanding: dict[tuple[int, int, int], int] = {}
    for lease in leases:
        if lease.method == ECM and lease.curves is not None and lease.b1 is not None:
            b2 = DEFAULT_B2 if lease.b2 is None else lease.b2
            run = (lease.b1, b2, lease.parametrization or planning.PARAMETRIZATION)
            outstanding[run] = outstanding.get(run, 0) + max(0, lease.curves - lease.curves_submitted)
    for run, curves in outstanding.items():
        vector = effort.add_curves(vector, curves, *run)
    return vector


def compute_eligibility(target: EligibilityInputs | AnyRow, leases: Sequence[OpenLease | AnyRow]) -> dict[str, Any]:
    """Compute the fields of `Eligibility`, by name, of a target with these open leases."""
    vector = add_leased_curves(target.effort, leases)
    t_level = effort.t_level(vector)
    methods = [lease.method for lease in leases]
    available = (
        needs_curves(target) and target.hold is None and not any(method in RESERVATION_METHODS for method in methods)
    )
    leased_whole = any(lease.method == ECM and lease.curves is None for lease in leases)
    has_room = methods.count(ECM) < settings().max_active_per_composite and not leased_whole
    p1_b1 = planning.p1_b1(target.target_t_level)
    return Eligibility(
        open_leases=len(leases),
        ecm_eligible=available and has_room and t_level < target.target_t_level and target.open_residues == 0,
        pm1_eligible=available and target.pm1_b1 < p1_b1 and not {PM1, BOTH_P1} & set(methods),
        pp1_eligible=available and target.pp1_b1 < p1_b1 and not {PP1, BOTH_P1} & set(methods),
        p1_target_b1=p1_b1,
        planned_t_level=math.floor(t_level / T_LEVEL_STEP) * T_LEVEL_STEP,
        work_value=_rounded_work_value(vector, target.digit_length) if available else NO_WORK_VALUE,
    )._asdict()


def _rounded_work_value(vector: np.ndarray, digits: int) -> float:
    """Return log10 of the value of one second of ECM (planning.value_per_second), rounded to VALUE_STEP."""
    value = planning.value_per_second(vector, digits)
    return round(math.log10(value) / VALUE_STEP) * VALUE_STEP if value > 0 else NO_WORK_VALUE
