"""Republishing: rows that the broker did not accept stay due, and after a loss of messages all rows are due at once."""

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
def publisher(engine, monkeypatch):
    """Eight submissions and eight jobs that wait; a broker; the messages that it accepts while `accepts()` is true."""
    for curves in range(WAITING):
        receive(engine, result(NUMBER, curves=curves))
    with unit_of_work(engine, "request jobs") as connection:
        for target in range(WAITING):
            jobs.request(connection, jobs.SPLIT_FACTOR, target)
    broker = fakeredis.FakeRedis(decode_responses=True)
    publisher = SimpleNamespace(published=[], accepts=lambda: True, broker=broker)

    def publish(task, queue, arguments):
        if publisher.accepts():
            publisher.published.append((queue, arguments.get("submission_id") or arguments["job_id"]))
            return True
        return False

    monkeypatch.setattr(publishing, "_publish", publish)
    monkeypatch.setattr(heartbeats, "connect", lambda url: broker)
    monkeypatch.setattr(housekeeping, "engine", lambda: engine)
    # The message of the housekeeping task itself is unacknowledged while it runs.
    broker.hset("ecm:unacked", "itself", json.dumps([{"body": ""}, "ecm", "housekeeping"]))
    return publisher


def set_published(engine, seconds, count):
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


def test_rows_that_the_broker_did_not_accept_are_due_the_next_time(engine, publisher):
    set_published(engine, 16 * 2**3, count=3)
    publisher.broker.lpush("ecm:results", "a message")
    publisher.broker.lpush("ecm:analysis", "a message")
    publisher.accepts = lambda: len(publisher.published) < 3
    assert housekeeping.republish_stale() == 3
    assert sorted(publish_counts(engine)) == [3] * 13 + [4] * 3
    publisher.accepts = lambda: True
    assert housekeeping.republish_stale() == 13
    assert publish_counts(engine) == [4] * 2 * WAITING
    assert len(set(publisher.published)) == len(publisher.published) == 2 * WAITING
    assert housekeeping.republish_stale() == 0


def test_after_the_broker_lost_its_messages_all_rows_are_published_at_once(engine, publisher, monkeypatch):
    small = settings().model_copy(update={"republish_batch": 3})
    monkeypatch.setattr(housekeeping, "settings", lambda: small)
    set_published(engine, small.republish_after - 1, count=40)
    assert housekeeping.republish_stale() == 0
    set_published(engine, small.republish_after + 1, count=40)
    assert housekeeping.republish_stale() == 2 * WAITING
    assert len(set(publisher.published)) == 2 * WAITING


@pytest.mark.parametrize(("queue", "other"), [("results", "analysis"), ("analysis", "results")])
def test_while_a_queue_has_messages_its_rows_keep_their_back_off(engine, publisher, queue, other):
    set_published(engine, settings().republish_after + 1, count=40)
    publisher.broker.hset("ecm:unacked", "held", json.dumps([{"body": ""}, "ecm", queue]))
    assert housekeeping.republish_stale() == WAITING
    assert {name for name, _ in publisher.published} == {other}
    publisher.broker.hdel("ecm:unacked", "held")
    publisher.broker.lpush(f"ecm:{queue}", "a message")
    assert housekeeping.republish_stale() == 0
    publisher.broker.delete(f"ecm:{queue}")
    assert housekeeping.republish_stale() == WAITING


def test_republishing_stops_when_the_broker_accepts_nothing(engine, publisher):
    set_published(engine, settings().republish_after + 1, count=40)
    publisher.accepts = lambda: False
    assert housekeeping.republish_stale() == 0
    assert publish_counts(engine) == [40] * 2 * WAITING


@pytest.fixture
def valkey(tmp_path):
    server = start_valkey(tmp_path / "home")
    yield server
    server.stop()


def test_messages_that_a_worker_holds_are_found_where_celery_keeps_them(engine, publisher, valkey, monkeypatch):
    broker = redis.Redis.from_url(valkey.url, decode_responses=True)
    monkeypatch.setattr(heartbeats, "connect", lambda url: broker)
    set_published(engine, settings().republish_after + 1, count=40)
    (results,) = (queue for queue in app.conf.task_queues if queue.name == "results")
    with Connection(valkey.url, transport_options=app.conf.broker_transport_options) as connection:
        app.send_task("tasks.results.apply_result", args=(1,), queue="results", connection=connection)
        assert broker.llen("ecm:results") == 1
        held = results(connection.default_channel).get()
        assert broker.llen("ecm:results") == 0
        assert housekeeping.republish_stale() == WAITING
        assert {queue for queue, _ in publisher.published} == {"analysis"}
        held.ack()
        assert housekeeping.republish_stale() == WAITING
    broker.close()
