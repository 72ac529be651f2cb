"""`agent work` while it runs: several threads, each with a lease and a GMP-ECM process of its own.

    LeaseSource      gives out the next lease (agent.lease_source)
    WorkerThread     runs a lease's curves and writes their results to the spool (here)
    ResultSender     sends the results (agent.result_sender)
    heartbeat        reports the progress of each lease, and stops the run of one that is over (agent.lease_heartbeat)

A worker thread never waits for the server while it has curves to run. The curves of a long lease are run in chunks, so
that the server knows the current effort and a lost machine loses little.
"""

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import requests

from agent import lease_api, spool
from agent.ecm_run import EcmOrder, StopFlag, check_order, run_curves
from agent.gmp_ecm import EcmFailedError, EcmOutput
from agent.lease_api import LeaseReply, LeaseRequest
from agent.lease_source import TICK_SECONDS, LeaseSource
from agent.local_lease import LocalLease
from agent.result_delivery import DeliveryAnswer
from agent.result_sender import ResultSender
from agent.retrying import call_until_answered, spread

CHUNK_SECONDS = 900.0  # a run ends with the first curve after this time, and its result is sent
MAX_FAILURES = 3  # in a row; then GMP-ECM, the disk or the server is broken, and not one number
FAILURE_PAUSE = 10.0  # seconds after the first failure, doubled with each further one
MAX_EMPTY_RUNS = 10  # runs in a row that GMP-ECM ended early because it found the number itself


@dataclass
class WorkerThread:
    """The lease that one thread works on, and the flag that stops its GMP-ECM."""

    lease: LocalLease | None = None
    stop: StopFlag | None = None
    t_level: float = 0.0
    since: float = 0.0
    failed: bool = False

    def stop_run(self) -> None:
        if self.stop:
            self.stop.request_stop()

    def end_lease(self, lease: LocalLease, message: str) -> None:
        """Mark a lease as closed by the server, and stop its run if this thread still works on it."""
        lease.closed_by_server = message or "closed"
        stop = self.stop
        if self.lease is lease and stop:
            stop.request_stop()


@dataclass
class WorkerPool:
    """The state that the threads share. request_stop() may be called from a signal handler."""

    server: str
    client_id: str
    ecm: Path
    root: Path
    timeout: float
    workers: list[WorkerThread]
    report: Callable[[str], None]
    on_factor: Callable[[str, EcmOutput], None]
    source: LeaseSource = field(init=False)
    sender: ResultSender = field(init=False)
    stop_requested: bool = False
    stop_requested_at: float = 0.0
    failures: int = 0
    failure: str = ""
    crash: str = ""
    refused: int = 0
    curves: int = 0
    factors: int = 0
    leases_done: int = 0

    def request_stop(self) -> None:
        self.stop_requested_at = self.stop_requested_at or time.monotonic()
        self.stop_requested = True
        for worker in self.workers:
            worker.stop_run()

    def wait(self, seconds: float) -> None:
        """Sleep, and wake up early if the pool is to stop."""
        until = time.monotonic() + seconds
        while not self.stop_requested and (left := until - time.monotonic()) > 0:
            time.sleep(min(TICK_SECONDS, left))

    def deadline(self, since: float) -> float:
        """Return until when the server is tried for something that waits since then (time.monotonic())."""
        return min(since, self.stop_requested_at or since) + self.timeout


def create_pool(
    server: str,
    client_id: str,
    *,
    ecm: Path,
    root: Path,
    threads: int,
    wanted: LeaseRequest,
    max_leases: int | None,
    once: bool,
    timeout: float,
    report: Callable[[str], None],
    on_factor: Callable[[str, EcmOutput], None],
) -> WorkerPool:
    """Return a pool that has not started. `report` gets lines for the user, `on_factor` a number and its output."""
    workers = [WorkerThread() for _ in range(threads)]
    pool = WorkerPool(server, client_id, ecm, root, timeout, workers, report, on_factor)
    pool.source = LeaseSource(
        root,
        server,
        client_id,
        wanted,
        limit=1 if once else max_leases,
        timeout=timeout if once else None,
        is_stopped=lambda: pool.stop_requested,
        report=report,
    )
    pool.sender = ResultSender(
        root,
        server,
        on_settled=lambda entry, answer: update_t_level(pool, entry, answer),
        on_refused=lambda entry, answer: count_refused_result(pool, answer),
        on_trouble=lambda trouble: report(
            f"{trouble}; results are kept in {root} until they can be sent"
            if trouble
            else "Results are being sent again"
        ),
    )
    return pool


