"""The only place that commits: everything that must become true together does so in one `unit_of_work`."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

log = structlog.get_logger("unit_of_work")

# Serialization failure, deadlock, unique race, lock not available, statement that took too long, and the server going
# away, being full, read only (a stand-by before it takes over) or in trouble with its disk.
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
    """One READ COMMITTED transaction: committed when the block ends, rolled back when it raises.

    `name` and `ids` say in the log whose transaction it was and how long it took.
    """
    started = perf_counter()
    with engine.connect() as connection:
        try:
            yield connection
            connection.commit()
        except BaseException as error:
            # A connection that died takes its transaction with it; rolling back tells SQLAlchemy so.
            connection.rollback()
            log.info("Transaction rolled back", unit=name, ms=_since(started), cause=type(error).__name__, **ids)
            raise
    log.info("Transaction committed", unit=name, ms=_since(started), **ids)


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    """A part of a unit of work that can fail by itself: back to its beginning when the block raises."""
    with connection.begin_nested():
        yield


def is_transient(error: BaseException) -> bool:
    """Whether trying the same again can succeed: the database was away, or others were in the way."""
    if isinstance(error, PoolTimeout | InterfaceError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "pgcode", None)
    if state is None:  # no answer from the server: the connection broke or could not be made
        return isinstance(error, OperationalError)
    return state.startswith(TRANSIENT_SQLSTATES)


def is_poison(error: BaseException) -> bool:
    """Whether a fault counts against what was being done: all do but transient ones.

    A unique value that was taken is mostly a race, which the next try wins; but it counts, lest it be lost for ever.
    """
    return not is_transient(error) or isinstance(error, IntegrityError)


def public_message(error: BaseException) -> str:
    """An error's type and first line, as far as anyone may read it: neither SQL nor its parameters."""
    # What the server says in further lines quotes rows; what SQLAlchemy says of its own quotes the statement.
    said = error.orig if isinstance(error, StatementError) else error
    first_line = str(said).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"[:1000]


def _since(started: float) -> float:
    return round((perf_counter() - started) * 1000, 2)
