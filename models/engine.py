"""Engines: each process makes its own when it first needs one, and a forked child does not use its parent's."""

import os
from functools import lru_cache
from typing import Any

import psycopg2
from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.exc import OperationalError

from models import sessions

# Seconds without a packet before a peer is probed, seconds between probes, and how many; a peer that does not answer
# them has vanished. So has one that does not acknowledge, for so many milliseconds, what was sent to it.
_IDLE, _INTERVAL, _PROBES, _UNACKNOWLEDGED_MS = 5, 2, 3, 10_000
# How libpq connects. None of these is a start-up parameter that poolers refuse.
_CONNECT = {
    "connect_timeout": 3,
    "application_name": "ecm-coordinator",
    "keepalives_idle": _IDLE,
    "keepalives_interval": _INTERVAL,
    "keepalives_count": _PROBES,
    "tcp_user_timeout": _UNACKNOWLEDGED_MS,
}
# The server's side of a connection. By default it notices only after two hours that a worker's host has lost its power,
# and until then it keeps the locks of the transaction that this worker had begun.
_SERVER_SIDE = {
    # It looks for a client that was killed in the middle of a statement, such as one that waits for a lock.
    "client_connection_check_interval": "2s",
    "tcp_keepalives_idle": str(_IDLE),
    "tcp_keepalives_interval": str(_INTERVAL),
    "tcp_keepalives_count": str(_PROBES),
    "tcp_user_timeout": str(_UNACKNOWLEDGED_MS),
}
# The key is (URL, number of connections, statement timeout in ms).
_engines: dict[tuple[str, int, int | None], Engine] = {}
_engines_pid: int | None = None


def make_engine(
    url: str, pool_size: int = 1, pool_timeout: float = 5.0, statement_timeout_ms: int | None = None
) -> Engine:
    """Return an engine for `url` with READ COMMITTED transactions and at most `pool_size` connections.

    A caller waits at most `pool_timeout` seconds for a free connection and 3 s for a new one. The server cancels a
    statement after `statement_timeout_ms` milliseconds (None: never). A dead peer is noticed within seconds, by both
    sides: when the database vanishes, a worker or a request gets an error that it can retry and does not hang; when a
    worker's host vanishes, the server releases its locks. Error messages do not quote parameters, because those are
    clients' data.

    Connecting raises OperationalError, with SharedSessionsError in it, if a pooler shares sessions between connections.
    """
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        # Hosting services give either; the default driver depends on the version of SQLAlchemy.
        scheme = "postgresql+psycopg2"
    limits = dict(_SERVER_SIDE)
    if statement_timeout_ms is not None:
        limits["statement_timeout"] = f"{statement_timeout_ms}ms"
    engine = create_engine(
        f"{scheme}://{rest}",
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout,
        executemany_mode="values_plus_batch",  # a list of updates is sent in one round trip
        hide_parameters=True,
        pool_pre_ping=False,  # a stale connection is a transient error, and callers retry those
        connect_args=_CONNECT,
    )

    # Before SQLAlchemy's own first statements, which a pooler of statements would answer by closing the connection.
    @event.listens_for(engine, "connect", insert=True)
    def _begin_session(connection: Any, _record: Any) -> None:
        sessions.begin_session(connection, limits, lambda: _check_pooler_once(engine.url))

    return engine


def check_sessions(engine: Engine) -> None:
    """Raise OperationalError, with SharedSessionsError in it, if a pooler shares sessions between connections.

    Each new connection of an engine makes this check only if it can see that there is a pooler.
    """
    try:
        _refuse_shared_sessions(engine.url)
    except psycopg2.OperationalError as error:
        raise OperationalError(None, None, error) from error


@lru_cache
def _check_pooler_once(url: URL) -> None:
    """Check a pooler until it has passed once."""
    _refuse_shared_sessions(url)


def _refuse_shared_sessions(url: URL) -> None:
    _, arguments = PGDialect_psycopg2().create_connect_args(url)  # type: ignore[no-untyped-call]
    sessions.refuse_shared_sessions(lambda: psycopg2.connect(**arguments, **_CONNECT, async_=True))


def process_engine(url: str, pool_size: int = 1, statement_timeout_ms: int | None = None) -> Engine:
    """Return the engine of this process, made on first use; a forked child does not touch its parent's connections."""
    global _engines_pid
    if _engines_pid != os.getpid():
        for inherited in _engines.values():
            inherited.dispose(close=False)
        _engines.clear()
        _engines_pid = os.getpid()
    key = (url, pool_size, statement_timeout_ms)
    if key not in _engines:
        _engines[key] = make_engine(url, pool_size, statement_timeout_ms=statement_timeout_ms)
    return _engines[key]
