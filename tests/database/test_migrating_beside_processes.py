"""Migrations while others use the tables: nobody queues behind them for long, and an interrupted one is finished."""

import ast
import threading
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from alembic import command
from pipeline import rows, scalar
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

from coordinator.housekeeping import schema_upgrade
from coordinator.housekeeping.schema_upgrade import bring_up_to_date
from ingest.app import STATEMENT_TIMEOUT_MS
from models import migrate
from models.engine import make_engine
from models.migrations import versions

# A revision that drops columns and indexes of tables, and the one before it.
BEFORE, REVISION = "0011", "0012"
# The revision that builds and drops indexes only, and the one before it.
BEFORE_INDEXES, INDEXES = "0013", "0014"
# Seconds that a slow machine may add.
SLOWNESS = 2.0


@pytest.fixture(scope="session")
def make_database_at(postgres):
    """Returns a function that creates an empty database of a revision and returns its URL."""
    numbers = count()

    def make(revision):
        name = f"migrating_{next(numbers)}"
        engine = make_engine(postgres.url)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        url = make_url(postgres.url).set(database=name).render_as_string(hide_password=False)
        engine = make_engine(url)
        migrate.upgrade_schema(engine, revision)
        engine.dispose()
        return url

    return make


@contextmanager
def engine_of(url, **options):
    engine = make_engine(url, **{"pool_size": 6, **options})
    yield engine
    engine.dispose()


