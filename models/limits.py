"""The ranges that numbers on the wire and in the effort model may take: refused outside, exact inside."""

MIN_B1 = 100
MAX_B1 = 10**14
MAX_B2 = 10**21
MAX_CURVES = 10**9
PARAMETRIZATIONS = (0, 1, 2, 3)
DEFAULT_B2 = -1  # GMP-ECM's own way of saying "the default for this B1"
STAGE1_ONLY = 0
