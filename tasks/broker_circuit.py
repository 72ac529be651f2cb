"""Whether the broker answers, as this process found out last.

Whoever waits for it in vain spares all others that for a few seconds: a request that counts itself, rings the bell and
wants more of a broker that is frozen waits for it once.
"""

from time import monotonic

OPEN_SECONDS = 3.0

_open_until = 0.0


def is_open() -> bool:
    """Whether somebody of this process asked the broker in vain within the last SILENT_SECONDS."""
    return monotonic() < _open_until


def open_circuit() -> None:
    """The broker did not answer."""
    global _open_until
    _open_until = monotonic() + OPEN_SECONDS
