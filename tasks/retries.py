"""When to try again after a transient fault."""

import random


def backoff(retries: int, first: float = 0.2, longest: float = 60.0) -> float:
    """Seconds to wait before try `retries` + 2: doubling, with jitter so that many do not come back together."""
    return min(longest, first * 2**retries) * random.uniform(0.5, 1.5)
