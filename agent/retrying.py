"""How the agent repeats requests to the server; no other module computes back-off or decides to try again.

What is retried: every reply whose `is_final` is false, because no answer came, the answer was not a coordinator's, the
server was busy, or it has stored a result that it has not processed yet. A reply that cannot change is final.
For how long: until a deadline; a pause that would end after the deadline is not begun.
Pauses: they start at the first of the `Delays`, double with each attempt up to the longest, and are shortened at random
by up to half, so that agents do not return in the same second after an outage. They are never shorter than the
`Retry-After` of the reply.
"""

import random
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_result


class Delays(NamedTuple):
    """The first and the longest pause between two attempts, in seconds."""

    first: float
    longest: float


RESULT_DELAYS = Delays(0.5, 120.0)  # sending a result
LEASE_DELAYS = Delays(1.0, 120.0)  # asking for a lease while the server does not answer
CALL_DELAYS = Delays(1.0, 60.0)  # closing a lease, transferring a residue
STAGE_WORK_DELAY = 10.0  # seconds, at least, before a stage command asks again a server that did not answer


class Reply(Protocol):
    """The outcome of one request; `retry_after` is in seconds, and 0 if the server named no time."""

    @property
    def is_final(self) -> bool: ...

    @property
    def retry_after(self) -> float: ...


AnyReply = TypeVar("AnyReply", bound=Reply)


class BackOff:
    """Computes the pauses of one sequence of attempts."""

    def __init__(self, delays: Delays) -> None:
        self._delays = delays
        self._delay = delays.first

    def reset(self) -> None:
        """Start again with the first delay."""
        self._delay = self._delays.first

    def next_pause(self, retry_after: float = 0.0) -> float:
        """Return the seconds to wait before the next attempt, and double the delay after it."""
        pause = max(retry_after, spread(self._delay, 0.5, 1.0))
        self._delay = min(2 * self._delay, self._delays.longest)
        return pause


def spread(seconds: float, low: float, high: float) -> float:
    """Multiply a time by a random factor from `low` to `high`, so that agents started together drift apart."""
    return seconds * random.uniform(low, high)


def call_until_answered(
    call: Callable[[], AnyReply],
    deadline: Callable[[], float],
    *,
    back_off: BackOff | None = None,
    on_wait: Callable[[AnyReply, float], None] = lambda reply, seconds: None,
) -> AnyReply:
    """Repeat `call` until its reply is final or the next attempt would come after `deadline()`; return the last reply.

    `deadline` returns a time of time.monotonic(), which may move while this waits. `on_wait` gets each reply that is
    retried and the seconds until then. An exception of `call` is raised unchanged and ends the attempts.
    """
    pauses = back_off or BackOff(CALL_DELAYS)

    def last_reply(state: RetryCallState) -> AnyReply:
        if state.outcome is None:
            raise RuntimeError("tenacity asks for a pause before the first attempt")
        reply: AnyReply = state.outcome.result()
        return reply

    retrying = Retrying(
        retry=retry_if_result(lambda reply: not reply.is_final),
        wait=lambda state: pauses.next_pause(last_reply(state).retry_after),
        stop=lambda state: time.monotonic() + state.upcoming_sleep > deadline(),
        sleep=time.sleep,
        before_sleep=lambda state: on_wait(last_reply(state), state.upcoming_sleep),
        retry_error_callback=last_reply,
    )
    return retrying(call)
