"""Loading a list of numbers, however long, all of it or nothing, and without long locks.

 1. this process reads the list in batches, and other processes validate them (coordinator/loading/validation.py);
 2. valid numbers are copied into temporary tables; invalid lines are counted, and the first ones are reported;
 3. if all lines are valid, or invalid ones are to be skipped, the numbers are matched with registered composites, and
    everything that follows for these is computed;
 4. one unit of work locks the registered composites that change, inserts the new ones (coordinator/loading/staging.py)
    and updates the registered ones (coordinator/loading/upsert.py).

Before the last step nothing is locked, and no transaction is open while nothing is asked of the database. If other
transactions are in conflict with it, the last two steps are repeated. Memory is bounded by the batches in flight,
whatever the length of the list.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError

from coordinator.base import audit, jobs
from coordinator.base.advisory_locks import LOAD_LOCK
from coordinator.base.audit import Actor
from coordinator.base.unit_of_work import CONFLICTS, session, sqlstate, step, unit_of_work
from coordinator.loading import upsert
from coordinator.loading.list_formats import InputRow, ListError
from coordinator.loading.staging import Staging
from coordinator.loading.validation import InvalidLine, ValidatedBatch, validate_batch
from coordinator.numbers.expressions import shorten

BATCH = 1000
BATCH_CHARACTERS = 1_000_000
# A list of at most this many batches is validated in this process: others would take half a second to start.
FEW_BATCHES = 1
BATCHES_IN_FLIGHT = 3  # per process
MAX_REPORTED_ERRORS = 100
MAX_PUBLISHED = 1000  # housekeeping publishes the other jobs

# A load is stored again after a conflict with other transactions, at most so often in all.
MAX_ATTEMPTS = 5

CHECKED, STORED = "checked", "stored"
ReportProgress = Callable[[str, int], None]

log = structlog.get_logger("loading")


class LoadInProgressError(Exception):
    """Another load is storing its numbers; the message is a sentence for people."""


class LoadConflictError(Exception):
    """Other transactions were in conflict with every attempt to store; the message is a sentence for people."""


class SharedNumber(NamedTuple):
    """A new number whose unfinished part another number has as well: its line, its spelling, and what it shares."""

    line: int
    number: str
    message: str


@dataclass
class LoadSummary:
    """What a load did, or would do.

    `errors` has the first MAX_REPORTED_ERRORS invalid lines. `shared` counts the new numbers whose unfinished part
    another number has as well; `sharing` has the first MAX_REPORTED_ERRORS of them.
    """

    total: int = 0
    new: int = 0
    existing: int = 0
    updated: int = 0
    invalid: int = 0
    errors: list[InvalidLine] = field(default_factory=list)
    shared: int = 0
    sharing: list[SharedNumber] = field(default_factory=list)
    is_stored: bool = False
    to_publish: list[jobs.JobRef] = field(default_factory=list)

    def answer(self) -> dict[str, Any]:
        """The summary with the field names of the HTTP interface."""
        return {
            "total_processed": self.total,
            "new_composites": self.new,
            "existing_composites": self.existing,
            "updated_composites": self.updated,
            "invalid_numbers": self.invalid,
            "errors": [error._asdict() for error in self.errors],
            "shared_composites": self.shared,
            "shared": [number._asdict() for number in self.sharing],
        }

    def summary(self) -> str:
        """The summary as a sentence."""
        counts = (
            f"{self.new:,} new, {self.existing:,} known ({self.updated:,} of them changed), {self.invalid:,} invalid"
        )
        if self.shared:
            counts += f"; {self.shared:,} of the new ones share their unfinished part with another number"
        ending = "" if self.is_stored else "; nothing was stored"
        return f"{self.total:,} {'number' if self.total == 1 else 'numbers'}: {counts}{ending}"


class InvalidNumbersError(Exception):
    """The list has invalid lines, so nothing was stored; `report` names the first ones."""

    def __init__(self, report: LoadSummary) -> None:
        lines = "1 line is" if report.invalid == 1 else f"{report.invalid} lines are"
        first = report.errors[0]
        self.outcome = f"{lines} invalid, so nothing was stored"
        super().__init__(f"{self.outcome}; line {first.line}: {first.message}")
        self.report = report


class _DryRunError(Exception):
    """Rolls the unit of work of a dry run back."""


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
    progress: ReportProgress = lambda stage, count: None,
) -> LoadSummary:
    """Load a list of numbers, all of it or nothing; with `skip_bad`, all of its valid numbers.

    `project` and `priority` apply to numbers for which the list gives none; `known_priority` does the same for numbers
    that are registered already. `processes` processes validate long lists (0: this process does). `progress` is called
    with CHECKED or STORED and the number of numbers by which that count grew (negative if a deadlock undid them).

    Raises InvalidNumbersError, ListError (which is also what an empty list raises), LoadInProgressError and
    LoadConflictError.
    """
    report = LoadSummary()
    with session(engine) as connection:
        staging = Staging(connection)
        for batch in _validate_batches(numbers, max_digits, processes):
            _count(report, batch)
            if not report.invalid or skip_bad:
                staging.copy(batch)
            progress(CHECKED, batch.count)
        if not report.total:
            raise ListError("empty", "There is no number in the list")
        if report.invalid and not skip_bad:
            raise InvalidNumbersError(report)

        def store(advance: Callable[[int], None]) -> None:
            advance(staging.match())
            upsert.plan(connection, priority=known_priority, max_digits=max_digits)
            with unit_of_work(connection, "load", source=source):
                upsert.lock_known_numbers(connection)
                report.new, to_publish = staging.store(priority, advance)
                report.updated, more = upsert.update_known_numbers(
                    connection, priority=known_priority, project=project, max_digits=max_digits
                )
                report.existing = report.total - report.invalid - report.new
                report.to_publish = (to_publish + more)[:MAX_PUBLISHED]
                _find_shared(connection, report)
                if dry_run:
                    raise _DryRunError
                counts = {name: value for name, value in report.answer().items() if name not in ("errors", "shared")}
                after = {**counts, "project": project, "priority": priority}
                audit.record(connection, actor, "load", f"list {source}", after=after)

        with _loading_alone(connection):
            staging.index()
            try:
                _repeat_after_conflicts(store, progress)
            except _DryRunError:
                report.to_publish = []
                return report
    report.is_stored = True
    return report


def _repeat_after_conflicts(store: Callable[[Callable[[int], None]], None], progress: ReportProgress) -> None:
    """Call `store`; a conflict with another transaction undoes what it has stored, and it is called again.

    A result that registers a number of the list at the same time inserts the same rows in another order.
    """
    attempts = 0
    while True:
        attempts += 1
        stored: list[int] = []

        def advance(lines: int, stored: list[int] = stored) -> None:
            stored.append(lines)
            progress(STORED, lines)

        try:
            store(advance)
        except DBAPIError as error:
            if sqlstate(error) not in CONFLICTS:
                raise
            if attempts == MAX_ATTEMPTS:
                detail = f"Others were changing numbers of the list in all {attempts} attempts to store it"
                raise LoadConflictError(f"{detail}; nothing was stored, send it again") from error
            log.info("A conflict undid a load; its numbers are stored again", attempts=attempts, state=sqlstate(error))
            progress(STORED, -sum(stored))
        else:
            return


def _count(report: LoadSummary, batch: ValidatedBatch) -> None:
    report.total += batch.count
    report.invalid += len(batch.bad)
    report.errors += batch.bad[: MAX_REPORTED_ERRORS - len(report.errors)]


def _find_shared(connection: Connection, report: LoadSummary) -> None:
    """Put the new numbers into the report that have their unfinished part in common with an older number."""
    report.sharing.clear()
    report.shared, rows = upsert.find_shared(connection, MAX_REPORTED_ERRORS)
    for row in rows:
        other = shorten(row.other)
        if row.is_value:
            message = f"known as the cofactor of {other}, shared"
        elif row.other_is_value:
            message = f"its cofactor is the number {other}, shared"
        else:
            message = f"has the same cofactor as {other}, shared"
        report.sharing.append(SharedNumber(row.line, shorten(row.number), message))


@contextmanager
def _loading_alone(connection: Connection) -> Iterator[None]:
    """Lock the loading of lists for the session, from one transaction to the next. Raises LoadInProgressError."""
    with step(connection):
        is_alone = connection.execute(select(func.pg_try_advisory_lock(LOAD_LOCK))).scalar_one()
    if not is_alone:
        raise LoadInProgressError("Another list is being stored; send this one again when that is done")
    try:
        yield
    finally:
        with suppress(DBAPIError), step(connection):  # the server releases the lock of a broken connection
            connection.execute(select(func.pg_advisory_unlock(LOAD_LOCK)))


# Validating many numbers ----------------------------------------------------------------------------------------------


def _batches(numbers: Iterable[InputRow]) -> Iterator[list[InputRow]]:
    """Yield batches that are bounded in numbers and in characters."""
    batch: list[InputRow] = []
    characters = 0
    for row in numbers:
        batch.append(row)
        characters += len(row.number) if isinstance(row.number, str) else 1000
        if len(batch) == BATCH or characters > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _validate_batches(numbers: Iterable[InputRow], max_digits: int, processes: int) -> Iterator[ValidatedBatch]:
    batches = _batches(numbers)
    first = list(islice(batches, FEW_BATCHES + 1))
    if processes == 0 or len(first) <= FEW_BATCHES:
        yield from (validate_batch(batch, max_digits) for batch in chain(first, batches))
        return
    # spawn: a forked process would inherit connections, and locks that other threads hold.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_exit_with_parent)
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


def _exit_with_parent() -> None:
    """Leave Ctrl-C to the parent, and exit when the parent has ended; runs in each process of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait_and_exit() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_and_exit, daemon=True).start()
