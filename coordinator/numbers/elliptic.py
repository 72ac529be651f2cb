"""The curves of GMP-ECM modulo a prime: the curve and starting point of a sigma, and the orders of both.

Formulas: GMP-ECM's README (parametrizations 0 to 3) and Montgomery 1987 (arithmetic without y). As a program
(`python -m coordinator.numbers.elliptic`) this module counts the points of one curve with PARI and prints the number.
PARI runs in a process of its own because it handles signals and memory in its own ways and can crash that process.
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
# Limits for one curve: PARI's stack, the process's address space, and its processor time.
STACK_BYTES = 400_000_000
MEMORY_BYTES = 2_000_000_000
SECONDS = 120

# The other process starts in the directory that `coordinator` is in: in `coordinator` itself, the package `numbers`
# would take the place of the standard library's module.
PROGRAM_DIRECTORY = Path(__file__).parents[2]
MISSING = 3  # exit code: cypari is not installed


class NoCurveError(Exception):
    """This sigma gives no elliptic curve modulo this prime; the message has the reason."""


class PariMissingError(Exception):
    """cypari (the extra `analysis`) is not installed."""


class Curve(NamedTuple):
    """The curve b y^2 = x^3 + a x^2 + x modulo p, and the x of the starting point of a run, whose y is 1."""

    p: mpz
    a: mpz
    b: mpz
    x: mpz


def curve(p: mpz, sigma: int, parametrization: int) -> Curve:
    """The curve and starting point of a sigma, modulo the prime `p`. Raises NoCurveError."""
    if p < 5:
        raise NoCurveError("there are no such curves modulo 2 and 3")
    try:
        a, x = _suyama(p, mpz(sigma)) if parametrization == 0 else _with_x_2(p, mpz(sigma), parametrization)
    except ZeroDivisionError:
        raise NoCurveError("sigma gives no curve modulo this factor") from None
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
    # For parametrization 2, effort.md has the inverse of our b, which gives the same curve up to a square.
    if parametrization == 1:
        return 4 * sigma**2 * gmpy2.invert(mpz(2) ** 64, p) - 2, mpz(2)
    if parametrization == 3:
        return 4 * sigma * gmpy2.invert(mpz(2) ** 32, p) - 2, mpz(2)
    x, y = _multiple_of_minus_3_3(p, sigma)
    t = (3 * x + y + 6) * gmpy2.invert(2 * (y - 3), p)
    return -(3 * t**4 + 6 * t**2 - 1) * gmpy2.invert(4 * t**3, p), mpz(2)


def _multiple_of_minus_3_3(p: mpz, times: mpz) -> tuple[mpz, mpz]:
    """The point `times` (-3, 3) on y^2 = x^3 + 36 modulo p. Raises ZeroDivisionError if a step meets infinity."""
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


def curve_order(start: Curve) -> mpz:
    """The number of points of a curve, counted by PARI in another process and verified with the starting point.

    Raises PariMissingError; TimeoutError after SECONDS; ArithmeticError if PARI fails or its count is wrong; ValueError
    for a prime of more than MAX_DIGITS digits, which could take for ever.
    """
    if start.p >= mpz(10) ** MAX_DIGITS:
        raise ValueError(f"a curve modulo {start.p.num_digits(10)} digits is not counted; at most {MAX_DIGITS} are")
    try:
        process = subprocess.run(
            [sys.executable, "-m", __name__, *(f"{value:d}" for value in start[:3])],
            cwd=PROGRAM_DIRECTORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"PARI took more than {SECONDS} s") from None
    if process.returncode == MISSING:
        raise PariMissingError("cypari is not installed")
    if process.returncode or not process.stdout.strip().isdigit():
        reason = process.stderr.strip().rpartition("\n")[2] or f"it exited with {process.returncode}"
        raise ArithmeticError(f"PARI counted no points: {reason}")
    order = mpz(process.stdout.strip())
    # Hardly any other number within Hasse's bound takes the point to infinity.
    if (order - start.p - 1) ** 2 > 4 * start.p or not vanishes(start, order):
        raise ArithmeticError(f"PARI's {order:d} is not the order of the curve modulo {start.p:d}")
    return order


def point_order(start: Curve, order: dict[mpz, int]) -> dict[mpz, int]:
    """The order of the starting point, factored, from that of the curve.

    A run finds the prime if its bounds cover this order.
    """
    exponents = dict(order)
    multiple = mpz(1)
    for prime, count in order.items():
        multiple *= prime**count
    for prime, count in order.items():
        for _ in range(count):
            if not vanishes(start, multiple // prime):
                break
            multiple //= prime
            exponents[prime] -= 1
    return {prime: count for prime, count in exponents.items() if count}


def vanishes(start: Curve, times: mpz) -> bool:
    """Whether `times` the starting point is the point at infinity, by Montgomery's ladder on (x : z)."""
    p, a, _, x = start
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
    return bool(low[1] % p == 0)


def _main() -> int:
    p, a, b = map(int, sys.argv[1:])
    try:
        from cypari import pari
    except ImportError:
        return MISSING
    # The limit also ends this process after its caller has died.
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    pari.allocatemem(STACK_BYTES, silent=True)
    # The equation b y^2 = x^3 + a x^2 + x times b^3, in the variables b x and b^2 y.
    print(pari(f"ellcard(ellinit([0, {a * b % p}, 0, {b * b % p}, 0], {p}))"))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
