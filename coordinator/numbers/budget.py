"""What arithmetic costs by the size of a number, and budgets of processor time from which it is paid.

FLINT and GMP cannot be interrupted while they compute, so whether a computation fits is decided before it starts, from
the digits of its number. What does not fit is left to a job.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import thread_time

# Decimal digits and seconds, measured with `python -m bench.arithmetic` (one core of 2.5 GHz that others used, too, and
# which took twice the time of an idle one). Splits are of products of two primes of the same size; a primality test is
# four modular powers for a prime (Baillie-PSW and one round of Miller-Rabin) and one for nearly every composite; above
# 20,000 digits it is extrapolated.
_SPLIT_SECONDS = {1: 0.0001, 25: 0.007, 30: 0.008, 35: 0.017, 40: 0.05, 45: 0.13, 50: 0.5, 55: 1.4}
_SPLIT_SECONDS |= {60: 4.0, 65: 11.5, 70: 35.0, 75: 110.0}
_PRIMALITY_SECONDS = {1: 0.00001, 100: 0.0004, 200: 0.0008, 500: 0.008, 1000: 0.05, 2000: 0.3, 3000: 0.9, 5000: 3.8}
_PRIMALITY_SECONDS |= {10_000: 20.0, 20_000: 107.0, 50_000: 900.0, 1_000_000: 2e6}


def split_seconds(digits: int) -> float:
    """Return about how long FLINT takes to split a number of so many digits at worst; infinity above 75 digits."""
    return _interpolate(_SPLIT_SECONDS, digits)


def primality_seconds(digits: int) -> float:
    """Return about how long the primality test of a prime of so many digits takes."""
    return _interpolate(_PRIMALITY_SECONDS, digits)


def _interpolate(table: dict[int, float], digits: int) -> float:
    """Return a value between two entries: logarithms of times are nearly linear in the logarithm of the digits."""
    sizes = list(table)
    place = bisect_left(sizes, digits)
    if place == len(sizes):
        return math.inf
    if sizes[place] == digits or place == 0:
        return table[sizes[place]]
    low, high = sizes[place - 1], sizes[place]
    share = math.log(digits / low) / math.log(high / low)
    return table[low] * math.exp(share * math.log(table[high] / table[low]))


@dataclass
class Budget:
    """Processor time (`seconds`) that is left for arithmetic in one unit of work, while its locks are held."""

    seconds: float

    def allows(self, seconds: float) -> bool:
        """Return whether a computation that takes about so long still fits."""
        return seconds <= self.seconds

    @contextmanager
    def pays(self) -> Iterator[None]:
        """Take the processor time of this block from the budget."""
        started = thread_time()
        try:
            yield
        finally:
            self.seconds -= thread_time() - started


def unlimited() -> Budget:
    """Return a budget for computations that hold up nobody, such as those of a job without locks."""
    return Budget(math.inf)
