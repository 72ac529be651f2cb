"""Living on leases: several threads, each with a lease and a GMP-ECM of its own, until the work or the user ends it.

    supply     the next lease (agent.supply)
    lanes      one thread for each process: runs a lease's curves and spools their results (here)
    sender     brings results to the server (agent.sender)
    heartbeat  tells the server how far each lease is, and ends the run of one that is over (agent.heartbeat)

A lane never waits for the server while it has curves to run. A lease's run is cut into several where it is long, so
that the server's picture is fresh and a lost machine loses little.
"""

import random
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import requests

from agent import leases, spool
from agent.asking import insist
from agent.client import Answer
from agent.gmp_ecm import EcmFailed, Output
from agent.held import Held
from agent.leases import Standing, Wanted
from agent.run import Order, Stop, check, run_curves
from agent.sender import Sender
from agent.supply import TICK, Supply

CHUNK_SECONDS = 900.0  # after which a run ends with its curve, and its result is sent
FAILURES = 3  # in a row, after which it is not the number but GMP-ECM, the disk or the server
FAILURE_DELAY = 10.0  # seconds after the first failure, doubled with each
EMPTY_RUNS = 10  # runs in a row that GMP-ECM ended early because it found the number itself


@dataclass
class Lane:
    """One thread's place: the lease it works on, and what stops its GMP-ECM."""

    held: Held | None = None
    run: Stop | None = None
    t_level: float = 0.0
    since: float = 0.0
    failed: bool = False

    def end_run(self) -> None:
        if self.run:
            self.run.request()

    def over(self, held: Held, message: str) -> None:
        """The server has closed a lease that was this lane's when it was asked; a lease that came since goes on."""
        held.over = message or "closed"
        run = self.run
        if self.held is held and run:
            run.request()


@dataclass
class Shift:
    """What the threads share. request() ends it and may be called from a signal handler."""

    server: str
    client_id: str
    ecm: Path
    root: Path
    patience: float
    lanes: list[Lane]
    say: Callable[[str], None]
    on_factor: Callable[[str, Output], None]
    supply: Supply = field(init=False)
    sender: Sender = field(init=False)
    requested: bool = False
    requested_at: float = 0.0
    failures: int = 0
    failure: str = ""
    crash: str = ""
    refused: int = 0
    curves: int = 0
    factors: int = 0
    leases_done: int = 0

    def request(self) -> None:
        self.requested_at = self.requested_at or time.monotonic()
        self.requested = True
        for lane in self.lanes:
            lane.end_run()

    def wait(self, seconds: float) -> None:
        """Wait, but not longer than until the shift is to end."""
        until = time.monotonic() + seconds
        while not self.requested and (left := until - time.monotonic()) > 0:
            time.sleep(min(TICK, left))

    def deadline(self, since: float) -> float:
        """Until when to try to reach the server for something that has waited since then."""
        return min(since, self.requested_at or since) + self.patience


def new_shift(
    server: str,
    client_id: str,
    *,
    ecm: Path,
    root: Path,
    threads: int,
    wanted: Wanted,
    max_leases: int | None,
    once: bool,
    patience: float,
    say: Callable[[str], None],
    on_factor: Callable[[str, Output], None],
) -> Shift:
    """A shift that has not begun. `say` takes a line for the user, `on_factor` a number and the output that has it."""
    shift = Shift(server, client_id, ecm, root, patience, [Lane() for _ in range(threads)], say, on_factor)
    shift.supply = Supply(
        root,
        server,
        client_id,
        wanted,
        limit=1 if once else max_leases,
        patience=patience if once else None,
        stopped=lambda: shift.requested,
        say=say,
    )
    shift.sender = Sender(
        root,
        server,
        on_settled=lambda entry, answer: settled(shift, entry, answer),
        on_refused=lambda entry, answer: refused(shift, entry, answer),
        on_trouble=lambda trouble: say(f"{trouble}; results wait in {root}" if trouble else "results are sent again"),
    )
    return shift


def settled(shift: Shift, entry: spool.Entry, answer: Answer) -> None:
    t_level = answer.body.get("current_t_level")
    for lane in shift.lanes:
        if lane.held and lane.held.lease.work_id == entry.payload.get("work_id") and isinstance(t_level, float):
            lane.t_level = t_level


def refused(shift: Shift, entry: spool.Entry, answer: Answer) -> None:
    shift.refused += 1
    shift.say(f"a result was refused and is kept in {shift.root / spool.REJECTED}: {answer.message}")


def guarded(shift: Shift, work: Callable[[], None]) -> threading.Thread:
    """A started thread. A fault of ours in it ends the shift instead of letting it limp on."""

    def run() -> None:
        try:
            work()
        except BaseException:
            shift.crash = shift.crash or traceback.format_exc()
            shift.request()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def work(shift: Shift, lane: Lane) -> None:
    """A lane's life: one lease after the other."""
    session = requests.Session()
    while held := shift.supply.next(session):
        lane.t_level, lane.since = held.lease.t_level, time.monotonic()
        lane.held, lane.failed = held, False
        try:
            work_off(shift, lane, held, session)
        except OSError as error:
            # What is in the spool is taken up from there, by the next turn or the next start.
            failed(shift, lane, f"the spool cannot be written: {error}")
        finally:
            lane.held = None
            held.release()
        if lane.failed:
            shift.wait(FAILURE_DELAY * 2 ** max(0, shift.failures - 1) * random.uniform(0.5, 1.0))
        elif not shift.requested:
            # A lease that went well to its end, its results taken: whatever failed before was not for ever.
            shift.failures, shift.failure = 0, ""


