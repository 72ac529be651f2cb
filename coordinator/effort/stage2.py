"""GMP-ECM's stage-2 plan: the points, blocks and polynomial of stage 2 for a (B1, B2)."""

import math
from functools import lru_cache
from typing import NamedTuple

from models.limits import DEFAULT_B2, MAX_B1, MAX_B2, MIN_B1, PARAMETRIZATIONS, STAGE1_ONLY

MAX_BLOCKS = 6
STEP_WIDTHS = (
    *(12, 30, 60, 120, 240, 510, 1020, 2310, 4620, 9240, 19110, 39270, 79170, 158340, 324870, 690690, 1345890),
    *(2852850, 5705700, 11741730, 23130030, 48498450, 96996900),
)
# (length of the stage-2 interval, polynomial used below that length)
POLYNOMIALS = ((10**7, 1), (10**8, 2), (10**9, -3), (10**10, -6), (3 * 10**11, -12))
LONGEST_POLYNOMIAL = -30


class Stage2Plan(NamedTuple):
    """k blocks of dF points each, the Brent-Suyama polynomial S, and the effective bound b2, in GMP-ECM's names.

    S > 0 means x^S, S < 0 Dickson's polynomial of degree -S. Stage 1 only is (0, 0, 1, 0).
    """

    dF: int
    k: int
    S: int
    b2: int

    @property
    def polynomial(self) -> str:
        """Return the polynomial as GMP-ECM prints it: x^1, x^2, Dickson(6)."""
        return f"x^{self.S}" if self.S > 0 else f"Dickson({-self.S})"


def checked_integer(value: float, name: str, smallest: int, largest: int) -> int:
    """Return `value` as an int (11e6 is accepted). Raises ValueError, which names it and the range."""
    try:
        integer = int(value)
    except (TypeError, ValueError, OverflowError):
        integer = None
    if integer is None or integer != value:
        raise ValueError(f"{name} is {value!r}: it must be a whole number from {smallest:,} to {largest:,}")
    if not smallest <= integer <= largest:
        raise ValueError(f"{name} is {integer:,}: it must be from {smallest:,} to {largest:,}")
    return integer


def checked_bounds(b1: float, b2: float | None) -> tuple[int, int]:
    """Return (B1, B2) in normal form: B2 is -1 for B1's default, 0 for stage 1 only. Raises ValueError."""
    b1 = checked_integer(b1, "B1", MIN_B1, MAX_B1)
    if b2 is None or b2 == DEFAULT_B2:
        return b1, DEFAULT_B2
    b2 = checked_integer(b2, "B2", 0, MAX_B2)
    return b1, b2 if b2 > b1 else STAGE1_ONLY


def checked_parametrization(parametrization: int) -> int:
    """Return GMP-ECM's parametrization as an int, 0 to 3. Raises ValueError."""
    return checked_integer(parametrization, "the parametrization", PARAMETRIZATIONS[0], PARAMETRIZATIONS[-1])


def _points(width: int) -> int:
    """Return the number of points of a block of this width: the least power of two from phi(width) / 2 on."""
    phi, left, prime = width, width, 2
    while left > 1:
        if left % prime == 0:
            phi -= phi // prime
            while left % prime == 0:
                left //= prime
        prime += 1
    return 1 << (phi // 2 - 1).bit_length()


def _second_width(width: int, points: int) -> int:
    """Return d2, the least prime from 5 on that does not divide the width; 1 if it does not fit into the points."""
    for prime in (5, 7, 11, 13, 17, 19, 23):
        if width % prime:
            return prime if prime - 1 <= points else 1
    return 1


_SHAPES = tuple((d1, _points(d1), _second_width(d1, _points(d1))) for d1 in STEP_WIDTHS)


@lru_cache(maxsize=8192)
def stage2_plan(b1: float, b2: float | None = None) -> Stage2Plan:
    """Return the plan that GMP-ECM 7 makes for these bounds, with the B2 that it really reaches.

    `b2`: None or -1 for the default (11/6 B1)^1.43, rounded up to the bound that the plan covers; up to B1, also 0, for
    stage 1 only. Raises ValueError outside `models.limits`.
    """
    b1, b2 = checked_bounds(b1, b2)
    if b2 == STAGE1_ONLY:
        return Stage2Plan(0, 0, 1, STAGE1_ONLY)
    requested = int((11 / 6 * b1) ** 1.43) if b2 == DEFAULT_B2 else b2
    for d1, points, d2 in _SHAPES:
        blocks, first = _blocks(b1, requested, d1, points, d2)
        if blocks <= MAX_BLOCKS:
            break
    reached = _reached(first, blocks * points, d1, d2)
    length = reached - b1
    polynomial = next((S for below, S in POLYNOMIALS if length < below), LONGEST_POLYNOMIAL)
    return Stage2Plan(points, blocks, polynomial, reached if b2 == DEFAULT_B2 else b2)


def _blocks(b1: int, b2: int, d1: int, points: int, d2: int) -> tuple[int, int]:
    """Return (number of blocks of `points` that cover (B1, B2], index of the first multiple of d1 in them)."""
    first = -(((d1 - 1) * d2 - b1) // d1)
    last = (b2 + (d1 - 1) * d2) // d1
    count = last - first + 1
    if d2 > 1:
        count -= last // d2 - first // d2
    return -(-count // points), first


def _reached(first: int, count: int, d1: int, d2: int) -> int:
    """Return the bound that `count` points from index `first` really cover."""
    if d2 > 1:
        quotient, remainder = divmod(count + first - -(-first // d2), d2 - 1)
        last = quotient * d2 + remainder
    else:
        last = first + count - 1
    return (last - d2 + 1) * d1 + d2 - 1


def default_b2(b1: float) -> int:
    """Return the default B2 of GMP-ECM for this B1, as it prints it."""
    return stage2_plan(b1, DEFAULT_B2).b2


def effective_b2(b1: float, b2: float | None) -> int:
    """Return the B2 that GMP-ECM prints for these bounds; 0 for stage 1 only."""
    return stage2_plan(b1, b2).b2


def brent_suyama_multipliers(polynomial: int) -> tuple[tuple[int, float], ...]:
    """Return (m, share) pairs of the polynomial S: in this share of its residues a prime has m more chances to be met.

    Kruppa 2010, chapter 5: f(X) - f(Y) splits over the S-th roots of unity, and a prime gains one chance for each
    factor beyond the linear ones, which stage 2 covers anyway.
    """
    degree = abs(polynomial)
    if polynomial == 1:
        return ()
    residues = range(1, degree + 1 if polynomial < 0 else 2 * degree)
    chances = [
        (math.gcd(i - 1, 2 * degree) + math.gcd(i + 1, 2 * degree) - 4) // 2
        if polynomial < 0
        else math.gcd(i - 1, 2 * degree) - 2
        for i in residues
        if math.gcd(i, 2 * degree) == 1
    ]
    return tuple((m, chances.count(m) / len(chances)) for m in sorted(set(chances)) if m > 0)
