"""Counting submissions and jobs that have waited for too long, so that workers are woken up for them again.

A worker looks for what waits by itself, every few seconds. This is for an effort whose workers all wait for a message
that was lost, and for operators, who see in the metrics how often that happens.
"""

from typing import Any

from sqlalchemy import Engine, func, select

from coordinator.base import clock
from models.tables import Job, Submission

# Enough to know how many messages to send.
MOST_COUNTED = 10_000


def overdue_submissions(engine: Engine, *, republish_after: float) -> int:
    """Return how many submissions have been due for `republish_after` seconds; MOST_COUNTED if more."""
    return _count(engine, Submission.id, Submission.state == "received", Submission.due_at <= _before(republish_after))


def overdue_jobs(engine: Engine, *, republish_after: float) -> int:
    """Return how many jobs that do not run have waited for `republish_after` seconds; MOST_COUNTED if more."""
    waits = (Job.state == "waiting", Job.running_since.is_(None))
    return _count(engine, Job.id, *waits, Job.published_at <= _before(republish_after))


def _before(seconds: float) -> Any:
    return func.now() - clock.interval(seconds)


def _count(engine: Engine, column: Any, *conditions: Any) -> int:
    overdue = select(column).where(*conditions).limit(MOST_COUNTED).subquery()
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(overdue)).scalar_one()