def update_t_level(pool: WorkerPool, entry: spool.SpoolEntry, answer: DeliveryAnswer) -> None:
    """Show the t-level that the server computed with a result."""
    t_level = answer.body.get("current_t_level")
    for worker in pool.workers:
        if worker.lease and worker.lease.lease.work_id == entry.payload.get("work_id") and isinstance(t_level, float):
            worker.t_level = t_level


def count_refused_result(pool: WorkerPool, answer: DeliveryAnswer) -> None:
    """Count and report a result that the server will never accept."""
    pool.refused += 1
    pool.report(f"The server rejected a result; it is kept in {pool.root / spool.REJECTED}: {answer.message}")


def start_thread(pool: WorkerPool, function: Callable[[], None]) -> threading.Thread:
    """Start a thread whose unexpected exception stops the pool, instead of leaving it with a thread less."""

    def run() -> None:
        try:
            function()
        except BaseException:
            pool.crash = pool.crash or traceback.format_exc()
            pool.request_stop()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def run_worker(pool: WorkerPool, worker: WorkerThread) -> None:
    """Run one lease after the other; this is the function of a worker's thread."""
    session = requests.Session()
    while lease := pool.source.next_lease(session):
        worker.t_level, worker.since = lease.lease.t_level, time.monotonic()
        worker.lease, worker.failed = lease, False
        try:
            process_lease(pool, worker, lease, session)
        except OSError as error:
            # The spool still has the lease; the next round or the next start resumes it.
            count_failure(pool, worker, f"the spool cannot be written: {error}")
        finally:
            worker.lease = None
            lease.release()
        if worker.failed:
            pool.wait(spread(FAILURE_PAUSE * 2 ** max(0, pool.failures - 1), 0.5, 1.0))
        elif not pool.stop_requested:
            # A lease was run to its end and its results were accepted: earlier failures were not permanent.
            pool.failures, pool.failure = 0, ""


def process_lease(pool: WorkerPool, worker: WorkerThread, lease: LocalLease, session: requests.Session) -> None:
    """Run the curves that are left, wait until the server has the results, and close the lease."""
    if not lease.closing:
        announce_lease(pool, lease, session)
        run_lease(pool, worker, lease)
    ended = time.monotonic()
    pool.sender.wait_until_stored(lease.runs, lambda: pool.deadline(ended))
    refusals = [pool.sender.refused[key] for key in lease.runs if key in pool.sender.refused]
    if refusals and not lease.closed_by_server:
        lease.request_closing("abandon", f"the result was refused: {refusals[-1]}")
        count_failure(pool, worker, f"the server rejects results: {refusals[-1]}")
    close_lease(pool, lease, session, ended)


def announce_lease(pool: WorkerPool, lease: LocalLease, session: requests.Session) -> None:
    """Report to the server that the lease is run; a lease that is over by now is marked and not run."""
    work_id = lease.lease.work_id
    if not lease.resumed:
        state = lease_api.start_lease(session, pool.server, pool.client_id, work_id)
        if state.state == "open":
            return
    state = lease_api.report_progress(session, pool.server, pool.client_id, work_id, lease.curves_done)
    if state.state == "over":
        lease.closed_by_server = state.message or "closed"


