"""What a shift looks like while it runs: a table on a terminal, a line every so often where there is none."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent.terminal import console, say, shorten
from agent.work import Lane, Shift

LINE_EVERY = 30.0  # seconds between two lines
RATE_OVER = 60.0  # seconds that the curves/s are an average over
MOST_ROWS = 16  # of the table; a machine may have more threads than its terminal has lines
IN_A_LINE = 2  # numbers


class Rate:
    """Curves per second, lately."""

    def __init__(self) -> None:
        self._seen = deque([(time.monotonic(), 0)])

    def of(self, curves: int) -> float:
        now = time.monotonic()
        if now - self._seen[-1][0] >= 1.0:
            self._seen.append((now, curves))
        while len(self._seen) > 2 and now - self._seen[1][0] > RATE_OVER:
            self._seen.popleft()
        since, before = self._seen[0]
        return (curves - before) / max(now - since, 0.1)


@contextmanager
def shift_progress(shift: Shift) -> Iterator[Callable[[], None]]:
    """Shows a shift; what it yields is called now and then by the main thread, until the end."""
    rate = Rate()
    if console.is_terminal:
        with Live(get_renderable=lambda: as_table(shift, rate), console=console, transient=True, refresh_per_second=4):
            yield lambda: None
        return
    told = time.monotonic()

    def tell() -> None:
        nonlocal told
        if time.monotonic() - told >= LINE_EVERY:
            told = time.monotonic()
            say(as_line(shift, rate))

    yield tell


def summary(shift: Shift, rate: Rate) -> str:
    """`1234 curves, 5.6/s, 1 factor found, 7 leases done`, and what is out of the ordinary."""
    words = [
        f"{shift.curves} curves, {rate.of(shift.curves):.3g}/s",
        f"{shift.factors} factor{'s' * (shift.factors != 1)} found",
        f"{shift.leases_done} lease{'s' * (shift.leases_done != 1)} done",
    ]
    if waiting := shift.sender.waiting():
        words.append(f"{waiting} result{'s' * (waiting != 1)} to send")
    if shift.supply.waits_for:
        words.append(f"waiting: {shift.supply.waits_for}")
    return ", ".join(words)


def as_line(shift: Shift, rate: Rate) -> str:
    rows = [row for row in map(row_of, shift.lanes) if row]
    numbers = [f"{number} B1={b1} {done} t{t_level}" for number, b1, done, t_level in rows[:IN_A_LINE]]
    if len(rows) > IN_A_LINE:
        numbers.append(f"and {len(rows) - IN_A_LINE} more")
    return "; ".join([summary(shift, rate), *numbers])


def as_table(shift: Shift, rate: Rate) -> Group:
    table = Table.grid(padding=(0, 2, 0, 0))
    rows = [row for row in map(row_of, shift.lanes) if row]
    for number, b1, done, t_level in rows[:MOST_ROWS]:
        table.add_row(number, f"B1={b1}", done, f"t{t_level}")
    if len(rows) > MOST_ROWS:
        table.add_row(f"and {len(rows) - MOST_ROWS} more")
    return Group(table, Text(summary(shift, rate)))


def row_of(lane: Lane) -> tuple[str, str, str, str] | None:
    """(number, B1, curves, t-level) of what a lane works on."""
    held = lane.held
    if held is None:
        return None
    lease = held.lease
    number = f"{shorten(lease.composite, 24)} C{len(lease.composite)}"
    b1 = f"{lease.b1:.4g}".replace("e+0", "e").replace("e+", "e") if lease.b1 >= 10**6 else str(lease.b1)
    return number, b1, f"{held.curves_run}/{lease.curves}", f"{lane.t_level:.2f} of {lease.target_t_level:.2f}"
