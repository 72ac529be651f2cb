"""The curves of GMP-ECM modulo a prime: which curve and point a sigma means, the curve's order, the point's order.

Formulas: GMP-ECM's README (parametrizations 0 to 3) and Montgomery 1987 (arithmetic without y). Run as a program
(`python -m coordinator.numbers.elliptic`), this counts the points of one curve with PARI and prints their number. That is a
process of its own because PARI handles signals and memory in its own ways: it can end this one, never its caller.
"""

import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import gmpy2
from gmpy2 import mpz

# PARI's point counting took 2 to 10 s at 70 digits, 0.2 s at 20, and grows with about the fifth power.
MAX_DIGITS = 70
# For one curve: memory that PARI may take beside what Python has, and processor time.
STACK_BYTES = 400_000_000
MEMORY_BYTES = 2_000_000_000
SECONDS = 120

MISSING = 3  # the exit code that says that there is no cypari


class NoCurveError(Exception):
    """This sigma means no elliptic curve modulo this prime; the message says why."""


class PariMissingError(Exception):
    """cypari, of the extra `analysis`, is not installed."""


class Curve(NamedTuple):
    """b y^2 = x^3 + a x^2 + x modulo p, and the x of the point that a run begins with, whose y is 1."""

    p: mpz
    a: mpz
    b: mpz
    x: mpz


def curve(p: mpz, sigma: int, parametrization: int) -> Curve:
    """The curve and starting point of a sigma, modulo the prime `p`. Raises NoCurve."""
    if p < 5:
        raise NoCurveError("there is no such curve modulo 2 and 3")
    try:
        a, x = _suyama(p, mpz(sigma)) if parametrization == 0 else _with_x_2(p, mpz(sigma), parametrization)
    except ZeroDivisionError:
        raise NoCurveError("sigma means no curve modulo this factor") from None
    a, x = a % p, x % p
    b = x * (x * (x + a) + 1) % p
    if b == 0 or (a * a - 4) % p == 0:
        raise NoCurveError("the curve is singular modulo this factor")
    return Curve(p, a, b, x)


def _suyama(p: mpz, sigma: mpz) -> tuple[mpz, mpz]:
    u, v = (sigma * sigma - 5) % p, 4 * sigma % p
    a = (v - u) ** 3 * (3 * u + v) * gmpy2.invert(4 * u**3 * v, p) - 2
    return a, (u * gmpy2.invert(v, p)) ** 3


def _with_x_2(p: mpz, sigma: mpz, parametrization: int) -> tuple[mpz, mpz]:
    # For 2, effort.md has the inverse of our b: the same curve but for a square.
    if parametrization == 1:
        return 4 * sigma**2 * gmpy2.invert(mpz(2) ** 64, p) - 2, mpz(2)
    if parametrization == 3:
        return 4 * sigma * gmpy2.invert(mpz(2) ** 32, p) - 2, mpz(2)
    x, y = _multiple_of_minus_3_3(p, sigma)
    t = (3 * x + y + 6) * gmpy2.invert(2 * (y - 3), p)
    return -(3 * t**4 + 6 * t**2 - 1) * gmpy2.invert(4 * t**3, p), mpz(2)


def _multiple_of_minus_3_3(p: mpz, times: mpz) -> tuple[mpz, mpz]:
    """`times` (-3, 3) on y^2 = x^3 + 36 modulo p. Raises ZeroDivisionError if it passes through infinity."""
    if times < 1:
        raise ZeroDivisionError
    start = x, y = mpz(-3), mpz(3)
    for bit in times.digits(2)[1:]:
        slope = 3 * x * x * gmpy2.invert(2 * y, p)
        x, y = _third_point(p, slope, x, y, x)
        if bit == "1":
            slope = (y - start[1]) * gmpy2.invert(x - start[0], p)
            x, y = _third_point(p, slope, x, y, start[0])
    return x, y


def _third_point(p: mpz, slope: mpz, x: mpz, y: mpz, other_x: mpz) -> tuple[mpz, mpz]:
    third = (slope * slope - x - other_x) % p
    return third, (slope * (x - third) - y) % p


def curve_order(found: Curve) -> mpz:
    """How many points the curve has: counted by PARI in a process of its own, and proved on the starting point.

    Raises NoPari; TimeoutError after SECONDS; ArithmeticError if PARI fails or its answer does not stand the proof;
    ValueError for more than MOST_DIGITS digits, which could take for ever.
    """
    if found.p >= mpz(10) ** MAX_DIGITS:
        raise ValueError(f"a curve modulo {found.p.num_digits(10)} digits is not counted; at most {MAX_DIGITS} are")
    try:
        ended = subprocess.run(
            [sys.executable, "-m", __name__, *(f"{value:d}" for value in found[:3])],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"PARI took more than {SECONDS} s") from None
    if ended.returncode == MISSING:
        raise PariMissingError("cypari is not installed")
    if ended.returncode or not ended.stdout.strip().isdigit():
        why = ended.stderr.strip().rpartition("\n")[2] or f"it ended with {ended.returncode}"
        raise ArithmeticError(f"PARI counted no points: {why}")
    order = mpz(ended.stdout.strip())
    # Hasse's bound leaves hardly any other number that takes the point to infinity.
    if (order - found.p - 1) ** 2 > 4 * found.p or not vanishes(found, order):
        raise ArithmeticError(f"PARI's {order:d} is not the order of the curve modulo {found.p:d}")
    return order


def point_order(found: Curve, order: dict[mpz, int]) -> dict[mpz, int]:
    """The starting point's order, factored, from the curve's: a divisor of it, and all that a run has to remove."""
    left = dict(order)
    whole = mpz(1)
    for prime, count in order.items():
        whole *= prime**count
    for prime, count in order.items():
        for _ in range(count):
            if not vanishes(found, whole // prime):
                break
            whole //= prime
            left[prime] -= 1
    return {prime: count for prime, count in left.items() if count}


def vanishes(found: Curve, times: mpz) -> bool:
    """Whether `times` the starting point is the point at infinity: Montgomery's ladder on (x : z)."""
    p, a, _, x = found
    quarter = (a + 2) * gmpy2.invert(4, p) % p
    low, high = (mpz(1), mpz(0)), (x, mpz(1))  # k times and k + 1 times the point, from k = 0 on
    for bit in times.digits(2):
        (x1, z1), (x2, z2) = low, high
        plus, minus = x1 + z1, x1 - z1
        cross, other = (x2 - z2) * plus, (x2 + z2) * minus
        added = (cross + other) ** 2 % p, x * (cross - other) ** 2 % p
        twice = high if bit == "1" else low
        squares = (twice[0] + twice[1]) ** 2 % p, (twice[0] - twice[1]) ** 2 % p
        difference = squares[0] - squares[1]
        doubled = squares[0] * squares[1] % p, difference * (squares[1] + quarter * difference) % p
        low, high = (added, doubled) if bit == "1" else (doubled, added)
    return low[1] % p == 0


def _main() -> int:
    p, a, b = map(int, sys.argv[1:])
    try:
        from cypari import pari
    except ImportError:
        return MISSING
    # Also if whoever waits for this dies: it ends by itself.
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    pari.allocatemem(STACK_BYTES, silent=True)
    # b y^2 = x^3 + a x^2 + x, times b^3, in b x and b^2 y.
    print(pari(f"ellcard(ellinit([0, {a * b % p}, 0, {b * b % p}, 0], {p}))"))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
