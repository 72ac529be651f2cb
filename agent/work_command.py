"""`agent work`: the command, and what its exit code says."""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

import click

from agent import gmp_ecm, spool
from agent.display import shift_progress
from agent.gmp_ecm import Output
from agent.heartbeat import beat
from agent.leases import Wanted
from agent.options import (
    ecm_option,
    name_option,
    patience_option,
    said_before_anything_runs,
    server_option,
    spool_option,
)
from agent.run import Order, check, recover
from agent.supply import TICK
from agent.terminal import interruptible, say, shorten
from agent.work import Shift, guarded, new_shift, work

EXIT_WAITING, EXIT_REFUSED, EXIT_NO_WORK = 3, 4, 5  # 1 and 2 are click's own
EXIT_CODES = """\b
Exit codes:
  0  everything there was to send is settled
  1  GMP-ECM is missing, or it or the spool's disk failed the last lease (three failures in a row end the agent)
  2  the command line is wrong, or the server refuses what it asks for
  3  a result waits in the spool; it is sent at the next start
  4  the server refused a result for good; it is kept in the spool's `rejected`
  5  with --once: no lease was to be had, because there is no such work or the server did not answer within --patience
"""


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@click.command("work", epilog=EXIT_CODES)
@server_option
@name_option
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=usable_cores,
    show_default="the cores this process may use",
    help="how many GMP-ECM processes, each on a lease of its own",
)
@click.option(
    "--work-type",
    type=click.Choice(["standard", "progressive", "priority", "best"]),
    help="smallest number first, least done first, highest priority first, or most value per second"
    "  [default: the server's]",
)
@click.option("--min-digits", type=click.IntRange(min=1), help="no smaller numbers")
@click.option("--max-digits", type=click.IntRange(min=1), help="no larger numbers")
@click.option("--project", help="numbers of this project only")
@click.option("--composite", help="this number only, such as 2^1277-1")
@click.option("--max-leases", type=click.IntRange(min=1), help="end after so many leases")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="end as with Ctrl-C after so many minutes")
@click.option("--once", is_flag=True, help="one lease, or none if there is no work, and end")
@spool_option
@ecm_option
@patience_option
def work_command(
    *,
    server: str,
    name: str,
    threads: int,
    work_type: str | None,
    min_digits: int | None,
    max_digits: int | None,
    project: str | None,
    composite: str | None,
    max_leases: int | None,
    minutes: float | None,
    once: bool,
    root: Path,
    ecm: Path | None,
    patience: float,
) -> None:
    """Lease work from the server, run it with GMP-ECM and send the results, until Ctrl-C.

    While the server is away the curves go on, and their results wait on disk. Leases and results of an agent that was
    killed are taken up at the next start with the same name and spool.

    Ctrl-C (or SIGTERM) ends it: the curves completed so far are sent, then the leases are given back. A second Ctrl-C
    leaves at once; the next start sends the curves and goes on with the leases.
    """
    if once and max_leases:
        raise click.UsageError("--once is --max-leases 1 without waiting for work: give one of the two")
    if min_digits and max_digits and min_digits > max_digits:
        raise click.UsageError(f"--min-digits {min_digits} is more than --max-digits {max_digits}")
    with said_before_anything_runs(root):
        check(Order(server, name, "15", b1=100, curves=1))
        program = gmp_ecm.find_ecm(ecm)
        spool.prepare(root)
        recovered = recover(root)
    if recovered:
        say(f"found the completed curves of {recovered} interrupted run(s)")
    if max_leases or once:
        threads = min(threads, max_leases or 1)
    shift = new_shift(
        server,
        name,
        ecm=program,
        root=root,
        threads=threads,
        wanted=Wanted(work_type, min_digits, max_digits, project, composite),
        max_leases=max_leases,
        once=once,
        patience=patience,
        say=say,
        on_factor=report_factor,
    )
    run_shift(shift, minutes)
    sys.exit(verdict(shift, once))


def run_shift(shift: Shift, minutes: float | None) -> None:
    """Run a shift to its end, and send what it leaves for as long as the patience lasts."""
    say(f"{len(shift.lanes)} thread(s) as {shift.client_id} for {shift.server}, results in {shift.root} until settled")
    ends = time.monotonic() + minutes * 60 if minutes else float("inf")
    shift.sender.collect()
    beats_end = threading.Event()
    with interruptible(shift):
        sending = guarded(shift, shift.sender.run)
        beating = guarded(shift, lambda: beat(shift, beats_end))
        lanes = [guarded(shift, lambda lane=lane: work(shift, lane)) for lane in shift.lanes]  # type: ignore[misc]
        with shift_progress(shift) as look:
            while any(lane.is_alive() for lane in lanes) and not shift.requested:
                lanes[0].join(TICK) if lanes[0].is_alive() else time.sleep(TICK)
                look()
                if time.monotonic() > ends:
                    shift.request()
        if shift.requested:
            say("ending: sending what is done and giving the leases back; Ctrl-C leaves at once")
            shift.sender.hurry()
        for lane in lanes:
            lane.join()
        beats_end.set()
        with contextlib.suppress(OSError):
            recover(shift.root)
            shift.sender.collect()
        shift.sender.close(max(0.0, shift.deadline(time.monotonic()) - time.monotonic()))
        sending.join()
        beating.join()


def verdict(shift: Shift, once: bool) -> int:
    """The exit code of a shift that has ended, and its last words."""
    if shift.crash:
        say(shift.crash)
        raise click.ClickException("the agent has a fault; the spool keeps what was done")
    if shift.supply.refusal:
        raise click.UsageError(f"the server refuses to look for work: {shift.supply.refusal}")
    waiting = shift.sender.waiting()
    say(
        f"{shift.curves} curves, {shift.factors} factors found, {shift.leases_done} leases done"
        + (f", {waiting} results wait in {shift.root}" if waiting else "")
    )
    for other, count in spool.others(shift.root, shift.server).items():
        say(f"{count} result(s) for {other} also wait in {shift.root}: `agent send --server {other}` sends them")
    if shift.refused:
        return EXIT_REFUSED
    if shift.failure:
        raise click.ClickException(shift.failure)
    if waiting:
        return EXIT_WAITING
    return EXIT_NO_WORK if once and not shift.supply.given and not shift.requested else 0


def report_factor(composite: str, output: Output) -> None:
    """Factors go to standard output, for whoever collects them there."""
    for factor in output.factors:
        say(f"factor of {shorten(composite)}: {factor.value}")
        with contextlib.suppress(OSError, ValueError):
            click.echo(f"{factor.value}  {factor.kind}, sigma {factor.sigma}, of {composite}")
