"""Heartbeats: which workers and which beat are alive, and whether a worker still consumes.

They live in the broker, where they vanish by themselves. A worker watches itself too: when its queues hold messages,
it has nothing to do, and still it receives nothing, its consumer has died (seen after broker restarts); it ends, and
whoever supervises it starts it anew.
"""

import json
import os
import threading
from time import monotonic, time
from typing import Any

import redis
import structlog
from celery import bootsteps
from celery.worker import state as worker_state

from config.settings import settings

log = structlog.get_logger("heartbeats")

PREFIX = "ecm:heartbeat:"
BEAT_SECONDS = 5
EXPIRE_SECONDS = 300
STALE_SECONDS = 30
STARVED_SECONDS = 25


def connect(url: str) -> "redis.Redis":
    """A client that gives up after half a second: heartbeats are never worth waiting for."""
    return redis.Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5, decode_responses=True)


def beat(client: "redis.Redis", role: str, name: str, **facts: Any) -> None:
    """Say that the process `name` of `role` (worker or beat) is alive now, with facts about it."""
    client.set(f"{PREFIX}{role}:{name}", json.dumps({"at": time(), **facts}), ex=EXPIRE_SECONDS)


def read(client: "redis.Redis") -> list[dict[str, Any]]:
    """Every heartbeat not older than EXPIRE_SECONDS: role, name, age in seconds, stale, and its facts."""
    beats = []
    for key in sorted(client.scan_iter(match=f"{PREFIX}*", count=1000)):
        value = client.get(key)
        if value is None:
            continue
        facts = json.loads(value)
        role, _, name = key.removeprefix(PREFIX).partition(":")
        age = time() - facts.pop("at")
        beats.append({"role": role, "name": name, "age": round(age, 1), "stale": age > STALE_SECONDS, **facts})
    return beats


def forget(client: "redis.Redis", role: str, name: str) -> None:
    """A process that ends in good order takes its heartbeat with it."""
    client.delete(f"{PREFIX}{role}:{name}")


class StarvationWatch:
    """Tells a worker that stopped consuming from one that has nothing to do, from what it sees at each look."""

    def __init__(self, patience: float = STARVED_SECONDS) -> None:
        self.patience = patience
        self.hungry_since: float | None = None
        self.received = -1

    def starved(self, *, waiting: int, busy: int, received: int, now: float) -> bool:
        """`waiting` messages in the queues, `busy` ones held by this worker, `received` by it so far; monotonic now."""
        if waiting == 0 or busy > 0 or received != self.received:
            self.hungry_since = None
        elif self.hungry_since is None:
            self.hungry_since = now
        self.received = received
        return self.hungry_since is not None and now - self.hungry_since >= self.patience


class WorkerHeartbeat(bootsteps.StartStopStep):
    """A thread of the worker's main process that says it is alive and ends it when it no longer consumes."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:
        self.stopping = threading.Event()

    def start(self, worker: Any) -> None:
        threading.Thread(target=self._run, args=(worker,), name="heartbeat", daemon=True).start()

    def stop(self, worker: Any) -> None:
        self.stopping.set()

    def _run(self, worker: Any) -> None:
        client = connect(settings().redis_url)
        watch = StarvationWatch()
        while not self.stopping.is_set():
            starved = False
            try:
                starved = self._look(worker, client, watch)
            except redis.RedisError:
                # No broker, nothing to consume: only time spent with a broker that answers counts against the worker.
                watch = StarvationWatch()
            except Exception:
                # This thread is all that tells a worker which works from one that only stands there.
                log.exception("A look at this worker failed; the next one is due in a moment")
                watch = StarvationWatch()
            if starved:
                log.critical("This worker stopped consuming; it ends to be started anew")
                os._exit(70)
            self.stopping.wait(BEAT_SECONDS)
        try:
            forget(client, "worker", worker.hostname)
        except redis.RedisError:
            log.debug("The broker is away; the heartbeat expires by itself")

    def _look(self, worker: Any, client: "redis.Redis", watch: StarvationWatch) -> bool:
        """Beat, and say whether the worker has starved."""
        queues = [queue.name for queue in worker.app.amqp.queues.consume_from.values()]
        waiting = sum(client.llen(f"ecm:{queue}") for queue in queues)
        busy = len(worker_state.reserved_requests) + len(worker_state.active_requests)
        received = sum(worker_state.total_count.values())
        beat(client, "worker", worker.hostname, pid=os.getpid(), queues=queues, busy=busy, received=received)
        return watch.starved(waiting=waiting, busy=busy, received=received, now=monotonic())
