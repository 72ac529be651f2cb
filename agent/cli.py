"""The agent's commands: run curves with GMP-ECM and bring their result to a coordinator."""

import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import click
import platformdirs
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agent import client, gmp_ecm, spool
from agent.client import Answer
from agent.gmp_ecm import Output
from agent.run import Order, Stop, check, recover, run_curves

EXIT_WAITING, EXIT_REFUSED = 3, 4  # 1 and 2 are click's own
LINE_EVERY = 10.0  # seconds between two lines of progress where there is no terminal
EXIT_CODES = """\b
Exit codes:
  0  the server has settled everything there was to send
  1  GMP-ECM is missing or failed (curves it had completed are sent all the same)
  2  the command line is wrong; nothing was run
  3  a result waits in the spool; it is sent at the next start
  4  the server refused a result for good; it is kept in the spool's `rejected`
"""

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class Bound(click.ParamType[int]):
    """A bound as people write it: 50000, 11e6."""

    name = "bound"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = Decimal(value)
        except (InvalidOperation, TypeError):
            number = Decimal("NaN")
        # The exponent is looked at before the number is written out.
        if not number.is_finite() or number.adjusted() > 30 or number != number.to_integral_value():
            self.fail(f"{str(value)[:60]!r} is not a whole number such as 50000 or 11e6", param, ctx)
        return int(number)


class Server(click.ParamType[str]):
    """The coordinator's address, without the API's path."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        url = str(value).rstrip("/").removesuffix("/api/v1")
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            self.fail(f"{value!r} is not an address such as http://127.0.0.1:8000", param, ctx)
        return url


server_option = click.option(
    "--server", type=Server(), required=True, envvar="ECM_SERVER", show_envvar=True, help="the coordinator's address"
)
spool_option = click.option(
    "--spool",
    "root",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: Path(platformdirs.user_state_dir("ecm-coordinator")) / "spool",
    envvar="ECM_SPOOL",
    show_envvar=True,
    show_default="the platform's state directory",
    help="where results stay until they are settled; agents may share it",
)
patience_option = click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="seconds to try before a result is left in the spool",
)


@click.group()
def agent() -> None:
    """Run ECM curves and send their results to a coordinator."""


@agent.command(epilog=EXIT_CODES)
@click.argument("number")
@click.option("--b1", type=Bound(), required=True, help="stage 1 bound, such as 50000 or 11e6")
@click.option("--b2", type=Bound(), help="stage 2 bound; 0 for stage 1 only  [default: GMP-ECM's for B1]")
@click.option("--curves", type=click.IntRange(min=1), required=True, help="how many curves to run")
@server_option
@click.option("--name", default=platform.node, show_default="this host's name", help="the client's name")
@click.option("--parametrization", type=click.IntRange(0, 3), help="of the curves  [default: GMP-ECM's choice]")
@click.option("--sigma", help='one given curve, such as "1:123456"; with --curves 1')
@spool_option
@click.option(
    "--ecm",
    type=click.Path(dir_okay=False, path_type=Path),
    help="the GMP-ECM program  [default: ecm on the PATH, else the installed wheel's]",
)
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
    try:
        check(order)
        program = gmp_ecm.find_ecm(ecm)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise click.UsageError(f"{where}: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except gmp_ecm.EcmMissing as error:
        raise click.ClickException(str(error)) from error

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


def report_wait(answer: Answer, delay: float) -> None:
    # The ordinary second or two until an accepted result is applied is no news.
    if answer.verdict == "later" or delay > 5:
        console.print(f"{answer.message}; asking again in {delay:.1f} s")


def report_run(order: Order, output: Output) -> None:
    console.print(
        f"{output.curves_completed} of {order.curves} curves on {shorten(order.composite)},"
        f" B1={output.b1} B2={output.b2} parametrization {output.parametrization}"
    )
    for factor in output.factors:
        click.echo(f"{factor.value}  {factor.kind}, sigma {factor.sigma}")
    if output.found_input_number:
        console.print("GMP-ECM found the number itself: it is prime, or B1 is so large that all factors come at once")


@contextmanager
def interruptible(stop: Stop) -> Iterator[None]:
    """Inside, the first Ctrl-C (or SIGTERM) requests `stop`; the next one ends the process as it would without us."""

    def request(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        stop.request()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What nohup or a shell script ignores stays ignored.
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def curve_progress(order: Order) -> Iterator[Callable[[Output, bool], None]]:
    """A line of progress on the terminal, moved by what it yields; plain lines every so often where there is none."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("curves, {task.fields[sigma]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{shorten(order.composite)} B1={order.b1}", total=order.curves, sigma="")
        told = time.monotonic()

        def on_line(output: Output, curve_done: bool) -> None:
            nonlocal told
            progress.update(task, completed=output.curves_completed, sigma=f"sigma {output.last_sigma}")
            if curve_done and not console.is_terminal and time.monotonic() - told >= LINE_EVERY:
                told = time.monotonic()
                console.print(f"{output.curves_completed} of {order.curves} curves")

        yield on_line


def shorten(number: str) -> str:
    """A number that fits a line: its ends, and how long it is."""
    return number if len(number) <= 40 else f"{number[:12]}...{number[-12:]} ({len(number)} characters)"
