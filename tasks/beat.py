"""Beat's scheduler: Celery's own, in memory, with a heartbeat."""

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
        """Publish a task that is due. A failure is one log line, because the task is due again soon."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as error:
            log.warning("The broker did not accept a scheduled task", task=entry.task, error=str(error)[-200:])

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
