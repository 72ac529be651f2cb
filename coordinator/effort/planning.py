"""What to run next: which B1 on a number, how many curves, and the value of one second of that work.

A number of n digits is expected to have log(d / (d - 1)) prime factors of d digits, for d up to n / 2. After effort L
the share exp(-L(d)) of them is still unfound, and one curve finds each of these with chance p(d). The value of a curve
is the number of factors that it is expected to find; its price is its seconds on one core. The best next curve has the
highest value for its price: that rule chooses B1 on one number, and the number among several (docs/effort.md, "What to
run next"). This module does not use the database.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from coordinator import effort
from coordinator.effort import B1_LADDER, DIGITS
from coordinator.effort.arrays import Array, read_only
from models.limits import DEFAULT_B2, MAX_CURVES

# GMP-ECM 7 on one core: microseconds of stage 1 for each unit of B1, by digits of the number (docs/effort.md).
TABLE_DIGITS = (100, 160, 250, 385, 600, 1200, 2400)
MICROSECONDS = (0.8, 1.2, 2.1, 3.8, 10.0, 34.0, 103.0)
_LOG_DIGITS, _LOG_MICROSECONDS = np.log(TABLE_DIGITS), np.log(MICROSECONDS)
# Stage 2 with the default B2, in units of stage 1's time, falls slowly as B1 grows.
STAGE2_AT_11000, STAGE2_EXPONENT = 1.2, -0.12

# A smaller chance counts as 0: near 1e-308 a double has too few digits left for comparisons.
SMALLEST_CHANCE = 1e-300

PARAMETRIZATION = 1  # GMP-ECM's own choice on a processor, for numbers without a special form
# (t-level, the B1 customary for it); P-1 and P+1 use the B1 of the next step.
CUSTOMARY_B1 = (
    *((15, 2_000), (20, 11_000), (25, 50_000), (30, 250_000), (35, 1_000_000), (40, 3_000_000), (45, 11_000_000)),
    *((50, 43_000_000), (55, 110_000_000), (60, 260_000_000), (65, 850_000_000), (70, 2_900_000_000)),
    *((75, 7_600_000_000), (80, 25_000_000_000)),
)


class Plan(NamedTuple):
    """Curves to run; `seconds` is their price on one ordinary core. `b2` is -1 for GMP-ECM's default."""

    b1: int
    b2: int
    parametrization: int
    curves: int
    seconds: float


class PlanRequest(NamedTuple):
    """How much work a client asks for, in seconds of its own, and the bounds that it has chosen.

    `speed` is how many seconds of an ordinary core's work it does in one second. Between `least` and `most` seconds the
    plan ends where another B1 becomes better. If `b1` is None, the plan chooses B1.
    """

    least: float
    most: float
    speed: float = 1.0
    b1: int | None = None
    b2: int = DEFAULT_B2


def seconds_per_curve(b1: float, b2: int, digits: int) -> float:
    """Return the price of one curve in seconds on one ordinary core (the table above, log-log between its points).

    The price of stage 2 is proportional to the square root of a given B2, roughly the size of its polynomials. A B2 up
    to B1, also 0, means stage 1 only.
    """
    stage1: float = b1 * 1e-6 * _microseconds(digits)
    if b2 != DEFAULT_B2 and b2 <= b1:
        return stage1
    stage2 = stage1 * STAGE2_AT_11000 * (b1 / 11_000) ** STAGE2_EXPONENT
    if b2 != DEFAULT_B2:
        stage2 *= math.sqrt(b2 / effort.default_b2(int(b1)))
    return float(stage1 + stage2)


@lru_cache(maxsize=4096)
def _microseconds(digits: int) -> float:
    # Outside the table, its first or last slope continues.
    segment = int(np.clip(np.searchsorted(TABLE_DIGITS, digits) - 1, 0, len(TABLE_DIGITS) - 2))
    low, high = _LOG_DIGITS[segment : segment + 2]
    start, end = _LOG_MICROSECONDS[segment : segment + 2]
    return float(np.exp(start + (end - start) * (math.log(max(digits, 1)) - low) / (high - low)))


