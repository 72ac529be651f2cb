"""A job runs once at a time, however often it is published, and its lock is released however it ends."""

import os
import subprocess
import sys
import threading

import pytest
from pipeline import rows

from coordinator.base import jobs
from coordinator.base.unit_of_work import unit_of_work
from coordinator.housekeeping import job_runner
from models.engine import make_engine


@pytest.fixture
def job(engine):
    with unit_of_work(engine, "ask") as connection:
        return jobs.request(connection, jobs.SPLIT_FACTOR, 1)[0].job_id


@pytest.fixture
def worker(database_url):
    """An engine like that of a worker process."""
    engine = make_engine(database_url, pool_size=2)
    yield engine
    engine.dispose()


def run(engine, job):
    return job_runner.run_job(engine, job, max_deliveries=5, max_digits=1000)


def state_and_tries(engine):
    ((state, tries),) = rows(engine, "SELECT state, tries FROM jobs")
    return state, tries


def test_a_running_job_is_not_started_again_and_counts_no_delivery_attempt(engine, worker, job, monkeypatch):
    begun, go_on, ended = threading.Event(), threading.Event(), []

    def long_run(engine, row, max_digits):
        begun.set()
        assert go_on.wait(20)
        with unit_of_work(engine, "finish") as connection:
            jobs.finish(connection, row.id, row.request_count)
        ended.append(row.tries)
        return []

    monkeypatch.setitem(job_runner.RUNNERS, jobs.SPLIT_FACTOR, long_run)
    thread = threading.Thread(target=run, args=(worker, job))
    thread.start()
    try:
        assert begun.wait(20)
        monkeypatch.setitem(job_runner.RUNNERS, jobs.SPLIT_FACTOR, lambda *_: pytest.fail("ran beside itself"))
        for _ in range(7):
            assert run(engine, job) == []
        assert state_and_tries(engine) == ("waiting", 1)
    finally:
        go_on.set()
        thread.join()
    assert ended == [1]
    assert state_and_tries(engine) == ("done", 1)


def test_a_job_that_failed_can_run_again_elsewhere(engine, worker, job, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setitem(job_runner.RUNNERS, jobs.SPLIT_FACTOR, broken)
        with pytest.raises(ZeroDivisionError):
            run(worker, job)
    run(engine, job)
    assert state_and_tries(engine) == ("done", 2)


DYING = """
import os, sys
from coordinator.base import jobs
from coordinator.housekeeping import job_runner
from models.engine import make_engine
job_runner.RUNNERS[jobs.SPLIT_FACTOR] = lambda *_: os._exit(7)
engine = make_engine(os.environ["TEST_URL"], pool_size=2)
job_runner.run_job(engine, int(sys.argv[1]), max_deliveries=5, max_digits=1000)
"""


def test_a_job_whose_process_died_can_run_again(engine, database_url, job):
    program = [sys.executable, "-c", DYING, str(job)]
    died = subprocess.run(program, env=os.environ | {"TEST_URL": database_url}, check=False)
    assert died.returncode == 7
    # The server notices the end of the connection by itself, a moment later.
    for _ in range(500):
        run(engine, job)
        if state_and_tries(engine)[0] == "done":
            break
        threading.Event().wait(0.02)
    assert state_and_tries(engine) == ("done", 2)
