"""The agent's commands: run curves with GMP-ECM and bring their result to a coordinator."""

import sys
import time
from pathlib import Path

import click

from agent import client, gmp_ecm, spool
from agent.options import (
    Bound,
    ecm_option,
    name_option,
    patience_option,
    said_before_anything_runs,
    server_option,
    spool_option,
)
from agent.run import Order, Stop, check, recover, run_curves
from agent.stage_commands import stage1_command, stage2_command
from agent.terminal import console, curve_progress, interruptible, report_run, report_wait, shorten
from agent.work_command import work_command

EXIT_WAITING, EXIT_REFUSED = 3, 4  # 1 and 2 are click's own
EXIT_CODES = """\b
Exit codes:
  0  the server has settled everything there was to send
  1  GMP-ECM is missing or failed (curves it had completed are sent all the same)
  2  the command line is wrong; nothing was run
  3  a result waits in the spool; it is sent at the next start
  4  the server refused a result for good; it is kept in the spool's `rejected`
"""


@click.group()
def agent() -> None:
    """Run ECM curves and send their results to a coordinator."""


agent.add_command(work_command)
agent.add_command(stage1_command)
agent.add_command(stage2_command)


@agent.command(epilog=EXIT_CODES)
@click.argument("number")
@click.option("--b1", type=Bound(), required=True, help="stage 1 bound, such as 50000 or 11e6")
@click.option("--b2", type=Bound(), help="stage 2 bound; 0 for stage 1 only  [default: GMP-ECM's for B1]")
@click.option("--curves", type=click.IntRange(min=1), required=True, help="how many curves to run")
@server_option
@name_option
@click.option("--parametrization", type=click.IntRange(0, 3), help="of the curves  [default: GMP-ECM's choice]")
@click.option("--sigma", help='one given curve, such as "1:123456"; with --curves 1')
@spool_option
@ecm_option
@patience_option
def run(
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
    patience: float,
) -> None:
    """Run GMP-ECM on NUMBER (decimal, or an expression such as 2^1277-1) and send the result.

    The run ends when its curves are done or a factor is found. Ctrl-C ends it early: the curves completed so far are
    sent; a second Ctrl-C leaves at once, and they are sent at the next start.
    """
    order = Order(server, name, number.strip(), b1, curves, b2 if b2 != -1 else None, parametrization, sigma)
    with said_before_anything_runs(root):
        check(order)
        program = gmp_ecm.find_ecm(ecm)

    try:
        # One try each: a server that is away must not keep the curves waiting.
        before = send_waiting(root, server, patience=0)
        stop = Stop()
        failure = ""
        entry = None
        with interruptible(stop), curve_progress(order) as on_line:
            try:
                output, entry = run_curves(order, program, root, stop=stop, on_line=on_line)
            except gmp_ecm.EcmFailed as error:
                failure = str(error)
        own = 0
        if entry:
            report_run(order, output)
            own = send(entry, patience)
        elif not failure:
            console.print("no curve was completed, so there is nothing to send")
        after = own if own == EXIT_WAITING else send_waiting(root, server, patience)
    except KeyboardInterrupt:
        console.print(f"interrupted: what is not settled waits in {root} and is sent at the next start")
        sys.exit(EXIT_WAITING)
    if failure:
        raise click.ClickException(failure)
    sys.exit(max(own, after, before if before == EXIT_REFUSED else 0))


@agent.command("send", epilog=EXIT_CODES)
@server_option
@spool_option
@patience_option
def send_spool(server: str, root: Path, patience: float) -> None:
    """Send what waits in the spool for this server, and run nothing."""
    sys.exit(send_waiting(root, server, patience))


def send_waiting(root: Path, server: str, patience: float) -> int:
    """Send what waits for `server`, oldest first, killed runs included. Returns an exit code."""
    spool.prepare(root)
    if recovered := recover(root):
        console.print(f"found the completed curves of {recovered} interrupted run(s)")
    deadline = time.monotonic() + patience
    code = 0
    for entry in spool.pending(root, server):
        composite = shorten(entry.payload["composite"])
        console.print(f"sending {entry.payload['results']['curves_completed']} curves on {composite} from the spool")
        code = max(code, send(entry, max(0.0, deadline - time.monotonic())))
        if code == EXIT_WAITING:
            break  # what one entry could not get through, the next will not either
    for other, count in spool.others(root, server).items():
        console.print(f"{count} result(s) for {other} also wait in {root}: `agent send --server {other}` sends them")
    return code


def send(entry: spool.Entry, patience: float) -> int:
    """Send one entry, and tell the user what became of it. Returns an exit code."""
    try:
        answer = client.deliver(entry, patience=patience, on_wait=report_wait)
    except BaseException:
        entry.release()
        raise
    if answer.verdict == "settled":
        spool.settle(entry)
        t_level = answer.body.get("current_t_level")
        console.print(f"settled: {answer.message}" + (f", t-level {t_level:.2f}" if t_level is not None else ""))
        return 0
    if answer.verdict == "refused":
        path = spool.reject(entry, answer.status, answer.body)
        console.print(f"refused: {answer.message}\nkept in {path}")
        return EXIT_REFUSED
    entry.release()
    console.print(f"not settled yet: {answer.message}\nwaits in {entry.path}")
    return EXIT_WAITING
