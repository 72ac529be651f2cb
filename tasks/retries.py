"""The delay of retries after transient faults."""

import random


def backoff(retries: int, first: float = 0.2, longest: float = 60.0) -> float:
    """Seconds to wait after `retries` retries: exponential, with jitter so that tasks do not come back together."""
    exponential: float = first * 2**retries
    return min(longest, exponential) * random.uniform(0.5, 1.5)
