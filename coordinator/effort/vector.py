"""The effort vector: for d = 10 ... 100, L(d) = sum over runs of curves * -log(1 - p(d)).

exp(-L(d)) is the chance that all those curves missed a factor of d digits. Adding a run is one vector addition.
Runs are never subtracted, because that would not give the exact old sums: to remove a run, compute the vector again
from the integer curve sums (`effort_of`).
"""

import math
from collections.abc import Iterable

import numpy as np

from coordinator.effort.arrays import DIGITS, Array
from coordinator.effort.probability import curve_effort
from coordinator.effort.stage2 import checked_bounds, checked_integer, checked_parametrization
from models.limits import DEFAULT_B2, MAX_CURVES

Run = tuple[int, int, int, int]  # B1, B2, parametrization, curves

SMALLEST_DIGITS, LARGEST_DIGITS = int(DIGITS[0]), int(DIGITS[-1])
SMALLEST_TARGET, LARGEST_TARGET = 10.0, 85.0
TARGET_SHARE = 4 / 13  # of a number's digits, as is customary before sieving

B1_LADDER = (
    *(2_000, 5_000, 11_000, 25_000, 50_000, 250_000, 1_000_000, 3_000_000, 11_000_000, 43_000_000, 110_000_000),
    *(260_000_000, 850_000_000, 2_900_000_000, 7_600_000_000, 25_000_000_000),
)
USUAL_CURVES = 10_000  # a t-level becomes curves at the B1 whose curve count is nearest to this
PRIOR_PARAMETRIZATION = 1


def no_effort() -> Array:
    """Return the vector of a number without curves."""
    return np.zeros(DIGITS.size)


def add_curves(vector: Array, curves: float, b1: float, b2: float | None, parametrization: int) -> Array:
    """Return a new vector with `curves` more curves, in constant time. Raises ValueError outside `models.limits`."""
    curves = checked_integer(curves, "the number of curves", 0, MAX_CURVES)
    return vector + curves * curve_effort(b1, b2, parametrization)


def effort_of(sums: Iterable[tuple[int, int | None, int, int]]) -> Array:
    """Return the vector of runs (B1, B2, parametrization, curves): sums, or single attempts with repeated settings.

    The curves of equal settings are added as integers, and then the settings are added in sorted order, so the order of
    the runs changes no bit of the result. Raises ValueError for negative counts.
    """
    totals: dict[tuple[int, int | None, int], int] = {}
    for b1, b2, parametrization, curves in sums:
        if curves < 0:
            raise ValueError(f"the number of curves is {curves:,}: it must not be negative")
        setting = (b1, b2, parametrization)
        totals[setting] = totals.get(setting, 0) + curves
    normal: dict[tuple[int, int, int], int] = {}
    for (b1, b2, parametrization), curves in totals.items():
        same = (*checked_bounds(b1, b2), checked_parametrization(parametrization))
        normal[same] = normal.get(same, 0) + curves
    vector = no_effort()
    for settings, curves in sorted(normal.items()):
        vector += curves * curve_effort(*settings)
    return vector


def missed(vector: Array) -> Array:
    """Return for each d in DIGITS the chance that the curves missed a factor of d digits, if there is one."""
    with np.errstate(under="ignore"):  # a chance too small for a double becomes 0
        return np.exp(-vector)


def t_level(vector: Array) -> float:
    """Return the size whose chance of a missed factor is 1/e, linear between sizes; 0 below 10 digits, 100 at most."""
    beyond = int(np.argmax(vector < 1.0))
    if vector[beyond] >= 1.0:
        return float(LARGEST_DIGITS)
    if beyond == 0:
        return 0.0
    reached, missing = math.exp(-vector[beyond - 1]), math.exp(-vector[beyond])
    return SMALLEST_DIGITS + beyond - 1 + (math.exp(-1) - reached) / (missing - reached)


