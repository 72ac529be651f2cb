"""The migrations create exactly the tables of models/tables.py, and only one module commits."""

import re
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from models.migrate import alembic_config, newest_revision, upgrade
from models.tables import Base

ROOT = Path(__file__).parents[2]
LAYERS = ("ingest", "tasks", "coordinator", "models", "config")


def test_the_migrations_lead_to_the_tables(engine):
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_again_changes_nothing(engine, database_url):
    upgrade(database_url)
    with engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == newest_revision()


def test_the_last_migration_can_be_undone_and_repeated(engine, database_url):
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    with engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() != newest_revision()
    assert upgrade(database_url)
    test_the_migrations_lead_to_the_tables(engine)


def test_only_the_unit_of_work_commits():
    ends = re.compile(r"\b(commit|rollback)\(|\.begin\(")
    modules = {
        str(path.relative_to(ROOT))
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*.py")
        if ends.search(path.read_text())
    }
    # A migration has a transaction of its own: no unit of work runs before the schema is ready.
    assert modules == {"coordinator/base/unit_of_work.py", "models/migrate.py", "models/migrations/env.py"}
