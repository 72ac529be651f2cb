"""The thread of a worker's heartbeat survives every exception."""

from types import SimpleNamespace

import fakeredis
import pytest
import redis

from tasks import heartbeats


@pytest.mark.parametrize("fault", [ValueError("a bug"), RuntimeError("changed size"), redis.ConnectionError("away")])
def test_the_thread_goes_on_after_a_check_that_fails(monkeypatch, fault):
    broker = fakeredis.FakeRedis(decode_responses=True)
    monkeypatch.setattr(heartbeats, "connect", lambda url: broker)
    beats, pauses = [], []

    def queues():
        if len(pauses) < 3:
            raise fault
        return [SimpleNamespace(name="results")]

    def pause(seconds):
        pauses.append(seconds)
        beats.append(len(heartbeats.read(broker)))

    worker = SimpleNamespace(
        hostname="worker@one",
        app=SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=SimpleNamespace(values=queues)))),
    )
    heartbeat = heartbeats.WorkerHeartbeat(worker)
    heartbeat.stopping = SimpleNamespace(is_set=lambda: len(pauses) == 5, wait=pause)
    heartbeat._run(worker)
    assert pauses == [heartbeats.BEAT_SECONDS] * 5
    assert beats == [0, 0, 0, 1, 1]
