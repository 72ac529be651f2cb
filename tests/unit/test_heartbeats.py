"""Heartbeats, and the worker's watch over itself."""

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
    """A clock that stands still until it is told."""
    now = [1000.0]
    monkeypatch.setattr(heartbeats, "time", lambda: now[0])
    monkeypatch.setattr(heartbeats, "monotonic", lambda: now[0])
    return now


def test_who_beats_is_seen_grows_stale_and_is_forgotten(broker, clock):
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


def looks(*seen, every=BEAT_SECONDS):
    """What a watch says at each look, `every` seconds apart, of (waiting, busy, received)."""
    watch = StarvationWatch()
    return [
        watch.starved(waiting=waiting, busy=busy, received=received, now=every * number)
        for number, (waiting, busy, received) in enumerate(seen)
    ]


HUNGRY = (5, 0, 100)


def test_a_worker_that_gets_nothing_while_messages_wait_has_starved_after_its_patience():
    verdicts = looks(*[HUNGRY] * 10)
    # The first look only learns what has been received so far.
    assert verdicts.index(True) == 1 + STARVED_SECONDS // BEAT_SECONDS
    assert all(verdicts[6:])


@pytest.mark.parametrize(
    "fed", [(0, 0, 100), (5, 1, 100), (5, 0, 101)], ids=["nothing waits", "it is busy", "it received something"]
)
def test_a_worker_that_was_seen_well_once_begins_anew(fed):
    assert not any(looks(*[HUNGRY] * 5, fed, *[(5, 0, fed[2])] * 5))
    assert looks(*[HUNGRY] * 5, fed, *[(5, 0, fed[2])] * 6)[-1]


def test_idle_and_busy_workers_never_starve():
    assert not any(looks(*[(0, 0, 100)] * 20))
    assert not any(looks(*[(500, 8, 100)] * 20))
    assert not any(looks(*[(500, 0, count) for count in range(20)]))


class Ended(Exception):
    """Stands for the end of the process."""


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
        raise Ended(status)

    stopping = threading.Event()
    monkeypatch.setattr(heartbeats, "connect", lambda url: broker)
    monkeypatch.setattr(heartbeats.os, "_exit", end)
    heartbeat.stopping = SimpleNamespace(is_set=stopping.is_set, set=stopping.set, wait=pause)
    return SimpleNamespace(run=lambda: heartbeat._run(worker), pauses=pauses)


def test_a_worker_that_stopped_consuming_ends_itself(heartbeat, broker):
    broker.lpush("ecm:results", "a message that nobody takes")
    with pytest.raises(Ended, match="70"):
        heartbeat.run()
    assert len(heartbeat.pauses) == 1 + STARVED_SECONDS // BEAT_SECONDS
    (beat,) = heartbeats.read(broker)
    assert (beat["role"], beat["queues"], beat["received"]) == ("worker", ["results", "housekeeping"], 0)


def test_messages_of_other_queues_are_not_its_own(heartbeat, broker):
    broker.lpush("ecm:analysis", "for somebody else")
    heartbeat.run()
    assert len(heartbeat.pauses) == 20
    # It ended in good order, and took its heartbeat with it.
    assert heartbeats.read(broker) == []


def test_time_without_a_broker_does_not_count(heartbeat, broker, monkeypatch):
    broker.lpush("ecm:results", "waiting")
    llen, looks = broker.llen, []

    def at_times(queue):
        looks.append(queue)
        if len(looks) % 8 == 0:
            raise redis.ConnectionError("away")
        return llen(queue)

    monkeypatch.setattr(broker, "llen", at_times)
    heartbeat.run()
    assert len(heartbeat.pauses) == 20
