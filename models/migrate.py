"""Migrations: read and upgrade the revision of a database's schema.

Each revision is a transaction of its own, and waits for no lock longer than LOCK_TIMEOUT, because the readers and
writers of a table queue behind a migration that waits for it. A migration that cannot convert all rows in one
transaction leaves rows in `owed_work`. This module knows only the schema; coordinator/housekeeping/schema_upgrade.py
repeats a revision that could not lock a table, and does what is owed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError, PendingRollbackError

from models.engine import make_engine
from models.migration_lock import MIGRATION_LOCK

# A unit of work of results waits as long for a lock before it goes back (docs/architecture.md, Locks).
LOCK_TIMEOUT = 1.0
# Seconds between two questions whether another process still migrates.
POLL_EVERY = 0.5
# Limits that an operator may have set for sessions. Migrations have statements, waits and pauses of minutes.
_NO_LIMITS = ["lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"]
# The lock timeout ran out, or PostgreSQL found a deadlock, in which another transaction waited for the migration.
_LOCKED_SQLSTATES = ("55P03", "40P01")


class MigrationError(Exception):
    """A migration cannot be done now; the message says what to do."""


def alembic_config() -> Config:
    """Return Alembic's configuration for the migrations of this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


@lru_cache
def newest_revision() -> str | None:
    """Return the revision that this version of the code needs."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head()


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database; None for an empty database."""
    return MigrationContext.configure(connection).get_current_revision()


def missing_revisions(engine: Engine) -> list[str]:
    """Return the revisions that a database lacks, in their order.

    Raises alembic's CommandError for a database of a newer version, whose revision is unknown here.
    """
    with engine.connect() as connection:
        current = current_revision(connection)
    scripts = ScriptDirectory.from_config(alembic_config()).iterate_revisions("head", current or "base")
    return [script.revision for script in scripts][::-1]


def has_numbers(engine: Engine) -> bool:
    """Return whether a database has numbers; False for one without tables."""
    with engine.connect() as connection:
        if connection.execute(text("SELECT to_regclass('composites')")).scalar_one() is None:
            return False
        return bool(connection.execute(text("SELECT EXISTS (SELECT FROM composites)")).scalar_one())


@contextmanager
def migration_lock(engine: Engine, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of migrations on a connection of its own, which ends with this process.

    The work under the lock may take many transactions, and needs further connections of the engine. `waiting` is called
    before this process waits for another one.

    The lock is asked for again and again: a statement that waited for it would be a transaction that an index which the
    other process builds CONCURRENTLY has to wait for, and both would wait for ever.
    """
    with engine.begin() as connection:
        remove_limits(connection)
        is_waiting = False
        while not connection.execute(_TRY_LOCK, {"key": MIGRATION_LOCK}).scalar_one():
            if not is_waiting:
                is_waiting = True
                waiting()
            time.sleep(POLL_EVERY)
        yield


_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:key)")


def remove_limits(connection: Connection) -> None:
    """Remove the time limits of sessions for this transaction."""
    connection.execute(_SET_LIMITS, {"names": _NO_LIMITS, "is_local": True})


# Which limits there are depends on PostgreSQL's version.
_SET_LIMITS = text("SELECT set_config(name, '0', :is_local) FROM pg_settings WHERE name = ANY(:names)")


def prepare_session(connection: Connection) -> None:
    """Give a connection the limits of migrations: none but LOCK_TIMEOUT. They stay after the transaction."""
    connection.execute(_SET_LIMITS, {"names": _NO_LIMITS, "is_local": False})
    connection.execute(
        text("SELECT set_config('lock_timeout', :timeout, false)"), {"timeout": f"{round(1000 * LOCK_TIMEOUT)}ms"}
    )


def upgrade_schema(engine: Engine, revision: str = "head") -> None:
    """Upgrade the schema to `revision`, each revision in a transaction; the caller holds the lock of migrations.

    Raises OperationalError if a lock could not be had within LOCK_TIMEOUT (`is_locked_out`). Then the revision that
    needed the lock has changed nothing, but for indexes that it has built concurrently, and can be run again.
    """
    with engine.connect() as connection:
        try:
            with connection.begin():
                prepare_session(connection)
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
        except PendingRollbackError as error:
            # The connection broke in an autocommit block, and the error that Alembic got at the block's end hides that.
            raise error.__context__ or error from None
        finally:
            connection.invalidate()  # closes it, so that no other user of the pool gets the limits of this session


def is_locked_out(error: OperationalError) -> bool:
    """Return whether a migration failed because other transactions held a lock that it needed."""
    return getattr(error.orig, "pgcode", None) in _LOCKED_SQLSTATES


def describe_oldest_transaction(engine: Engine) -> str | None:
    """Return a description of the oldest open transaction that uses a table of the database; None if there is none."""
    with engine.connect() as connection:
        row = connection.execute(_OLDEST_TRANSACTION).one_or_none()
    if row is None:
        return None
    return f"process {row.pid} ({row.application_name or 'unnamed'}, {row.state}, open for {row.seconds:.0f} s)"


# System catalogs have object ids below 16384.
_OLDEST_TRANSACTION = text(
    "SELECT a.pid, a.application_name, a.state, extract(epoch FROM clock_timestamp() - a.xact_start) AS seconds"
    " FROM pg_stat_activity a WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()"
    " AND a.xact_start IS NOT NULL AND EXISTS (SELECT FROM pg_locks l"
    " WHERE l.pid = a.pid AND l.granted AND l.locktype = 'relation' AND l.relation >= 16384)"
    " ORDER BY a.xact_start LIMIT 1"
)


def describe_index_builds(engine: Engine) -> list[str]:
    """Return a description of each index that is being built: its table, its phase, and the process it waits for."""
    with engine.connect() as connection:
        builds = connection.execute(_INDEX_BUILDS).all()
    return [
        f"index {build.index_name or '?'} of {build.table_name}, {build.phase}"
        + (f" (process {build.current_locker_pid})" if build.current_locker_pid else "")
        for build in builds
    ]


_INDEX_BUILDS = text(
    "SELECT relid::regclass::text AS table_name, phase, current_locker_pid, nullif(index_relid, 0)::regclass::text"
    " AS index_name FROM pg_stat_progress_create_index WHERE datname = current_database()"
)


def upgrade(database_url: str) -> bool:
    """Upgrade the schema of a database without numbers to the newest revision, one process at a time.

    Returns whether the database had an older revision (False for an empty database). Raises MigrationError for a
    database with numbers that lacks a revision: coordinator/housekeeping/schema_upgrade.py converts the numbers, too.
    """
    engine = make_engine(database_url, pool_size=2)
    try:
        with migration_lock(engine):
            with engine.connect() as connection:
                before = current_revision(connection)
            if before != newest_revision() and has_numbers(engine):
                raise MigrationError("This database has numbers to convert: run `ecm-coordinator migrate`.")
            upgrade_schema(engine)
            return before is not None and before != newest_revision()
    finally:
        engine.dispose()
