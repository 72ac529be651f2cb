"""Fixtures for all tests: one PostgreSQL for each pytest process, and a fresh migrated database for each test."""

import signal
from collections.abc import Iterator
from itertools import count

import psycopg2
import pytest
import served_document
from hypothesis import settings
from sqlalchemy import Engine, make_url

from config.local.postgres import libpq_url, start_postgres
from models.engine import make_engine
from models.migrate import upgrade

# A shell starts background programs with SIGINT ignored. The processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Every run tests the same cases; `--hypothesis-profile=default` generates new ones.
settings.register_profile("same cases", derandomize=True)
settings.load_profile("same cases")

# Eight threads at once, each with its connection, and a few for the test itself.
CONNECTIONS = 12


# Those files of tests/stack that do not use the coordinator which the others share.
PRIVATE = {"agents_and_faults", "backup", "broker_faults", "faults", "hosts", "installed", "ops_files", "up"}
PRIVATE_FILES = {f"tests/stack/test_{name}.py" for name in PRIVATE}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile`, one process runs all files that share a coordinator, so that only one is started."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/stack" if file.startswith("tests/stack/") and file not in PRIVATE_FILES else file

    return Scheduling(config, log)


def administer(url: str, *statements: str) -> None:
    """Run statements that no transaction may hold, such as CREATE DATABASE."""
    connection = psycopg2.connect(libpq_url(url))
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()


def sibling(url: str, name: str) -> str:
    """The URL of the database `name` on the same server."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(autouse=True, scope="session")
def _every_answer_is_checked() -> Iterator[None]:
    with served_document.every_answer_is_checked():
        yield


@pytest.fixture(autouse=True)
def _answers_agree_with_the_specification() -> Iterator[None]:
    served_document.violations.clear()
    yield
    assert served_document.violations == []


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """The embedded PostgreSQL, one for each pytest process."""
    server = start_postgres(tmp_path_factory.mktemp("home"), durable=False)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def make_database(postgres):
    """Returns a function that creates a migrated database, as a copy of a template, and returns its URL."""
    # A test that waits for a lock that is never released fails after a while.
    administer(postgres.url, "CREATE DATABASE migrated", "ALTER ROLE CURRENT_USER SET lock_timeout = '20s'")
    upgrade(sibling(postgres.url, "migrated"))
    numbers = count()

    def make() -> str:
        name = f"test_{next(numbers)}"
        # FILE_COPY takes a third of the time of copying through the write-ahead log.
        administer(postgres.url, f"CREATE DATABASE {name} TEMPLATE migrated STRATEGY FILE_COPY")
        return sibling(postgres.url, name)

    return make


@pytest.fixture
def database_url(postgres, make_database) -> Iterator[str]:
    """The URL of an empty migrated database."""
    url = make_database()
    yield url
    administer(postgres.url, f"DROP DATABASE {make_url(url).database}")


@pytest.fixture
def engine(database_url) -> Iterator[Engine]:
    """An engine for this test's database."""
    engine = make_engine(database_url, pool_size=CONNECTIONS, pool_timeout=30)
    yield engine
    engine.dispose()
