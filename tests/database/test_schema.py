"""The migrations make exactly the tables that the code knows; and one place alone commits."""

import re
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from models.migrate import newest_revision, upgrade
from models.tables import Base

ROOT = Path(__file__).parents[2]
FLOORS = ("ingest", "tasks", "coordinator", "models", "config")


def test_the_migrations_lead_to_the_tables(engine):
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_again_changes_nothing(engine, database_url):
    upgrade(database_url)
    with engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == newest_revision()


def test_only_the_unit_of_work_commits():
    ends = re.compile(r"\b(commit|rollback)\(|\.begin\(")
    found = {
        str(path.relative_to(ROOT))
        for floor in FLOORS
        for path in (ROOT / floor).rglob("*.py")
        if ends.search(path.read_text())
    }
    # A migration is its own transaction, before there is anything that a rule could break.
    assert found == {"coordinator/base/unit_of_work.py", "models/migrate.py", "models/migrations/env.py"}
