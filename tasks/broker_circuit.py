"""The circuit breaker of the broker, one for each process.

When a call to the broker fails, the circuit is open for a few seconds, and nothing of this process waits for the broker
meanwhile. So a request that needs a frozen broker several times, to count itself and to publish, waits only once.
"""

from time import monotonic

OPEN_SECONDS = 3.0

_open_until = 0.0


def is_open() -> bool:
    """Whether a call of this process to the broker failed within the last OPEN_SECONDS."""
    return monotonic() < _open_until


def open_circuit() -> None:
    """Open the circuit, because the broker did not answer."""
    global _open_until
    _open_until = monotonic() + OPEN_SECONDS
