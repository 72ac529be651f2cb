"""Read-only questions that operators' programs ask: how the inbox stands, and the schema."""

from typing import Any

from sqlalchemy import Engine, func, select

from models.migrate import current_revision
from models.tables import Job, Submission

MOST_COUNTED = 100_000


def schema_revision(engine: Engine) -> str | None:
    """The revision that the database's schema is at."""
    with engine.connect() as connection:
        return current_revision(connection)


def inbox_state(engine: Engine) -> dict[str, Any]:
    """How much waits, how long the oldest has, and what needs an operator. Counts stop at MOST_COUNTED."""
    waiting = select(Submission.id).where(Submission.state == "received").limit(MOST_COUNTED).subquery()
    failed = select(Submission.id).where(Submission.state == "failed").limit(MOST_COUNTED).subquery()
    oldest = (
        select(Submission.created_at).where(Submission.state == "received").order_by(Submission.id).limit(1)
    ).scalar_subquery()
    with engine.connect() as connection:
        row = connection.execute(
            select(
                select(func.count()).select_from(waiting).scalar_subquery().label("waiting"),
                select(func.count()).select_from(failed).scalar_subquery().label("failed"),
                func.coalesce(func.extract("epoch", func.now() - oldest), 0).label("lag"),
                select(func.count()).where(Job.state == "waiting").scalar_subquery().label("jobs_waiting"),
                select(func.count()).where(Job.state == "failed").scalar_subquery().label("jobs_failed"),
            )
        ).one()
    return {
        "waiting": row.waiting,
        "oldest_waiting_seconds": round(float(row.lag), 1),
        "failed": row.failed,
        "jobs_waiting": row.jobs_waiting,
        "jobs_failed": row.jobs_failed,
    }
