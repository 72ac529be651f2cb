"""The shape everything about effort has: float64 arrays over the factor sizes of 10 to 100 decimal digits."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def read_only(array: Array) -> Array:
    """The same array, closed to writing: what is computed once and shared must not be changed by one of its users."""
    array.setflags(write=False)
    return array


DIGITS = np.arange(10, 101)
DIGITS.setflags(write=False)
