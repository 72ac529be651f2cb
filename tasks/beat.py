"""Beat's scheduler: Celery's own, in memory, that also shows it is alive."""

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
    """All schedules are short intervals and every task is idempotent, so nothing need be kept across restarts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # What is due is due again in seconds; waiting long for each message would leave beat itself unheard of.
        publishing.use_short_timeouts()
        super().__init__(*args, **kwargs)
        self._client = heartbeats.connect(settings().redis_url)
        self._next_beat = 0.0

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        """Send what is due, or say in one line that it could not be sent: it is due again in a moment."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as error:
            log.warning("The broker does not take what is due", task=entry.task, error=str(error)[-200:])

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due, and a heartbeat every few seconds."""
        pause = super().tick(*args, **kwargs)
        if monotonic() >= self._next_beat:
            self._next_beat = monotonic() + heartbeats.BEAT_SECONDS
            try:
                heartbeats.beat(self._client, "beat", socket.gethostname(), pid=os.getpid())
            except redis.RedisError as error:
                log.warning("No heartbeat: the broker does not answer", error=str(error)[:200])
        return min(pause, heartbeats.BEAT_SECONDS)
