"""`agent stage1` and `agent stage2`: the commands, and what their exit codes say."""

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from agent import gmp_ecm, leases, residues, spool, stage1, stage2, tasks
from agent.asking import Offer, Thing
from agent.gmp_ecm import Output
from agent.options import (
    Bound,
    ecm_option,
    name_option,
    patience_option,
    said_before_anything_runs,
    server_option,
    spool_option,
)
from agent.parallel import Together
from agent.run import Order, check
from agent.stages import STAGE1, STAGE2, Shift
from agent.tasks import Task
from agent.terminal import console, curve_progress, interruptible, say, shorten
from agent.work_command import EXIT_NO_WORK, EXIT_REFUSED, EXIT_WAITING, report_factor, usable_cores

TICK = 0.2
SILENCE = 10.0  # seconds until a server that did not answer is asked again, and half as many more
EXIT_CODES = """\b
Exit codes:
  0  everything there was to send is settled
  1  GMP-ECM is missing or failed, or the spool's disk did
  2  the command line is wrong, or the server refuses what it asks for
  3  something waits in the spool; the next start goes on with it
  4  the server refused a result or a residue for good; it is kept in the spool's `rejected`
  5  with --once: there was nothing to do, or the server did not answer
"""
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=usable_cores,
    show_default="the cores this process may use",
    help="how many GMP-ECM processes share the curves",
)
once_option = click.option("--once", is_flag=True, help="one, or none if there is nothing to do, and end")


@click.command("stage1", epilog=EXIT_CODES)
@click.argument("number", required=False)
@click.option("--b1", type=Bound(), help="stage 1 bound, such as 50000 or 11e6  [default: the server's choice]")
@click.option("--curves", type=click.IntRange(min=1), help="how many; without NUMBER, at most so many of a lease")
@click.option("--parametrization", type=click.IntRange(0, 3), help="with NUMBER  [default: 1]")
@server_option
@name_option
@threads_option
@click.option("--min-digits", type=click.IntRange(min=1), help="no smaller numbers")
@click.option("--max-digits", type=click.IntRange(min=1), help="no larger numbers")
@click.option("--project", help="numbers of this project only")
@click.option("--max-leases", type=click.IntRange(min=1), help="end after so many leases")
@once_option
@spool_option
@ecm_option
@patience_option
def stage1_command(
    *,
    number: str | None,
    b1: int | None,
    curves: int | None,
    parametrization: int | None,
    server: str,
    name: str,
    threads: int,
    min_digits: int | None,
    max_digits: int | None,
    project: str | None,
    max_leases: int | None,
    once: bool,
    root: Path,
    ecm: Path | None,
    patience: float,
) -> None:
    """Run stage 1 with GMP-ECM and upload what it leaves, for other machines' stage 2.

    Of the numbers that the server leases, until Ctrl-C; or with NUMBER, --b1 and --curves of that one. Ctrl-C sends
    what is done; a second one leaves at once, and the next start with the same name and spool goes on.
    """
    if number is not None and (b1 is None or curves is None):
        raise click.UsageError("NUMBER needs --b1 and --curves; without NUMBER work is leased")
    if curves is not None and curves > stage1.MOST_CURVES:
        raise click.UsageError(f"--curves {curves}: at most {stage1.MOST_CURVES} go into one residue")
    shift = _shift(server, name, threads=threads, root=root, ecm=ecm, patience=patience, number=number, b1=b1)
    wanted = leases.Wanted(None, min_digits, max_digits, project, stage1_only=1, requested_b1=b1)
    most = 1 if once else max_leases
    until = time.monotonic() + patience

    def next_task() -> Task | str | None:
        offer = leases.ask_for_work(shift.session, server, name, wanted)
        return _begun(shift, offer, lambda lease: stage1.of_lease(shift, lease, curves), until if once else None)

    with _working(shift):
        done = _take_up(shift, STAGE1, stage1.send_stage1)
        if number is not None:
            one = {"composite": number.strip(), "b1": b1 or 0, "curves": curves or 1}
            stage1.run_stage1(shift, stage1.begin_stage1(shift, **one, parametrization=parametrization))  # type: ignore[arg-type]
            done += 1
        elif not (once and done):
            done += _each(shift, STAGE1, next_task, stage1.run_stage1, stage1.send_stage1, most=most)
    sys.exit(_verdict(shift, nothing_done=once and not done))


