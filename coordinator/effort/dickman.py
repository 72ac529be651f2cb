"""Dickman's function rho: the share of integers near x without a prime factor above x^(1/u) tends to rho(u).

`RHO` has its values on a grid of 1/256 from u = 0 to 10, like GMP-ECM's integration; beyond 10 rho counts as 0, like
in GMP-ECM. Sources: E. Bach and R. Peralta, *Asymptotic semismoothness probabilities* (Math. Comp. 65, 1996), for
the series; A. Kruppa, *Speeding up Integer Multiplication and Factorization* (2010), eq. 5.6, for numbers of finite
size.
"""

import numpy as np

from coordinator.effort.arrays import Array, read_only

GRID = 256  # points to a unit of u
LARGEST_U = 10
EULER_GAMMA = 0.5772156649015329
SERIES_TERMS = 56  # each coefficient is at most half the one before, so the omitted terms are below 2^-53 of the sum


def _rho_on_grid() -> Array:
    """Return rho(i / 256) for i = 0 ... 2560, to a relative 1e-14.

    On [k-1, k] write rho(k - x) = sum of c_j x^j, 0 <= x <= 1. From u rho'(u) = -rho(u-1), the coefficients c_j, j > 0,
    follow from those of the unit interval before; c_0 = rho(k) from k rho(k) = integral of rho over [k-1, k]. No term
    is ever negative, so nothing cancels and even rho(10) = 2.77e-11 keeps its digits.
    """
    offsets = np.arange(GRID, 0, -1) / GRID
    powers = offsets[:, None] ** np.arange(SERIES_TERMS)
    series = np.zeros(SERIES_TERMS)
    series[0] = 1.0
    pieces = [powers @ series]
    orders = np.arange(1, SERIES_TERMS)
    for k in range(2, LARGEST_U + 1):
        following = np.zeros(SERIES_TERMS)
        carried = 0.0  # sum of c_i / k^(j-i) over i < j, of the interval before
        for j in orders:
            carried = (carried + series[j - 1]) / k
            following[j] = carried / j
        following[0] = np.sum(following[1:] / (orders + 1)) / (k - 1)
        series = following
        pieces.append(powers @ series)
    return np.append(np.concatenate(pieces), series[0])


RHO = read_only(_rho_on_grid())
_U = read_only(np.arange(RHO.size) / GRID)


def _shifted(by: int) -> Array:
    """Return rho(u - by) on the grid for u > by, and 0 up to there, as the expansions below use it."""
    shifted = np.zeros_like(RHO)
    shifted[by * GRID + 1 :] = RHO[1 : -by * GRID]
    return shifted


_RHO_LESS_1 = read_only(_shifted(1))
_RHO_LESS_2 = read_only(_shifted(2))


def smooth_share(u: Array, log_b1: float) -> Array:
    """Return the share of B1-smooth integers near X = B1^u itself, u > 0; 0 beyond u = 10.

    rho(u) is the limit for X to infinity; the second term, which starts beyond u = 1, is the first correction for a
    finite X.
    """
    correction = np.zeros_like(RHO)
    correction[GRID:] = EULER_GAMMA / log_b1 * RHO[:-GRID] / _U[GRID:]
    table = RHO - correction
    position = np.minimum(u, LARGEST_U) * GRID
    left = np.minimum(position.astype(np.intp), table.size - 2)
    share = table[left] + (position - left) * np.diff(table)[left]  # linear between grid points, as in GMP-ECM
    share[u <= 1] = 1.0
    share[u > LARGEST_U] = 0.0
    return share


def refined_share(log_x: Array) -> Array:
    """Return the share of integers near X whose primes are at most X^(1/u), with one more term beyond u = 2.

    The result has one row for each value of `log_x`, and one column for each of the 2561 grid points u = i / 256.
    """
    scale = 1.0 / log_x[:, None]
    return RHO - (EULER_GAMMA * _RHO_LESS_1 + (1 - EULER_GAMMA) * scale * _RHO_LESS_2) * scale
