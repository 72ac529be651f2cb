"""What `agent work` shows while it runs: a table on a terminal, else a line now and then."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent.terminal import console, count_of, print_line, shorten
from agent.worker_pool import WorkerPool, WorkerThread

LINE_SECONDS = 30.0  # between two lines where there is no terminal
RATE_SECONDS = 60.0  # the speed is the average over this time
MAX_TABLE_ROWS = 16  # a machine may have more threads than its terminal has lines
MAX_LINE_LEASES = 2


class CurveRate:
    """Computes the curves per second of the last RATE_SECONDS."""

    def __init__(self) -> None:
        self._samples = deque([(time.monotonic(), 0)])

    def update(self, curves: int) -> float:
        """Record the curves run so far; return the curves per second."""
        now = time.monotonic()
        if now - self._samples[-1][0] >= 1.0:
            self._samples.append((now, curves))
        while len(self._samples) > 2 and now - self._samples[1][0] > RATE_SECONDS:
            self._samples.popleft()
        since, before = self._samples[0]
        return (curves - before) / max(now - since, 0.1)


@contextmanager
def show_pool(pool: WorkerPool) -> Iterator[Callable[[], None]]:
    """Show the state of a pool; the main thread calls the yielded function several times a second."""
    rate = CurveRate()
    if console.is_terminal:
        with Live(
            get_renderable=lambda: format_table(pool, rate), console=console, transient=True, refresh_per_second=4
        ):
            yield lambda: None
        return
    printed = time.monotonic()

    def print_now_and_then() -> None:
        nonlocal printed
        if time.monotonic() - printed >= LINE_SECONDS:
            printed = time.monotonic()
            print_line(format_line(pool, rate))

    yield print_now_and_then


def summarize(pool: WorkerPool, rate: CurveRate) -> str:
    """Return "1234 curves, 5.6/s, 1 factor found, 7 leases done", and what is waited for."""
    parts = [
        f"{count_of(pool.curves, 'curve')}, {rate.update(pool.curves):.3g}/s",
        f"{count_of(pool.factors, 'factor')} found",
        f"{count_of(pool.leases_done, 'lease')} done",
    ]
    if waiting := pool.sender.count_waiting():
        parts.append(f"{count_of(waiting, 'result')} to send")
    if pool.source.waiting_reason:
        parts.append(f"waiting: {pool.source.waiting_reason}")
    return ", ".join(parts)


def format_line(pool: WorkerPool, rate: CurveRate) -> str:
    """Return the summary and the first leases in one line."""
    rows = [row for row in map(format_lease, pool.workers) if row]
    leases = [f"{number} B1={b1} {done} t{t_level}" for number, b1, done, t_level in rows[:MAX_LINE_LEASES]]
    if len(rows) > MAX_LINE_LEASES:
        leases.append(f"and {len(rows) - MAX_LINE_LEASES} more")
    return "; ".join([summarize(pool, rate), *leases])


def format_table(pool: WorkerPool, rate: CurveRate) -> Group:
    """Return a table with a row for each lease, and the summary below."""
    table = Table.grid(padding=(0, 2, 0, 0))
    rows = [row for row in map(format_lease, pool.workers) if row]
    for number, b1, done, t_level in rows[:MAX_TABLE_ROWS]:
        table.add_row(number, f"B1={b1}", done, f"t{t_level}")
    if len(rows) > MAX_TABLE_ROWS:
        table.add_row(f"and {len(rows) - MAX_TABLE_ROWS} more")
    return Group(table, Text(summarize(pool, rate)))


def format_lease(worker: WorkerThread) -> tuple[str, str, str, str] | None:
    """Return (number, B1, curves, t-level) of a worker's lease; None if it has no lease."""
    local = worker.lease
    if local is None:
        return None
    lease = local.lease
    number = f"{shorten(lease.composite, 24)} C{len(lease.composite)}"
    b1 = f"{lease.b1:.4g}".replace("e+0", "e").replace("e+", "e") if lease.b1 >= 10**6 else str(lease.b1)
    return number, b1, f"{local.curves_done}/{lease.curves}", f"{worker.t_level:.2f} of {lease.target_t_level:.2f}"