@click.command("stage2", epilog=EXIT_CODES)
@server_option
@name_option
@threads_option
@click.option("--b2", type=Bound(), help="stage 2 bound  [default: GMP-ECM's for B1]")
@click.option("--min-digits", type=click.IntRange(min=1), help="no smaller numbers")
@click.option("--max-digits", type=click.IntRange(min=1), help="no larger numbers")
@click.option("--min-b1", type=Bound(), help="no smaller B1")
@click.option("--max-b1", type=Bound(), help="no larger B1: stage 2 takes memory")
@click.option("--project", help="numbers of this project only")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="how long to claim a residue  [default: 24]")
@click.option("--max-residues", type=click.IntRange(min=1), help="end after so many residues")
@once_option
@spool_option
@ecm_option
@patience_option
def stage2_command(
    *,
    server: str,
    name: str,
    threads: int,
    b2: int | None,
    min_digits: int | None,
    max_digits: int | None,
    min_b1: int | None,
    max_b1: int | None,
    project: str | None,
    hours: float | None,
    max_residues: int | None,
    once: bool,
    root: Path,
    ecm: Path | None,
    patience: float,
) -> None:
    """Claim residues of other machines' stage 1, run their stage 2 with GMP-ECM and send the results, until Ctrl-C.

    Ctrl-C gives the residue back, or sends it if most of it is done; a second one leaves at once, and the next start
    with the same name and spool goes on with it.
    """
    shift = _shift(server, name, threads=threads, root=root, ecm=ecm, patience=patience)
    wanted = residues.Wanted(min_digits, max_digits, min_b1, max_b1, project, hours)
    until = time.monotonic() + patience

    def next_task() -> Task | str | None:
        offer = residues.ask(shift.session, server, name, wanted)
        return _begun(shift, offer, lambda residue: stage2.begin_stage2(shift, residue, b2), until if once else None)

    with _working(shift):
        done = _take_up(shift, STAGE2, stage2.run_stage2)
        if not (once and done):
            most = 1 if once else max_residues
            done += _each(shift, STAGE2, next_task, stage2.run_stage2, stage2.run_stage2, most=most)
    sys.exit(_verdict(shift, nothing_done=once and not done))


def _shift(
    server: str,
    name: str,
    *,
    threads: int,
    root: Path,
    ecm: Path | None,
    patience: float,
    number: str | None = None,
    b1: int | None = None,
) -> Shift:
    """A shift that has not begun; what cannot work is said before anything is run."""
    with said_before_anything_runs(root):
        check(Order(server, name, (number or "15").strip(), b1=b1 or 100, curves=1, b2=0))
        program = gmp_ecm.find_ecm(ecm)
        spool.prepare(root)

    def report(composite: str, together: Together) -> None:
        report_factor(composite, Output(factors=together.factors))

    return Shift(server, name, program, root, threads, patience, say, lambda task, together: None, report)


@contextmanager
def _working(shift: Shift) -> Iterator[None]:
    """Ctrl-C ends the shift; a disk that fails is said in a sentence."""
    try:
        with interruptible(shift):
            yield
    except OSError as error:
        raise click.ClickException(f"the spool {shift.root} cannot be written: {error}") from error


def _take_up(shift: Shift, kind: str, go_on: Callable[[Shift, Task], None]) -> int:
    """Go on with what an agent of this name has left; how many tasks those were."""
    taken = 0
    for task in tasks.left_behind(shift.root, kind, shift.server, shift.client_id):
        shift.say(f"going on with {kind} of {shorten(task.said['composite'])}")
        go_on(shift, task)
        taken += 1
    return taken


def _each(
    shift: Shift,
    kind: str,
    next_task: Callable[[], Task | str | None],
    run: Callable[[Shift, Task], None],
    go_on: Callable[[Shift, Task], None],
    *,
    most: int | None,
) -> int:
    """Run one task after the other, and go on with those that had to wait for the server; how many there were."""
    done = 0
    while not shift.requested and not shift.failure and (most is None or done < most):
        if shift.waiting:
            # For as long as the patience lasts; what is left then waits for the next round.
            shift.waiting = 0
            _take_up(shift, kind, go_on)
        task = next_task()
        if task is None:
            break
        if isinstance(task, str):
            if task:
                raise click.UsageError(f"the server refuses to look for work: {task}")
            continue
        done += 1
        order = Order(shift.server, shift.client_id, task.said["composite"], task.said["b1"], task.said["curves"])
        with curve_progress(order) as on_line:
            before = 0

            def on_look(_: Task, together: Together) -> None:
                nonlocal before
                last = together.sigmas[-1] if together.sigmas else None
                shown = Output(curves_completed=together.curves_completed, last_sigma=last)
                on_line(shown, together.curves_completed > before)
                before = together.curves_completed

            shift.on_look = on_look
            run(shift, task)
    return done


def _begun(shift: Shift, offer: Offer[Thing], begin: Callable[[Thing], Task], until: float | None) -> Task | str | None:
    """The task that an offer begins; without one, wait until it is time to ask again ("").

    What the server refuses for good is returned. With `until` "no work" ends it (None), and so does silence until then.
    """
    if offer.thing is not None:
        return begin(offer.thing)
    if offer.verdict == "refused":
        return offer.message
    pause = offer.retry_after if offer.verdict == "none" else max(offer.retry_after, SILENCE)
    pause *= random.uniform(1.0, 1.5)
    again = time.monotonic() + pause
    if until is not None and (offer.verdict == "none" or again > until):
        say(offer.message)
        return None
    say(f"{offer.message}; asking again in {pause:.0f} s")
    while not shift.requested and time.monotonic() < again:
        time.sleep(TICK)
    return ""


def _verdict(shift: Shift, *, nothing_done: bool) -> int:
    """The exit code of a shift that has ended, and its last words."""
    said = f"{shift.curves} curves, {shift.factors} factors found, {shift.done} residues done"
    console.print(said + (f", {shift.waiting} wait in {shift.root}" if shift.waiting else ""))
    if shift.refused:
        return EXIT_REFUSED
    if shift.failure:
        raise click.ClickException(shift.failure)
    if shift.waiting:
        return EXIT_WAITING
    return EXIT_NO_WORK if nothing_done and not shift.requested else 0
