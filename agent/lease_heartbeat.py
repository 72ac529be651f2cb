"""The heartbeats: they report the progress of leases to the server, and stop the run of a lease that is over.

agent.lease_api.read_lease_state() decides from the answer whether a lease is over.
"""

import threading
import time
from collections.abc import Callable

import requests

from agent import lease_api
from agent.lease_source import TICK_SECONDS
from agent.retrying import spread
from agent.worker_pool import WorkerPool

HEARTBEAT_SECONDS = 60.0  # between two heartbeats of a lease
UNANSWERED_PAUSE = 10.0  # seconds without heartbeats after one that got no answer


def send_heartbeats(pool: WorkerPool, ended: threading.Event) -> None:
    """Send the heartbeats of all workers until `ended` is set; this is the function of one thread."""
    session = requests.Session()
    due: dict[str, float] = {}
    while not ended.wait(TICK_SECONDS):
        for worker in pool.workers:
            lease = worker.lease
            if lease is None or lease.closed_by_server:
                continue
            work_id = lease.lease.work_id
            if time.monotonic() < due.setdefault(work_id, worker.since + HEARTBEAT_SECONDS):
                continue
            state = lease_api.report_progress(session, pool.server, pool.client_id, work_id, lease.curves_done)
            due[work_id] = time.monotonic() + max(state.retry_after, spread(HEARTBEAT_SECONDS, 0.75, 1.0))
            if state.state == "over":
                worker.end_lease(lease, state.message)
            elif state.state == "unclear":
                # The heartbeats of the other leases would get no answer either.
                due = {each: max(moment, time.monotonic() + UNANSWERED_PAUSE) for each, moment in due.items()}
                break
        current = {worker.lease.lease.work_id for worker in pool.workers if worker.lease}
        due = {work_id: moment for work_id, moment in due.items() if work_id in current}


class StageHeartbeat:
    """Sends the heartbeats of one stage 1 lease, each in a thread of its own so that the run never waits.

    `is_over` becomes true when the server has closed the lease. Without a `work_id` nothing is sent.
    """

    def __init__(self, server: str, client_id: str, work_id: str | None, report: Callable[[str], None]) -> None:
        self.is_over = False
        self._server, self._client_id, self._work_id, self._report = server, client_id, work_id, report
        self._thread: threading.Thread | None = None
        self._next = time.monotonic() + HEARTBEAT_SECONDS

    def send_if_due(self, curves: int) -> None:
        """Start a heartbeat with the curves run so far, if it is time for one."""
        work_id = self._work_id
        busy = self._thread is not None and self._thread.is_alive()
        if work_id is None or busy or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + HEARTBEAT_SECONDS
        self._thread = threading.Thread(target=self._send, args=(work_id, curves), daemon=True)
        self._thread.start()

    def _send(self, work_id: str, curves: int) -> None:
        state = lease_api.report_progress(requests.Session(), self._server, self._client_id, work_id, curves)
        if state.state == "over":
            self._report(f"The server closed the lease: {state.message}")
            self.is_over = True
