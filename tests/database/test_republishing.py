"""Republishing: what has waited too long wakes up workers, a few for a large backlog."""

from types import SimpleNamespace

import fakeredis
import pytest
from pipeline import receive, result, run_sql
from primes import prime, product

from config.settings import settings
from coordinator.base import jobs
from coordinator.base.unit_of_work import unit_of_work
from tasks import heartbeats, housekeeping, publishing

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
            publisher.published.append((queue, arguments))
            return True
        return False

    monkeypatch.setattr(publishing, "_publish", publish)
    monkeypatch.setattr(heartbeats, "connect", lambda url: broker)
    monkeypatch.setattr(housekeeping, "engine", lambda: engine)
    return publisher


def set_waited(engine, seconds):
    run_sql(engine, "UPDATE jobs SET published_at = now() - make_interval(secs => :seconds)", seconds=seconds)
    run_sql(engine, "UPDATE submissions SET due_at = now() - make_interval(secs => :seconds)", seconds=seconds)


def test_what_waits_for_too_long_wakes_up_a_worker_of_each_queue(engine, publisher):
    set_waited(engine, settings().republish_after - 1)
    assert (housekeeping.republish_stale(), publisher.published) == (0, [])
    set_waited(engine, settings().republish_after + 1)
    assert housekeeping.republish_stale() == 2 * WAITING
    assert publisher.published == [("results", {}), ("analysis", {})]


def test_a_backlog_wakes_up_several_workers_and_messages_that_wait_are_enough(engine, publisher, monkeypatch):
    monkeypatch.setattr(housekeeping, "ROWS_PER_MESSAGE", 3)
    set_waited(engine, settings().republish_after + 1)
    publisher.broker.lpush("ecm:results", "a message", "another")
    publisher.broker.lpush("ecm:analysis", *["a message"] * 5)
    housekeeping.republish_stale()
    assert publisher.published == [("results", {})]
    monkeypatch.setattr(housekeeping, "MOST_MESSAGES", 2)
    housekeeping.republish_stale()
    assert publisher.published == [("results", {})]


def test_republishing_stops_when_the_broker_accepts_nothing(engine, publisher):
    set_waited(engine, settings().republish_after + 1)
    publisher.accepts = lambda: False
    assert housekeeping.republish_stale() == 0
