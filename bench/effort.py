"""How fast effort is computed: `python -m bench.effort` prints the figures next to their limits."""

import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from coordinator import effort

REPEATS = 25
SETTINGS = {
    "B1 = 2,000": (2_000, -1, 1),
    "B1 = 19,999, B2 = 100,000 B1": (19_999, 1_999_900_000, 1),
    "B1 = 50,000": (50_000, -1, 0),
    "B1 = 11e6": (11_000_000, -1, 1),
    "B1 = 25e9": (25_000_000_000, -1, 3),
    "B1 = 100, B2 = 1e21 (the worst)": (100, 10**21, 1),
}
ATTEMPTS = 100_000
MOST_MS_UNCACHED, MOST_US_CACHED, MOST_S_ATTEMPTS = 3.0, 5.0, 0.5


def _median(work: Callable[[], object], before: Callable[[], None] = lambda: None, repeats: int = REPEATS) -> float:
    """The median processor time of this thread in seconds, which other load on the machine hardly changes."""
    times = []
    for _ in range(repeats):
        before()
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return sorted(times)[repeats // 2]


def _clear_caches() -> None:
    effort.success_probability.cache_clear()
    effort.curve_effort.cache_clear()
    effort.stage2_plan.cache_clear()


def _uncached(setting: tuple[int, int, int]) -> float:
    effort.success_probability(*setting)  # computes the tables that all B1 share
    return _median(lambda: effort.success_probability(*setting), _clear_caches)


def _cached(additions: int = 10_000) -> float:
    vector = effort.no_effort()
    effort.curve_effort(11_000_000, -1, 1)

    def add() -> None:
        for _ in range(additions):
            effort.add_curves(vector, 100, 11_000_000, -1, 1)

    return _median(add, repeats=5) / additions


def _from_scratch() -> float:
    settings = list(itertools.product(effort.B1_LADDER, (-1, 0), (1, 3)))
    attempts = [(*setting, 1 + i % 100) for i, setting in zip(range(ATTEMPTS), itertools.cycle(settings), strict=False)]
    return _median(lambda: effort.t_level(effort.effort_of(attempts)), _clear_caches, repeats=5)


def measure() -> dict[str, Any]:
    """The seconds that effort takes on this machine, and whether they are within the limits."""
    uncached = {name: _uncached(setting) for name, setting in SETTINGS.items()}
    cached, from_scratch = _cached(), _from_scratch()
    return {
        "uncached_vector_s": uncached,
        "adding_cached_s": cached,
        "t_level_of_attempts_s": from_scratch,
        "attempts": ATTEMPTS,
        "kept": max(uncached.values()) <= MOST_MS_UNCACHED / 1e3
        and cached <= MOST_US_CACHED / 1e6
        and from_scratch <= MOST_S_ATTEMPTS,
    }


def report(measured: dict[str, Any]) -> str:
    """The measurements as a table."""
    lines = ["Effort, processor time on one core (median)"]
    for name, seconds in measured["uncached_vector_s"].items():
        lines.append(f"  one uncached vector, {name:34} {1e3 * seconds:8.2f} ms   (at most {MOST_MS_UNCACHED:g})")
    lines.append(
        f"  {'adding a cached one':55} {1e6 * measured['adding_cached_s']:8.2f} us   (at most {MOST_US_CACHED:g})"
    )
    label = f"t-level of {measured['attempts']:,} attempts from scratch"
    lines.append(f"  {label:55} {measured['t_level_of_attempts_s']:8.3f} s    (at most {MOST_S_ATTEMPTS:g})")
    return "\n".join(lines)


if __name__ == "__main__":
    result = measure()
    print(json.dumps(result) if "--json" in sys.argv else report(result))
    sys.exit(not result["kept"])