@lru_cache(maxsize=4096)
def expected_factors(digits: int) -> Array:
    """Return for each d in DIGITS the expected number of prime factors of d digits of a number of `digits` digits."""
    expected = np.log(DIGITS / (DIGITS - 1))
    expected[digits // 2 < DIGITS] = 0.0
    return read_only(expected)


class _CurveTable(NamedTuple):
    """The settings to choose from: their B1 and B2, and one row each of effort and of chances for one curve."""

    b1: tuple[int, ...]
    b2: int
    effort: Array
    chance: Array


@lru_cache(maxsize=64)
def _curves(b1: tuple[int, ...], b2: int) -> _CurveTable:
    vectors = np.array([effort.curve_effort(one, b2, PARAMETRIZATION) for one in b1])
    return _CurveTable(b1, b2, read_only(vectors), read_only(-np.expm1(-vectors)))


@lru_cache(maxsize=4096)
def _prices(b1: tuple[int, ...], b2: int, digits: int) -> Array:
    return read_only(np.array([seconds_per_curve(one, b2, digits) for one in b1]))


def _unfound(vector: Array, digits: int) -> Array:
    """Return for each d in DIGITS the expected number of prime factors of d digits that are still unfound."""
    return expected_factors(digits) * effort.missed(vector)


def value_per_second(vector: Array, digits: int) -> float:
    """Return how many factors one second of the best curves finds on average on a number with this effort; 0 if none.

    The number is known to be composite, so the expectation for a random number is divided by the chance that a random
    number has an unfound factor at all.
    """
    left = _unfound(vector, digits)
    certainty = -math.expm1(-float(left.sum()))
    if certainty < SMALLEST_CHANCE:
        return 0.0
    ladder = _curves(B1_LADDER, DEFAULT_B2)
    return float(np.max(ladder.chance @ left / _prices(B1_LADDER, DEFAULT_B2, digits))) / certainty


def plan_curves(vector: Array, digits: int, target: float, request: PlanRequest) -> Plan | None:
    """Plan the best next curves for a number, as many as fit the request; None if it is at its target already.

    `vector` is the effort of all curves that are done or out on lease. The plan has two steps:

    1. choose the B1 with the most value for its price over `least` seconds, the shortest lease: on a number without
       effort this skips the smallest B1, whose curves would take less time than writing the lease;
    2. run it until another B1 of the ladder becomes better, `most` seconds have passed, or the target is reached.

    If no unfound factor is expected within half the number's digits, the plan is the cheapest way to the target.
    """
    if effort.t_level(vector) >= target:
        return None
    choices = (request.b1,) if request.b1 else B1_LADDER
    curves = _curves(choices, request.b2)
    prices = _prices(choices, request.b2, digits)
    left = _unfound(vector, digits)
    least = np.maximum(1.0, request.least * request.speed / prices)
    for i in np.flatnonzero(_reaches(vector + least[:, None] * curves.effort, target)):
        least[i] = min(least[i], _curves_needed(vector, target, choices[i], request.b2))
    found = (-np.expm1(-least[:, None] * curves.effort)) @ left
    best = int(np.argmax(found / (least * prices)))
    if found[best] <= 0.0:
        best = int(np.argmin([_curves_needed(vector, target, b1, request.b2) for b1 in choices] * prices))
    needed = _curves_needed(vector, target, choices[best], request.b2)
    at_most = max(1, int(min(needed, request.most * request.speed / prices[best], MAX_CURVES)))
    count = _until_another_is_better(
        vector, curves, prices, digits, best, at_least=max(1, int(least[best])), at_most=at_most
    )
    return Plan(choices[best], request.b2, PARAMETRIZATION, count, count * float(prices[best]))


def _curves_needed(vector: Array, target: float, b1: int, b2: int) -> float:
    try:
        return float(effort.curves_to_reach(vector, target, b1, b2, PARAMETRIZATION))
    except ValueError:  # no number of these curves reaches the target, but they may be the best ones all the same
        return math.inf


def _reaches(vectors: Array, target: float) -> npt.NDArray[np.bool_]:
    """Return for each row of effort vectors whether effort.t_level >= target."""
    size = max(target, float(DIGITS[0])) - float(DIGITS[0])
    low, high = math.floor(size), math.ceil(size)
    still_missed = effort.missed(vectors[:, [low, high]]) @ (1 - (size - low), size - low)
    return still_missed <= math.exp(-1)


def _until_another_is_better(
    vector: Array, curves: _CurveTable, prices: Array, digits: int, best: int, *, at_least: int, at_most: int
) -> int:
    """Return the number of curves, `at_least` to `at_most`, after which a larger B1 has more value for its price."""

    def still_best(count: int) -> bool:
        left = _unfound(vector + count * curves.effort[best], digits)
        return int(np.argmax(curves.chance @ left / prices)) <= best

    if at_least >= at_most or still_best(at_most):
        return at_most
    enough, too_many = at_least, at_most
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        enough, too_many = (middle, too_many) if still_best(middle) else (enough, middle)
    return enough


def p1_b1(target: float) -> int:
    """Return the B1 for P-1 and P+1: one step of the customary ladder above the one for the target t-level."""
    for step, (level, _) in enumerate(CUSTOMARY_B1):
        if level >= target:
            return CUSTOMARY_B1[min(step + 1, len(CUSTOMARY_B1) - 1)][1]
    return CUSTOMARY_B1[-1][1]
