"""Migrations: read and upgrade the revision of a database's schema."""

from functools import lru_cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from models.engine import make_engine
from models.migration_lock import MIGRATION_LOCK


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


def upgrade(database_url: str) -> bool:
    """Upgrade the schema of `database_url` to the newest revision in one transaction, one process at a time.

    Returns whether the database had an older revision (False for an empty database).
    """
    engine = make_engine(database_url)
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            before = current_revision(connection)
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            return before is not None and before != newest_revision()
    finally:
        engine.dispose()
