"""The chance that ECM curves find a factor, the effort of all curves of a number, and t-levels (docs/effort.md).

No module here uses the database.
"""

from coordinator.effort.arrays import DIGITS
from coordinator.effort.notation import parse_curves
from coordinator.effort.probability import curve_effort, success_probability
from coordinator.effort.stage2 import Stage2Plan, default_b2, effective_b2, stage2_plan
from coordinator.effort.vector import (
    B1_LADDER,
    LARGEST_TARGET,
    SMALLEST_TARGET,
    TARGET_SHARE,
    add_curves,
    curves_of_t_level,
    curves_to_reach,
    effort_of,
    missed,
    no_effort,
    suggested_curves,
    t_level,
    target_t_level,
)

__all__ = [
    "B1_LADDER",
    "DIGITS",
    "LARGEST_TARGET",
    "SMALLEST_TARGET",
    "TARGET_SHARE",
    "Stage2Plan",
    "add_curves",
    "curve_effort",
    "curves_of_t_level",
    "curves_to_reach",
    "default_b2",
    "effective_b2",
    "effort_of",
    "missed",
    "no_effort",
    "parse_curves",
    "stage2_plan",
    "success_probability",
    "suggested_curves",
    "t_level",
    "target_t_level",
]
