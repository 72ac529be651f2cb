"""The engine: one per process, made when first asked for, never carried across a fork."""

import os

from sqlalchemy import Engine, create_engine

_engine: Engine | None = None
_engine_pid: int | None = None


def make_engine(url: str, pool_size: int = 1, pool_timeout: float = 5.0) -> Engine:
    """An engine for `url` whose every transaction is READ COMMITTED, with at most `pool_size` connections.

    A connection attempt gives up after 3 s and a dead peer is noticed within seconds, so that a worker or a request
    meets a vanished database as an error that it can retry, not as a hang.
    """
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):  # hosters hand out either; which driver is meant changes with SQLAlchemy
        scheme = "postgresql+psycopg2"
    return create_engine(
        f"{scheme}://{rest}",
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout,
        executemany_mode="values_plus_batch",  # a list of updates goes out in one round trip
        pool_pre_ping=False,  # a stale connection is a transient fault like any other, and those are retried
        connect_args={
            "connect_timeout": 3,
            "application_name": "ecm-coordinator",
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            # A server process whose client was killed in mid-statement lets go of its locks.
            "options": "-c client_connection_check_interval=2s",
        },
    )


def process_engine(url: str, pool_size: int = 1) -> Engine:
    """This process's engine; after a fork the child makes its own and leaves the parent's connections alone."""
    global _engine, _engine_pid
    if _engine is None or _engine_pid != os.getpid():
        if _engine is not None:
            _engine.dispose(close=False)
        _engine, _engine_pid = make_engine(url, pool_size), os.getpid()
    return _engine
