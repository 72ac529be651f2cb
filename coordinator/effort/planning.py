"""What to run next: which B1 on a number, how many curves of it, and what one second of that is worth.

A number of n digits has, as far as anybody knows, about log(d / (d - 1)) prime factors of d digits, for d up to n / 2.
After effort L the share exp(-L(d)) of them is still to be found, and one curve finds each with chance p(d). What a
curve is worth is the number of factors it is expected to find, its price is its seconds on one core, and the best
next curve has most worth for its price: on one number that chooses B1, across numbers it chooses the number
(docs/effort.md, "What to run next"). Nothing in here knows the database.
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
PRICED_DIGITS = (100, 160, 250, 385, 600, 1200, 2400)
MICROSECONDS = (0.8, 1.2, 2.1, 3.8, 10.0, 34.0, 103.0)
_LOG_DIGITS, _LOG_MICROSECONDS = np.log(PRICED_DIGITS), np.log(MICROSECONDS)
# Stage 2 with the default B2, in units of stage 1's time, falls slowly as B1 grows.
STAGE2_AT_11000, STAGE2_EXPONENT = 1.2, -0.12

# What is less likely than this is not to be found: near 1e-308 a double has too few digits left to be compared.
SMALLEST_CHANCE = 1e-300

PARAMETRIZATION = 1  # GMP-ECM's own choice on a processor, for numbers without a special form
# B1 from which on a t-level is customarily reached; P-1 and P+1 go one step further.
CUSTOMARY_B1 = (
    *((15, 2_000), (20, 11_000), (25, 50_000), (30, 250_000), (35, 1_000_000), (40, 3_000_000), (45, 11_000_000)),
    *((50, 43_000_000), (55, 110_000_000), (60, 260_000_000), (65, 850_000_000), (70, 2_900_000_000)),
    *((75, 7_600_000_000), (80, 25_000_000_000)),
)


class Plan(NamedTuple):
    """Curves to run: `seconds` is their price on one core of ordinary speed. `b2` is -1 for GMP-ECM's default."""

    b1: int
    b2: int
    parametrization: int
    curves: int
    seconds: float


class PlanRequest(NamedTuple):
    """How much work a client would like, in seconds of its own, how fast it is, and what it insists on.

    `speed` is in seconds of ordinary work done in one second. Between `least` and `most` seconds the plan ends where
    another B1 becomes the better one. `b1` None leaves B1 to the plan.
    """

    least: float
    most: float
    speed: float = 1.0
    b1: int | None = None
    b2: int = DEFAULT_B2


def seconds_per_curve(b1: float, b2: int, digits: int) -> float:
    """What one curve costs, in seconds on one core of ordinary speed (the table above, log-log between its points).

    Stage 2 with a given B2 is taken to cost as the square root of B2: the size of its polynomials, more or less.
    A B2 up to B1, 0 among them, is stage 1 only.
    """
    stage1 = b1 * 1e-6 * _microseconds(digits)
    if b2 != DEFAULT_B2 and b2 <= b1:
        return stage1
    stage2 = stage1 * STAGE2_AT_11000 * (b1 / 11_000) ** STAGE2_EXPONENT
    if b2 != DEFAULT_B2:
        stage2 *= math.sqrt(b2 / effort.default_b2(int(b1)))
    return stage1 + stage2


@lru_cache(maxsize=4096)
def _microseconds(digits: int) -> float:
    # Outside the table its first or last slope goes on.
    segment = int(np.clip(np.searchsorted(PRICED_DIGITS, digits) - 1, 0, len(PRICED_DIGITS) - 2))
    low, high = _LOG_DIGITS[segment : segment + 2]
    start, end = _LOG_MICROSECONDS[segment : segment + 2]
    return float(np.exp(start + (end - start) * (math.log(max(digits, 1)) - low) / (high - low)))


