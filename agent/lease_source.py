"""Where the next lease comes from: the spool, then the server's list of this client's leases, then new work.

All worker threads share one source and ask it one after the other, so that they wait together when there is no work or
the server does not answer.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import requests

from agent import lease_api, local_lease, retrying
from agent.ecm_run import recover_runs
from agent.lease_api import LeaseRequest
from agent.local_lease import LocalLease
from agent.retrying import BackOff, spread

TICK_SECONDS = 0.2  # within this time a waiting thread notices that it is to stop


class LeaseSource:
    """Gives out leases until `limit` of them were given, `is_stopped()`, or the server rejects the request for work.

    With `timeout` None it waits for work without end. With a number it ends when there is no work, or when the server
    has not answered for that many seconds. `report` gets a line about the reason of each wait.
    """

    def __init__(
        self,
        root: Path,
        server: str,
        client_id: str,
        wanted: LeaseRequest,
        *,
        limit: int | None,
        timeout: float | None,
        is_stopped: Callable[[], bool],
        report: Callable[[str], None],
    ) -> None:
        self.root, self.server, self.client_id, self.wanted = root, server, client_id, wanted
        self.leases_given = 0
        self.refusal = ""
        self.waiting_reason = ""  # for the display
        self._limit, self._timeout, self._is_stopped, self._report = limit, timeout, is_stopped, report
        self._one_thread_asks = threading.Lock()
        self._open_leases_known = False
        self._curves_submitted: dict[str, int] = {}
        self._skipped: set[str] = set()
        self._not_before = 0.0
        self._back_off = BackOff(retrying.LEASE_DELAYS)
        self._unanswered_since: float | None = None
        self._ended = False

    def next_lease(self, session: requests.Session) -> LocalLease | None:
        """Wait for the next lease and return it; return None if there will be none."""
        while not self.is_exhausted():
            if self._one_thread_asks.acquire(timeout=TICK_SECONDS):
                try:
                    lease = self._look_everywhere(session)
                except OSError as error:
                    lease, self._open_leases_known = None, False
                    self._wait_for_answer(f"the spool cannot be written: {error}", 0.0)
                finally:
                    self._one_thread_asks.release()
                if lease:
                    return lease
            time.sleep(min(TICK_SECONDS, max(0.0, self._not_before - time.monotonic())))
        return None

    def is_exhausted(self) -> bool:
        """Return whether no lease will be given out any more."""
        return self._ended or self._is_stopped() or (self._limit is not None and self.leases_given >= self._limit)

    def skip_until_restart(self, lease: LocalLease) -> None:
        """Do not resume this lease in this process."""
        self._skipped.add(lease.lease.work_id)

    def _look_everywhere(self, session: requests.Session) -> LocalLease | None:
        if self.is_exhausted():
            return None
        may_ask = time.monotonic() >= self._not_before
        if may_ask and not self._open_leases_known:
            may_ask = self._store_open_leases(session)
        if found := self._resume_stored_lease():
            return found
        return self._request_new_lease(session) if may_ask and not self.is_exhausted() else None

    def _store_open_leases(self, session: requests.Session) -> bool:
        """Ask for this client's open leases and add the missing ones to the spool; return whether the server answered.

        A lease is missing if the answer that gave it was lost, or the spool was.
        """
        found = lease_api.list_open_leases(session, self.server, self.client_id)
        if isinstance(found, str):
            self._wait_for_answer(found, 0.0)
            return False
        self._open_leases_known = True
        self._reset_back_off()
        for lease, submitted in found:
            self._curves_submitted[lease.work_id] = submitted
            if new := local_lease.store_lease(self.root, self.server, self.client_id, lease):
                new.release()
        return True

    def _resume_stored_lease(self) -> LocalLease | None:
        """Return a lease that a killed agent left in the spool, or that an agent could not return to the server."""
        for found in local_lease.lock_stored_leases(self.root, self.server, self.client_id):
            work_id = found.lease.work_id
            if work_id in self._skipped:
                found.release()
                continue
            recover_runs(self.root)
            found.read_runs()
            found.curves_elsewhere = max(0, self._curves_submitted.get(work_id, 0) - sum(found.runs.values()))
            if found.closing:
                return found
            if found.curves_left:
                self.leases_given += 1
                self._report(f"Resuming a lease: {found.curves_done} of {found.lease.curves} curves are done")
                return found
            found.remove_when_counted()
        return None

    def _request_new_lease(self, session: requests.Session) -> LocalLease | None:
        offer = lease_api.request_lease(session, self.server, self.client_id, self.wanted)
        if offer.verdict == "refused":
            self.refusal, self._ended = offer.message, True
        elif offer.verdict == "none":
            self._reset_back_off()
            self._ended = self._timeout is not None
            self._wait(spread(offer.retry_after, 1.0, 1.1), offer.message)
        elif offer.verdict == "unclear":
            # The server may have given a lease in an answer that was lost.
            self._open_leases_known = False
            self._wait_for_answer(offer.message, offer.retry_after)
        elif offer.thing:
            self._reset_back_off()
            self.waiting_reason = ""
            new = local_lease.store_lease(self.root, self.server, self.client_id, offer.thing)
            # None if another agent with our name has already found it in the server's list.
            self.leases_given += new is not None
            return new
        return None

    def _reset_back_off(self) -> None:
        self._back_off.reset()
        self._unanswered_since = None

    def _wait_for_answer(self, message: str, retry_after: float) -> None:
        now = time.monotonic()
        self._unanswered_since = self._unanswered_since or now
        pause = self._back_off.next_pause(retry_after)
        self._ended = self._timeout is not None and now + pause - self._unanswered_since > self._timeout
        self._wait(pause, message)

    def _wait(self, seconds: float, reason: str) -> None:
        self._not_before = time.monotonic() + seconds
        if reason != self.waiting_reason:
            self.waiting_reason = reason
            self._report(reason if self._ended else f"{reason}; retrying in {seconds:.0f} s")
