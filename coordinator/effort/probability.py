"""The chance that one curve finds a prime factor of d digits, by GMP-ECM's method.

The order of a curve modulo a factor p is treated as a random integer near Neff, which is p reduced by the extra
smoothness of the parametrization's torsion and of Suyama's curves. A curve finds p in stage 1 when that integer is
B1-smooth, in stage 2 when it is B1-smooth but for one prime up to B2, and through the Brent-Suyama extension when that
one prime lies above B2 and stage 2's polynomial happens to meet it. Sources: A. Kruppa, *Speeding up Integer
Multiplication and Factorization* (2010), eq. 5.6 and 5.10; E. Bach and R. Peralta (1996); GMP-ECM's README. More in
docs/effort.md.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from coordinator.effort.arrays import DIGITS, Array, read_only
from coordinator.effort.dickman import GRID, LARGEST_U, refined_share, smooth_share
from coordinator.effort.stage2 import (
    Stage2Plan,
    brent_suyama_multipliers,
    checked_bounds,
    checked_parametrization,
    stage2_plan,
)

LARGEST_PROBABILITY = 1 - 2.0**-53  # keeps -log(1 - p) finite
SUYAMA_SMOOTHNESS = 3.134  # in nats: a random integer as smooth as a Suyama curve's order is this much smaller than p
# By parametrization: the order behaves like one that is larger by this factor than on Suyama's curves, because the
# torsion group is smaller.
TORSION_FACTORS = (1.0, 2 ** (1 / 3) / (3 * 3 ** (1 / 128)), 1.0, 1 / (3 * 3 ** (1 / 128)))
SMALL_PRIMES_END = 20_000  # the primes of stage 2 up to here are summed one by one: an integral would be too coarse
COMPARED_RATIO = 10_000  # of B2 to B1
NEGLIGIBLE = 20.0  # the extension's integrand counts as 0 when it is this many nats below its peak
RHO_DECAY = 3.7  # rho falls by at most this many nats from t to t + 1, for t up to 10

ROW = LARGEST_U * GRID + 1  # grid points from 0 to 10

IndexArray = npt.NDArray[np.signedinteger]
Multipliers = tuple[tuple[int, float], ...]  # as brent_suyama_multipliers gives them


class Orders(NamedTuple):
    """Values for the 91 digit sizes that depend only on the parametrization."""

    log_n: Array  # log Neff
    share: Array  # refined_share(t, Neff) for t = 10, 10 - 1/256, ... 0, size after size in one line, and some zeros


class Interval(NamedTuple):
    """The integration bounds for some of the 91 digit sizes."""

    sizes: IndexArray  # which of the 91
    begin: Array
    end: Array
    first: IndexArray  # the grid points next to both ends and between them
    last: IndexArray


def _orders(torsion_factor: float) -> Orders:
    log_n = np.asarray((DIGITS - 0.5) * math.log(10) - math.log(torsion_factor) - SUYAMA_SMOOTHNESS)
    downward = refined_share(log_n)[:, ::-1]
    return Orders(read_only(log_n), read_only(np.append(downward.ravel(), np.zeros(ROW))))


# By torsion factor, 2 MB each. They are computed at import, so that no result waits for them.
_ORDERS = {factor: _orders(factor) for factor in set(TORSION_FACTORS)}


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
    """Return p(d) for d = 10 ... 100: the chance that one curve finds a factor of d digits if there is one. Read-only.

    `b2`: None or -1 for GMP-ECM's default, 0 or anything up to B1 for stage 1 only. ValueError outside `models.limits`.
    """
    b1, b2 = checked_bounds(b1, b2)
    orders = _ORDERS[TORSION_FACTORS[checked_parametrization(parametrization)]]
    plan = stage2_plan(b1, b2)
    log_b1 = math.log(b1)
    alpha = orders.log_n / log_b1
    chance = smooth_share(alpha, log_b1)
    if plan.b2 > b1:
        chance += _stage2(orders, alpha, b1, plan.b2)
        chance += _extension(orders, alpha, log_b1, plan)
    chance = np.clip(chance, 0.0, LARGEST_PROBABILITY)
    chance[alpha <= 1] = LARGEST_PROBABILITY
    return read_only(chance)


@lru_cache(maxsize=4096)
def curve_effort(b1: float, b2: float | None, parametrization: int) -> Array:
    """Return -log(1 - p(d)) for d = 10 ... 100, which one curve adds to a vector. Read-only; arguments as above."""
    return read_only(-np.log1p(-success_probability(b1, b2, parametrization)))


def _stage2(orders: Orders, alpha: Array, b1: int, b2: int) -> Array:
    """Return the chance that one prime of the order lies in (B1, B2] and the rest is B1-smooth."""
    log_b1, log_b2 = math.log(b1), math.log(b2)
    if b1 >= SMALL_PRIMES_END:
        return _almost_smooth(orders, alpha, 1.0, log_b2 / log_b1)
    chance = _small_prime_sum(orders, alpha, b1, min(b2, SMALL_PRIMES_END))
    if b2 > SMALL_PRIMES_END:
        # GMP-ECM measures the larger primes in units of log 20000 instead of log B1. That makes its estimate fall when
        # B2 is far beyond any real one, so this code follows it only in the range that was compared with its table.
        compared = max(COMPARED_RATIO * b1, SMALL_PRIMES_END)
        beta = math.log(min(b2, compared)) / math.log(SMALL_PRIMES_END)
        chance += _almost_smooth(orders, alpha, 1.0, beta)
        if b2 > compared:
            chance += _almost_smooth(orders, alpha, math.log(compared) / log_b1, log_b2 / log_b1)
    return chance


def _small_prime_sum(orders: Orders, alpha: Array, b1: int, end: int) -> Array:
    """Return the chance of `_stage2` for the primes in (B1, end], summed one by one."""
    between = slice(*np.searchsorted(_PRIMES, [b1, end], side="right"))
    primes, log_primes = _PRIMES[between], _LOG_PRIMES[between]
    chance = np.zeros_like(alpha)
    if primes.size:
        log_b1 = math.log(b1)
        # Such a small B1 reaches few sizes: the cofactors of the others lie beyond the end of rho's table.
        near = np.flatnonzero(alpha <= LARGEST_U + log_primes[-1] / log_b1)
        log_cofactor = orders.log_n[near, None] - log_primes
        chance[near] = smooth_share(log_cofactor / log_b1, log_b1) @ (1 / primes)
    return chance


def _almost_smooth(orders: Orders, alpha: Array, beta1: float, beta2: float) -> Array:
    """Return the integral of refined_share(t, Neff) / (alpha - t) over t from alpha - beta2 to alpha - beta1."""
    chance = np.zeros_like(alpha)
    interval = _interval(alpha - beta2, alpha - beta1)
    alpha = alpha[interval.sizes]
    shares = _weighted_shares(orders, interval)
    log_primes = (alpha - interval.last / GRID)[:, None] + np.arange(shares.shape[1]) / GRID
    inside = np.einsum("ij,ij->i", shares, 1 / log_primes) / GRID
    chance[interval.sizes] = inside + _ends(orders, alpha, interval)
    return chance


def _extension(orders: Orders, alpha: Array, log_b1: float, plan: Stage2Plan) -> Array:
    """Return the chance that the one prime lies above B2 and that Brent and Suyama's polynomial meets it.

    The integrand is that of stage 2 times the chance that the polynomial meets a prime of size B1^s, s = alpha - t.
    """
    chance = np.zeros_like(alpha)
    multipliers = brent_suyama_multipliers(plan.S)
    if not multipliers:
        return chance
    beta = math.log(plan.b2) / log_b1
    pairs = float(plan.dF) ** 2 * plan.k
    largest, _ = multipliers[-1]
    # The polynomial meets primes beyond B1^furthest with a chance below 2^-53, which GMP-ECM ignores too.
    furthest = (math.log(largest * pairs) + 53 * math.log(2)) / log_b1
    interval = _interval(np.zeros_like(alpha), np.where(alpha - LARGEST_U < furthest, alpha - beta, 0.0))
    if not interval.sizes.size:
        return chance
    # One unit of t below the end, the integrand is smaller by log B1 nats and larger by at most RHO_DECAY (after a
    # range in which the polynomial meets every prime). Anything below `depth` is lost in rounding.
    depth = (NEGLIGIBLE + math.log1p(largest * pairs / plan.b2)) / max(log_b1 - RHO_DECAY, 0.1)
    interval = interval._replace(first=np.maximum(interval.last - math.ceil(depth * GRID), 0))
    interval = interval._replace(begin=interval.first / GRID)
    alpha = alpha[interval.sizes]
    inside = _met(_weighted_shares(orders, interval), alpha - interval.last / GRID, log_b1, pairs, multipliers)
    # GMP-ECM counts the piece between the grid and alpha - beta as if the polynomial met every prime there. It is
    # worth up to 1.5 % of p, and without it GMP-ECM's table is missed by as much.
    chance[interval.sizes] = inside / GRID + _ends(orders, alpha, interval)
    return chance


def _met(shares: Array, s: Array, log_b1: float, pairs: float, multipliers: Multipliers) -> Array:
    """Return for each row the sum of its shares times (the chance that the polynomial meets a prime of size B1^s) / s.

    `s` belongs to a row's first share and grows by 1/256 from share to share. The factor depends only on s, so one
    table in steps of 1/256 serves every row. A row's s lies between its points; the cubic through four points is exact
    to 1e-5 even at B1 = 1e14.
    """
    nearest = s * GRID
    left = np.floor(nearest).astype(np.intp)
    base = int(left.min()) - 1
    columns = shares.shape[1]
    steps = np.arange(base, int(left.max()) + columns + 2)
    expected = pairs * np.exp(-steps / GRID * log_b1)
    table = sum(share * -np.expm1(-m * expected) for m, share in multipliers) / (steps / GRID)
    rows = sliding_window_view(table, columns + 3)[left - base - 1]
    x = nearest - left
    cubic = (
        -x * (x - 1) * (x - 2) / 6,
        (x + 1) * (x - 1) * (x - 2) / 2,
        -(x + 1) * x * (x - 2) / 2,
        (x + 1) * x * (x - 1) / 6,
    )
    sums = np.zeros_like(s)
    for point, weight in enumerate(cubic):
        sums += weight * np.einsum("ij,ij->i", shares, rows[:, point : point + columns])
    return sums


def _interval(begin: Array, end: Array) -> Interval:
    """Return the interval from `begin` to `end`, cut to [0, 10], for the sizes for which it is not empty."""
    begin, end = np.maximum(begin, 0.0), np.minimum(end, LARGEST_U)
    sizes = np.flatnonzero(end > begin)
    begin, end = begin[sizes], end[sizes]
    return Interval(sizes, begin, end, np.ceil(begin * GRID).astype(np.intp), np.floor(end * GRID).astype(np.intp))


def _weighted_shares(orders: Orders, interval: Interval) -> Array:
    """Return refined_share times the trapezoid rule's weights (in grid steps), from `last` down, a row for each size.

    The grid of 1/256 in t is GMP-ECM's. A finer rule would not reproduce its digits.
    """
    steps = interval.last - interval.first
    columns = int(steps.max(initial=0)) + 1
    start = interval.sizes * ROW + (ROW - 1 - interval.last)
    shares: Array = sliding_window_view(orders.share, columns)[start]
    shares[:, 0] /= 2
    shares[np.arange(steps.size), np.maximum(steps, 0)] /= 2
    shorter = np.flatnonzero(steps < columns - 1)
    shares[shorter] *= np.arange(columns) <= steps[shorter, None]
    shares[steps <= 0] = 0.0
    return shares


def _ends(orders: Orders, alpha: Array, interval: Interval) -> Array:
    """Return the integral of refined_share(t, Neff) / (alpha - t) between the bounds and the grid, by trapezoids."""
    row_ends = interval.sizes * ROW + ROW - 1

    def density(position: npt.NDArray[Any]) -> Array:
        """Return the integrand at t = position / 256, linear between grid points."""
        left = np.minimum(position.astype(np.intp), ROW - 2)
        here, above = orders.share[row_ends - left], orders.share[row_ends - left - 1]
        return (here + (position - left) * (above - here)) / (alpha - position / GRID)

    begin, end = interval.begin * GRID, interval.end * GRID
    at_begin, at_end = density(begin), density(end)
    before = (interval.first - begin) * (at_begin + density(interval.first))
    after = (end - interval.last) * (at_end + density(interval.last))
    within_one_step = (end - begin) * (at_begin + at_end)
    return np.where(interval.first > interval.last, within_one_step, before + after) / (2 * GRID)
