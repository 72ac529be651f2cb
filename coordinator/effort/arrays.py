"""The arrays of all effort computations: float64, with one element for each factor size of 10 to 100 digits."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def read_only(array: Array) -> Array:
    """Make an array read-only and return it: one caller must not change an array that others share."""
    array.setflags(write=False)
    return array


DIGITS = np.arange(10, 101)
DIGITS.setflags(write=False)
