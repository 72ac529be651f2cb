"""Waiting requests get their outcomes: from messages, from polls if messages are lost, and after every error."""

import json
import threading
from time import monotonic, sleep
from types import SimpleNamespace

import fakeredis
import pytest
import redis

from coordinator.results import inbox
from ingest import outcome_waiting
from ingest.outcome_waiting import POLL_SECONDS, POLL_SECONDS_ALONE, OutcomeWaiter
from tasks.publishing import SETTLED_CHANNEL


@pytest.fixture
def database(monkeypatch):
    """The settled submissions, the errors that the next reads raise, and the times of the reads."""
    state = SimpleNamespace(settled=set(), errors=[], reads=[])

    def settled_rows(engine, ids):
        state.reads.append((monotonic(), list(ids)))
        if state.errors:
            error = state.errors.pop(0)
            if isinstance(error, Exception):
                raise error
            return [error]
        return [SimpleNamespace(id=row_id) for row_id in ids if row_id in state.settled]

    monkeypatch.setattr(inbox, "settled_rows", settled_rows)
    return state


@pytest.fixture
def broker():
    return fakeredis.FakeServer()


def waiter(broker, most=4):
    return OutcomeWaiter(None, most, lambda: fakeredis.FakeRedis(server=broker, decode_responses=True))


def settle(database, broker, *ids):
    database.settled.update(ids)
    fakeredis.FakeRedis(server=broker).publish(SETTLED_CHANNEL, json.dumps(ids))


def later(seconds, call, *arguments):
    timer = threading.Timer(seconds, call, arguments)
    timer.start()
    return timer


def test_a_message_wakes_the_request_up_at_once(database, broker):
    outcomes = waiter(broker)
    assert outcomes.wait(1, 0.2) is None  # the thread has subscribed meanwhile
    began = monotonic()
    later(0.05, settle, database, broker, 7, 8)
    assert outcomes.wait(7, 5).id == 7
    assert monotonic() - began < POLL_SECONDS / 2


def test_an_outcome_that_was_announced_before_the_request_waits_is_found_at_once(database, broker):
    outcomes = waiter(broker)
    outcomes.wait(1, 0.2)
    settle(database, broker, 7)
    sleep(0.1)
    began = monotonic()
    assert outcomes.wait(7, 5).id == 7
    assert monotonic() - began < POLL_SECONDS / 2


def test_without_a_message_a_poll_finds_the_outcome(database, broker):
    outcomes = waiter(broker)
    outcomes.wait(1, 0.2)
    database.settled.add(7)
    assert outcomes.wait(7, 5).id == 7


def test_while_the_broker_is_away_polls_are_more_frequent_and_afterwards_messages_are_heard(database, broker):
    broker.connected = False
    outcomes = waiter(broker)
    began = monotonic()
    later(0.3, database.settled.add, 7)
    assert outcomes.wait(7, 5).id == 7
    assert monotonic() - began < 0.3 + 5 * POLL_SECONDS_ALONE
    broker.connected = True
    sleep(outcome_waiting.RECONNECT_SECONDS + 0.2)
    began = monotonic()
    later(0.05, settle, database, broker, 8)
    assert outcomes.wait(8, 5).id == 8
    assert monotonic() - began < POLL_SECONDS / 2


@pytest.mark.parametrize(
    "fault", [RuntimeError("a bug"), MemoryError(), KeyError("id"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "")]
)
def test_the_thread_survives_every_error_of_the_database(database, broker, fault):
    database.settled.add(7)
    database.errors += [fault, fault]
    assert waiter(broker).wait(7, 10).id == 7


@pytest.mark.parametrize("message", ["no JSON", "7", '{"id": 7}', '["x"]', "[null]"])
def test_the_thread_survives_every_message(database, broker, message):
    outcomes = waiter(broker)
    outcomes.wait(1, 0.2)
    fakeredis.FakeRedis(server=broker).publish(SETTLED_CHANNEL, message)
    later(0.1, settle, database, broker, 7)
    assert outcomes.wait(7, 5).id == 7


def test_a_malformed_row_does_not_end_the_thread(database, broker):
    database.settled.add(7)
    database.errors.append(object())
    assert waiter(broker).wait(7, 10).id == 7


def test_the_broker_may_vanish_while_requests_wait(database, broker, monkeypatch):
    outcomes = waiter(broker)
    outcomes.wait(1, 0.2)

    def gone(*_, **__):
        raise redis.ConnectionError("gone")

    later(0.1, database.settled.add, 7)
    monkeypatch.setattr(fakeredis.FakeRedis, "pubsub", gone)
    monkeypatch.setattr("redis.client.PubSub.get_message", gone)
    began = monotonic()
    assert outcomes.wait(7, 10).id == 7
    assert monotonic() - began < 2 * POLL_SECONDS


def test_no_more_requests_wait_than_allowed(database, broker):
    outcomes = waiter(broker, most=2)
    threads = [threading.Thread(target=outcomes.wait, args=(row_id, 0.5)) for row_id in range(2)]
    for thread in threads:
        thread.start()
    while len(outcomes._waiters) < 2:
        sleep(0.001)
    began = monotonic()
    assert outcomes.wait(3, 5) is None
    assert monotonic() - began < 0.2
    for thread in threads:
        thread.join()
    database.settled.add(3)
    assert outcomes.wait(3, 5).id == 3


def test_if_the_thread_cannot_start_nobody_waits_and_the_next_request_tries_again(database, broker, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    outcomes = waiter(broker, most=1)
    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", refuse)
        assert outcomes.wait(1, 5) is None
    database.settled.add(2)
    assert outcomes.wait(2, 5).id == 2
