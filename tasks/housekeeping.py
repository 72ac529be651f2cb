"""The periodic tasks of beat: each calls the coordinator, and publishes the jobs that follow."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from time import monotonic
from typing import Any

import redis
import structlog
from sqlalchemy import Row

from config.settings import settings
from coordinator.base.jobs import JobRef
from coordinator.base.unit_of_work import is_transient
from coordinator.composites import statistics
from coordinator.housekeeping import lease_expiry, republishing, retention
from coordinator.residues import residue_expiry, residue_storage
from tasks import heartbeats, publishing
from tasks.app import app, engine

log = structlog.get_logger("housekeeping")


def _republish_submission(row: Row[Any]) -> bool:
    # With the id of its request, which the task's log lines then show.
    with structlog.contextvars.bound_contextvars(request=row.request_id):
        return publishing.publish_submission(row.id, row.client_id, row.composite)


def _republish_job(row: Row[Any]) -> bool:
    return publishing.publish_jobs([JobRef(row.id, row.kind)])


# A unit of work commits within this time after its task's time limit.
COMMIT_SECONDS = 30
# By queue: marks stale rows as published, publishes one row, and unmarks the rows that were not published.
QUEUES = {
    "results": (republishing.mark_stale_submissions, _republish_submission, republishing.unmark_submissions),
    "analysis": (republishing.mark_stale_jobs, _republish_job, republishing.unmark_jobs),
}


@contextmanager
def _skip_transient_faults() -> Iterator[None]:
    """Log a transient fault in one line; the task is not retried, because beat publishes it again soon."""
    try:
        yield
    except Exception as error:
        if not is_transient(error):
            raise
        log.warning("A transient fault; the next run does the rest", error=str(error)[:200])


@app.task
@_skip_transient_faults()
def expire_leases() -> int:
    """End overdue leases; returns how many."""
    return lease_expiry.expire_leases(engine(), datetime.now(UTC))


@app.task
@_skip_transient_faults()
def republish_stale() -> int:
    """Publish submissions and jobs that have waited too long again, as far as the queues are short; returns how many.

    If a queue has no message, neither waiting nor held by a worker, its messages are lost or done. In that case the
    task publishes every waiting row at once, batch after batch, without the back-off of rows that were published
    before.
    """
    current = settings()
    try:
        broker = heartbeats.connect(current.redis_url)
        waiting = {queue: broker.llen(f"ecm:{queue}") for queue in ("results", "analysis")}
        # Celery keeps messages that workers hold as [message, exchange, routing key]; a routing key is a queue's name.
        held = {json.loads(message)[2] for _, message in broker.hscan_iter("ecm:unacked", count=1000)}
    except redis.RedisError:
        return 0
    until = monotonic() + current.housekeeping_every
    published = 0
    for queue, (mark_stale, publish, unmark) in QUEUES.items():
        empty = waiting[queue] == 0 and queue not in held
        batch = current.republish_batch - waiting[queue]
        while batch > 0:
            due = mark_stale(engine(), republish_after=current.republish_after, limit=batch, respect_backoff=not empty)
            accepted = sum(1 for _ in takewhile(publish, due))
            published += accepted
            if accepted < len(due):
                unmark(engine(), due[accepted:])
                return published
            if not empty or len(due) < batch or monotonic() > until:
                break
    return published


@app.task
@_skip_transient_faults()
def expire_residues() -> None:
    """Release expired claims on residues, complete residues whose stage 2 has arrived, and expire unclaimed ones."""
    now = datetime.now(UTC)
    residue_expiry.release_lapsed_claims(engine(), now)
    to_publish = residue_expiry.complete_unreported(engine())
    publishing.publish_jobs([*to_publish, *residue_expiry.expire_residues(engine(), now)[1]])


@app.task
@_skip_transient_faults()
def collect_residue_garbage() -> None:
    """Delete files without a residue, and close residues without a file."""
    collected = residue_expiry.collect_garbage(engine(), residue_storage.storage(settings()), datetime.now(UTC))
    publishing.publish_jobs(collected.to_publish)


@app.task
@_skip_transient_faults()
def aggregate_statistics() -> None:
    """Update the clients and their statistics from new results."""
    statistics.update_clients(engine())
    statistics.aggregate_attempts(
        engine(), datetime.now(UTC), timedelta(seconds=settings().task_time_limit + COMMIT_SECONDS)
    )


@app.task
@_skip_transient_faults()
def prune() -> dict[str, int]:
    """Delete data that is older than its retention setting; returns the number of rows by kind."""
    current = settings()
    return retention.prune(
        engine(),
        datetime.now(UTC),
        raw_output_days=current.retain_raw_output_days,
        jobs_days=current.retain_jobs_days,
    )
