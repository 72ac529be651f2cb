"""Engines: each process makes its own when it first needs one, and a forked child does not use its parent's."""

import os

from sqlalchemy import Engine, create_engine

# The key is (URL, number of connections, statement timeout in ms).
_engines: dict[tuple[str, int, int | None], Engine] = {}
_engines_pid: int | None = None


def make_engine(
    url: str, pool_size: int = 1, pool_timeout: float = 5.0, statement_timeout_ms: int | None = None
) -> Engine:
    """Return an engine for `url` with READ COMMITTED transactions and at most `pool_size` connections.

    A caller waits at most `pool_timeout` seconds for a free connection and 3 s for a new one. A dead peer is noticed
    within seconds, and the server cancels a statement after `statement_timeout_ms` milliseconds (None: never). When the
    database vanishes, a worker or a request thus gets an error that it can retry and does not hang. Error messages do
    not quote parameters, because those are clients' data.
    """
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        # Hosting services give either; the default driver depends on the version of SQLAlchemy.
        scheme = "postgresql+psycopg2"
    # A server process releases its locks soon after its client was killed in the middle of a statement.
    options = "-c client_connection_check_interval=2s"
    if statement_timeout_ms is not None:
        options += f" -c statement_timeout={statement_timeout_ms}"
    return create_engine(
        f"{scheme}://{rest}",
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout,
        executemany_mode="values_plus_batch",  # a list of updates is sent in one round trip
        hide_parameters=True,
        pool_pre_ping=False,  # a stale connection is a transient error, and callers retry those
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
