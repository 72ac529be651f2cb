"""Which job runs next, how often it is tried, and what becomes of one that runs out of its time (E3, G13)."""

import os
import subprocess
import sys
from pathlib import Path
from time import process_time

import gmpy2
import pytest
from gmpy2 import mpz
from pipeline import assert_sound, result, rows, run_sql, scalar, submit
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from config.settings import settings as process_settings
from coordinator.base import jobs
from coordinator.base.audit import Actor
from coordinator.base.unit_of_work import unit_of_work
from coordinator.housekeeping import job_runner
from coordinator.loading import load
from coordinator.loading.list_formats import InputRow
from coordinator.numbers import limited

HARD = gmpy2.next_prime(mpz(10) ** 34) * gmpy2.next_prime(mpz(3) * 10**37)


class TimeLimitError(Exception):
    """What the caller's time limit raises."""


def run_best(engine, worker="w1", max_deliveries=5):
    return job_runner.run_best(
        engine, worker=worker, max_deliveries=max_deliveries, max_digits=20_000, time_limit_error=TimeLimitError
    )


def insert(engine, client, count=1, priority=0, first=1):
    run_sql(
        engine,
        "INSERT INTO jobs (kind, target_id, client_id, priority)"
        " SELECT 'split_factor', t, :client, :priority FROM generate_series(:first, :last) t",
        client=client,
        priority=priority,
        first=first,
        last=first + count - 1,
    )


@pytest.fixture
def ran(monkeypatch):
    """The clients whose jobs ran, in order; each run counts as 10 seconds."""
    order = []

    def run(engine, job, max_digits):
        order.append(job.client_id)
        with unit_of_work(engine, "finish") as connection:
            jobs.charge(connection, job.client_id, 10)
            jobs.finish(connection, job.id, job.request_count)
        return []

    monkeypatch.setitem(job_runner.RUNNERS, jobs.SPLIT_FACTOR, run)
    return order


def test_a_client_with_a_thousand_jobs_does_not_starve_others(engine, ran):
    insert(engine, "mallory", 1000)
    insert(engine, "alice", 2, first=2000)
    insert(engine, None, 2, first=3000)
    for _ in range(8):
        assert run_best(engine) is not None
    assert ran[0] == "mallory"  # the oldest
    assert sorted(ran[1:6], key=str) == [None, None, "alice", "alice", "mallory"]
    assert ran[6:] == ["mallory", "mallory"]


def test_running_time_counts_not_the_number_of_jobs_and_is_forgotten(engine, ran):
    insert(engine, "alice", 3)
    insert(engine, "bob", 3, first=100)
    with unit_of_work(engine, "charge") as connection:
        jobs.charge(connection, "alice", 15)
    for _ in range(4):
        run_best(engine)
    assert ran == ["bob", "bob", "alice", "bob"]
    run_sql(engine, "UPDATE job_shares SET counted_at = now() - interval '10 hours'")
    with unit_of_work(engine, "charge") as connection:
        jobs.charge(connection, "alice", 1)
    assert scalar(engine, "SELECT seconds FROM job_shares WHERE client_id = 'alice'") == pytest.approx(1, abs=0.1)


def test_numbers_that_clients_registered_wait_behind_those_of_lists(engine, ran):
    insert(engine, "mallory", 3, priority=jobs.UNLISTED)
    insert(engine, "alice", 3, first=100)
    with unit_of_work(engine, "charge") as connection:
        jobs.charge(connection, "alice", 10_000)
    while run_best(engine):
        pass
    assert ran == ["alice"] * 3 + ["mallory"] * 3


def test_the_best_job_that_no_other_process_runs_is_taken(engine, ran):
    insert(engine, "alice", 3)
    first, second, third = (row.id for row in rows(engine, "SELECT id FROM jobs ORDER BY id"))
    with jobs.try_lock(engine, first), jobs.try_lock(engine, second):
        assert run_best(engine).job_id == third
        assert run_best(engine) is None


def test_the_choice_reads_an_index_from_client_to_client(engine):
    insert(engine, "mallory", 20_000)
    insert(engine, "alice", 5, first=50_000)
    run_sql(engine, "ANALYZE jobs")
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2:4]))
    with engine.connect() as connection:
        found = list(jobs.best_waiting(connection))
    assert len(found) == jobs.MOST_OF_A_CLIENT + 5
    plan = "\n".join(row[0] for row in rows_of_plan(engine, *statements[0]))
    assert "Seq Scan on jobs" not in plan
    assert "Sort Key" in plan


