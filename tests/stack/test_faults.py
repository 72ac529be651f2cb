"""Processes and servers die, freeze and come back; no result is lost, none counts twice, nobody has to help."""

import random
import signal
import subprocess
import sys
import time

import pytest
import redis
from stacks import until
from traffic import Traffic

from config.processes import MARK

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def stack(make_stack):
    """A private coordinator: one after another, these tests break all of it, and each must find it whole."""
    return make_stack("--no-flower")


@pytest.fixture
def traffic(stack):
    return Traffic(stack)


# Rows take their time to be written, so that a random moment is mostly in the middle of a unit of work.
SLOW = """
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(random() * 0.02); RETURN NEW; END $$;
CREATE TRIGGER dawdle BEFORE INSERT ON ecm_attempts FOR EACH ROW EXECUTE FUNCTION dawdle();
CREATE TRIGGER dawdle BEFORE UPDATE ON composites FOR EACH ROW EXECUTE FUNCTION dawdle();
CREATE TRIGGER dawdle BEFORE INSERT OR UPDATE ON composite_effort FOR EACH ROW EXECUTE FUNCTION dawdle();
"""


def test_workers_killed_in_the_middle_of_units_of_work(stack, traffic):
    stack.run_sql(SLOW)
    died = 0
    try:
        with traffic.flowing(threads=2, pause=0.05) as flow:
            for _ in range(12):
                flow.more(random.randrange(5, 15))
                child = random.choice(until(lambda: stack.children("worker"), 30))
                child.send_signal(signal.SIGKILL)
                died += 1
            for name in ("worker", "analysis"):
                stack.kill(name)
            flow.more(10)
    finally:
        stack.run_sql("DROP FUNCTION dawdle CASCADE")
    assert died == 12
    print("settled", traffic.assert_settled_once(), len(traffic.sent))
    assert traffic.refusals == []


def test_the_broker_is_killed_with_a_thousand_results_queued_and_a_split_waiting(stack, traffic):
    stack.freeze("analysis")
    to_split = traffic.numbers[0]
    body = traffic.plain() | {"composite": to_split.value}
    body["results"]["factor_found"] = to_split.to_split
    traffic.send(body, stack.http, "wait=15")
    assert stack.scalar("SELECT count(*) FROM jobs WHERE kind = 'split_factor' AND state = 'waiting'") == 1
    stack.freeze("worker")
    traffic.send_batch(1000)
    assert stack.broker.llen("ecm:results") > 900
    stack.kill("valkey")
    until(lambda: answers(stack))
    assert stack.broker.llen("ecm:results") == 0
    stack.thaw("worker", "analysis")
    print("settled", traffic.assert_settled_once())
    leaves = stack.scalar("SELECT count(*) FROM factors WHERE split_from_id IS NOT NULL AND client_id LIKE 'client-%'")
    assert leaves >= 2
    consumes(stack, traffic)


def answers(stack):
    try:
        return stack.broker.ping()
    except redis.RedisError:
        return False


def consumes(stack, traffic):
    """The worker takes what is rung for, at once, and not only what upkeep rings for again."""
    began = time.monotonic()
    assert until(lambda: traffic.send(traffic.plain(), stack.http, "wait=1") == 200, 30)
    print("consumes after", time.monotonic() - began, [p.pid for p in stack.processes("worker")])
    traffic.assert_settled_once()


def test_the_broker_freezes_for_half_a_minute(stack, traffic):
    with traffic.flowing(threads=4, pause=0.5) as flow:
        flow.more(40)
        normal = max(traffic.seconds)
        worker = stack.leader("worker").pid
        traffic.seconds.clear()
        stack.freeze("valkey")
        thawed = time.monotonic() + 30
        try:
            with Traffic(stack, traffic.numbers, traffic.sent, traffic.refusals).flowing(4, 0.5, "wait=10"):
                until(lambda: time.monotonic() > thawed, 40)
        finally:
            stack.thaw("valkey")
        slowest = max(traffic.seconds)
    print("normal", normal, "slowest", slowest, len(traffic.seconds))
    assert traffic.refusals == []
    assert traffic.disconnections == 0
    print("settled", traffic.assert_settled_once())
    print("worker", worker, stack.leader("worker").pid)
    consumes(stack, traffic)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL], ids=["restarted", "killed"])
