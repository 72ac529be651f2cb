"""Connection poolers between the coordinator and PostgreSQL: those that keep sessions work, others are refused."""

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import psycopg2
import pytest
from pipeline import SETTINGS, result, scalar, submit
from poolers import PgBouncer, SmallPooler, program
from primes import prime
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from coordinator.base import jobs
from coordinator.base.unit_of_work import is_transient
from coordinator.housekeeping.schema_upgrade import bring_up_to_date
from coordinator.leases import claims
from coordinator.leases.work_request import WorkRequest
from coordinator.reading import invariants
from models import engine as engines
from models import sessions
from models.engine import check_sessions, make_engine
from models.sessions import SharedSessionsError, refuse_shared_sessions

SENTENCE = str(SharedSessionsError())
LIMITS = "SELECT current_setting('statement_timeout'), current_setting('client_connection_check_interval')"
needs_pgbouncer = pytest.mark.skipif(program() is None, reason="PgBouncer is not installed")


@pytest.fixture(autouse=True)
def _no_pooler_has_passed():
    engines._check_pooler_once.cache_clear()


@pytest.fixture
def start_pooler(database_url, tmp_path):
    """Returns a function that starts a pooler of a kind and returns it."""
    started = []

    def start(kind, mode, **options):
        if kind == "PgBouncer":
            started.append(PgBouncer(database_url, mode, tmp_path, **options))
        else:
            started.append(SmallPooler(database_url, mode, **options))
        return started[-1]

    yield start
    for pooler in started:
        pooler.stop()


@contextmanager
def engine_of(url, **options):
    engine = make_engine(url, **options)
    yield engine
    engine.dispose()


both = pytest.mark.parametrize("kind", ["small", pytest.param("PgBouncer", marks=needs_pgbouncer)])


@both
def test_a_session_pooler_works(start_pooler, kind):
    """It refuses start-up parameters, so limits are set afterwards; all there is uses sessions."""
    url = start_pooler(kind, "session").url
    bring_up_to_date(url)
    with engine_of(url, pool_size=2, statement_timeout_ms=7000) as engine:
        with engine.connect() as one, engine.connect() as other:
            for connection in (one, other):
                limits = connection.execute(text(LIMITS)).one()
                assert limits == ("7s", "2s")
                connection.rollback()
                assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "7s"
        submit(engine, result(str(prime(30) * prime(40)), curves=3))
        claims.claim(engine, WorkRequest("alice"), SETTINGS)
        assert invariants.violations(engine, max_digits=SETTINGS.max_digits) == []


@both
def test_a_job_is_locked_by_one_process_at_a_time_behind_a_session_pooler(start_pooler, kind):
    url = start_pooler(kind, "session").url
    with engine_of(url, pool_size=2) as engine:
        with jobs.try_lock(engine, 5) as first, jobs.try_lock(engine, 5) as second:
            assert (first, second) == (True, False)
        with jobs.try_lock(engine, 5) as again:
            assert again


@both
def test_the_limits_of_one_client_are_not_those_of_the_next(start_pooler, kind):
    url = start_pooler(kind, "session", size=2).url
    for limit, shown in ((7000, "7s"), (None, "0"), (90, "90ms"), (None, "0")):
        with engine_of(url, statement_timeout_ms=limit) as engine:
            assert scalar(engine, "SHOW statement_timeout") == shown


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        *[("small", "transaction", {"size": size, "in_turn": turn}) for size in (1, 2, 3, 5) for turn in (True, False)],
        *[
            pytest.param("PgBouncer", mode, {"size": size}, marks=needs_pgbouncer)
            for mode in ("transaction", "statement")
            for size in (1, 5)
        ],
    ],
)
def test_a_pooler_that_shares_sessions_is_refused(start_pooler, kind, mode, options):
    """By every connection that is made, and again until it is corrected; it is no fault of what was to be done."""
    url = start_pooler(kind, mode, **options).url
    with engine_of(url) as engine:
        for _ in range(2):
            with pytest.raises(OperationalError) as raised, engine.connect():
                pass
            assert isinstance(raised.value.orig, SharedSessionsError)
            assert is_transient(raised.value)
        with pytest.raises(OperationalError, match="pool_mode = session"):
            check_sessions(engine)
    with pytest.raises(OperationalError, match="pool_mode = session"):
        bring_up_to_date(url)


def test_sessions_of_postgresql_itself_pass(database_url):
    with engine_of(database_url) as engine:
        check_sessions(engine)
        bring_up_to_date(database_url)


def test_a_connection_to_postgresql_itself_makes_no_check(database_url, monkeypatch):
    monkeypatch.setattr(sessions, "refuse_shared_sessions", None)  # to call it would fail
    with engine_of(database_url) as engine:
        assert scalar(engine, "SELECT 17") == 17


@both
def test_a_session_pooler_is_checked_once_in_each_process(start_pooler, kind, monkeypatch):
    url = start_pooler(kind, "session").url
    checks = []
    check = sessions.refuse_shared_sessions
    monkeypatch.setattr(sessions, "refuse_shared_sessions", lambda connect: (checks.append(1), check(connect)))
    with engine_of(url, pool_size=3) as engine, engine.connect(), engine.connect(), engine.connect():
        assert len(checks) == 1


def test_a_session_pooler_without_a_second_session_passes(start_pooler, monkeypatch):
    """The second connection of the check waits for the first: so that one keeps its session."""
    monkeypatch.setattr(sessions, "_CHECK_TIMEOUT", 1.0)
    url = start_pooler("small", "session", size=1).url
    refuse_shared_sessions(lambda: psycopg2.connect(url, async_=True))


def test_a_pooler_is_recognized_while_other_clients_use_it(start_pooler):
    """Others take the sessions that the check has just had, so that it is given different ones."""
    url = start_pooler("small", "transaction", size=4).url
    stop = threading.Event()

    def work():
        with psycopg2.connect(url) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                cursor.execute("SELECT pg_sleep(0.001)")
                connection.commit()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            with pytest.raises(SharedSessionsError):
                refuse_shared_sessions(lambda: psycopg2.connect(url, async_=True))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "command", [["migrate"], ["doctor"], ["projects", "ls"], ["up", "--port", "PORT", "--home", "HOME"]], ids=" ".join
)
def test_commands_refuse_a_pooler_that_shares_sessions_with_one_sentence(start_pooler, command, tmp_path):
    url = start_pooler("small", "transaction").url
    with socket.create_server(("127.0.0.1", 0)) as probe:
        values = {"HOME": str(tmp_path / "home"), "PORT": str(probe.getsockname()[1])}
    arguments = [values.get(word, word) for word in command]
    ended = subprocess.run(
        [sys.executable, "-c", "from ingest.cli import main; main()", *arguments],
        env=os.environ | {"DATABASE_URL": url, "REDIS_URL": "redis://127.0.0.1:1/0"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode == 1
    assert SENTENCE in ended.stderr
    assert "Traceback" not in ended.stderr


def test_migrate_says_when_the_database_does_not_answer():
    ended = subprocess.run(
        [sys.executable, "-c", "from ingest.cli import main; main()", "migrate"],
        env=os.environ | {"DATABASE_URL": "postgresql://ecm@127.0.0.1:1/ecm"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: the database does not answer: ")
    assert "Traceback" not in ended.stderr