class Migration(threading.Thread):
    """A migration in a thread: what it has said, and the error that ended it."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.said, self.error = url, [], None
        self.start()

    def run(self):
        try:
            bring_up_to_date(self.url, lambda description, share: self.said.append(description))
        except Exception as error:
            self.error = error

    def finish(self):
        self.join(60)
        assert not self.is_alive()
        return self.error


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_building(engine):
    """Whether an index is built concurrently that waits for a transaction."""
    waiting = "SELECT count(*) FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for%'"
    return scalar(engine, waiting) > 0


def milliseconds(connection, statement):
    started = time.monotonic()
    connection.execute(text(statement))
    connection.commit()
    return 1000 * (time.monotonic() - started)


def test_readers_and_writers_do_not_queue_behind_a_migration_that_waits(make_database_at):
    """A transaction has read a table that the revision changes: the revision waits, and others go on meanwhile."""
    url = make_database_at(BEFORE)
    with engine_of(url) as engine, engine.connect() as long, engine.connect() as reader, engine.connect() as writer:
        long.execute(text("SELECT count(*) FROM composites"))
        migration = Migration(url)
        took = []
        while len(migration.said) < 2:  # it has waited in vain twice
            took.append(milliseconds(reader, "SELECT count(*) FROM composites"))
            took.append(milliseconds(writer, "UPDATE composites SET priority = 1"))
            assert migration.is_alive()
        assert 300 < max(took) < 1000 * (migrate.LOCK_TIMEOUT + SLOWNESS)  # they did queue, but not for long
        assert all(
            REVISION in said and "waits for a table that other transactions use" in said for said in migration.said
        )
        assert scalar(engine, "SELECT version_num FROM alembic_version") == BEFORE
        long.commit()
        assert migration.finish() is None
        assert scalar(engine, "SELECT version_num FROM alembic_version") == migrate.newest_revision()


def test_a_migration_that_never_gets_its_lock_ends_with_one_sentence(make_database_at, monkeypatch):
    monkeypatch.setattr(schema_upgrade, "PAUSES", (0.1, 0.1))
    url = make_database_at(BEFORE)
    with engine_of(url) as engine, engine.connect() as long:
        pid = long.execute(text("SELECT pg_backend_pid() FROM (SELECT count(*) FROM composites)")).scalar_one()
        error = Migration(url).finish()
        assert isinstance(error, migrate.MigrationError)
        assert f"process {pid} (ecm-coordinator, idle in transaction, open for" in str(error)
        assert "End these transactions or wait for them, and migrate again." in str(error)
        assert scalar(engine, "SELECT version_num FROM alembic_version") == BEFORE


def test_other_faults_of_a_migration_are_not_tried_again(make_database_at, monkeypatch):
    url = make_database_at(BEFORE)
    calls = []

    def fail(engine, revision):
        calls.append(revision)
        with engine.connect() as connection:
            connection.execute(text("SELECT 1 / 0"))

    monkeypatch.setattr(migrate, "upgrade_schema", fail)
    assert isinstance(Migration(url).finish(), DBAPIError)
    assert len(calls) == 1


def test_each_revision_is_a_transaction(make_database_at, monkeypatch):
    """What revisions before a failing one did stays."""
    monkeypatch.setattr(schema_upgrade, "PAUSES", ())
    url = make_database_at("0008")
    with engine_of(url) as engine, engine.connect() as long:
        long.execute(text("SELECT count(*) FROM composites"))  # 0009 changes another table, 0010 this one
        assert isinstance(Migration(url).finish(), migrate.MigrationError)
        assert scalar(engine, "SELECT version_num FROM alembic_version") == "0009"


def test_indexes_are_built_and_dropped_while_others_read_and_write(make_database_at, monkeypatch):
    """The builds wait for transactions that have changed rows, and say so; new ones are not held up at all."""
    monkeypatch.setattr(schema_upgrade, "REPORT_EVERY", 0.2)
    url = make_database_at(BEFORE_INDEXES)
    with engine_of(url) as engine, engine.connect() as long, engine.connect() as other:
        tables = ("factors", "ecm_residues", "recalculated_efforts", "jobs", "work_assignments")
        for table in tables:
            long.execute(text(f"DELETE FROM {table}"))
        migration = Migration(url)
        wait_until(lambda: is_building(engine))
        time.sleep(2 * migrate.LOCK_TIMEOUT)
        assert is_building(engine)  # the lock timeout does not end it
        for table in tables:
            assert milliseconds(other, f"SELECT count(*) FROM {table}") < 1000 * SLOWNESS
            assert milliseconds(other, f"DELETE FROM {table}") < 1000 * SLOWNESS
        pid = long.execute(text("SELECT pg_backend_pid()")).scalar_one()
        waits = f"index factors_split_from of factors, waiting for writers before build (process {pid})"
        assert migration.said.count(waits) >= 2
        long.commit()
        assert migration.finish() is None
        assert rows(engine, "SELECT indexrelid FROM pg_index WHERE NOT indisvalid") == []


def test_a_second_process_may_wait_while_the_first_builds_an_index(make_database_at):
    """A statement that waited for the lock of migrations would be waited for by the build: both for ever."""
    url = make_database_at(BEFORE_INDEXES)
    with engine_of(url) as engine, engine.connect() as long:
        long.execute(text("DELETE FROM factors"))
        first = Migration(url)
        wait_until(lambda: is_building(engine))
        second = Migration(url)
        wait_until(lambda: second.said)
        assert second.said == ["waiting for another process that migrates"]
        long.commit()
        assert first.finish() is None
        assert second.finish() is None


@pytest.mark.parametrize("index", ["factors_split_from", "work_assignments_of_composite"])
def test_an_index_whose_build_was_interrupted_is_built_again(make_database_at, index):
    url = make_database_at(BEFORE_INDEXES)
    table = "factors" if index.startswith("factors") else "work_assignments"
    with engine_of(url) as engine, engine.connect() as long:
        long.execute(text(f"DELETE FROM {table}"))
        first = Migration(url)
        wait_until(lambda: is_building(engine))
        stop = "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_progress_create_index"
        assert scalar(engine, stop)
        assert isinstance(first.finish(), OperationalError)  # `up` waits for the database then
        invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
        assert rows(engine, invalid) == [(index,)]
        assert scalar(engine, "SELECT version_num FROM alembic_version") == BEFORE_INDEXES
        long.commit()
        bring_up_to_date(url)
        assert rows(engine, invalid) == []
        assert scalar(engine, "SELECT version_num FROM alembic_version") == migrate.newest_revision()
        with engine.connect() as connection:
            assert connection.execute(text("SELECT to_regclass(:name)"), {"name": index}).scalar_one() is not None


def test_the_limits_of_a_migration_do_not_stay_in_the_pool(make_database_at):
    url = make_database_at(BEFORE)
    with engine_of(url, pool_size=1) as engine:
        before = scalar(engine, "SHOW lock_timeout")
        migrate.upgrade_schema(engine, REVISION)
        assert scalar(engine, "SHOW lock_timeout") == before != f"{migrate.LOCK_TIMEOUT:g}s"


def test_alembic_itself_migrates_in_the_same_way(make_database_at, monkeypatch):
    """`alembic upgrade head`, as a developer runs it."""
    url = make_database_at(BEFORE)
    monkeypatch.setenv("DATABASE_URL", url)
    with engine_of(url) as engine:
        with engine.connect() as long:
            long.execute(text("SELECT count(*) FROM composites"))
            with pytest.raises(DBAPIError, match="lock timeout"):
                command.upgrade(migrate.alembic_config(), "head")
        command.upgrade(migrate.alembic_config(), "head")
        assert scalar(engine, "SELECT version_num FROM alembic_version") == migrate.newest_revision()


# Older revisions have blocked writers already.
REVISIONS = [path for path in sorted(Path(versions.__path__[0]).glob("[0-9]*.py")) if path.name >= INDEXES]


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem[:4])
def test_indexes_of_existing_tables_are_built_concurrently(path):
    """CREATE INDEX blocks all writers of a table until it is done."""
    called = [
        (node.func.attr, [argument.value for argument in node.args if isinstance(argument, ast.Constant)])
        for function in ast.parse(path.read_text()).body
        if isinstance(function, ast.FunctionDef) and function.name != "downgrade"
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "op"
    ]
    new_tables = {arguments[0] for name, arguments in called if name == "create_table"}
    assert {arguments[1] for name, arguments in called if name == "create_index"} <= new_tables
    executed = [statement.upper() for name, arguments in called if name == "execute" for statement in arguments]
    assert not [statement for statement in executed if "CREATE INDEX" in statement or "CREATE UNIQUE" in statement]


def test_no_request_fails_because_a_migration_waits():
    """A statement that queues behind a migration for its lock timeout is done within the time of a request."""
    assert 1000 * migrate.LOCK_TIMEOUT < STATEMENT_TIMEOUT_MS / 10
