"""Beat's tasks: each calls the coordinator, and rings for what it found."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import redis
import structlog

from config.settings import settings
from coordinator import upkeep
from coordinator.unit_of_work import is_transient
from tasks import doorbell, heartbeats
from tasks.app import app, engine

log = structlog.get_logger("upkeep")


@contextmanager
def _another_time() -> Iterator[None]:
    """A transient fault is no news and needs no retry: beat asks for the same again in a moment."""
    try:
        yield
    except Exception as error:
        if not is_transient(error):
            raise
        log.warning("Left for the next time", error=str(error)[:200])


@app.task
@_another_time()
def expire_work() -> int:
    """Time out overdue leases."""
    return upkeep.expire_work(engine(), datetime.now(UTC))


@app.task
@_another_time()
def ring_again() -> int:
    """Ring for submissions and jobs that have waited too long, when the queues are short enough to take them."""
    current = settings()
    try:
        broker = heartbeats.connect(current.redis_url)
        room = {queue: current.ring_batch - broker.llen(f"ecm:{queue}") for queue in ("results", "analysis")}
    except redis.RedisError:
        return 0
    rung = 0
    if room["results"] > 0:
        for row in upkeep.submissions_to_ring(engine(), ring_after=current.ring_after, limit=room["results"]):
            rung += doorbell.ring_submission(*row)
    if room["analysis"] > 0:
        jobs = upkeep.jobs_to_ring(engine(), ring_after=current.ring_after, limit=room["analysis"])
        rung += len(jobs) if doorbell.ring_jobs(jobs) else 0
    return rung


@app.task
@_another_time()
def note_clients() -> None:
    """Derive the clients table from what came in."""
    upkeep.note_clients(engine())


@app.task
@_another_time()
def prune() -> dict[str, int]:
    """Drop what its retention setting says may go."""
    current = settings()
    return upkeep.prune(
        engine(),
        datetime.now(UTC),
        raw_output_days=current.retain_raw_output_days,
        jobs_days=current.retain_jobs_days,
    )