def run_lease(pool: WorkerPool, worker: WorkerThread, lease: LocalLease) -> None:
    """Run the curves that are left, until a factor, the server, the user or a failure ends the lease."""
    empty_runs = 0
    while lease.curves_left and not lease.closing:
        worker.stop = stop = StopFlag()
        # Checked after the flag is visible: another thread either sets the flag or has set one of these before.
        if pool.stop_requested or lease.closed_by_server:
            break
        try:
            output = run_chunk(pool, lease, stop)
        except (EcmFailedError, ValueError) as error:
            pool.sender.add_pending()  # the curves that were completed before the failure
            lease.request_closing("abandon", str(error))
            count_failure(pool, worker, str(error))
            return
        finally:
            lease.curves_running = 0
        empty_runs = empty_runs + 1 if output.found_input_number else 0
        if not output.curves_completed and not stop.stop_requested:
            lease.request_closing("abandon", "GMP-ECM completed no curve")
            count_failure(pool, worker, f"{pool.ecm} ended without an error and without a curve")
            return
        if empty_runs == MAX_EMPTY_RUNS:
            lease.request_closing("abandon", f"every curve at B1={lease.lease.b1} finds the number itself")
    worker.stop = None


def run_chunk(pool: WorkerPool, local: LocalLease, stop: StopFlag) -> EcmOutput:
    """Run curves for CHUNK_SECONDS or until the lease's curves are done, and give their result to the sender.

    Raises ValueError for a lease whose result the server would refuse, EcmFailedError if GMP-ECM fails.
    """
    lease = local.lease
    order = EcmOrder(
        server=pool.server,
        client_id=pool.client_id,
        composite=lease.composite,
        b1=lease.b1,
        curves=local.curves_left,
        b2=lease.b2,
        parametrization=lease.parametrization,
        work_id=lease.work_id,
    )
    check_order(order)
    started = time.monotonic()

    def on_line(output: EcmOutput, curve_done: bool) -> None:
        local.curves_running = output.curves_completed
        pool.curves += curve_done
        # Between "Run 2 out of 9" and the line with its sigma no curve is begun, so none is lost.
        if output.curves_completed and output.last_sigma is None and time.monotonic() - started >= CHUNK_SECONDS:
            stop.request_stop()

    def on_spooled(entry: spool.SpoolEntry) -> None:
        local.curves_running = 0
        local.add_run(entry)

    output, entry = run_curves(order, pool.ecm, pool.root, stop=stop, on_line=on_line, on_spooled=on_spooled)
    if entry:
        pool.sender.add(entry)
    if output.factors:
        pool.factors += len(output.factors)
        pool.on_factor(lease.composite, output)
    return output


def close_lease(pool: WorkerPool, local: LocalLease, session: requests.Session, since: float) -> None:
    """Close a lease on the server if results do not close it, and delete its file.

    If the server does not answer until the deadline, the file stays and the next start closes the lease.
    """
    lease = local.lease
    if local.closed_by_server:
        pool.report(f"The server closed the lease: {local.closed_by_server}")
        local.remove()
        return
    how, reason = local.closing or ("abandon", "the agent was stopped")
    if not local.curves_left and not local.closing:
        pool.leases_done += 1
        local.remove_when_counted()
        return

    def close() -> LeaseReply:
        if how == "complete":
            return lease_api.complete_lease(session, pool.server, pool.client_id, lease.work_id)
        return lease_api.abandon_lease(session, pool.server, pool.client_id, lease.work_id, reason)

    state = call_until_answered(close, lambda: pool.deadline(since))
    if not state.is_final:
        pool.report(f"The lease could not be returned ({state.message}); the next start returns it")
        pool.source.skip_until_restart(local)
        local.release()
        return
    pool.leases_done += how == "complete"
    local.remove()


def count_failure(pool: WorkerPool, worker: WorkerThread, message: str) -> None:
    """Count and report a failure. After MAX_FAILURES in a row the pool stops, before it uses up all leases."""
    worker.failed = True
    pool.failures += 1
    pool.failure = message
    pool.report(message)
    if pool.failures >= MAX_FAILURES:
        pool.request_stop()
