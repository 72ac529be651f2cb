"""Heartbeats, and the check of a worker that it still consumes."""

import threading
from types import SimpleNamespace

import fakeredis
import pytest
import redis

from tasks import heartbeats
from tasks.heartbeats import BEAT_SECONDS, STARVED_SECONDS, StarvationWatch, WorkerHeartbeat


@pytest.fixture
def broker():
    return fakeredis.FakeRedis(decode_responses=True)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [1000.0]
    monkeypatch.setattr(heartbeats, "time", lambda: now[0])
    monkeypatch.setattr(heartbeats, "broker_time", lambda client: now[0])
    monkeypatch.setattr(heartbeats, "monotonic", lambda: now[0])
    return now


def test_a_heartbeat_is_read_grows_stale_and_is_deleted(broker, clock):
    heartbeats.beat(broker, "worker", "worker@one", pid=1, queues=["results"])
    clock[0] += 31
    heartbeats.beat(broker, "beat", "two", pid=2)
    assert heartbeats.read(broker) == [
        {"role": "beat", "name": "two", "age": 0.0, "stale": False, "pid": 2},
        {"role": "worker", "name": "worker@one", "age": 31.0, "stale": True, "pid": 1, "queues": ["results"]},
    ]
    assert 0 < broker.ttl("ecm:heartbeat:beat:two") <= heartbeats.EXPIRE_SECONDS
    heartbeats.forget(broker, "worker", "worker@one")
    assert [beat["role"] for beat in heartbeats.read(broker)] == ["beat"]


def test_a_heartbeat_has_the_age_that_the_broker_gives_it_and_says_that_a_clock_is_wrong(broker, monkeypatch):
    for ahead in (120, -120, 2):
        with monkeypatch.context() as patch:
            patch.setattr(heartbeats, "time", lambda ahead=ahead: heartbeats.broker_time(broker) + ahead)
            heartbeats.beat(broker, "worker", "one", pid=1)
        (beat,) = heartbeats.read(broker)
        assert (beat["stale"], beat["age"] < 10, beat.get("clock_ahead")) == (False, True, {2: None}.get(ahead, ahead))


def verdicts_on(*observations, every=BEAT_SECONDS):
    """What a watch returns for each observation (waiting, busy, received); they are `every` seconds apart."""
    watch = StarvationWatch()
    return [
        watch.is_starved(waiting=waiting, busy=busy, received=received, now=every * number)
        for number, (waiting, busy, received) in enumerate(observations)
    ]


STARVING = (5, 0, 100)


def test_a_worker_that_receives_nothing_while_messages_wait_has_starved_after_the_timeout():
    verdicts = verdicts_on(*[STARVING] * 10)
    # The first observation only learns how many messages the worker has received so far.
    assert verdicts.index(True) == 1 + STARVED_SECONDS // BEAT_SECONDS
    assert all(verdicts[6:])


@pytest.mark.parametrize(
    "healthy", [(0, 0, 100), (5, 1, 100), (5, 0, 101)], ids=["nothing waits", "it is busy", "it received something"]
)
def test_one_healthy_observation_restarts_the_timeout(healthy):
    assert not any(verdicts_on(*[STARVING] * 5, healthy, *[(5, 0, healthy[2])] * 5))
    assert verdicts_on(*[STARVING] * 5, healthy, *[(5, 0, healthy[2])] * 6)[-1]


def test_idle_and_busy_workers_never_starve():
    assert not any(verdicts_on(*[(0, 0, 100)] * 20))
    assert not any(verdicts_on(*[(500, 8, 100)] * 20))
    assert not any(verdicts_on(*[(500, 0, count) for count in range(20)]))


class EndedError(Exception):
    """Replaces the end of the process."""


@pytest.fixture
def heartbeat(broker, clock, monkeypatch):
    """A worker's heartbeat whose every pause is BEAT_SECONDS long and over at once, for at most 20 of them."""
    worker = SimpleNamespace(
        hostname="worker@one",
        app=SimpleNamespace(
            amqp=SimpleNamespace(
                queues=SimpleNamespace(
                    consume_from={name: SimpleNamespace(name=name) for name in ("results", "housekeeping")}
                )
            )
        ),
    )
    heartbeat = WorkerHeartbeat(worker)
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        clock[0] += seconds
        if len(pauses) == 20:
            heartbeat.stopping.set()

    def end(status):
        raise EndedError(status)

    stopping = threading.Event()
    monkeypatch.setattr(heartbeats, "connect", lambda url: broker)
    monkeypatch.setattr(heartbeats.os, "_exit", end)
    heartbeat.stopping = SimpleNamespace(is_set=stopping.is_set, set=stopping.set, wait=pause)
    return SimpleNamespace(run=lambda: heartbeat._run(worker), pauses=pauses)


def test_a_worker_that_stopped_consuming_ends_itself(heartbeat, broker):
    broker.lpush("ecm:results", "a message that nobody takes")
    with pytest.raises(EndedError, match="70"):
        heartbeat.run()
    assert len(heartbeat.pauses) == 1 + STARVED_SECONDS // BEAT_SECONDS
    (beat,) = heartbeats.read(broker)
    assert (beat["role"], beat["queues"], beat["received"]) == ("worker", ["results", "housekeeping"], 0)


def test_messages_of_other_queues_do_not_count(heartbeat, broker):
    broker.lpush("ecm:analysis", "for somebody else")
    heartbeat.run()
    assert len(heartbeat.pauses) == 20
    # It ended normally, and deleted its heartbeat.
    assert heartbeats.read(broker) == []


def test_time_without_a_broker_does_not_count(heartbeat, broker, monkeypatch):
    broker.lpush("ecm:results", "waiting")
    llen, calls = broker.llen, []

    def fail_sometimes(queue):
        calls.append(queue)
        if len(calls) % 8 == 0:
            raise redis.ConnectionError("away")
        return llen(queue)

    monkeypatch.setattr(broker, "llen", fail_sometimes)
    heartbeat.run()
    assert len(heartbeat.pauses) == 20