def rows_of_plan(engine, statement, parameters):
    with engine.connect() as connection:
        return list(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))


# Tries -----------------------------------------------------------------------------------------------------------


def state(engine):
    ((found),) = rows(engine, "SELECT state, tries, timeouts, interruptions FROM jobs")
    return tuple(found)


def die(engine, worker):
    """Run the job until it has begun, as a process that then dies."""
    with unit_of_work(engine, "find") as connection:
        (job_id,) = list(jobs.best_waiting(connection))
    job_runner._begin(engine, job_id, 5, worker)


def test_a_restart_of_the_worker_is_no_try(engine, ran):
    insert(engine, "alice")
    for n in range(10):
        die(engine, f"worker {n}")
    assert state(engine) == ("waiting", 1, 0, 9)
    assert run_best(engine, "the last one") is not None
    assert state(engine) == ("done", 1, 0, 10)


def test_a_job_that_ends_its_worker_every_time_fails_after_all(engine, ran):
    insert(engine, "alice")
    for n in range(40):
        if state(engine)[0] == "failed":
            break
        die(engine, f"worker {n}")
    assert state(engine)[0] == "failed"
    assert n < job_runner.MAX_INTERRUPTIONS + 5
    assert ran == []


def test_two_more_tries_after_the_death_of_its_process(engine, ran):
    """The worker lives on: the job has killed its process, or the hard time limit has."""
    insert(engine, "alice")
    for _ in range(3):
        die(engine, "w1")
    assert run_best(engine, "w1") is None
    assert state(engine) == ("failed", 3, 3, 0)
    assert ran == []
    assert "died or ran out of time" in scalar(engine, "SELECT error FROM jobs")


def test_two_more_tries_after_a_time_out(engine, monkeypatch):
    insert(engine, "alice")

    def late(*_):
        raise TimeLimitError("SoftTimeLimitExceeded()")

    monkeypatch.setitem(job_runner.RUNNERS, jobs.SPLIT_FACTOR, late)
    for _ in range(3):
        assert isinstance(run_best(engine).fault, TimeLimitError)
    assert run_best(engine) is None
    assert state(engine) == ("failed", 3, 3, 0)


def test_other_errors_have_more_tries_and_transient_faults_count_nothing(engine, monkeypatch):
    insert(engine, "alice")
    faults = [ZeroDivisionError("a bug")] * 5 + [OperationalError("SELECT 1", {}, Exception("closed"))] * 7

    def broken(*_):
        raise faults.pop()

    monkeypatch.setitem(job_runner.RUNNERS, jobs.SPLIT_FACTOR, broken)
    for _ in range(7):
        assert isinstance(run_best(engine).fault, OperationalError)
    assert state(engine) == ("waiting", 0, 0, 0)
    for _ in range(5):
        assert isinstance(run_best(engine).fault, ZeroDivisionError)
    assert run_best(engine) is None
    assert state(engine) == ("failed", 5, 0, 0)


KILLED = """
import os, sys
from coordinator.base import jobs
from coordinator.housekeeping import job_runner
from models.engine import make_engine
job_runner.RUNNERS[jobs.SPLIT_FACTOR] = lambda *_: os.kill(os.getpid(), 9)
engine = make_engine(os.environ["TEST_URL"], pool_size=2)
job_runner.run_best(engine, worker=sys.argv[1], max_deliveries=5, max_digits=9)
"""


def test_processes_that_are_killed(engine, database_url, ran):
    insert(engine, "alice")
    for worker in ("w1", "w2", "w3", "w3"):
        program = [sys.executable, "-c", KILLED, worker]
        died = subprocess.run(program, env=os.environ | {"TEST_URL": database_url}, check=False)
        assert died.returncode == -9
        # The server releases the lock when it notices the end of the connection, a moment later.
        run_sql(engine, "SELECT pg_sleep(0.5)")
    assert state(engine) == ("waiting", 2, 1, 2)
    assert run_best(engine, "w4") is not None
    assert state(engine)[0] == "done"