def curves_to_reach(vector: Array, target_t: float, b1: float, b2: float | None, parametrization: int) -> int:
    """Return how many curves at these bounds bring the vector to `target_t` (0 ... 100); 0 if it is there already.

    Raises ValueError if these bounds cannot find factors of that size at all (p = 0 there), and outside 0 ... 100.
    """
    if not 0 <= target_t <= LARGEST_DIGITS:
        raise ValueError(f"the target is t{target_t:g}: it must be from 0 to {LARGEST_DIGITS}")
    effort = curve_effort(b1, b2, parametrization)
    if target_t <= 0 or t_level(vector) >= target_t:
        return 0
    # The t-level is the target if the chance of a miss, linear between the two sizes around the target, is 1/e.
    size = max(target_t, SMALLEST_DIGITS) - SMALLEST_DIGITS
    low, high = math.floor(size), math.ceil(size)
    weight = size - low
    if effort[high] == 0.0:
        raise ValueError(
            f"no number of curves at B1 = {b1:,} reaches t{target_t:g}: they cannot find factors of that size; "
            "take a larger B1"
        )
    done_low, done_high = float(vector[low]), float(vector[high])
    step_low, step_high = float(effort[low]), float(effort[high])

    def reached(curves: int) -> bool:
        still_missed = (1 - weight) * math.exp(-done_low - curves * step_low)
        return still_missed + weight * math.exp(-done_high - curves * step_high) <= math.exp(-1)

    # The number of curves that brings both sizes to 1/e is enough.
    too_few, enough = 0, max(1, math.ceil((1 - done_low) / step_low), math.ceil((1 - done_high) / step_high))
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if reached(middle) else (middle, enough)
    return enough


def curves_of_t_level(t: float) -> Run:
    """Return the run (B1, B2, parametrization, curves) that reaches a t-level, for work with a known t-level only.

    It has the default B2 and the B1 of the ladder whose curve count is nearest to 10,000. Raises ValueError outside
    0 ... 100.
    """
    if not 0 <= t <= LARGEST_DIGITS:
        raise ValueError(f"the t-level is {t:g}: it must be from 0 to {LARGEST_DIGITS}")
    if t == 0:
        return B1_LADDER[0], DEFAULT_B2, PRIOR_PARAMETRIZATION, 0
    return _nearest_usual(t)[0]


def suggested_curves(vector: Array, target_t: float, at_most: int) -> list[Run]:
    """Return alternative runs, each of which brings the vector to `target_t`; empty if the target is reached.

    The list has the `at_most` B1 of the ladder at which reaching the target from nothing takes nearest to 10,000
    curves, smallest B1 first.
    """
    if t_level(vector) >= target_t:
        return []
    chosen = sorted(b1 for b1, _, _, _ in _nearest_usual(target_t)[:at_most])
    settings = [(b1, DEFAULT_B2, PRIOR_PARAMETRIZATION) for b1 in chosen]
    return [(*setting, curves_to_reach(vector, target_t, *setting)) for setting in settings]


def _nearest_usual(t: float) -> list[Run]:
    """Return for each B1 that can find such factors the run that reaches t, usual curve counts first."""
    digits = max(0, math.ceil(t) - SMALLEST_DIGITS)
    settings = [(b1, DEFAULT_B2, PRIOR_PARAMETRIZATION) for b1 in B1_LADDER]
    able = [setting for setting in settings if curve_effort(*setting)[digits] > 0]
    runs = [(*setting, curves_to_reach(no_effort(), t, *setting)) for setting in able]
    return sorted(runs, key=lambda run: abs(math.log(run[3] / USUAL_CURVES)))


def target_t_level(digits: int, snfs_difficulty: float | None = None, explicit: float | None = None) -> float:
    """Return the t-level from which sieving is better: 4/13 of the number's digits or, if less, SNFS difficulty.

    `snfs_difficulty` is in digits of an equally hard general number. The result is within 10 ... 85, unless an operator
    or a list has given another one, `explicit`.
    """
    if explicit is not None:
        return explicit
    hardness = digits if snfs_difficulty is None else min(digits, snfs_difficulty)
    return min(max(TARGET_SHARE * hardness, SMALLEST_TARGET), LARGEST_TARGET)
