"""The ranges of run parameters: the wire schemas refuse values outside them; the effort model is exact inside."""

MIN_B1 = 100
MAX_B1 = 10**14
MAX_B2 = 10**21
MAX_CURVES = 10**9
PARAMETRIZATIONS = (0, 1, 2, 3)
DEFAULT_B2 = -1  # B2 of a run with GMP-ECM's default B2 for its B1
STAGE1_ONLY = 0  # B2 of a run without stage 2
