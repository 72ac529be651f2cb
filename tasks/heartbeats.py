"""Heartbeats: which workers and which beat are alive, and whether a worker still consumes.

They are keys in the broker, which expire. A worker also checks itself: if its queues have messages, it has nothing to
do, and it still receives nothing, its consumer has died (seen after restarts of the broker). It exits, and its
supervisor starts it again.
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
CLOCK_TOLERANCE = 5
STARVED_SECONDS = 25


def connect(url: str) -> "redis.Redis":
    """Return a client of the broker that gives up after half a second: nothing should wait longer for heartbeats."""
    return redis.Redis.from_url(
        url,
        socket_timeout=0.5,
        socket_connect_timeout=0.5,
        socket_keepalive=True,
        # A subscriber would send nothing otherwise, and not notice a broker that has vanished.
        health_check_interval=5,
        decode_responses=True,
    )


def beat(client: "redis.Redis", role: str, name: str, **facts: Any) -> None:
    """Write the heartbeat of the process `name` of `role` (worker or beat), with facts about it.

    The broker's clock decides how old it is. `clock_ahead` is among the facts, in seconds, if this machine's clock
    differs from that of the broker by more than CLOCK_TOLERANCE.
    """
    at = broker_time(client)
    ahead = time() - at
    if abs(ahead) > CLOCK_TOLERANCE:
        log.warning("This machine's clock differs from the broker's; set one of them right", ahead=round(ahead))
        facts["clock_ahead"] = round(ahead)
    client.set(f"{PREFIX}{role}:{name}", json.dumps({"at": at, **facts}), ex=EXPIRE_SECONDS)


def broker_time(client: "redis.Redis") -> float:
    """Return the time by the broker's clock, in seconds since 1970."""
    seconds, microseconds = client.time()
    return float(seconds) + float(microseconds) / 1e6


def read(client: "redis.Redis") -> list[dict[str, Any]]:
    """Return every heartbeat that has not expired: role, name, age in seconds, stale, and its facts."""
    beats = []
    now = broker_time(client)
    for key in sorted(client.scan_iter(match=f"{PREFIX}*", count=1000)):
        value = client.get(key)
        if value is None:
            continue
        facts = json.loads(value)
        role, _, name = key.removeprefix(PREFIX).partition(":")
        age = max(0.0, now - facts.pop("at"))
        beats.append({"role": role, "name": name, "age": round(age, 1), "stale": age > STALE_SECONDS, **facts})
    return beats


def forget(client: "redis.Redis", role: str, name: str) -> None:
    """Delete the heartbeat of a process that ends normally."""
    client.delete(f"{PREFIX}{role}:{name}")


class StarvationWatch:
    """Decides from regular observations whether a worker has stopped consuming or just has nothing to do."""

    def __init__(self, timeout: float = STARVED_SECONDS) -> None:
        self.timeout = timeout
        self.starving_since: float | None = None
        self.received = -1

    def is_starved(self, *, waiting: int, busy: int, received: int, now: float) -> bool:
        """Record an observation; returns whether the worker has starved for the timeout.

        `waiting` messages are in its queues, it holds `busy` messages and has received `received` since it started.
        `now` is in seconds of a monotonic clock.
        """
        if waiting == 0 or busy > 0 or received != self.received:
            self.starving_since = None
        elif self.starving_since is None:
            self.starving_since = now
        self.received = received
        return self.starving_since is not None and now - self.starving_since >= self.timeout


class WorkerHeartbeat(bootsteps.StartStopStep):
    """A thread of the worker's main process that writes its heartbeat, and ends it if it no longer consumes."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:
        self.stopping = threading.Event()

    def start(self, worker: Any) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, args=(worker,), name="heartbeat", daemon=True).start()

    def stop(self, worker: Any) -> None:
        """End the thread after its current check."""
        self.stopping.set()

    def _run(self, worker: Any) -> None:
        client = connect(settings().redis_url)
        watch = StarvationWatch()
        while not self.stopping.is_set():
            starved = False
            try:
                starved = self._beat_and_check(worker, client, watch)
            except redis.RedisError:
                # Without a broker there is nothing to consume: only time with a broker counts against the worker.
                watch = StarvationWatch()
            except Exception:
                # Without this thread nobody would notice that the worker has stopped consuming.
                log.exception("The check of this worker failed; the next one follows", seconds=BEAT_SECONDS)
                watch = StarvationWatch()
            if starved:
                log.critical("This worker has stopped consuming and exits, so that its supervisor starts it again")
                os._exit(70)
            self.stopping.wait(BEAT_SECONDS)
        try:
            forget(client, "worker", worker.hostname)
        except redis.RedisError:
            log.debug("Cannot delete the heartbeat, as the broker is away; it will expire")

    def _beat_and_check(self, worker: Any, client: "redis.Redis", watch: StarvationWatch) -> bool:
        """Write the heartbeat; returns whether the worker has starved."""
        queues = [queue.name for queue in worker.app.amqp.queues.consume_from.values()]
        waiting = sum(client.llen(f"ecm:{queue}") for queue in queues)
        busy = len(worker_state.reserved_requests) + len(worker_state.active_requests)
        received = sum(worker_state.total_count.values())
        beat(client, "worker", worker.hostname, pid=os.getpid(), queues=queues, busy=busy, received=received)
        return watch.is_starved(waiting=waiting, busy=busy, received=received, now=monotonic())
