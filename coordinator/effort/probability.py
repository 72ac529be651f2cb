"""The chance that one curve finds a prime factor of d digits, estimated as GMP-ECM estimates it.

The order of a curve modulo a factor p is taken for a random integer near Neff: p itself, less the smoothness that the
parametrization's torsion and Suyama's curves bring. A curve finds p in stage 1 when that integer is B1-smooth, in
stage 2 when it is B1-smooth but for one prime up to B2, and through the Brent-Suyama extension when that one prime
lies above B2 and stage 2's polynomial happens to meet it. Sources: A. Kruppa, *Speeding up Integer Multiplication and
Factorization* (2010), eq. 5.6 and 5.10; E. Bach and R. Peralta (1996); GMP-ECM's README. docs/effort.md tells the rest.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from coordinator.effort.arrays import DIGITS, Array, read_only
from coordinator.effort.dickman import GRID, LARGEST_U, refined_share, refined_share_on_grid, smooth_share
from coordinator.effort.stage2 import (
    Stage2Plan,
    brent_suyama_multipliers,
    checked_bounds,
    checked_parametrization,
    stage2_plan,
)

LARGEST_PROBABILITY = 1 - 2.0**-53  # keeps -log(1 - p) finite
SUYAMA_SMOOTHNESS = 3.134  # in nats: how much smaller than p an integer as smooth as a Suyama curve's order is
# How much larger than on Suyama's curves the order acts on the others, whose torsion group is smaller.
TORSION_FACTORS = (1.0, 2 ** (1 / 3) / (3 * 3 ** (1 / 128)), 1.0, 1 / (3 * 3 ** (1 / 128)))
SMALL_PRIMES_END = 20_000  # up to here stage 2's primes are summed one by one, where an integral would be too coarse
NEGLIGIBLE = 45.0  # nats below its peak at which the extension's integrand, 25 nats of rho's fall included, is dropped

Kernel = Callable[[Array, int], Array]


class Orders(NamedTuple):
    """What depends on the parametrization alone, for the 91 digit sizes."""

    log_n: Array  # log Neff
    share: Array  # (91, 2561): refined_share(i / 256, Neff)


@lru_cache(maxsize=8)
def _orders(torsion_factor: float) -> Orders:
    log_n = (DIGITS - 0.5) * math.log(10) - math.log(torsion_factor) - SUYAMA_SMOOTHNESS
    return Orders(read_only(log_n), read_only(refined_share_on_grid(log_n)))


def _small_primes() -> Array:
    sieve = np.ones(SMALL_PRIMES_END + 1, dtype=bool)
    sieve[:2] = False
    for i in range(2, math.isqrt(SMALL_PRIMES_END) + 1):
        sieve[i * i :: i] = False
    return np.flatnonzero(sieve).astype(np.float64)


_PRIMES = read_only(_small_primes())
_LOG_PRIMES = read_only(np.log(_PRIMES))


@lru_cache(maxsize=4096)
def success_probability(b1: float, b2: float | None, parametrization: int) -> Array:
    """p(d) for d = 10 ... 100: the chance that one curve finds a factor of d digits if there is one. Read-only.

    `b2`: None or -1 for GMP-ECM's default, 0 or anything up to B1 for stage 1 only. ValueError outside `models.limits`.
    """
    b1, b2 = checked_bounds(b1, b2)
    orders = _orders(TORSION_FACTORS[checked_parametrization(parametrization)])
    plan = stage2_plan(b1, b2)
    log_b1 = math.log(b1)
    alpha = orders.log_n / log_b1
    chance = smooth_share(alpha, orders.log_n)
    if plan.b2 > b1:
        chance += _stage2(orders, alpha, b1, plan.b2)
        chance += _extension(orders, alpha, log_b1, plan)
    chance = np.clip(chance, 0.0, LARGEST_PROBABILITY)
    chance[alpha <= 1] = LARGEST_PROBABILITY
    return read_only(chance)


@lru_cache(maxsize=4096)
def curve_effort(b1: float, b2: float | None, parametrization: int) -> Array:
    """-log(1 - p(d)) for d = 10 ... 100: what one curve adds to an effort vector. Read-only, arguments as above."""
    return read_only(-np.log1p(-success_probability(b1, b2, parametrization)))


def _stage2(orders: Orders, alpha: Array, b1: int, b2: int) -> Array:
    """The chance that one prime of the order lies in (B1, B2] and the rest is B1-smooth."""
    if b1 >= SMALL_PRIMES_END:
        beta = math.log(b2) / math.log(b1)
        return _integral(orders, alpha, alpha - beta, alpha - 1, _reciprocal)
    chance = _small_prime_sum(orders, alpha, b1, min(b2, SMALL_PRIMES_END))
    if b2 > SMALL_PRIMES_END:
        beta = math.log(b2) / math.log(SMALL_PRIMES_END)
        chance += _integral(orders, alpha, alpha - beta, alpha - 1, _reciprocal)
    return chance


def _small_prime_sum(orders: Orders, alpha: Array, b1: int, end: int) -> Array:
    """The same chance for the primes in (B1, end], each on its own."""
    between = slice(*np.searchsorted(_PRIMES, [b1, end], side="right"))
    primes, log_primes = _PRIMES[between], _LOG_PRIMES[between]
    chance = np.zeros_like(alpha)
    if primes.size:
        log_b1 = math.log(b1)
        # Most sizes are out of reach of so small a B1: their cofactors lie beyond the end of rho's table.
        near = np.flatnonzero(alpha <= LARGEST_U + log_primes[-1] / log_b1)
        log_cofactor = orders.log_n[near, None] - log_primes
        chance[near] = smooth_share(log_cofactor / log_b1, log_cofactor) @ (1 / primes)
    return chance


def _extension(orders: Orders, alpha: Array, log_b1: float, plan: Stage2Plan) -> Array:
    """The chance that the one prime lies above B2 and Brent and Suyama's polynomial meets it all the same."""
    multipliers = brent_suyama_multipliers(plan.S)
    if not multipliers:
        return np.zeros_like(alpha)
    beta = math.log(plan.b2) / log_b1
    pairs = float(plan.dF) ** 2 * plan.k
    end = np.minimum(alpha - beta, LARGEST_U)
    # From `end` down the integrand falls like B1^-t (after a stretch where the polynomial meets every prime), so
    # what lies further below than this is lost in rounding.
    depth = (NEGLIGIBLE + math.log1p(multipliers[-1][0] * pairs / plan.b2)) / log_b1
    begin = np.maximum(end - depth, 0.0)
    furthest = float(np.max(np.where(end > 0, alpha - begin, beta)))
    return _integral(orders, alpha, begin, end, _met_above(beta, furthest, log_b1, pairs, multipliers))


