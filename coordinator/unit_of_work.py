"""The only place that commits: everything that must become true together does so in one `unit_of_work`."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

log = structlog.get_logger("unit_of_work")

# Serialization failure, deadlock, unique race, lock not available, and the server going away or being full.
TRANSIENT_SQLSTATES = ("40001", "40P01", "23505", "55P03", "57P01", "57P02", "57P03", "08", "53")


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


def counts_as_try(error: BaseException) -> bool:
    """Whether a fault counts against what was being done: all do but transient ones.

    A unique value that was taken is mostly a race, which the next try wins; but it counts, lest it be lost for ever.
    """
    return not is_transient(error) or isinstance(error, IntegrityError)


def _since(started: float) -> float:
    return round((perf_counter() - started) * 1000, 2)
