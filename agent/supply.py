"""Where the next lease comes from: the spool, the server's list of what we hold, and then new work.

All threads share one supply and ask one after the other, so that one "no work" or one silence is waited out by all.
"""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import requests

from agent import held, leases
from agent.client import LONGEST_DELAY
from agent.held import Held
from agent.leases import Wanted
from agent.run import recover

FIRST_DELAY = 1.0  # seconds, when the server does not answer
TICK = 0.2  # seconds until a thread that waits sees that it is to stop


class Supply:
    """Gives out leases until `limit` of them were given, `stopped()`, or the server refuses the question.

    `patience` None waits for work for ever. A number makes the supply end when there is no work, or when the server
    has not answered for that many seconds. `say` is told why one waits.
    """

    def __init__(
        self,
        root: Path,
        server: str,
        client_id: str,
        wanted: Wanted,
        *,
        limit: int | None,
        patience: float | None,
        stopped: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self.root, self.server, self.client_id, self.wanted = root, server, client_id, wanted
        self.given = 0
        self.refusal = ""
        self.waits_for = ""  # what the threads wait for, for the display
        self._limit, self._patience, self._stopped, self._say = limit, patience, stopped, say
        self._asking = threading.Lock()
        self._status_known = False
        self._submitted: dict[str, int] = {}
        self._left_alone: set[str] = set()
        self._not_before = 0.0
        self._delay = FIRST_DELAY
        self._silent_since: float | None = None
        self._ended = False

    def next(self, session: requests.Session) -> Held | None:
        """The next lease, as soon as there is one; None when there is to be none."""
        while not self.exhausted():
            if self._asking.acquire(timeout=TICK):
                try:
                    lease = self._try(session)
                except OSError as error:
                    lease, self._status_known = None, False
                    self._silence(f"the spool cannot be written: {error}", 0.0)
                finally:
                    self._asking.release()
                if lease:
                    return lease
            time.sleep(min(TICK, max(0.0, self._not_before - time.monotonic())))
        return None

    def exhausted(self) -> bool:
        return self._ended or self._stopped() or (self._limit is not None and self.given >= self._limit)

    def leave_alone(self, lease: Held) -> None:
        """Do not take this lease up again before the next start."""
        self._left_alone.add(lease.lease.work_id)

    def _try(self, session: requests.Session) -> Held | None:
        if self.exhausted():
            return None
        may_ask = time.monotonic() >= self._not_before
        if may_ask and not self._status_known:
            may_ask = self._look(session)
        if found := self._take_up():
            return found
        return self._ask(session) if may_ask and not self.exhausted() else None

    def _look(self, session: requests.Session) -> bool:
        """Ask which leases we hold, and put those into the spool that it does not have."""
        found = leases.open_leases(session, self.server, self.client_id)
        if isinstance(found, str):
            self._silence(found, 0.0)
            return False
        self._status_known = True
        self._heard()
        for lease, submitted in found:
            self._submitted[lease.work_id] = submitted
            if new := held.take(self.root, self.server, self.client_id, lease):
                new.release()
        return True

    def _take_up(self) -> Held | None:
        """A lease from the spool: of an agent that was killed, or that could not give it back."""
        for found in held.take_up(self.root, self.server, self.client_id):
            work_id = found.lease.work_id
            if work_id in self._left_alone:
                found.release()
                continue
            recover(self.root)
            held.read(found)
            found.elsewhere = max(0, self._submitted.get(work_id, 0) - sum(found.runs.values()))
            if found.closing:
                return found
            if found.left:
                self.given += 1
                self._say(f"taking up a lease again: {found.curves_run} of {found.lease.curves} curves are done")
                return found
            found.settle()
        return None

    def _ask(self, session: requests.Session) -> Held | None:
        offer = leases.ask_for_work(session, self.server, self.client_id, self.wanted)
        if offer.verdict == "refused":
            self.refusal, self._ended = offer.message, True
        elif offer.verdict == "none":
            self._heard()
            self._wait(offer.retry_after * random.uniform(1.0, 1.1), f"no work: {offer.message}")
            self._ended = self._patience is not None
        elif offer.verdict == "unclear":
            # The answer may have been lost on its way, and a lease with it.
            self._status_known = False
            self._silence(offer.message, offer.retry_after)
        elif offer.thing:
            self._heard()
            self.waits_for = ""
            new = held.take(self.root, self.server, self.client_id, offer.thing)
            # Else another agent of our name took it up from the server's list already.
            self.given += new is not None
            return new
        return None

    def _heard(self) -> None:
        self._delay, self._silent_since = FIRST_DELAY, None

    def _silence(self, message: str, retry_after: float) -> None:
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        pause = max(retry_after, self._delay * random.uniform(0.5, 1.0))
        self._delay = min(self._delay * 2, LONGEST_DELAY)
        self._wait(pause, message)
        self._ended = self._patience is not None and now + pause - self._silent_since > self._patience

    def _wait(self, seconds: float, why: str) -> None:
        self._not_before = time.monotonic() + seconds
        if why != self.waits_for:
            self.waits_for = why
            self._say(f"{why}; asking again in {seconds:.0f} s")
