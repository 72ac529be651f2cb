"""Curve strings, a short notation for ECM work: `5208@11e6;261@5e4,p=3;5208/8192@11e6`."""

import re
from decimal import Decimal

from coordinator.effort.stage2 import checked_bounds, checked_integer, checked_parametrization
from coordinator.effort.vector import Run
from models.limits import DEFAULT_B2, MAX_CURVES, STAGE1_ONLY

USUAL_PARAMETRIZATION = 1  # GMP-ECM 7's default on a CPU

_NUMBER = r"\d{1,30}(?:\.\d{1,30})?(?:[eE]\+?\d{1,2})?"
_RUN = re.compile(
    rf"(?P<curves>{_NUMBER})(?:\s*/\s*(?P<stage1>{_NUMBER}))?\s*@\s*(?:B1\s*=\s*)?(?P<b1>{_NUMBER})"
    rf"(?:\s*,\s*(?:B2\s*=\s*)?(?P<b2>{_NUMBER}|-1))?"
    r"(?:\s*,\s*(?:(?:param|p)\s*=\s*)?(?P<parametrization>\d{1,9}))?",
    re.IGNORECASE | re.ASCII,
)
EXAMPLES = "5208@11e6, 5208@11e6,35e9,p=3 or 5208/8192@11e6"


def parse_curves(text: str) -> list[Run]:
    """Parse a curve string into runs (B1, B2, parametrization, curves); `;` or line ends separate several runs.

    Each run is `curves@B1[,B2][,p=N]`; without B2 it is -1 (GMP-ECM's default for B1), without p the parametrization is
    1. `5208/8192@11e6` means 8192 curves of which 5208 had a stage 2, and gives two runs, the second of stage 1 only.
    Raises ValueError, which names the part that cannot be read or is out of range.
    """
    runs: list[Run] = []
    for part in re.split(r"[;\r\n]+", text):
        if part.strip():
            runs += _runs(part.strip())
    if not runs:
        raise ValueError(f"no curves given: write them like {EXAMPLES}")
    return runs


def _runs(part: str) -> list[Run]:
    match = _RUN.fullmatch(part)
    if match is None:
        raise ValueError(f"cannot read {part[:80]!r} as curves: write them like {EXAMPLES}")
    try:
        b1, b2 = checked_bounds(_whole(match["b1"]), _whole(match["b2"]) if match["b2"] else DEFAULT_B2)
        parametrization = checked_parametrization(int(match["parametrization"] or USUAL_PARAMETRIZATION))
        full = checked_integer(_whole(match["curves"]), "the number of curves", 0, MAX_CURVES)
        runs = [(b1, b2, parametrization, full)]
        if match["stage1"]:
            stage1 = checked_integer(_whole(match["stage1"]), "the number of curves", full, MAX_CURVES)
            runs.append((b1, STAGE1_ONLY, parametrization, stage1 - full))
    except ValueError as error:
        raise ValueError(f"{part[:80]!r}: {error}") from error
    return runs


def _whole(number: str) -> int:
    """Return `11e6`, `1.5e6` or `35133391030` as an int."""
    value = Decimal(number)
    if value != int(value):
        raise ValueError(f"{number} is not a whole number")
    return int(value)
