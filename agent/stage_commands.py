"""`agent stage1` and `agent stage2`: the commands, and their exit codes."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from agent import gmp_ecm, lease_api, residue_transfer, retrying, spool, stage1, stage2
from agent.command_options import (
    EXIT_NO_WORK,
    EXIT_REFUSED,
    EXIT_WAITING,
    Bound,
    count_usable_cores,
    ecm_option,
    fail_before_run,
    name_option,
    server_option,
    spool_option,
    timeout_option,
)
from agent.ecm_run import EcmOrder, check_order
from agent.offers import Offer, Thing
from agent.parallel_ecm import CombinedOutput
from agent.stage_session import STAGE1, STAGE2, StageSession
from agent.stage_task import StageTask, lock_abandoned_tasks
from agent.terminal import console, count_of, print_line, shorten, show_curves, stop_on_interrupt
from agent.work_command import print_factors

TICK_SECONDS = 0.2  # within this time a wait notices that the session is to stop
EXIT_CODES = """\b
Exit codes:
  0  the server has processed every result
  1  GMP-ECM is missing, or GMP-ECM or the spool's disk failed
  2  the command line is wrong, or the server rejects the request for work
  3  a result or a residue is kept in the spool; the next start continues
  4  the server rejected a result or a residue; it is kept in `rejected` in the spool
  5  with --once: there was no matching work, or the server did not answer within --patience
