"""The broker dies, freezes, loses its queues, and gets messages twice: no result is lost, and each counts once."""

import contextlib
import subprocess
import sys
import time

import pytest
import redis
from stacks import wait_until
from traffic import Traffic

from config.local.processes import TAG

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def stack(make_stack):
    """A private coordinator: these tests break its broker."""
    return make_stack("--no-flower")


def test_the_broker_is_killed_with_a_thousand_results_queued_and_a_split_waiting(stack, traffic):
    stack.freeze("analysis")
    to_split = traffic.numbers[0]
    body = traffic.plain() | {"composite": to_split.value}
    body["results"]["factor_found"] = to_split.to_split
    traffic.send(body, stack.http, "wait=15")
    assert stack.scalar("SELECT count(*) FROM jobs WHERE kind = 'split_factor' AND state = 'waiting'") == 1
    stack.freeze("worker")
    traffic.send_batch(1000)
    assert stack.unsettled() >= 1000
    stack.kill("valkey")
    wait_until(lambda: is_broker_up(stack))
    assert stack.broker.llen("ecm:results") == 0
    stack.thaw("worker", "analysis")
    traffic.assert_settled_once()
    leaves = stack.scalar("SELECT count(*) FROM factors WHERE split_from_id IS NOT NULL AND client_id LIKE 'client-%'")
    assert leaves >= 2
    assert_worker_consumes(stack, traffic)


def is_broker_up(stack):
    try:
        return stack.broker.ping()
    except redis.RedisError:
        return False


def assert_worker_consumes(stack, traffic):
    """The worker receives what the web process publishes, and not only what housekeeping republishes."""
    # Housekeeping republishes after REPUBLISH_AFTER, which is 2 s, at the earliest.
    wait_until(lambda: traffic.send(traffic.plain(), stack.http, "wait=1") == 200, 30)
    traffic.assert_settled_once()


def test_the_broker_freezes_for_half_a_minute(stack, traffic):
    waiting = Traffic(stack, traffic.numbers, traffic.sent, traffic.refusals)
    with traffic.flowing(threads=4, pause=0.5) as flow, waiting.flowing(4, 0.5, "wait=2"):
        flow.more(40)
        normal = max(traffic.seconds)
        for clients in (traffic, waiting):
            clients.seconds.clear()
        stack.freeze("valkey")
        thaw = time.monotonic() + 30
        try:
            wait_until(lambda: time.monotonic() > thaw, 40)
            slowest, slowest_waiting = max(traffic.seconds), max(waiting.seconds)
            status = stack.status()
        finally:
            stack.thaw("valkey")
    # A request waits for the broker for half a second at most; the other half is for a loaded machine.
    assert slowest < normal + 1
    assert slowest_waiting < 2 + normal + 1
    assert (status["status"], status["broker"]["ok"], status["database"]["ok"]) == ("degraded", False, True)
    assert traffic.refusals == []
    assert traffic.disconnections == waiting.disconnections == 0
    traffic.assert_settled_once()
    assert_worker_consumes(stack, traffic)
    # The frozen broker did not make any program look frozen.
    assert "restarting" not in (stack.home / "up.log").read_text()


def test_workers_whose_connections_break_again_and_again_go_on(stack, traffic):
    """Runs that no child had accepted are forgotten by Celery at that moment."""
    with traffic.flowing(threads=4) as flow:
        for _ in range(5):
            flow.more(20)
            for connection in stack.broker.client_list():
                if connection["cmd"] in ("brpop", "subscribe"):
                    with contextlib.suppress(redis.RedisError):
                        stack.broker.client_kill_filter(_id=connection["id"])
    traffic.assert_settled_once()
    assert_worker_consumes(stack, traffic)


def test_several_beats_do_no_harm(stack, traffic):
    environment = stack.leader("beat").environ()
    beats = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "tasks", "beat"],
            env=environment | {TAG: "a second beat"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    try:
        with traffic.flowing(threads=2) as flow:
            traffic.send(traffic.plain(), stack.http, "wait=10")
            insert_overdue_reservations(stack, traffic.numbers, 20)
            for _ in range(5):
                flow.more(50)
                stack.broker.delete("ecm:results", "ecm:analysis")
        expired = "SELECT count(*) FROM work_assignments WHERE client_id = 'late' AND status = 'timeout'"
        wait_until(lambda: stack.scalar(expired) == 20, 30)
        traffic.assert_settled_once()
        assert all(beat.poll() is None for beat in beats)
    finally:
        for beat in beats:
            beat.kill()
            beat.wait()


def insert_overdue_reservations(stack, numbers, count):
    """Insert reservations that ran out a minute ago. Results that reach the target would close leases of curves."""
    stack.run_sql(
        "INSERT INTO work_assignments (id, composite_id, client_id, method, expires_at)"
        " SELECT gen_random_uuid(), id, 'late', 'nfs', now() - interval '1 minute'"
        " FROM composites, generate_series(1, :count)"
        " WHERE id = (SELECT min(id) FROM composites WHERE number = ANY(:values))",
        count=count,
        values=[number.value for number in numbers],
    )
