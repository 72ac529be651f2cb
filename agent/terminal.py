"""What the agent and its user tell each other: lines, progress, and Ctrl-C."""

import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agent.client import Answer
from agent.gmp_ecm import Output
from agent.run import Order

LINE_EVERY = 10.0  # seconds between two lines of progress where there is no terminal


def _let_go() -> None:
    """What could not be written to a closed terminal or pipe is not tried again: that would be Python's exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


atexit.register(_let_go)

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def say(line: str) -> None:
    """A line for the user, if there is still somebody to read it: a closed terminal or pipe ends no run."""
    # Rich ends the program, or this thread of it, when nobody reads its output any more.
    with contextlib.suppress(OSError, ValueError, AttributeError, SystemExit):
        console.print(line)


class Stoppable(Protocol):
    """What an interrupt ends; request() is called from a signal handler."""

    def request(self) -> None: ...


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
def interruptible(stop: Stoppable) -> Iterator[None]:
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


def shorten(number: str, fits: int = 40) -> str:
    """A number that fits a line: its ends, and how long it is."""
    if len(number) <= fits:
        return number
    ends = fits * 3 // 10
    return f"{number[:ends]}...{number[-ends:]}" + (f" ({len(number)} characters)" if fits >= 40 else "")
