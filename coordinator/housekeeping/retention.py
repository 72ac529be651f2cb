"""Deletes data that is older than its retention setting.

Every function may run twice, late, or beside itself.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, delete, select, update

from coordinator.base import jobs
from coordinator.base.unit_of_work import unit_of_work
from models.tables import Job, Submission

PRUNE_BATCH = 5_000


def prune(engine: Engine, now: datetime, *, raw_output_days: float | None, jobs_days: float | None) -> dict[str, int]:
    """Delete raw output of settled submissions and finished jobs that are older than these days (None keeps all).

    The clients' shares of the running time are deleted when nothing is left of them. Returns how many of each were
    deleted; the rows of submissions are never deleted.
    """
    deleted = {"raw_output": 0, "jobs": 0}
    if raw_output_days is not None:
        deleted["raw_output"] = _prune_raw_output(engine, now - timedelta(days=raw_output_days))
    if jobs_days is not None:
        deleted["jobs"] = _prune_jobs(engine, now - timedelta(days=jobs_days))
    with unit_of_work(engine, "prune_job_shares") as connection:
        deleted["job_shares"] = jobs.forget_shares(connection)
    return deleted


def _prune_raw_output(engine: Engine, before: datetime) -> int:
    deleted, since = 0, datetime.min.replace(tzinfo=UTC)
    while True:
        # These conditions match an index. Each batch begins where the last one ended, so that it does not read again
        # all the rejected submissions, which keep their output.
        old = (
            select(Submission.id)
            .where(
                Submission.raw_output.is_not(None),
                Submission.settled_at < before,
                Submission.state.in_(("applied", "duplicate")),
                Submission.settled_at >= since,
            )
            .order_by(Submission.settled_at)
            .limit(PRUNE_BATCH)
            .with_for_update(skip_locked=True)
            .cte()
        )
        drop = update(Submission).where(Submission.id == old.c.id).values(raw_output=None)
        with unit_of_work(engine, "prune_raw_output") as connection:
            settled = list(connection.execute(drop.returning(Submission.settled_at)).scalars())
        deleted += len(settled)
        if len(settled) < PRUNE_BATCH:
            return deleted
        since = max(at for at in settled if at)


def _prune_jobs(engine: Engine, before: datetime) -> int:
    deleted = 0
    finished = select(Job.id).where(Job.state == "done", Job.finished_at < before).limit(PRUNE_BATCH)
    old = finished.with_for_update(skip_locked=True).cte()
    while True:
        with unit_of_work(engine, "prune_jobs") as connection:
            batch = connection.execute(delete(Job).where(Job.id == old.c.id)).rowcount
        deleted += batch
        if batch < PRUNE_BATCH:
            return deleted