@lru_cache(maxsize=4096)
def expected_factors(digits: int) -> Array:
    """For each d in DIGITS how many prime factors of d digits a number of `digits` digits is expected to have."""
    expected = np.log(DIGITS / (DIGITS - 1))
    expected[digits // 2 < DIGITS] = 0.0
    return read_only(expected)


class _Curves(NamedTuple):
    """The settings to choose from: their B1, B2, effort vectors (one a row) and seconds for each curve."""

    b1: tuple[int, ...]
    b2: int
    effort: Array
    chance: Array


@lru_cache(maxsize=64)
def _curves(b1: tuple[int, ...], b2: int) -> _Curves:
    vectors = np.array([effort.curve_effort(one, b2, PARAMETRIZATION) for one in b1])
    return _Curves(b1, b2, read_only(vectors), read_only(-np.expm1(-vectors)))


@lru_cache(maxsize=4096)
def _prices(b1: tuple[int, ...], b2: int, digits: int) -> Array:
    return read_only(np.array([seconds_per_curve(one, b2, digits) for one in b1]))


def _left(vector: Array, digits: int) -> Array:
    """For each d in DIGITS how many prime factors of d digits are expected still to be found."""
    return expected_factors(digits) * effort.missed(vector)


def value_per_second(vector: Array, digits: int) -> float:
    """Factors expected of one second of the best curves on a number with this effort; 0 when nothing is to be found.

    The number is known to be composite, so what is expected of a number of which anything might be true is divided by
    the chance that there is something to be found at all.
    """
    left = _left(vector, digits)
    certainty = -math.expm1(-float(left.sum()))
    if certainty < SMALLEST_CHANCE:
        return 0.0
    ladder = _curves(B1_LADDER, DEFAULT_B2)
    return float(np.max(ladder.chance @ left / _prices(B1_LADDER, DEFAULT_B2, digits))) / certainty


def plan_curves(vector: Array, digits: int, target: float, wish: PlanRequest) -> Plan | None:
    """The best next curves for a number, as many as are wished for and wanted; None if it is at its target already.

    `vector` should have everything in it that is done, or out on lease. In two steps:

    1. B1 is the one that brings most for its price over the `least` seconds that a lease lasts: on a number that is
       fresh that passes over the smallest ones, whose curves would be over before the lease is written;
    2. it is kept until another B1 of the ladder becomes better, for `most` seconds, or until the target is reached.

    A number of which nothing is expected any more within half its digits still gets what its target asks for.
    """
    if effort.t_level(vector) >= target:
        return None
    choices = (wish.b1,) if wish.b1 else B1_LADDER
    curves = _curves(choices, wish.b2)
    prices = _prices(choices, wish.b2, digits)
    left = _left(vector, digits)
    least = np.maximum(1.0, wish.least * wish.speed / prices)
    for i in np.flatnonzero(_reaches(vector + least[:, None] * curves.effort, target)):
        least[i] = min(least[i], _curves_needed(vector, target, choices[i], wish.b2))
    found = (-np.expm1(-least[:, None] * curves.effort)) @ left
    best = int(np.argmax(found / (least * prices)))
    if found[best] <= 0.0:
        best = int(np.argmin([_curves_needed(vector, target, b1, wish.b2) for b1 in choices] * prices))
    needed = _curves_needed(vector, target, choices[best], wish.b2)
    at_most = max(1, int(min(needed, wish.most * wish.speed / prices[best], MAX_CURVES)))
    count = _until_another_is_better(
        vector, curves, prices, digits, best, at_least=max(1, int(least[best])), at_most=at_most
    )
    return Plan(choices[best], wish.b2, PARAMETRIZATION, count, count * float(prices[best]))


def _curves_needed(vector: Array, target: float, b1: int, b2: int) -> float:
    try:
        return float(effort.curves_to_reach(vector, target, b1, b2, PARAMETRIZATION))
    except ValueError:  # no number of such curves reaches the target; they may be the best ones all the same
        return math.inf


def _reaches(vectors: Array, target: float) -> npt.NDArray[np.bool_]:
    """Which of these effort vectors, one a row, are at the target: effort.t_level >= target for all at once."""
    size = max(target, float(DIGITS[0])) - float(DIGITS[0])
    low, high = math.floor(size), math.ceil(size)
    still_missed = effort.missed(vectors[:, [low, high]]) @ (1 - (size - low), size - low)
    return still_missed <= math.exp(-1)


def _until_another_is_better(
    vector: Array, curves: _Curves, prices: Array, digits: int, best: int, *, at_least: int, at_most: int
) -> int:
    """How many curves, from `at_least` to `at_most`, until a larger B1 brings more for its price."""

    def still_best(count: int) -> bool:
        left = _left(vector + count * curves.effort[best], digits)
        return int(np.argmax(curves.chance @ left / prices)) <= best

    if at_least >= at_most or still_best(at_most):
        return at_most
    enough, too_many = at_least, at_most
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        enough, too_many = (middle, too_many) if still_best(middle) else (enough, middle)
    return enough


def p1_b1(target: float) -> int:
    """The B1 for P-1 and P+1: one step of the customary ladder above the one for the target t-level."""
    for step, (level, _) in enumerate(CUSTOMARY_B1):
        if level >= target:
            return CUSTOMARY_B1[min(step + 1, len(CUSTOMARY_B1) - 1)][1]
    return CUSTOMARY_B1[-1][1]