def _met_above(
    beta: float, furthest: float, log_b1: float, pairs: float, multipliers: tuple[tuple[int, float], ...]
) -> Kernel:
    """The kernel (chance that the polynomial meets a prime of size B1^s) / s, tabulated once for s in [beta, furthest].

    It depends on s alone, so 91 sizes can share one table; cubic interpolation in steps of 1/256 is exact to 1e-5 even
    at B1 = 1e14, and takes a sixth of the time of the exponentials.
    """
    base = math.floor(beta * GRID) - 1
    steps = np.arange(base, math.ceil(furthest * GRID) + 4)
    expected = pairs * np.exp(-steps / GRID * log_b1)
    table = sum(share * -np.expm1(-m * expected) for m, share in multipliers) / (steps / GRID)

    def kernel(first: Array, count: int) -> Array:
        position = first * GRID - base
        left = np.clip(np.floor(position).astype(np.intp), 1, table.size - 3)
        x = (position - left)[:, None]
        wide = np.append(table, np.zeros(count))
        rows = sliding_window_view(wide, count)
        return (
            rows[left - 1] * (-x * (x - 1) * (x - 2) / 6)
            + rows[left] * ((x + 1) * (x - 1) * (x - 2) / 2)
            - rows[left + 1] * ((x + 1) * x * (x - 2) / 2)
            + rows[left + 2] * ((x + 1) * x * (x - 1) / 6)
        )

    return kernel


def _reciprocal(first: Array, count: int) -> Array:
    """The kernel 1 / s: how dense the primes of size B1^s are, in s."""
    return 1 / (first[:, None] + np.arange(count) / GRID)


def _integral(orders: Orders, alpha: Array, begin: Array, end: Array, kernel: Kernel) -> Array:
    """The integral of refined_share(t, Neff) * kernel(alpha - t) over t from `begin` to `end`, for each digit size.

    By the trapezoid rule on the grid of 1/256 in t, with what is left over at both ends as trapezoids of their own:
    that, not a finer rule, is what reproduces GMP-ECM's digits. The range is cut to [0, 10]; an empty one gives 0.
    `kernel(s, n)` gives the kernel at s, s + 1/256, ... (n columns) for each row's s > 0.
    """
    total = np.zeros_like(alpha)
    sizes = np.flatnonzero(np.minimum(end, LARGEST_U) > np.maximum(begin, 0.0))
    if not sizes.size:
        return total
    alpha, log_n = alpha[sizes], orders.log_n[sizes]
    begin, end = np.maximum(begin[sizes], 0.0), np.minimum(end[sizes], LARGEST_U)
    first, last = np.ceil(begin * GRID).astype(np.intp), np.floor(end * GRID).astype(np.intp)

    def integrand(t: Array) -> Array:
        return refined_share(t, log_n) * kernel(alpha - t, 1)[:, 0]

    at_begin, at_end = integrand(begin), integrand(end)
    # Walk down from `last`, so that s grows along a row.
    count = int(np.max(last - first)) + 1
    columns = last[:, None] - np.arange(count)
    values = orders.share[sizes[:, None], np.maximum(columns, 0)] * kernel(alpha - last / GRID, count)
    values[columns < first[:, None]] = 0.0
    rows = np.arange(sizes.size)
    at_first, at_last = values[rows, np.clip(last - first, 0, count - 1)], values[:, 0]
    on_grid = (values.sum(axis=1) - (at_first + at_last) / 2) / GRID
    ends = (first / GRID - begin) * (at_begin + at_first) / 2 + (end - last / GRID) * (at_end + at_last) / 2
    within_one_step = (end - begin) * (at_begin + at_end) / 2
    total[sizes] = np.where(first > last, within_one_step, on_grid + ends)
    return total