# Limited time ----------------------------------------------------------------------------------------------------


@pytest.fixture
def seconds(monkeypatch):
    """Limit jobs about numbers of clients to a second of processor time."""
    monkeypatch.setattr(process_settings(), "client_job_seconds", 1)


def children():
    """Return the command lines of this machine's processes that compute for a job."""
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return [line for line in lines if b"coordinator.numbers.limited\0" in line]


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_a_primality_test_that_runs_out_of_time_leaves_unknown_and_is_not_tried_again(engine, seconds):
    """110 bytes held the only analysis worker for 19 minutes: five times the test of a prime."""
    body = result("2^23209-1", client="mallory", b1=11_000, curves=1)
    submit(engine, body)
    ((priority, client),) = rows(engine, "SELECT priority, client_id FROM jobs WHERE kind = 'test_cofactor'")
    assert (priority, client) == (jobs.UNLISTED, "mallory")
    started = process_time()
    assert run_best(engine).kind == jobs.TEST_COFACTOR
    assert process_time() - started < 3
    assert state(engine) == ("unknown", 1, 0, 0)
    assert "processor time" in scalar(engine, "SELECT error FROM jobs")
    assert scalar(engine, "SELECT is_prime FROM composites") is None
    assert run_best(engine) is None
    submit(engine, body | {"parameters": {"b1": 11_000, "curves": 2}})
    assert run_best(engine) is None
    assert scalar(engine, "SELECT seconds FROM job_shares WHERE client_id = 'mallory'") > 0.9
    assert_sound(engine)
    assert children() == []


def test_the_same_with_a_split(engine, seconds):
    submit(engine, result(str(HARD * gmpy2.next_prime(mpz(10) ** 60)), str(HARD), client="mallory"))
    assert run_best(engine).kind == jobs.SPLIT_FACTOR
    assert scalar(engine, "SELECT state FROM jobs WHERE kind = 'split_factor'") == "unknown"
    assert_sound(engine)


def test_numbers_of_operators_have_the_whole_time_and_come_first(engine, seconds):
    submit(engine, result("2^23209-1", client="mallory"))
    submit(engine, result("2^9941-1", client="alice"))
    run_sql(engine, "UPDATE composites SET registered_by = NULL WHERE number = '2^9941-1'")
    run_sql(engine, "UPDATE jobs SET state = 'done'")
    with unit_of_work(engine, "request") as connection:
        for (composite_id,) in rows(engine, "SELECT id FROM composites ORDER BY id"):
            jobs.request(connection, jobs.TEST_COFACTOR, composite_id)
    run_best(engine)
    assert dict(rows(engine, "SELECT number, is_prime FROM composites")) == {"2^23209-1": None, "2^9941-1": True}


def test_a_number_that_an_operator_loads_after_a_result_registered_it_is_his(engine, seconds):
    submit(engine, result("2^23209-1", client="mallory"))
    assert run_best(engine) is not None
    assert state(engine)[0] == "unknown"
    load.load_numbers(
        engine, [InputRow(1, "2^23209-1")], max_digits=20_000, actor=Actor("test", "a test"), source="list", processes=0
    )
    assert rows(engine, "SELECT state, priority, client_id FROM jobs") == [("waiting", jobs.LISTED, None)]
    assert scalar(engine, "SELECT registered_by FROM composites") is None
    run_best(engine)
    assert scalar(engine, "SELECT is_prime FROM composites") is True
    assert_sound(engine)


@pytest.mark.parametrize(("n", "is_prime"), [(mpz(2) ** 4423 - 1, True), (mpz(2) ** 9001 + 1, False), (mpz(97), True)])
def test_limited_primality(n, is_prime):
    assert limited.is_prime_within(n, 60) is is_prime


def test_limited_splits():
    n = mpz(10) ** 26 + 67  # prime
    m = gmpy2.next_prime(n)
    assert limited.factorize_within(n * m * 9, 60) == {mpz(3): 2, n: 1, m: 1}
    with pytest.raises(ValueError, match="75"):
        limited.factorize_within(mpz(10) ** 80, 60)
    with pytest.raises(limited.OutOfTimeError, match="processor time"):
        limited.factorize_within(HARD, 1)
