"""`agent work`: the command, the start and end of its threads, and its exit code."""

import contextlib
import sys
import threading
import time
from pathlib import Path

import click

from agent import gmp_ecm, spool
from agent.command_options import (
    EXIT_NO_WORK,
    EXIT_REFUSED,
    EXIT_WAITING,
    count_usable_cores,
    ecm_option,
    fail_before_run,
    name_option,
    server_option,
    spool_option,
    timeout_option,
)
from agent.ecm_run import EcmOrder, check_order, recover_runs
from agent.gmp_ecm import EcmFactor
from agent.lease_api import LeaseRequest
from agent.lease_heartbeat import send_heartbeats
from agent.lease_source import TICK_SECONDS
from agent.run_command import describe_other_entries
from agent.terminal import count_of, print_line, shorten, stop_on_interrupt
from agent.work_display import show_pool
from agent.worker_pool import WorkerPool, create_pool, run_worker, start_thread

EXIT_CODES = """\b
Exit codes:
  0  the server has processed every result
  1  GMP-ECM is missing, or GMP-ECM or the spool's disk failed on the last lease; three failures in a row end the agent
  2  the command line is wrong, or the server rejects the request for work
  3  a result is kept in the spool; the next start sends it
  4  the server rejected a result; it is kept in `rejected` in the spool
  5  with --once: there was no matching work, or the server did not answer within --patience
"""


@click.command("work", short_help="Run leased curves until stopped.", epilog=EXIT_CODES)
@server_option
@name_option
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=count_usable_cores,
    show_default="the cores that this process may use",
    help="Number of GMP-ECM processes; each works on a lease of its own.",
)
@click.option(
    "--work-type",
    type=click.Choice(["standard", "progressive", "priority", "best"]),
    help="Which number first: the smallest, the one with the least work done, the one of the highest priority, or the"
    " one with the most value per second.  [default: the server's choice]",
)
@click.option("--min-digits", type=click.IntRange(min=1), help="Only numbers of at least this many digits.")
@click.option("--max-digits", type=click.IntRange(min=1), help="Only numbers of at most this many digits.")
@click.option("--project", help="Only numbers of this project.")
@click.option("--composite", help="Only this number, such as 2^1277-1.")
@click.option("--max-leases", type=click.IntRange(min=1), help="Stop after this many leases.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after this many minutes, as with Ctrl-C."
)
@click.option("--once", is_flag=True, help="Run one lease and stop; without matching work stop at once.")
@spool_option
@ecm_option
@timeout_option
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
    timeout: float,
) -> None:
    """Lease curves from the server, run them with GMP-ECM and send the results, until Ctrl-C.

    While the server is away the curves go on and their results are kept on disk. An agent that was killed resumes its
    leases and sends its results when it is started again with the same name and spool.

    Ctrl-C (or SIGTERM) stops the curves, sends those that are completed and returns the leases. A second Ctrl-C quits
    at once; the next start sends the completed curves and resumes the leases.
    """
    if once and max_leases:
        raise click.UsageError("use only one of --once and --max-leases")
    if min_digits and max_digits and min_digits > max_digits:
        raise click.UsageError(f"--min-digits {min_digits} is more than --max-digits {max_digits}")
    with fail_before_run(root):
        check_order(EcmOrder(server, name, "15", b1=100, curves=1))
        program = gmp_ecm.find_ecm(ecm)
        spool.prepare_spool(root)
        recovered = recover_runs(root)
    if recovered:
        print_line(f"Recovered the completed curves of {count_of(recovered, 'interrupted run')}")
    if max_leases or once:
        threads = min(threads, max_leases or 1)
    pool = create_pool(
        server,
        name,
        ecm=program,
        root=root,
        threads=threads,
        wanted=LeaseRequest(work_type, min_digits, max_digits, project, composite),
        max_leases=max_leases,
        once=once,
        timeout=timeout,
        report=print_line,
        on_factor=lambda number, output: print_factors(number, output.factors),
    )
    run_pool(pool, minutes)
    sys.exit(print_summary(pool, once))


def run_pool(pool: WorkerPool, minutes: float | None) -> None:
    """Run a pool until its leases, the user or `minutes` end it; then send the results until the timeout."""
    print_line(
        f'Working as "{pool.client_id}" on {pool.server} with {count_of(len(pool.workers), "thread")};'
        f" results are kept in {pool.root} until the server confirms them"
    )
    ends = time.monotonic() + minutes * 60 if minutes else float("inf")
    pool.sender.add_pending()
    heartbeats_end = threading.Event()
    with stop_on_interrupt(pool):
        sending = start_thread(pool, pool.sender.run)
        beating = start_thread(pool, lambda: send_heartbeats(pool, heartbeats_end))
        threads = [start_thread(pool, lambda each=worker: run_worker(pool, each)) for worker in pool.workers]  # type: ignore[misc]
        with show_pool(pool) as update:
            while any(thread.is_alive() for thread in threads) and not pool.stop_requested:
                threads[0].join(TICK_SECONDS) if threads[0].is_alive() else time.sleep(TICK_SECONDS)
                update()
                if time.monotonic() > ends:
                    pool.request_stop()
        if pool.stop_requested:
            print_line("Stopping: sending finished curves and returning leases (Ctrl-C again to quit now)")
            pool.sender.retry_now()
        for thread in threads:
            thread.join()
        heartbeats_end.set()
        with contextlib.suppress(OSError):
            recover_runs(pool.root)
            pool.sender.add_pending()
        pool.sender.close(max(0.0, pool.deadline(time.monotonic()) - time.monotonic()))
        sending.join()
        beating.join()


def print_summary(pool: WorkerPool, once: bool) -> int:
    """Print what a pool has done, and return the exit code. Raises ClickException for a failure."""
    if pool.crash:
        print_line(pool.crash)
        raise click.ClickException("internal error in the agent, see above; completed curves are kept in the spool")
    if pool.source.refusal:
        raise click.UsageError(f"the server rejects the request for work: {pool.source.refusal}")
    waiting = pool.sender.count_waiting()
    print_line(
        f"{count_of(pool.curves, 'curve')}, {count_of(pool.factors, 'factor')} found,"
        f" {count_of(pool.leases_done, 'lease')} done"
        + (f", {count_of(waiting, 'result')} kept in {pool.root}" if waiting else "")
    )
    for line in describe_other_entries(pool.root, pool.server):
        print_line(line)
    if pool.refused:
        return EXIT_REFUSED
    if pool.failure:
        raise click.ClickException(pool.failure)
    if waiting:
        return EXIT_WAITING
    return EXIT_NO_WORK if once and not pool.source.leases_given and not pool.stop_requested else 0


def print_factors(composite: str, factors: list[EcmFactor]) -> None:
    """Print factors, on standard output as well, where scripts can collect them."""
    for factor in factors:
        print_line(f"Factor of {shorten(composite)}: {factor.value}")
        with contextlib.suppress(OSError, ValueError):
            click.echo(f"{factor.value}  {factor.kind}, sigma {factor.sigma}, of {composite}")
