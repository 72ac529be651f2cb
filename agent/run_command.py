"""`agent run` and `agent send`."""

import sys
import time
from pathlib import Path

import click

from agent import gmp_ecm, spool
from agent.command_options import (
    EXIT_REFUSED,
    EXIT_WAITING,
    Bound,
    ecm_option,
    fail_before_run,
    name_option,
    server_option,
    spool_option,
    timeout_option,
)
from agent.ecm_run import EcmOrder, StopFlag, check_order, recover_runs, run_curves
from agent.gmp_ecm import EcmOutput
from agent.result_delivery import DeliveryAnswer, deliver
from agent.terminal import console, count_of, shorten, show_curves, stop_on_interrupt

REPORTED_PAUSE = 5.0  # seconds; a shorter wait for a result that the server has stored is not reported
SENT = "  0  the server has processed every result\n"
KEPT = """\
  3  a result is kept in the spool; the next start sends it
  4  the server rejected a result; it is kept in `rejected` in the spool
"""
RUN_EXIT_CODES = f"""\b
Exit codes:
{SENT}\
  1  GMP-ECM is missing or failed; curves that it had completed are sent
  2  the command line is wrong; nothing was run
{KEPT}"""
SEND_EXIT_CODES = f"""\b
Exit codes:
{SENT}\
  2  the command line is wrong
{KEPT}"""


@click.command("run", short_help="Run curves on one number and send the result.", epilog=RUN_EXIT_CODES)
@click.argument("number")
@click.option("--b1", type=Bound(), required=True, help="Stage 1 bound, such as 50000 or 11e6.")
@click.option("--b2", type=Bound(), help="Stage 2 bound; 0 runs stage 1 only.  [default: GMP-ECM's for B1]")
@click.option("--curves", type=click.IntRange(min=1), required=True, help="Number of curves to run.")
@server_option
@name_option
@click.option("--parametrization", type=click.IntRange(0, 3), help="ECM parametrization.  [default: GMP-ECM's choice]")
@click.option("--sigma", help='Run the curve with this sigma, such as "1:123456"; needs --curves 1.')
@spool_option
@ecm_option
@timeout_option
def run_command(
    *,
    number: str,
    b1: int,
    b2: int | None,
    curves: int,
    server: str,
    name: str,
    parametrization: int | None,
    sigma: str | None,
    root: Path,
    ecm: Path | None,
    timeout: float,
) -> None:
    """Run GMP-ECM on NUMBER (decimal, or an expression such as 2^1277-1) and send the result.

    The run ends when all curves are done or a factor is found. Ctrl-C ends it early and sends the completed curves. A
    second Ctrl-C quits at once; the next start sends the curves.
    """
    order = EcmOrder(server, name, number.strip(), b1, curves, b2 if b2 != -1 else None, parametrization, sigma)
    with fail_before_run(root):
        check_order(order)
        program = gmp_ecm.find_ecm(ecm)

    try:
        # One attempt each: the curves must not wait for a server that is away.
        before = send_waiting(root, server, timeout=0)
        stop = StopFlag()
        failure = ""
        entry = None
        with stop_on_interrupt(stop), show_curves(order.composite, order.b1, order.curves) as update:
            try:
                output, entry = run_curves(
                    order,
                    program,
                    root,
                    stop=stop,
                    on_line=lambda output, _: update(output.curves_completed, output.last_sigma),
                )
            except gmp_ecm.EcmFailedError as error:
                failure = str(error)
        own = 0
        if entry:
            print_run(order, output)
            own = send_entry(entry, timeout)
        elif not failure:
            console.print("No curve was completed; there is nothing to send")
        after = own if own == EXIT_WAITING else send_waiting(root, server, timeout)
    except KeyboardInterrupt:
        console.print(f"Interrupted: unsent results are kept in {root}; the next start sends them")
        sys.exit(EXIT_WAITING)
    if failure:
        raise click.ClickException(failure)
    sys.exit(max(own, after, before if before == EXIT_REFUSED else 0))


@click.command("send", short_help="Send the results in the spool.", epilog=SEND_EXIT_CODES)
@server_option
@spool_option
@timeout_option
def send_command(server: str, root: Path, timeout: float) -> None:
    """Send the results in the spool to this server, without running any curves."""
    sys.exit(send_waiting(root, server, timeout))


def send_waiting(root: Path, server: str, timeout: float) -> int:
    """Send the pending results for `server`, oldest first, and those of killed runs; return an exit code."""
    spool.prepare_spool(root)
    if recovered := recover_runs(root):
        console.print(f"Recovered the completed curves of {count_of(recovered, 'interrupted run')}")
    deadline = time.monotonic() + timeout
    code = 0
    for entry in spool.lock_pending_entries(root, server):
        curves = count_of(entry.payload["results"]["curves_completed"], "curve")
        console.print(f"Sending {curves} on {shorten(entry.payload['composite'])} from the spool")
        code = max(code, send_entry(entry, max(0.0, deadline - time.monotonic())))
        if code == EXIT_WAITING:
            break  # the next entries would not reach the server either
    for line in describe_other_entries(root, server):
        console.print(line)
    return code


def describe_other_entries(root: Path, server: str) -> list[str]:
    """Return a line for each other server that results in the spool wait for."""
    return [
        f"{count_of(count, 'result')} for {other} in {root}: send with `agent send --server {other}`"
        for other, count in spool.count_entries_of_other_servers(root, server).items()
    ]


def send_entry(entry: spool.SpoolEntry, timeout: float) -> int:
    """Send one entry and print the outcome; return an exit code."""
    try:
        answer = deliver(entry, timeout=timeout, on_wait=print_wait)
    except BaseException:
        entry.release()
        raise
    if answer.verdict == "settled":
        spool.remove_entry(entry)
        t_level = answer.body.get("current_t_level")
        console.print(f"Confirmed: {answer.message}" + (f", t-level {t_level:.2f}" if t_level is not None else ""))
        return 0
    if answer.verdict == "refused":
        path = spool.reject_entry(entry, answer.status, answer.body)
        console.print(f"Rejected: {answer.message}\nThe result is kept in {path}")
        return EXIT_REFUSED
    entry.release()
    console.print(f"Not confirmed yet: {answer.message}\nThe result is kept in {entry.path}")
    return EXIT_WAITING


def print_wait(answer: DeliveryAnswer, seconds: float) -> None:
    """Print why a result is sent again; not for the usual second until the server has processed it."""
    if answer.verdict == "later" or seconds > REPORTED_PAUSE:
        console.print(f"{answer.message}; retrying in {seconds:.1f} s")


def print_run(order: EcmOrder, output: EcmOutput) -> None:
    """Print what a run did; its factors go to standard output."""
    console.print(
        f"{output.curves_completed} of {count_of(order.curves, 'curve')} on {shorten(order.composite)},"
        f" B1={output.b1} B2={output.b2} parametrization {output.parametrization}"
    )
    for factor in output.factors:
        click.echo(f"{factor.value}  {factor.kind}, sigma {factor.sigma}")
    if output.found_input_number:
        console.print("GMP-ECM found the input number itself: it is prime, or B1 finds all of its factors at once")
