"""The engine: one per process and purpose, made when first asked for, never carried across a fork."""

import os

from sqlalchemy import Engine, create_engine

# By database, number of connections, and how long a statement may take.
_engines: dict[tuple[str, int, int | None], Engine] = {}
_engines_pid: int | None = None


def make_engine(
    url: str, pool_size: int = 1, pool_timeout: float = 5.0, statement_timeout_ms: int | None = None
) -> Engine:
    """An engine for `url` whose every transaction is READ COMMITTED, with at most `pool_size` connections.

    A connection attempt gives up after 3 s, a dead peer is noticed within seconds, and a statement is cancelled after
    `statement_timeout_ms` milliseconds (None: never), so that a worker or a request meets a vanished database as an
    error that it can retry, not as a hang. Errors do not quote parameters: those are what clients sent.
    """
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):  # hosters hand out either; which driver is meant changes with SQLAlchemy
        scheme = "postgresql+psycopg2"
    # A server process whose client was killed in mid-statement lets go of its locks.
    options = "-c client_connection_check_interval=2s"
    if statement_timeout_ms is not None:
        options += f" -c statement_timeout={statement_timeout_ms}"
    return create_engine(
        f"{scheme}://{rest}",
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout,
        executemany_mode="values_plus_batch",  # a list of updates goes out in one round trip
        hide_parameters=True,
        pool_pre_ping=False,  # a stale connection is a transient fault like any other, and those are retried
        connect_args={
            "connect_timeout": 3,
            "application_name": "ecm-coordinator",
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            "options": options,
        },
    )


def process_engine(url: str, pool_size: int = 1, statement_timeout_ms: int | None = None) -> Engine:
    """This process's engine; after a fork the child makes its own and leaves the parent's connections alone."""
    global _engines_pid
    if _engines_pid != os.getpid():
        for inherited in _engines.values():
            inherited.dispose(close=False)
        _engines.clear()
        _engines_pid = os.getpid()
    kind = (url, pool_size, statement_timeout_ms)
    if kind not in _engines:
        _engines[kind] = make_engine(url, pool_size, statement_timeout_ms=statement_timeout_ms)
    return _engines[kind]
