"""The agent's output on the terminal, and its Ctrl-C."""

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

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal


def _drop_unwritten_output() -> None:
    """Discard output that a closed terminal or pipe did not take; Python would exit with an error because of it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


atexit.register(_drop_unwritten_output)

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def print_line(line: str) -> None:
    """Print a line for the user. A closed terminal or pipe is ignored: it must not end a run."""
    # Rich ends the program, or this thread of it, when its output is closed.
    with contextlib.suppress(OSError, ValueError, AttributeError, SystemExit):
        console.print(line)


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1: "1 curve", "2 curves"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Stoppable(Protocol):
    """Something that Ctrl-C ends; request_stop() is called from a signal handler."""

    def request_stop(self) -> None: ...


@contextmanager
def stop_on_interrupt(stop: Stoppable) -> Iterator[None]:
    """Within this block the first Ctrl-C (or SIGTERM) requests `stop`, and the second one kills the process."""

    def request(_number: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        stop.request_stop()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A signal that nohup or a shell script ignores stays ignored.
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def show_curves(composite: str, b1: int, curves: int) -> Iterator[Callable[[int, str | None], None]]:
    """Show how many curves of a run are done: a bar on a terminal, else a line every LINE_SECONDS.

    Yields the function to call with the curves completed and the last sigma.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("curves, {task.fields[sigma]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{shorten(composite)} B1={b1}", total=curves, sigma="")
        printed, shown = time.monotonic(), 0

        def update(completed: int, sigma: str | None) -> None:
            nonlocal printed, shown
            progress.update(task, completed=completed, sigma=f"sigma {sigma}")
            if completed > shown and not console.is_terminal and time.monotonic() - printed >= LINE_SECONDS:
                printed = time.monotonic()
                print_line(f"{completed} of {count_of(curves, 'curve')}")
            shown = completed

        yield update


def shorten(number: str, width: int = 40) -> str:
    """Return a number cut to about `width` characters: its two ends, and its length if there is room."""
    if len(number) <= width:
        return number
    ends = width * 3 // 10
    return f"{number[:ends]}...{number[-ends:]}" + (f" ({len(number)} characters)" if width >= 40 else "")
