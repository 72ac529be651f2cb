"""Whether the broker answers, as this process found out last.

Whoever waits for it in vain spares all others that for a few seconds: a request that counts itself, rings the bell and
wants more of a broker that is frozen waits for it once.
"""

from time import monotonic

SILENT_SECONDS = 3.0

_silent_until = 0.0


def is_silent() -> bool:
    """Whether somebody of this process asked the broker in vain within the last SILENT_SECONDS."""
    return monotonic() < _silent_until


def note_silence() -> None:
    """The broker did not answer."""
    global _silent_until
    _silent_until = monotonic() + SILENT_SECONDS
