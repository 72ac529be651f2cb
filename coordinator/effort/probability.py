"""The chance that one curve finds a prime factor of d digits, estimated as GMP-ECM estimates it.

The order of a curve modulo a factor p is taken for a random integer near Neff: p itself, less the smoothness that the
parametrization's torsion and Suyama's curves bring. A curve finds p in stage 1 when that integer is B1-smooth, in
stage 2 when it is B1-smooth but for one prime up to B2, and through the Brent-Suyama extension when that one prime
lies above B2 and stage 2's polynomial happens to meet it. Sources: A. Kruppa, *Speeding up Integer Multiplication and
Factorization* (2010), eq. 5.6 and 5.10; E. Bach and R. Peralta (1996); GMP-ECM's README. docs/effort.md tells the rest.
"""

import math
from functools import lru_cache
from typing import NamedTuple

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
SUYAMA_SMOOTHNESS = 3.134  # in nats: how much smaller than p an integer as smooth as a Suyama curve's order is
# How much larger than on Suyama's curves the order acts on the others, whose torsion group is smaller.
TORSION_FACTORS = (1.0, 2 ** (1 / 3) / (3 * 3 ** (1 / 128)), 1.0, 1 / (3 * 3 ** (1 / 128)))
SMALL_PRIMES_END = 20_000  # up to here stage 2's primes are summed one by one, where an integral would be too coarse
COMPARED_RATIO = 10_000  # of B2 to B1
NEGLIGIBLE = 20.0  # nats below its peak at which the extension's integrand is dropped
RHO_DECAY = 3.7  # nats that rho falls by at most from t to t + 1, for t up to 10

ROW = LARGEST_U * GRID + 1  # grid points from 0 to 10

IndexArray = npt.NDArray[np.signedinteger]
Multipliers = tuple[tuple[int, float], ...]  # as brent_suyama_multipliers gives them


class Orders(NamedTuple):
    """What depends on the parametrization alone, for the 91 digit sizes."""

    log_n: Array  # log Neff
    share: Array  # refined_share(t, Neff) for t = 10, 10 - 1/256, ... 0, size after size in one line, and some zeros


class Interval(NamedTuple):
    """Where to integrate, for some of the 91 digit sizes."""

    sizes: IndexArray  # which of the 91
    begin: Array
    end: Array
    first: IndexArray  # the grid points next to both ends and between them
    last: IndexArray


def _orders(torsion_factor: float) -> Orders:
    log_n = np.asarray((DIGITS - 0.5) * math.log(10) - math.log(torsion_factor) - SUYAMA_SMOOTHNESS)
    downward = refined_share(log_n)[:, ::-1]
    return Orders(read_only(log_n), read_only(np.append(downward.ravel(), np.zeros(ROW))))


