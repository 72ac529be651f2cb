"""Migrations: read and upgrade the revision of a database's schema.

A migration that cannot convert all rows in one transaction leaves rows in `owed_work`. This module knows only the
schema; coordinator/housekeeping/schema_upgrade.py upgrades a database with numbers, and does what is owed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from models.engine import make_engine
from models.migration_lock import MIGRATION_LOCK

# Limits that an operator may have set for sessions. Migrations have statements, waits and pauses of minutes.
_NO_LIMITS = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")


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
    """
    with engine.begin() as connection:
        remove_limits(connection)
        lock = {"key": MIGRATION_LOCK}
        if not connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), lock).scalar_one():
            waiting()
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), lock)
        yield


def remove_limits(connection: Connection) -> None:
    """Remove the time limits of sessions for this transaction."""
    for name in _NO_LIMITS:
        connection.execute(text(f"SET LOCAL {name} = 0"))


def upgrade_schema(engine: Engine, revision: str = "head") -> None:
    """Upgrade the schema to `revision` in one transaction; the caller holds the lock of migrations."""
    with engine.begin() as connection:
        remove_limits(connection)
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def upgrade(database_url: str) -> bool:
    """Upgrade the schema of `database_url` to the newest revision in one transaction, one process at a time.

    Returns whether the database had an older revision (False for an empty database). Fails for a database that has
    numbers to convert.
    """
    engine = make_engine(database_url, pool_size=2)
    try:
        with migration_lock(engine):
            with engine.connect() as connection:
                before = current_revision(connection)
            upgrade_schema(engine)
            return before is not None and before != newest_revision()
    finally:
        engine.dispose()
