"""Which faults of the database are worth another try, and how long a statement may take."""

import pytest
from pipeline import scalar
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

import models.engine
from config.settings import settings
from coordinator.base.unit_of_work import is_poison, is_transient, unit_of_work
from models.engine import make_engine
from tasks import analysis
from tasks import app as worker


def fault(engine, *statements):
    """The error that the last of these statements raises."""

    def run():
        with unit_of_work(engine, "test") as connection:
            for statement in statements:
                connection.execute(text(statement))

    with pytest.raises(DBAPIError) as raised:
        run()
    return raised.value


@pytest.mark.parametrize("state", ["25006", "58000", "58030", "40001", "40P01", "55P03", "57P03", "53300"])
def test_a_fault_of_the_database_is_transient_and_no_poison(engine, state):
    error = fault(engine, f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$")
    assert error.orig.pgcode == state
    assert (is_transient(error), is_poison(error)) == (True, False)


@pytest.mark.parametrize("state", ["57000", "25000", "22012", "42601"])
def test_other_faults_are_not_transient(engine, state):
    error = fault(engine, f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$")
    assert (is_transient(error), is_poison(error)) == (False, True)


def test_writing_to_a_read_only_database_is_transient(engine):
    assert is_transient(fault(engine, "SET TRANSACTION READ ONLY", "DELETE FROM jobs"))


def test_a_statement_that_takes_too_long_is_cancelled_and_tried_again_but_not_for_ever(database_url):
    engine = make_engine(database_url, statement_timeout_ms=50)
    error = fault(engine, "SELECT pg_sleep(20)")
    assert (error.orig.pgcode, is_transient(error), is_poison(error)) == ("57014", True, True)
    # The connection is as good as before.
    assert scalar(engine, "SELECT 17") == 17
    engine.dispose()


def test_without_a_limit_no_statement_is_cancelled(engine):
    assert scalar(engine, "SHOW statement_timeout") == "0"


def test_a_statement_is_cancelled_before_the_time_limit_of_its_task(database_url, monkeypatch):
    monkeypatch.setattr(worker, "settings", lambda: settings().model_copy(update={"database_url": database_url}))
    made = {}
    monkeypatch.setattr(models.engine, "_engines", made)
    results, long_jobs = worker.engine(), worker.engine(analysis.run_job.soft_time_limit)
    assert (results is worker.engine(), results is long_jobs) == (True, False)
    limits = [
        scalar(engine, "SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
        for engine in (results, long_jobs)
    ]
    soft_limits = [worker.app.conf.task_soft_time_limit, analysis.run_job.soft_time_limit]
    assert limits == [900 * limit for limit in soft_limits]
    for engine in made.values():
        engine.dispose()