"""
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=count_usable_cores,
    show_default="the cores that this process may use",
    help="Number of GMP-ECM processes that share the curves.",
)


@click.command("stage1", short_help="Run stage 1 and upload the residues.", epilog=EXIT_CODES)
@click.argument("number", required=False)
@click.option("--b1", type=Bound(), help="Stage 1 bound, such as 50000 or 11e6.  [default: the server's choice]")
@click.option(
    "--curves", type=click.IntRange(min=1), help="Number of curves; without NUMBER, at most so many of each lease."
)
@click.option("--parametrization", type=click.IntRange(0, 3), help="With NUMBER: ECM parametrization.  [default: 1]")
@server_option
@name_option
@threads_option
@click.option("--min-digits", type=click.IntRange(min=1), help="Only numbers of at least this many digits.")
@click.option("--max-digits", type=click.IntRange(min=1), help="Only numbers of at most this many digits.")
@click.option("--project", help="Only numbers of this project.")
@click.option("--max-leases", type=click.IntRange(min=1), help="Stop after this many leases.")
@click.option("--once", is_flag=True, help="Run one lease and stop; without matching work stop at once.")
@spool_option
@ecm_option
@timeout_option
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
    timeout: float,
) -> None:
    """Run stage 1 with GMP-ECM and upload the residues, so that other machines can run stage 2.

    Without NUMBER it runs leases of the server until Ctrl-C; with NUMBER, --b1 and --curves it runs those curves.
    Ctrl-C sends the completed curves. A second Ctrl-C quits at once; the next start with the same name and spool
    continues.
    """
    if number is not None and (b1 is None or curves is None):
        raise click.UsageError("NUMBER needs --b1 and --curves; without NUMBER the server leases work")
    if curves is not None and curves > stage1.MAX_RESIDUE_CURVES:
        raise click.UsageError(f"--curves {curves}: one residue holds at most {stage1.MAX_RESIDUE_CURVES} curves")
    session = _create_session(server, name, threads=threads, root=root, ecm=ecm, timeout=timeout, number=number, b1=b1)
    wanted = lease_api.LeaseRequest(None, min_digits, max_digits, project, stage1_only=1, requested_b1=b1)
    max_tasks = 1 if once else max_leases
    deadline = time.monotonic() + timeout if once else None

    def next_task() -> StageTask | str | None:
        offer = lease_api.request_lease(session.http, server, name, wanted)
        return _task_of(session, offer, lambda lease: stage1.create_lease_task(session, lease, curves), deadline)

    with _stop_or_fail(session):
        done = _resume_tasks(session, STAGE1, stage1.send_stage1)
        if number is not None and b1 is not None and curves is not None:
            task = stage1.create_stage1_task(
                session, composite=number.strip(), b1=b1, curves=curves, parametrization=parametrization
            )
            stage1.run_stage1(session, task)
            done += 1
        elif not (once and done):
            done += _run_tasks(session, STAGE1, next_task, stage1.run_stage1, stage1.send_stage1, max_tasks=max_tasks)
    sys.exit(_print_summary(session, nothing_done=once and not done))


@click.command("stage2", short_help="Claim residues and run stage 2 of them.", epilog=EXIT_CODES)
@server_option
@name_option
@threads_option
@click.option("--b2", type=Bound(), help="Stage 2 bound.  [default: GMP-ECM's for B1]")
@click.option("--min-digits", type=click.IntRange(min=1), help="Only numbers of at least this many digits.")
@click.option("--max-digits", type=click.IntRange(min=1), help="Only numbers of at most this many digits.")
@click.option("--min-b1", type=Bound(), help="Only residues of at least this B1.")
@click.option("--max-b1", type=Bound(), help="Only residues of at most this B1; a larger B1 needs more memory.")
@click.option("--project", help="Only numbers of this project.")
@click.option(
    "--hours", type=click.FloatRange(min=0, min_open=True), help="Hours to claim a residue for.  [default: 24]"
)
@click.option("--max-residues", type=click.IntRange(min=1), help="Stop after this many residues.")
@click.option("--once", is_flag=True, help="Run one residue and stop; without matching work stop at once.")
@spool_option
@ecm_option
@timeout_option
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
    timeout: float,
) -> None:
    """Claim residues of other machines, run their stage 2 with GMP-ECM and send the results, until Ctrl-C.

    Ctrl-C returns the residue, or sends its result if most of it is done. A second Ctrl-C quits at once; the next start
    with the same name and spool continues.
    """
    session = _create_session(server, name, threads=threads, root=root, ecm=ecm, timeout=timeout)
    filters = residue_transfer.ResidueFilters(min_digits, max_digits, min_b1, max_b1, project, hours)
    max_tasks = 1 if once else max_residues
    deadline = time.monotonic() + timeout if once else None

    def next_task() -> StageTask | str | None:
        offer = residue_transfer.request_residue(session.http, server, name, filters)
        return _task_of(session, offer, lambda residue: stage2.create_stage2_task(session, residue, b2), deadline)

    with _stop_or_fail(session):
        done = _resume_tasks(session, STAGE2, stage2.run_stage2)
        if not (once and done):
            done += _run_tasks(session, STAGE2, next_task, stage2.run_stage2, stage2.run_stage2, max_tasks=max_tasks)
    sys.exit(_print_summary(session, nothing_done=once and not done))


def _create_session(
    server: str,
    name: str,
    *,
    threads: int,
    root: Path,
    ecm: Path | None,
    timeout: float,
    number: str | None = None,
    b1: int | None = None,
) -> StageSession:
    """Return a session that has not started; exit with a sentence if its settings cannot work."""
    with fail_before_run(root):
        check_order(EcmOrder(server, name, (number or "15").strip(), b1=b1 or 100, curves=1, b2=0))
        program = gmp_ecm.find_ecm(ecm)
        spool.prepare_spool(root)
    return StageSession(
        server,
        name,
        program,
        root,
        threads,
        timeout,
        report=print_line,
        on_poll=lambda output: None,
        on_factors=lambda number, output: print_factors(number, output.factors),
    )


@contextmanager
def _stop_or_fail(session: StageSession) -> Iterator[None]:
    """Within this block Ctrl-C stops the session, and a disk error ends the command with a sentence."""
    try:
        with stop_on_interrupt(session):
            yield
    except OSError as error:
        raise click.ClickException(f"the spool {session.root} cannot be written: {error}") from error


def _resume_tasks(session: StageSession, kind: str, resume: Callable[[StageSession, StageTask], None]) -> int:
    """Resume the tasks that agents of this name have left; return how many there were."""
    resumed = 0
    for task in lock_abandoned_tasks(session.root, kind, session.server, session.client_id):
        session.report(f"Resuming {kind} of {shorten(task.fields['composite'])}")
        resume(session, task)
        resumed += 1
    return resumed


def _run_tasks(
    session: StageSession,
    kind: str,
    next_task: Callable[[], StageTask | str | None],
    run: Callable[[StageSession, StageTask], None],
    resume: Callable[[StageSession, StageTask], None],
    *,
    max_tasks: int | None,
) -> int:
    """Run one task after the other, and resume those that waited for the server; return how many new tasks were run."""
    done = 0
    while not session.stop_requested and not session.failure and (max_tasks is None or done < max_tasks):
        if session.waiting:
            # A task that reaches its timeout again waits for the next round.
            session.waiting = 0
            _resume_tasks(session, kind, resume)
        task = next_task()
        if task is None:
            break
        if isinstance(task, str):
            if task:
                raise click.UsageError(f"the server rejects the request for work: {task}")
            continue
        done += 1
        fields = task.fields
        with show_curves(fields["composite"], fields["b1"], fields["curves"]) as update:

            def on_poll(output: CombinedOutput, update: Callable[[int, str | None], None] = update) -> None:
                update(output.curves_completed, output.sigmas[-1] if output.sigmas else None)

            session.on_poll = on_poll
            run(session, task)
    return done


def _task_of(
    session: StageSession, offer: Offer[Thing], create: Callable[[Thing], StageTask], deadline: float | None
) -> StageTask | str | None:
    """Return the task that an offer gives, the server's message if it rejects the request, or None to end.

    Without an offer this waits until it is time to ask again and returns "". With a `deadline` it returns None if there
    is no work, or the next request would come after the deadline.
    """
    if offer.thing is not None:
        return create(offer.thing)
    if offer.verdict == "refused":
        return offer.message
    pause = offer.retry_after if offer.verdict == "none" else max(offer.retry_after, retrying.STAGE_WORK_DELAY)
    pause = retrying.spread(pause, 1.0, 1.5)
    again = time.monotonic() + pause
    if deadline is not None and (offer.verdict == "none" or again > deadline):
        print_line(offer.message)
        return None
    print_line(f"{offer.message}; retrying in {pause:.0f} s")
    while not session.stop_requested and time.monotonic() < again:
        time.sleep(TICK_SECONDS)
    return ""


def _print_summary(session: StageSession, *, nothing_done: bool) -> int:
    """Print what a session has done, and return the exit code. Raises ClickException for a failure."""
    console.print(
        f"{count_of(session.curves, 'curve')}, {count_of(session.factors, 'factor')} found,"
        f" {count_of(session.done, 'residue')} done"
        + (f", {count_of(session.waiting, 'task')} kept in {session.root}" if session.waiting else "")
    )
    if session.refused:
        return EXIT_REFUSED
    if session.failure:
        raise click.ClickException(session.failure)
    if session.waiting:
        return EXIT_WAITING
    return EXIT_NO_WORK if nothing_done and not session.stop_requested else 0
