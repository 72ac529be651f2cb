"""The periodic tasks of beat: each calls the coordinator, and publishes the jobs that follow."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import redis
import structlog

from config.settings import settings
from coordinator.base import clock
from coordinator.base.unit_of_work import is_transient
from coordinator.composites import statistics
from coordinator.housekeeping import lease_expiry, republishing, retention
from coordinator.residues import residue_expiry, residue_storage
from tasks import heartbeats, publishing
from tasks.app import app, engine
from tasks.consumer import PeriodicTask

log = structlog.get_logger("housekeeping")


# A message wakes up one worker, which then takes what waits until nothing does.
ROWS_PER_MESSAGE, MOST_MESSAGES = 500, 8
# A unit of work commits within this time after its task's time limit.
COMMIT_SECONDS = 30


@contextmanager
def _skip_transient_faults() -> Iterator[None]:
    """Log a transient fault in one line; the task is not retried, because beat publishes it again soon."""
    try:
        yield
    except Exception as error:
        if not is_transient(error):
            raise
        log.warning("A transient fault; the next run does the rest", error=str(error)[:200])


@app.task(base=PeriodicTask)
@_skip_transient_faults()
def expire_leases() -> int:
    """End overdue leases; returns how many."""
    return lease_expiry.expire_leases(engine(), clock.now(engine()))


@app.task(base=PeriodicTask)
@_skip_transient_faults()
def republish_stale() -> int:
    """Wake up workers for submissions and jobs that have waited too long; returns how many rows have.

    A queue that has messages for as many workers gets no more.
    """
    after = settings().republish_after
    overdue = {
        "results": republishing.overdue_submissions(engine(), republish_after=after),
        "analysis": republishing.overdue_jobs(engine(), republish_after=after),
    }
    try:
        broker = heartbeats.connect(settings().redis_url)
        waiting = {queue: broker.llen(f"ecm:{queue}") for queue in overdue}
    except redis.RedisError:
        return 0
    for queue, rows in overdue.items():
        for _ in range(min(MOST_MESSAGES, math.ceil(rows / ROWS_PER_MESSAGE)) - waiting[queue]):
            if not publishing.wake_up(queue):
                return 0
    return sum(overdue.values())


@app.task(base=PeriodicTask)
@_skip_transient_faults()
def expire_residues() -> None:
    """Release expired claims on residues, complete residues whose stage 2 has arrived, and expire unclaimed ones."""
    now = clock.now(engine())
    residue_expiry.release_lapsed_claims(engine(), now)
    to_publish = residue_expiry.complete_unreported(engine())
    publishing.publish_jobs([*to_publish, *residue_expiry.expire_residues(engine(), now)[1]])


@app.task(base=PeriodicTask)
@_skip_transient_faults()
def collect_residue_garbage() -> None:
    """Delete files without a residue, and close residues without a file."""
    collected = residue_expiry.collect_garbage(engine(), residue_storage.storage(settings()), clock.now(engine()))
    publishing.publish_jobs(collected.to_publish)


@app.task(base=PeriodicTask)
@_skip_transient_faults()
def aggregate_statistics() -> None:
    """Update the clients and their statistics from new results."""
    statistics.update_clients(engine())
    statistics.aggregate_attempts(
        engine(), clock.now(engine()), timedelta(seconds=settings().task_time_limit + COMMIT_SECONDS)
    )


@app.task(base=PeriodicTask)
@_skip_transient_faults()
def prune() -> dict[str, int]:
    """Delete data that is older than its retention setting; returns the number of rows by kind."""
    current = settings()
    return retention.prune(
        engine(),
        clock.now(engine()),
        raw_output_days=current.retain_raw_output_days,
        jobs_days=current.retain_jobs_days,
    )
