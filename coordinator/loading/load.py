"""Loading numbers: a list, however long, in one unit of work; its numbers are looked at before anything is locked.

 1. the list is read in batches, which other processes look at (coordinator/loading/validation.py);
 2. what is good is copied into temporary tables; what is bad is counted, and the first of it is reported;
 3. unless something was bad (or bad numbers are to be skipped), the numbers are matched with what is known and the new
    ones inserted (coordinator/loading/staging.py), and known ones changed (coordinator/loading/upsert.py).

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

from coordinator.base import audit, jobs
from coordinator.base.advisory_locks import LOAD_LOCK
from coordinator.base.audit import Actor
from coordinator.base.unit_of_work import unit_of_work
from coordinator.loading import upsert
from coordinator.loading.list_formats import InputRow, ListError
from coordinator.loading.staging import Staging
from coordinator.loading.validation import InvalidLine, ValidatedBatch, validate_batch

BATCH = 1000
BATCH_CHARACTERS = 1_000_000
# A list of so few batches is looked at here: processes take half a second to start.
FEW_BATCHES = 1
BATCHES_IN_FLIGHT = 3  # for each process
REPORTED = 100
MAX_PUBLISHED = 1000  # upkeep rings for the others

CHECKED, STORED = "checked", "stored"
Progress = Callable[[str, int], None]


class LoadInProgressError(Exception):
    """Another list is being stored just now; the message is for people."""


@dataclass
class LoadSummary:
    """What a load did, or would do; `errors` are the first of the bad lines."""

    total: int = 0
    new: int = 0
    existing: int = 0
    updated: int = 0
    invalid: int = 0
    errors: list[InvalidLine] = field(default_factory=list)
    is_stored: bool = False
    to_publish: list[jobs.JobRef] = field(default_factory=list)

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


class InvalidNumbersError(Exception):
    """A list with bad lines was not stored; `report` names them."""

    def __init__(self, report: LoadSummary) -> None:
        lines = "1 line is" if report.invalid == 1 else f"{report.invalid} lines are"
        first = report.errors[0]
        super().__init__(f"{lines} not valid, so nothing was stored; line {first.line}: {first.message}")
        self.report = report


class _DryRun(Exception):
    pass


def load_numbers(
    engine: Engine,
    numbers: Iterable[InputRow],
    *,
    max_digits: int,
    actor: Actor,
    source: str,
    project: str | None = None,
    priority: int | None = None,
    known_priority: int | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
    processes: int = 1,
    progress: Progress = lambda stage, count: None,
) -> LoadSummary:
    """Load a list of numbers, all of it or nothing; with `skip_bad`, all that is good of it.

    `project` and `priority` are for numbers of which the list itself says none; `known_priority` likewise, for those
    that are known already. Long lists are looked at in `processes` processes of their own (0: in this one). `progress`
    is told of so many numbers more that are CHECKED, or STORED. Raises InvalidNumbers, ListError, Busy.
    """
    report = LoadSummary()
    try:
        with unit_of_work(engine, "load", source=source) as connection:
            staging = Staging(connection)
            for screened in _validated(numbers, max_digits, processes):
                _count(report, screened)
                if not report.invalid or skip_bad:
                    staging.copy(screened)
                progress(CHECKED, screened.count)
            if not report.total:
                raise ListError("empty", "There is no number in the list")
            if report.invalid and not skip_bad:
                raise InvalidNumbersError(report)
            _lock_loading(connection)
            report.new, to_publish = staging.store(priority, lambda count: progress(STORED, count))
            report.updated, more = upsert.update_known_numbers(
                connection, priority=known_priority, project=project, max_digits=max_digits
            )
            report.existing = report.total - report.invalid - report.new
            report.to_publish = (to_publish + more)[:MAX_PUBLISHED]
            if dry_run:
                raise _DryRun
            counts = {name: value for name, value in report.answer().items() if name != "errors"}
            after = {**counts, "project": project, "priority": priority}
            audit.record(connection, actor, "load", f"list {source}", after=after)
    except _DryRun:
        report.to_publish = []
        return report
    report.is_stored = True
    return report


def _count(report: LoadSummary, screened: ValidatedBatch) -> None:
    report.total += screened.count
    report.invalid += len(screened.bad)
    report.errors += screened.bad[: REPORTED - len(report.errors)]


def _lock_loading(connection: Connection) -> None:
    if not connection.execute(select(func.pg_try_advisory_xact_lock(LOAD_LOCK))).scalar_one():
        raise LoadInProgressError("Another list is being stored just now; send this one again when that is done")


# Looking at many numbers ---------------------------------------------------------------------------------------------


def _batches(numbers: Iterable[InputRow]) -> Iterator[list[InputRow]]:
    """Batches of bounded length, in numbers and in characters."""
    batch: list[InputRow] = []
    characters = 0
    for given in numbers:
        batch.append(given)
        characters += len(given.number) if isinstance(given.number, str) else 1000
        if len(batch) == BATCH or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _validated(numbers: Iterable[InputRow], max_digits: int, processes: int) -> Iterator[ValidatedBatch]:
    batches = _batches(numbers)
    first = list(islice(batches, FEW_BATCHES + 1))
    if processes == 0 or len(first) <= FEW_BATCHES:
        yield from (validate_batch(batch, max_digits) for batch in chain(first, batches))
        return
    # Fresh processes: a fork would take over connections and locks of other threads.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_follow_parent)
    try:
        waiting: deque[Future[ValidatedBatch]] = deque()
        for batch in chain(first, batches):
            waiting.append(pool.submit(validate_batch, batch, max_digits))
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