# By torsion factor, 2 MB each: made at import, so that no result waits for them.
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
    """p(d) for d = 10 ... 100: the chance that one curve finds a factor of d digits if there is one. Read-only.

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
    """-log(1 - p(d)) for d = 10 ... 100: what one curve adds to an effort vector. Read-only, arguments as above."""
    return read_only(-np.log1p(-success_probability(b1, b2, parametrization)))


def _stage2(orders: Orders, alpha: Array, b1: int, b2: int) -> Array:
    """The chance that one prime of the order lies in (B1, B2] and the rest is B1-smooth."""
    log_b1, log_b2 = math.log(b1), math.log(b2)
    if b1 >= SMALL_PRIMES_END:
        return _almost_smooth(orders, alpha, 1.0, log_b2 / log_b1)
    chance = _small_prime_sum(orders, alpha, b1, min(b2, SMALL_PRIMES_END))
    if b2 > SMALL_PRIMES_END:
        # GMP-ECM measures the rest in units of log 20000 and not of log B1. That makes its estimate fall once B2 is
        # far beyond what anyone runs, so it is followed only where its table has been compared.
        compared = max(COMPARED_RATIO * b1, SMALL_PRIMES_END)
        beta = math.log(min(b2, compared)) / math.log(SMALL_PRIMES_END)
        chance += _almost_smooth(orders, alpha, 1.0, beta)
        if b2 > compared:
            chance += _almost_smooth(orders, alpha, math.log(compared) / log_b1, log_b2 / log_b1)
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
        chance[near] = smooth_share(log_cofactor / log_b1, log_b1) @ (1 / primes)
    return chance


def _almost_smooth(orders: Orders, alpha: Array, beta1: float, beta2: float) -> Array:
    """The integral of refined_share(t, Neff) / (alpha - t) over t from alpha - beta2 to alpha - beta1."""
    chance = np.zeros_like(alpha)
    interval = _interval(alpha - beta2, alpha - beta1)
    alpha = alpha[interval.sizes]
    shares = _weighted_shares(orders, interval)
    log_primes = (alpha - interval.last / GRID)[:, None] + np.arange(shares.shape[1]) / GRID
    inside = np.einsum("ij,ij->i", shares, 1 / log_primes) / GRID
    chance[interval.sizes] = inside + _ends(orders, alpha, interval)
    return chance


def _extension(orders: Orders, alpha: Array, log_b1: float, plan: Stage2Plan) -> Array:
    """The chance that the one prime lies above B2 and Brent and Suyama's polynomial meets it all the same.

    The integrand is that of stage 2 times the chance that the polynomial meets a prime of size B1^s, s = alpha - t.
    """
    chance = np.zeros_like(alpha)
    multipliers = brent_suyama_multipliers(plan.S)
    if not multipliers:
        return chance
    beta = math.log(plan.b2) / log_b1
    pairs = float(plan.dF) ** 2 * plan.k
    largest, _ = multipliers[-1]
    # Primes beyond B1^furthest are met with a chance below 2^-53, which is nothing to GMP-ECM either.
    furthest = (math.log(largest * pairs) + 53 * math.log(2)) / log_b1
    interval = _interval(np.zeros_like(alpha), np.where(alpha - LARGEST_U < furthest, alpha - beta, 0.0))
    if not interval.sizes.size:
        return chance
    # One unit of t below the end the integrand has lost log B1 nats and rho has given back 3.7 at most (after a
    # stretch where every prime is met): what lies further below than this is lost in rounding.
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
    """For each row the sum of its shares times (the chance that the polynomial meets a prime of size B1^s) / s.

    `s` belongs to a row's first share and grows by 1/256 from share to share. The factor depends on s alone, so one
    table in steps of 1/256 serves every row; the rows' own s lie between its points, and the cubic through four of
    them is exact to 1e-5 even at B1 = 1e14.
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
    """From `begin` to `end`, cut to [0, 10], for the sizes for which anything is left."""
    begin, end = np.maximum(begin, 0.0), np.minimum(end, LARGEST_U)
    sizes = np.flatnonzero(end > begin)
    begin, end = begin[sizes], end[sizes]
    return Interval(sizes, begin, end, np.ceil(begin * GRID).astype(np.intp), np.floor(end * GRID).astype(np.intp))


def _weighted_shares(orders: Orders, interval: Interval) -> Array:
    """refined_share times the trapezoid rule's weights (in grid steps), from `last` downward: a row for each size.

    The grid of 1/256 in t is GMP-ECM's: that, not a finer rule, is what reproduces its digits.
    """
    steps = interval.last - interval.first
    columns = int(steps.max(initial=0)) + 1
    start = interval.sizes * ROW + (ROW - 1 - interval.last)
    shares = sliding_window_view(orders.share, columns)[start]
    shares[:, 0] /= 2
    shares[np.arange(steps.size), np.maximum(steps, 0)] /= 2
    shorter = np.flatnonzero(steps < columns - 1)
    shares[shorter] *= np.arange(columns) <= steps[shorter, None]
    shares[steps <= 0] = 0.0
    return shares


def _ends(orders: Orders, alpha: Array, interval: Interval) -> Array:
    """The integral of refined_share(t, Neff) / (alpha - t) over what the grid leaves at both ends, as trapezoids."""
    row_ends = interval.sizes * ROW + ROW - 1

    def density(position: npt.NDArray) -> Array:
        """The integrand at t = position / 256, linear between grid points."""
        left = np.minimum(position.astype(np.intp), ROW - 2)
        here, above = orders.share[row_ends - left], orders.share[row_ends - left - 1]
        return (here + (position - left) * (above - here)) / (alpha - position / GRID)

    begin, end = interval.begin * GRID, interval.end * GRID
    at_begin, at_end = density(begin), density(end)
    before = (interval.first - begin) * (at_begin + density(interval.first))
    after = (end - interval.last) * (at_end + density(interval.last))
    within_one_step = (end - begin) * (at_begin + at_end)
    return np.where(interval.first > interval.last, within_one_step, before + after) / (2 * GRID)