def test_the_database_goes_away_under_load(stack, traffic, signum):
    with traffic.flowing(threads=4) as flow:
        flow.more(100)
        old = stack.leader("postgres")
        old.send_signal(signum)
        until(lambda: stack.leader("postgres").pid != old.pid, 30)
        flow.more(200)
    print("settled", traffic.assert_settled_once(), max(traffic.seconds), traffic.refusals, traffic.disconnections)
    assert traffic.refusals == []


def test_web_processes_are_killed_under_load(stack, traffic):
    with traffic.flowing(threads=4) as flow:
        for _ in range(3):
            flow.more(50)
            random.choice(until(lambda: stack.children("web"), 30)).send_signal(signal.SIGKILL)
        flow.more(50)
        stack.kill("web")
        flow.more(100)
    print("settled", traffic.assert_settled_once(), max(traffic.seconds), traffic.disconnections)
    assert traffic.refusals == []
    assert traffic.disconnections > 0


def test_up_itself_is_killed_and_started_again(stack, traffic):
    with traffic.flowing(threads=4) as flow:
        flow.more(100)
        stack.process.kill()
        stack.process.wait()
        stack.start()
        flow.more(100)
    print("settled", traffic.assert_settled_once(), max(traffic.seconds), traffic.disconnections)
    assert stack.status()["status"] == "ok"


def test_more_beats_than_one_do_no_harm(stack, traffic):
    environment = stack.leader("beat").environ()
    beats = [
        subprocess.Popen(
            [sys.executable, "-m", "celery", "--app", "tasks.app", "beat"],
            env=environment | {MARK: "a beat too many"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    try:
        with traffic.flowing(threads=2) as flow:
            traffic.send(traffic.plain(), stack.http, "wait=10")
            overdue(stack, traffic.numbers, 20)
            for _ in range(5):
                flow.more(50)
                stack.broker.delete("ecm:results", "ecm:analysis")
        expired = "SELECT count(*) FROM work_assignments WHERE client_id = 'late' AND status = 'timeout'"
        until(lambda: stack.scalar(expired) == 20, 30)
        traffic.assert_settled_once()
        assert all(beat.poll() is None for beat in beats)
    finally:
        for beat in beats:
            beat.kill()
            beat.wait()


def overdue(stack, numbers, count):
    """Leases that ran out a minute ago."""
    stack.run_sql(
        "INSERT INTO work_assignments (id, composite_id, client_id, method, b1, curves, expires_at)"
        " SELECT gen_random_uuid(), id, 'late', 'ecm', 50000, 10, now() - interval '1 minute'"
        " FROM composites, generate_series(1, :count)"
        " WHERE id = (SELECT min(id) FROM composites WHERE number = ANY(:values))",
        count=count,
        values=[one.value for one in numbers],
    )


# A result that makes its worker die: it stands still at a known place for as long as it takes to kill it there.
DEADLY = """
CREATE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(600); END $$;
CREATE TRIGGER stand_still BEFORE INSERT ON ecm_attempts FOR EACH ROW
    WHEN (NEW.client_id = 'deadly') EXECUTE FUNCTION stand_still();
"""
STANDING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


def test_a_result_that_kills_its_worker_every_time_fails_and_harms_no_other(stack, traffic):
    stack.run_sql(DEADLY)
    try:
        deadly = traffic.plain() | {"client_id": "deadly"}
        deaths = 0
        with traffic.flowing(threads=2, pause=0.05) as flow:
            submission_id = stack.submit(deadly, Prefer="respond-async").json()["submission_id"]
            state = "SELECT state FROM submissions WHERE id = :id"
            while stack.scalar(state, id=submission_id) == "received":
                if standing := stack.rows(STANDING):
                    for child in stack.children("worker"):
                        child.send_signal(signal.SIGKILL)
                    deaths += 1
                    # The server process notices that its client is gone only when it next writes to it.
                    for (pid,) in standing:
                        stack.rows("SELECT pg_terminate_backend(:pid)", pid=pid)
                flow.more(5)
    finally:
        stack.run_sql("DROP FUNCTION stand_still CASCADE")
    answer = stack.get(f"/submissions/{submission_id}").json()
    assert (answer["state"], answer["reason"], answer["tries"]) == ("failed", "worker_died", 5)
    assert deaths >= 5
    assert stack.status()["database"]["inbox"]["failed"] == 1
    traffic.sent.append((deadly, "failed"))
    traffic.assert_settled_once()
    # Sent again by its client, now that the cause is gone, it is applied.
    assert stack.submit(deadly).json()["status"] == "success"
    traffic.sent[-1] = (deadly, "applied")
    traffic.assert_settled_once()
