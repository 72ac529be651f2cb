"""Beat's tasks: each calls the coordinator, and rings for what it found."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from time import monotonic

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


def _republish_submission(row: Row) -> bool:
    # As if its request rang again: its task's log says so.
    with structlog.contextvars.bound_contextvars(request=row.request_id):
        return publishing.publish_submission(row.id, row.client_id, row.composite)


def _republish_job(row: Row) -> bool:
    return publishing.publish_jobs([JobRef(row.id, row.kind)])


# What a unit of work did last, it has committed by then.
COMMIT_SECONDS = 30
# By queue: what to ring for, how, and what to say of that which the bell did not ring for.
QUEUES = {
    "results": (republishing.mark_stale_submissions, _republish_submission, republishing.unmark_submissions),
    "analysis": (republishing.mark_stale_jobs, _republish_job, republishing.unmark_jobs),
}


@contextmanager
def _skip_transient_faults() -> Iterator[None]:
    """A transient fault is no news and needs no retry: beat asks for the same again in a moment."""
    try:
        yield
    except Exception as error:
        if not is_transient(error):
            raise
        log.warning("Left for the next time", error=str(error)[:200])


@app.task
@_skip_transient_faults()
def expire_leases() -> int:
    """Time out overdue leases."""
    return lease_expiry.expire_leases(engine(), datetime.now(UTC))


@app.task
@_skip_transient_faults()
def republish_stale() -> int:
    """Ring for submissions and jobs that have waited too long, when the queues are short enough to take them.

    A queue of which nothing is left, neither waiting nor in any worker's hands, has lost its messages or is done with
    them: then all that waits is rung for at once, batch after batch, however often it was rung for before.
    """
    current = settings()
    try:
        broker = heartbeats.connect(current.redis_url)
        waiting = {queue: broker.llen(f"ecm:{queue}") for queue in ("results", "analysis")}
        # What workers hold, as Celery keeps it: [message, exchange, routing key], and queues go by their routing keys.
        held = {json.loads(message)[2] for _, message in broker.hscan_iter("ecm:unacked", count=1000)}
    except redis.RedisError:
        return 0
    until = monotonic() + current.housekeeping_every
    rung = 0
    for queue, (to_ring, ring, not_rung) in QUEUES.items():
        empty = waiting[queue] == 0 and queue not in held
        batch = current.republish_batch - waiting[queue]
        while batch > 0:
            due = to_ring(engine(), republish_after=current.republish_after, limit=batch, respect_backoff=not empty)
            heard = sum(1 for _ in takewhile(ring, due))
            rung += heard
            if heard < len(due):
                not_rung(engine(), due[heard:])
                return rung
            if not empty or len(due) < batch or monotonic() > until:
                break
    return rung


@app.task
@_skip_transient_faults()
def expire_residues() -> None:
    """Give back claims on residues that ran out, complete those whose stage 2 came in, let go of what nobody wanted."""
    now = datetime.now(UTC)
    residue_expiry.release_lapsed_claims(engine(), now)
    to_publish = residue_expiry.complete_unreported(engine())
    publishing.publish_jobs([*to_publish, *residue_expiry.expire_residues(engine(), now)[1]])


@app.task
@_skip_transient_faults()
def collect_residue_garbage() -> None:
    """Delete files that no residue has, and close residues whose file is gone."""
    swept = residue_expiry.collect_garbage(engine(), residue_storage.storage(settings()), datetime.now(UTC))
    publishing.publish_jobs(swept.to_publish)


@app.task
@_skip_transient_faults()
def aggregate_statistics() -> None:
    """Derive from what came in who the clients are, and what they do."""
    retention.update_clients(engine())
    statistics.aggregate_attempts(
        engine(), datetime.now(UTC), timedelta(seconds=settings().task_time_limit + COMMIT_SECONDS)
    )


@app.task
@_skip_transient_faults()
def prune() -> dict[str, int]:
    """Drop what its retention setting says may go."""
    current = settings()
    return retention.prune(
        engine(),
        datetime.now(UTC),
        raw_output_days=current.retain_raw_output_days,
        jobs_days=current.retain_jobs_days,
    )
