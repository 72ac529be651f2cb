"""Beat's scheduler: Celery's own, in memory, with a heartbeat."""

import json
import os
import socket
from time import monotonic
from typing import Any

import redis
import structlog
from celery.beat import ScheduleEntry, Scheduler, SchedulingError

from config.settings import settings
from tasks import heartbeats, publishing

log = structlog.get_logger("beat")


class HeartbeatScheduler(Scheduler):
    """Keeps no state across restarts: all intervals are short and every task is idempotent."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Every task is due again in seconds; long waits for the broker would make beat miss its own heartbeats.
        publishing.use_short_timeouts()
        super().__init__(*args, **kwargs)
        self._client = heartbeats.connect(settings().redis_url)
        self._next_beat = 0.0

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        """Publish a task that is due. A failure is one log line, because the task is due again soon.

        A task whose last message still waits is not published again: when no worker takes messages for an hour, one
        message of each kind waits for it. They do not expire, because a worker compares that time with its own clock,
        and drops every message in silence if its clock is ahead.
        """
        if entry.task in self._waiting_tasks():
            log.info("The last message of a scheduled task still waits; it is not published again", task=entry.task)
            return
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as error:
            log.warning("The broker did not accept a scheduled task", task=entry.task, error=str(error)[-200:])

    def _waiting_tasks(self) -> set[str]:
        """Return the names of the tasks in beat's queue that no worker has taken; none if the broker is away."""
        try:
            waiting = self._client.lrange(f"ecm:{self.app.conf.task_default_queue}", 0, -1)
        except redis.RedisError:  # nor will it accept the message
            return set()
        return {json.loads(message)["headers"]["task"] for message in waiting}

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Publish the tasks that are due, and write a heartbeat every BEAT_SECONDS."""
        pause: float = super().tick(*args, **kwargs)
        if monotonic() >= self._next_beat:
            self._next_beat = monotonic() + heartbeats.BEAT_SECONDS
            try:
                heartbeats.beat(self._client, "beat", socket.gethostname(), pid=os.getpid())
            except redis.RedisError as error:
                log.warning("Cannot write a heartbeat: the broker does not answer", error=str(error)[:200])
        return min(pause, heartbeats.BEAT_SECONDS)
