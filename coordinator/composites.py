"""Loading numbers: a list, however long, in one unit of work; its numbers are looked at before anything is locked.

 1. the list is read in batches, which other processes look at (coordinator/screening.py);
 2. what is good is copied into temporary tables; what is bad is counted, and the first of it is reported;
 3. unless something was bad (or bad numbers are to be skipped), the numbers are matched with what is known and the new
    ones inserted (coordinator/staging.py), and known ones changed (coordinator/known_numbers.py).

Memory is bounded by the batches in flight, whatever the length of the list.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from coordinator import audit, jobs, known_numbers
from coordinator.list_formats import Given, ListError
from coordinator.screening import BadLine, Screened, screen
from coordinator.staging import Staging
from coordinator.unit_of_work import unit_of_work

BATCH = 1000
BATCH_CHARACTERS = 1_000_000
# A list of so few batches is looked at here: processes take half a second to start.
FEW_BATCHES = 1
BATCHES_IN_FLIGHT = 3  # for each process
REPORTED = 100
RINGS = 1000  # upkeep rings for the others
# The key of the advisory lock that loads take in turn: two lists with the same numbers would deadlock.
LOADING = 0x4C6F6164

CHECKED, STORED = "checked", "stored"
Progress = Callable[[str, int], None]


class Busy(Exception):
    """Another list is being stored just now; the message is for people."""


@dataclass
class Report:
    """What a load did, or would do; `errors` are the first of the bad lines."""

    total: int = 0
    new: int = 0
    existing: int = 0
    updated: int = 0
    invalid: int = 0
    errors: list[BadLine] = field(default_factory=list)
    is_stored: bool = False
    rings: list[jobs.Ring] = field(default_factory=list)

    def answer(self) -> dict[str, Any]:
        """The report in the words of the interface."""
        return {
            "total_processed": self.total,
            "new_composites": self.new,
            "existing_composites": self.existing,
            "updated_composites": self.updated,
            "invalid_numbers": self.invalid,
            "errors": [error._asdict() for error in self.errors],
        }

    def summary(self) -> str:
        """The report in a sentence."""
        done = (
            f"{self.new:,} new, {self.existing:,} known ({self.updated:,} of them changed), {self.invalid:,} not valid"
        )
        how = "" if self.is_stored else "; nothing was stored"
        return f"{self.total:,} numbers: {done}{how}"


class InvalidNumbers(Exception):
    """A list with bad lines was not stored; `report` names them."""

    def __init__(self, report: Report) -> None:
        lines = "1 line is" if report.invalid == 1 else f"{report.invalid} lines are"
        first = report.errors[0]
        super().__init__(f"{lines} not valid, so nothing was stored; line {first.line}: {first.message}")
        self.report = report


class _DryRun(Exception):
    pass


def load(
    engine: Engine,
    numbers: Iterable[Given],
    *,
    max_digits: int,
    actor: str,
    source: str,
    project: str | None = None,
    priority: int | None = None,
    known_priority: int | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
    processes: int = 1,
    progress: Progress = lambda stage, count: None,
    request_id: str | None = None,
) -> Report:
    """Load a list of numbers, all of it or nothing; with `skip_bad`, all that is good of it.

    `project` and `priority` are for numbers of which the list itself says none; `known_priority` likewise, for those
    that are known already. Long lists are looked at in `processes` processes of their own (0: in this one). `progress`
    is told of so many numbers more that are CHECKED, or STORED. Raises InvalidNumbers, ListError, Busy.
    """
    report = Report()
    try:
        with unit_of_work(engine, "load", source=source) as connection:
            staging = Staging(connection)
            for screened in _screened(numbers, max_digits, processes):
                _count(report, screened)
                if not report.invalid or skip_bad:
                    staging.copy(screened)
                progress(CHECKED, screened.count)
            if not report.total:
                raise ListError("empty", "There is no number in the list")
            if report.invalid and not skip_bad:
                raise InvalidNumbers(report)
            _take_turn(connection)
            report.new, rings = staging.store(priority, lambda count: progress(STORED, count))
            report.updated, more = known_numbers.update_known(
                connection, priority=known_priority, project=project, max_digits=max_digits
            )
            report.existing = report.total - report.invalid - report.new
            report.rings = (rings + more)[:RINGS]
            if dry_run:
                raise _DryRun
            counts = {name: value for name, value in report.answer().items() if name != "errors"}
            after = {**counts, "project": project, "priority": priority}
            audit.record(
                connection, actor=actor, action="load", target=f"list {source}", after=after, request_id=request_id
            )
    except _DryRun:
        report.rings = []
        return report
    report.is_stored = True
    return report


def _count(report: Report, screened: Screened) -> None:
    report.total += screened.count
    report.invalid += len(screened.bad)
    report.errors += screened.bad[: REPORTED - len(report.errors)]


def _take_turn(connection: Connection) -> None:
    if not connection.execute(select(func.pg_try_advisory_xact_lock(LOADING))).scalar_one():
        raise Busy("Another list is being stored just now; send this one again when that is done")


# Looking at many numbers ---------------------------------------------------------------------------------------------


def _batches(numbers: Iterable[Given]) -> Iterator[list[Given]]:
    """Batches of bounded length, in numbers and in characters."""
    batch: list[Given] = []
    characters = 0
    for given in numbers:
        batch.append(given)
        characters += len(given.number) if isinstance(given.number, str) else 1000
        if len(batch) == BATCH or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _screened(numbers: Iterable[Given], max_digits: int, processes: int) -> Iterator[Screened]:
    batches = _batches(numbers)
    first = list(islice(batches, FEW_BATCHES + 1))
    if processes == 0 or len(first) <= FEW_BATCHES:
        yield from (screen(batch, max_digits) for batch in chain(first, batches))
        return
    # Fresh processes: a fork would take over connections and locks of other threads.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_follow_parent)
    try:
        waiting: deque[Future[Screened]] = deque()
        for batch in chain(first, batches):
            waiting.append(pool.submit(screen, batch, max_digits))
            if len(waiting) >= processes * BATCHES_IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """In a process of the pool: Ctrl-C is the parent's affair, and when the parent is gone there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
