"""Sessions of PostgreSQL: what each one is given at its start, and the refusal of poolers that share them.

The coordinator needs a session for each of its connections: time limits are set once for each, and the lock of a job
belongs to one for as long as the job runs. A pooler that gives every transaction another session (transaction or
statement pooling) would mix up the limits of web and workers, and leave locks behind with nobody to release them.
"""

import select
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import psycopg2
from psycopg2 import extensions

# Opens a connection whose statements do not block (psycopg2's `async_`).
Connect = Callable[[], Any]

# Which of two connections asks for its session, in turn. A pooler that shares sessions may give out the last one first,
# or all in turn; in this order two connections then never get one each, however many sessions it has.
_ORDER = (0, 1, 0, 0, 1, 1, 0, 1)
# Seconds that the check may take. A pooler that has no second session left makes the second connection wait: the first
# one keeps its session, as it should.
_CHECK_TIMEOUT = 5.0


class SharedSessionsError(psycopg2.OperationalError):  # type: ignore[misc]
    """A pooler shares sessions between connections."""

    def __init__(self) -> None:
        super().__init__(
            "DATABASE_URL leads to a connection pooler that gives each transaction another session of PostgreSQL;"
            " let it pool sessions (PgBouncer: pool_mode = session), or use the address of PostgreSQL itself"
        )


def begin_session(connection: Any, limits: dict[str, str], check: Callable[[], None]) -> None:
    """Set `limits` (settings of PostgreSQL by name) for the session of a new connection of psycopg2.

    They are no start-up parameters, because poolers refuse those. `check` is called if there is a pooler, and is to
    raise SharedSessionsError if it shares sessions.
    """
    # Here begin no transactions that somebody would have to end.
    connection.autocommit = True
    with connection.cursor() as cursor:
        settings = "".join(f", set_config('{name}', %s, false)" for name in limits)
        cursor.execute(f"SELECT pg_backend_pid(){settings}", list(limits.values()))
        pid = cursor.fetchone()[0]
    connection.autocommit = False
    # A pooler tells its clients a number of its own instead of the process that answers them.
    if pid != connection.info.backend_pid:
        check()


def refuse_shared_sessions(connect: Connect) -> None:
    """Raise SharedSessionsError if a pooler shares sessions between connections, and psycopg2's errors.

    In a database without such a pooler each connection has one process of PostgreSQL to itself.
    """
    deadline = time.monotonic() + _CHECK_TIMEOUT
    processes: tuple[set[int], set[int]] = (set(), set())
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(connect())) for _ in processes]
        for which in _ORDER:
            pid = _process_of(connections[which], deadline)
            if pid is None:
                return
            processes[which].add(pid)
    first, second = processes
    if len(first) > 1 or len(second) > 1 or first & second:
        raise SharedSessionsError


def _process_of(connection: Any, deadline: float) -> int | None:
    """Return the process of PostgreSQL that answers; None if none does before the deadline."""
    if not _wait(connection, deadline):
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        if not _wait(connection, deadline):
            return None
        pid: int = cursor.fetchone()[0]
    return pid


def _wait(connection: Any, deadline: float) -> bool:
    """Wait for what a connection has begun to be done; returns whether it is done before the deadline."""
    while (state := connection.poll()) != extensions.POLL_OK:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        readers = [connection] if state == extensions.POLL_READ else []
        writers = [connection] if state == extensions.POLL_WRITE else []
        select.select(readers, writers, [], left)
    return True
