"""Ringing again: what the bell did not ring for stays due, and an empty broker hides nothing behind a long wait."""

import json
from types import SimpleNamespace

import fakeredis
import pytest
import redis
from kombu import Connection
from pipeline import receive, result, rows, run_sql
from primes import prime, product

from config.local.valkey import start_valkey
from config.settings import settings
from coordinator.base import jobs
from coordinator.base.unit_of_work import unit_of_work
from tasks import heartbeats, housekeeping, publishing
from tasks.app import app

NUMBER = str(product(prime(20), prime(40), prime(80)))
WAITING = 8


@pytest.fixture
def ringing(engine, monkeypatch):
    """Eight submissions and eight jobs that wait for a ring, a broker, and what is rung for while `works` says so."""
    for curves in range(WAITING):
        receive(engine, result(NUMBER, curves=curves))
    with unit_of_work(engine, "ask") as connection:
        for target in range(WAITING):
            jobs.request(connection, jobs.SPLIT_FACTOR, target)
    broker = fakeredis.FakeRedis(decode_responses=True)
    bell = SimpleNamespace(rung=[], works=lambda: True, broker=broker)

    def ring(task, queue, arguments):
        if bell.works():
            bell.rung.append((queue, arguments.get("submission_id") or arguments["job_id"]))
            return True
        return False

    monkeypatch.setattr(publishing, "_publish", ring)
    monkeypatch.setattr(heartbeats, "connect", lambda url: broker)
    monkeypatch.setattr(housekeeping, "engine", lambda: engine)
    # The task that looks is unacknowledged itself.
    broker.hset("ecm:unacked", "itself", json.dumps([{"body": ""}, "ecm", "housekeeping"]))
    return bell


def wait(engine, seconds, count):
    for table in ("submissions", "jobs"):
        run_sql(
            engine,
            f"UPDATE {table} SET publish_count = :count, published_at = now() - make_interval(secs => :seconds)",
            count=count,
            seconds=seconds,
        )


def publish_counts(engine):
    return [
        row.publish_count
        for row in rows(engine, "SELECT publish_count FROM submissions UNION ALL SELECT publish_count FROM jobs")
    ]


def test_what_the_bell_did_not_ring_for_is_due_the_next_time(engine, ringing):
    wait(engine, 16 * 2**3, count=3)
    ringing.broker.lpush("ecm:results", "a message")
    ringing.broker.lpush("ecm:analysis", "a message")
    ringing.works = lambda: len(ringing.rung) < 3
    assert housekeeping.republish_stale() == 3
    assert sorted(publish_counts(engine)) == [3] * 13 + [4] * 3
    ringing.works = lambda: True
    assert housekeeping.republish_stale() == 13
    assert publish_counts(engine) == [4] * 2 * WAITING
    assert len(set(ringing.rung)) == len(ringing.rung) == 2 * WAITING
    assert housekeeping.republish_stale() == 0


def test_after_the_broker_lost_everything_all_is_rung_for_at_once(engine, ringing, monkeypatch):
    small = settings().model_copy(update={"republish_batch": 3})
    monkeypatch.setattr(housekeeping, "settings", lambda: small)
    wait(engine, small.republish_after - 1, count=40)
    assert housekeeping.republish_stale() == 0
    wait(engine, small.republish_after + 1, count=40)
    assert housekeeping.republish_stale() == 2 * WAITING
    assert len(set(ringing.rung)) == 2 * WAITING


@pytest.mark.parametrize(("queue", "other"), [("results", "analysis"), ("analysis", "results")])
def test_while_a_queue_has_messages_its_rows_wait_their_time(engine, ringing, queue, other):
    wait(engine, settings().republish_after + 1, count=40)
    ringing.broker.hset("ecm:unacked", "held", json.dumps([{"body": ""}, "ecm", queue]))
    assert housekeeping.republish_stale() == WAITING
    assert {name for name, _ in ringing.rung} == {other}
    ringing.broker.hdel("ecm:unacked", "held")
    ringing.broker.lpush(f"ecm:{queue}", "a message")
    assert housekeeping.republish_stale() == 0
    ringing.broker.delete(f"ecm:{queue}")
    assert housekeeping.republish_stale() == WAITING


def test_a_bell_that_falls_silent_ends_the_ringing(engine, ringing):
    wait(engine, settings().republish_after + 1, count=40)
    ringing.works = lambda: False
    assert housekeeping.republish_stale() == 0
    assert publish_counts(engine) == [40] * 2 * WAITING


@pytest.fixture
def valkey(tmp_path):
    server = start_valkey(tmp_path / "home")
    yield server
    server.stop()


def test_what_a_worker_holds_is_seen_where_celery_keeps_it(engine, ringing, valkey, monkeypatch):
    broker = redis.Redis.from_url(valkey.url, decode_responses=True)
    monkeypatch.setattr(heartbeats, "connect", lambda url: broker)
    wait(engine, settings().republish_after + 1, count=40)
    (results,) = (queue for queue in app.conf.task_queues if queue.name == "results")
    with Connection(valkey.url, transport_options=app.conf.broker_transport_options) as connection:
        app.send_task("tasks.results.apply_result", args=(1,), queue="results", connection=connection)
        assert broker.llen("ecm:results") == 1
        held = results(connection.default_channel).get()
        assert broker.llen("ecm:results") == 0
        assert housekeeping.republish_stale() == WAITING
        assert {queue for queue, _ in ringing.rung} == {"analysis"}
        held.ack()
        assert housekeeping.republish_stale() == WAITING
    broker.close()
