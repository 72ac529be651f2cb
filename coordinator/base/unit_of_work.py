"""The only module that commits: changes that belong together are made in one `unit_of_work`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

log = structlog.get_logger("unit_of_work")

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")
DEADLOCK = "40P01"
MAX_AFTER_DEADLOCKS = 5

# Serialization failure, deadlock, unique violation, lock not available, statement timeout; the server is shutting down
# or starting, is read only (a stand-by before it takes over), cannot be reached, is full, or has a failing disk.
TRANSIENT_SQLSTATES = (
    "40001",
    "40P01",
    "23505",
    "55P03",
    "57014",
    "57P01",
    "57P02",
    "57P03",
    "25006",
    "08",
    "53",
    "58",
)


@contextmanager
def unit_of_work(engine: Engine, name: str, **ids: Any) -> Iterator[Connection]:
    """Open one READ COMMITTED transaction: commit it when the block ends, roll it back when the block raises.

    The log line of the transaction has its `name`, its duration in ms, and `ids`.
    """
    started = perf_counter()
    with engine.connect() as connection:
        try:
            yield connection
            connection.commit()
        except BaseException as error:
            # The transaction of a dead connection is gone already; SQLAlchemy learns of it by the rollback.
            connection.rollback()
            ms, cause = _milliseconds_since(started), type(error).__name__
            log.info("Transaction rolled back", unit=name, ms=ms, cause=cause, **ids)
            raise
    log.info("Transaction committed", unit=name, ms=_milliseconds_since(started), **ids)


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    """Open a savepoint in a unit of work: only the changes of this block are undone when it raises."""
    with connection.begin_nested():
        yield


def repeats_after_deadlock(function: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Make a function that is one unit of work, or a savepoint, run again after a deadlock.

    It runs at most MAX_AFTER_DEADLOCKS times in all. Where numbers come to have the same cofactor, a unit of work may
    need rows out of the usual order of locks. Results and jobs are tried again by their tasks; this is for requests of
    clients and operators, and for loading.
    """

    @wraps(function)
    def repeated(*arguments: Arguments.args, **named: Arguments.kwargs) -> Answer:
        for attempt in range(1, MAX_AFTER_DEADLOCKS + 1):
            try:
                return function(*arguments, **named)
            except OperationalError as error:
                if getattr(error.orig, "pgcode", None) != DEADLOCK or attempt == MAX_AFTER_DEADLOCKS:
                    raise
                log.info("A deadlock undid a unit of work; it runs again", function=function.__name__, attempt=attempt)
        raise AssertionError("the last attempt returns or raises")

    return repeated


def is_transient(error: BaseException) -> bool:
    """Return whether a retry can succeed: the database could not be reached, or other transactions were in conflict."""
    if isinstance(error, PoolTimeout | InterfaceError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state: str | None = getattr(error.orig, "pgcode", None)
    if state is None:  # the server did not answer: the connection broke or could not be made
        return isinstance(error, OperationalError)
    return state.startswith(TRANSIENT_SQLSTATES)


def is_poison(error: BaseException) -> bool:
    """Return whether an error counts as a failed delivery attempt.

    True for every non-transient error and for unique violations. A unique violation is mostly a lost race, and the next
    attempt succeeds; it counts because an attempt that can never succeed would be repeated for ever otherwise.
    """
    return not is_transient(error) or isinstance(error, IntegrityError)


def public_message(error: BaseException) -> str:
    """Return the type and the first line of an error without SQL and its parameters: clients may read this text."""
    # Further lines of the server's message quote rows, and the message of SQLAlchemy quotes the statement.
    cause = error.orig if isinstance(error, StatementError) else error
    first_line = str(cause).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"[:1000]


def _milliseconds_since(started: float) -> float:
    return round((perf_counter() - started) * 1000, 2)
