"""The only module that commits: changes that belong together are made in one `unit_of_work`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

import structlog
from sqlalchemy import Connection, Engine, Executable, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

log = structlog.get_logger("unit_of_work")

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")
DEADLOCK, STATEMENT_TIMEOUT = "40P01", "57014"
MAX_AFTER_DEADLOCKS = 5

# Deadlock, serialization failure, lock not available: the same unit of work may succeed when it runs again.
CONFLICTS = (DEADLOCK, "40001", "55P03")
# A conflict, unique violation, or statement timeout; the server is shutting down or starting, is read only (a stand-by
# before it takes over), cannot be reached, is full, or has a failing disk.
TRANSIENT_SQLSTATES = (
    *CONFLICTS,
    "23505",
    STATEMENT_TIMEOUT,
    "57P01",
    "57P02",
    "57P03",
    "25006",
    "08",
    "53",
    "58",
)


@contextmanager
def unit_of_work(database: Engine | Connection, name: str, **ids: Any) -> Iterator[Connection]:
    """Open one READ COMMITTED transaction: commit it when the block ends, roll it back when the block raises.

    `database` is an engine, or the connection of a `session`. The log line of the transaction has its `name`, its
    duration in ms, and `ids`.
    """
    started = perf_counter()
    with database.connect() if isinstance(database, Engine) else nullcontext(database) as connection:
        try:
            with step(connection):
                yield connection
        except BaseException as error:
            ms, cause = _milliseconds_since(started), type(error).__name__
            log.info("Transaction rolled back", unit=name, ms=ms, cause=cause, **ids)
            raise
    log.info("Transaction committed", unit=name, ms=_milliseconds_since(started), **ids)


def run_statement(engine: Engine, name: str, statement: Executable, parameters: Any = None, **ids: Any) -> list[Any]:
    """Run one statement as a unit of work of its own, and return its rows (none if it returns none).

    The server commits it: that is one round trip, where a transaction of one statement is three.
    """
    started = perf_counter()
    with engine.connect() as connection:
        found = connection.execution_options(isolation_level="AUTOCOMMIT").execute(statement, parameters)
        rows = list(found) if found.returns_rows else []
    log.info("Transaction committed", unit=name, ms=_milliseconds_since(started), **ids)
    return rows


@contextmanager
def step(connection: Connection) -> Iterator[None]:
    """Open a transaction on a connection, like `unit_of_work` but without a log line.

    For what a `session` reads, and for what it writes into its own temporary tables.
    """
    if not connection.in_transaction():
        connection.begin()  # COPY would not begin one: it goes past SQLAlchemy, and nothing would end its transaction
    try:
        yield
        connection.commit()
    except BaseException:
        # The transaction of a dead connection is gone already; SQLAlchemy learns of it by the rollback.
        connection.rollback()
        raise


@contextmanager
def session(engine: Engine) -> Iterator[Connection]:
    """Hold one connection, whose temporary tables last from one transaction to the next until the block ends.

    No transaction is open between the `step`s and the `unit_of_work`s of the block.
    """
    with engine.connect() as connection:
        try:
            yield connection
        finally:
            try:
                with step(connection):
                    connection.execute(text("DISCARD TEMP"))
            except DBAPIError:  # the connection broke; the server drops the tables
                connection.invalidate()


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    """Open a savepoint in a unit of work: only the changes of this block are undone when it raises."""
    with connection.begin_nested():
        yield


def repeats_after_deadlock(function: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Make a function that is one unit of work run again after a deadlock, at most MAX_AFTER_DEADLOCKS times in all.

    Where numbers come to have the same cofactor, a unit of work may need rows out of the usual order of locks. Results
    and jobs are tried again by their tasks; this is for requests of clients and operators.
    """

    @wraps(function)
    def repeated(*arguments: Arguments.args, **named: Arguments.kwargs) -> Answer:
        for attempt in range(1, MAX_AFTER_DEADLOCKS + 1):
            try:
                return function(*arguments, **named)
            except OperationalError as error:
                if sqlstate(error) != DEADLOCK or attempt == MAX_AFTER_DEADLOCKS:
                    raise
                log.info("A deadlock undid a unit of work; it runs again", function=function.__name__, attempt=attempt)
        raise AssertionError("the last attempt returns or raises")

    return repeated


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error of the database; None for other errors, and if the server did not answer."""
    return getattr(error.orig, "pgcode", None) if isinstance(error, DBAPIError) else None


def is_transient(error: BaseException) -> bool:
    """Return whether a retry can succeed: the database could not be reached, or other transactions were in conflict."""
    if isinstance(error, PoolTimeout | InterfaceError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = sqlstate(error)
    if state is None:  # the server did not answer: the connection broke or could not be made
        return isinstance(error, OperationalError)
    return state.startswith(TRANSIENT_SQLSTATES)


def is_conflict(error: BaseException) -> bool:
    """Return whether other transactions were in conflict with this one; the database itself answers."""
    return sqlstate(error) in CONFLICTS


def is_poison(error: BaseException) -> bool:
    """Return whether an error counts as a failed delivery attempt.

    True for every non-transient error, for unique violations, and for statements that ran out of time. These two are
    mostly a lost race and a busy server, and the next attempt succeeds; they count because an attempt that can never
    succeed would be repeated for ever otherwise.
    """
    return not is_transient(error) or isinstance(error, IntegrityError) or sqlstate(error) == STATEMENT_TIMEOUT


def public_message(error: BaseException) -> str:
    """Return the type and the first line of an error without SQL and its parameters: clients may read this text."""
    # Further lines of the server's message quote rows, and the message of SQLAlchemy quotes the statement.
    cause = error.orig if isinstance(error, StatementError) else error
    first_line = str(cause).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"[:1000]


def _milliseconds_since(started: float) -> float:
    return round((perf_counter() - started) * 1000, 2)
