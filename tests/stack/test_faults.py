"""Processes and the database die and restart: no result is lost, none counts twice, and nobody has to intervene."""

import random
import signal

import pytest
from leasing import admin_key
from stacks import wait_until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def stack(make_stack):
    """A private coordinator: these tests break all of its parts, one after another, and each needs it repaired."""
    return make_stack("--no-flower")


# Writes are slow, so that a random moment is mostly in the middle of a unit of work.
SLOW = """
CREATE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(random() * 0.02); RETURN NEW; END $$;
CREATE TRIGGER slow_down BEFORE INSERT ON ecm_attempts FOR EACH ROW EXECUTE FUNCTION slow_down();
CREATE TRIGGER slow_down BEFORE UPDATE ON composites FOR EACH ROW EXECUTE FUNCTION slow_down();
CREATE TRIGGER slow_down BEFORE INSERT OR UPDATE ON value_effort FOR EACH ROW EXECUTE FUNCTION slow_down();
"""


def test_workers_killed_in_the_middle_of_units_of_work(stack, traffic):
    stack.run_sql(SLOW)
    try:
        with traffic.flowing(threads=2, pause=0.05) as flow:
            for _ in range(12):
                flow.more(random.randrange(5, 15))
                child = random.choice(wait_until(lambda: stack.children("worker"), 30))
                child.send_signal(signal.SIGKILL)
            for name in ("worker", "analysis"):
                stack.kill(name)
            flow.more(10)
    finally:
        stack.run_sql("DROP FUNCTION slow_down CASCADE")
    traffic.assert_settled_once()
    assert traffic.refusals == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL], ids=["restarted", "killed"])
def test_the_database_is_stopped_under_load(stack, traffic, signum):
    with traffic.flowing(threads=4) as flow:
        flow.more(100)
        old = stack.leader("postgres")
        old.send_signal(signum)
        wait_until(lambda: stack.leader("postgres").pid != old.pid, 30)
        flow.more(200)
    traffic.assert_settled_once()
    assert traffic.refusals == []


def test_web_processes_are_killed_under_load(stack, traffic):
    with traffic.flowing(threads=4) as flow:
        for _ in range(3):
            flow.more(50)
            random.choice(wait_until(lambda: stack.children("web"), 30)).send_signal(signal.SIGKILL)
        flow.more(50)
        stack.kill("web")
        flow.more(100)
    traffic.assert_settled_once()
    assert traffic.refusals == []
    assert traffic.disconnections > 0


def test_up_itself_is_killed_and_restarted(stack, traffic):
    with traffic.flowing(threads=4) as flow:
        flow.more(100)
        stack.process.kill()
        stack.process.wait()
        stack.start()
        flow.more(100)
    traffic.assert_settled_once()
    assert stack.status()["status"] == "ok"


# This trigger makes the worker of a result wait at a known place, so that the test can kill it there.
DEADLY = """
CREATE FUNCTION wait_to_be_killed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(600); END $$;
CREATE TRIGGER wait_to_be_killed BEFORE INSERT ON ecm_attempts FOR EACH ROW
    WHEN (NEW.client_id = 'deadly') EXECUTE FUNCTION wait_to_be_killed();
"""
WAITING_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


def test_a_result_that_kills_its_worker_every_time_fails_and_harms_no_other(stack, traffic):
    failed_before = stack.status()["database"]["inbox"]["failed"]
    stack.run_sql(DEADLY)
    try:
        deadly = traffic.plain() | {"client_id": "deadly"}
        deaths = 0
        with traffic.flowing(threads=2, pause=0.05) as flow:
            submission_id = stack.submit(deadly, Prefer="respond-async").json()["submission_id"]
            state = "SELECT state FROM submissions WHERE id = :id"
            while stack.scalar(state, id=submission_id) == "received":
                if waiting := stack.rows(WAITING_BACKENDS):
                    for child in stack.children("worker"):
                        child.send_signal(signal.SIGKILL)
                    deaths += 1
                    # The server process notices that its client is gone only when it next writes to it.
                    for (pid,) in waiting:
                        stack.rows("SELECT pg_terminate_backend(:pid)", pid=pid)
                flow.more(5)
    finally:
        stack.run_sql("DROP FUNCTION wait_to_be_killed CASCADE")
    answer = stack.get(f"/submissions/{submission_id}").json()
    assert (answer["state"], answer["reason"], answer["tries"]) == ("failed", "worker_died", 3)
    # Not always five: the test may also kill a worker that has just begun, together with the one that waits.
    assert deaths > 1
    assert stack.status()["database"]["inbox"]["failed"] == failed_before + 1
    traffic.sent.append((deadly, "failed"))
    traffic.assert_settled_once()
    # The cause is gone. Its client cannot queue it again, and is told so; an operator does.
    again = stack.submit(deadly)
    assert again.status_code == 202
    assert "an operator has to look at it" in again.json()["message"]
    assert stack.scalar(state, id=submission_id) == "failed"
    retried = stack.http.post(
        f"{stack.api}/admin/submissions/{submission_id}/retry", headers={"X-Admin-Key": admin_key(stack)}, timeout=40
    )
    assert retried.status_code == 200
    assert wait_until(lambda: stack.scalar(state, id=submission_id) == "applied")
    traffic.sent[-1] = (deadly, "applied")
    traffic.assert_settled_once()