def work_off(shift: Shift, lane: Lane, held: Held, session: requests.Session) -> None:
    """Run what is left of a lease, see its results off, and close it."""
    if not held.closing:
        begin(shift, held, session)
        run_lease(shift, lane, held)
    ended = time.monotonic()
    shift.sender.delivered(held.runs, lambda: shift.deadline(ended))
    refusals = [shift.sender.refused[key] for key in held.runs if key in shift.sender.refused]
    if refusals and not held.over:
        held.close("abandon", f"the result was refused: {refusals[-1]}")
        failed(shift, lane, f"the server refuses results: {refusals[-1]}")
    finish(shift, held, session, ended)


def begin(shift: Shift, held: Held, session: requests.Session) -> None:
    """Tell the server that the lease is being run; one that is over by now is not run at all."""
    work_id = held.lease.work_id
    if not held.resumed:
        standing = leases.start(session, shift.server, shift.client_id, work_id)
        if standing.state == "open":
            return
    standing = leases.progress(session, shift.server, shift.client_id, work_id, held.curves_run)
    if standing.state == "over":
        held.over = standing.message or "closed"


def run_lease(shift: Shift, lane: Lane, held: Held) -> None:
    """Run the curves that are left, until a factor, the server, the user or a failure ends it."""
    empty = 0
    while held.left and not held.closing:
        lane.run = stop = Stop()
        # Looked at after the Stop can be found: whoever ends the run either sees it or is seen here.
        if shift.requested or held.over:
            break
        try:
            output = run_chunk(shift, held, stop)
        except (EcmFailed, ValueError) as error:
            shift.sender.collect()  # what was completed before
            held.close("abandon", str(error))
            failed(shift, lane, str(error))
            return
        finally:
            held.running = 0
        empty = empty + 1 if output.found_input_number else 0
        if not output.curves_completed and not stop.requested:
            held.close("abandon", "GMP-ECM completed no curve")
            failed(shift, lane, f"{shift.ecm} ended without an error and without a curve")
            return
        if empty == EMPTY_RUNS:
            held.close("abandon", f"every curve at B1={held.lease.b1} finds the number itself")
    lane.run = None


def run_chunk(shift: Shift, held: Held, stop: Stop) -> Output:
    """Run curves for CHUNK_SECONDS or until the lease's are done, and hand their result to the sender.

    Raises ValueError for a lease whose result the server would refuse, EcmFailed if GMP-ECM fails.
    """
    lease = held.lease
    order = Order(
        server=shift.server,
        client_id=shift.client_id,
        composite=lease.composite,
        b1=lease.b1,
        curves=held.left,
        b2=lease.b2,
        parametrization=lease.parametrization,
        work_id=lease.work_id,
    )
    check(order)
    started = time.monotonic()

    def on_line(output: Output, curve_done: bool) -> None:
        held.running = output.curves_completed
        shift.curves += curve_done
        # Between "Run 2 out of 9" and its sigma there is nothing that could be lost.
        if output.curves_completed and output.last_sigma is None and time.monotonic() - started >= CHUNK_SECONDS:
            stop.request()

    def on_spooled(entry: spool.Entry) -> None:
        held.running = 0
        held.count(entry)

    output, entry = run_curves(order, shift.ecm, shift.root, stop=stop, on_line=on_line, on_spooled=on_spooled)
    if entry:
        shift.sender.add(entry)
    if output.factors:
        shift.factors += len(output.factors)
        shift.on_factor(lease.composite, output)
    return output


def finish(shift: Shift, held: Held, session: requests.Session, since: float) -> None:
    """Close the lease as far as that is ours to do, and forget it; what cannot be done now the next start does."""
    lease = held.lease
    if held.over:
        shift.say(f"the server closed the lease: {held.over}")
        held.forget()
        return
    how, reason = held.closing or ("abandon", "the agent was stopped")
    if not held.left and not held.closing:
        shift.leases_done += 1
        held.settle()
        return

    def close() -> Standing:
        if how == "complete":
            return leases.complete(session, shift.server, shift.client_id, lease.work_id)
        return leases.abandon(session, shift.server, shift.client_id, lease.work_id, reason)

    standing = insist(close, lambda: shift.deadline(since))
    if standing.state == "unclear":
        shift.say(f"the lease could not be given back ({standing.message}); the next start sees to it")
        shift.supply.leave_alone(held)
        held.release()
        return
    shift.leases_done += how == "complete"
    held.forget()


def failed(shift: Shift, lane: Lane, message: str) -> None:
    """Count a failure; several in a row end the shift, so that something broken does not burn through all leases."""
    lane.failed = True
    shift.failures += 1
    shift.failure = message
    shift.say(message)
    if shift.failures >= FAILURES:
        shift.request()
