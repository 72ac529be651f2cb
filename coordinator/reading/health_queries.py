"""Read-only questions that operators' programs ask: how the inbox stands, and the schema."""

from typing import Any

from sqlalchemy import ColumnElement, Engine, func, select

from models.migrate import current_revision
from models.tables import Job, Submission

MOST_COUNTED = 100_000


def schema_revision(engine: Engine) -> str | None:
    """The revision that the database's schema is at."""
    with engine.connect() as connection:
        return current_revision(connection)


def inbox_state(engine: Engine) -> dict[str, Any]:
    """How much waits, how long the oldest has, and what needs an operator. Counts stop at MOST_COUNTED."""

    def counted(of: type[Submission] | type[Job], state: str) -> ColumnElement[int]:
        some = select(of.id).where(of.state == state).limit(MOST_COUNTED).subquery()
        return select(func.count()).select_from(some).scalar_subquery()

    oldest = (
        select(Submission.created_at).where(Submission.state == "received").order_by(Submission.id).limit(1)
    ).scalar_subquery()
    with engine.connect() as connection:
        row = connection.execute(
            select(
                counted(Submission, "received").label("waiting"),
                counted(Submission, "failed").label("failed"),
                func.coalesce(func.extract("epoch", func.now() - oldest), 0).label("lag"),
                counted(Job, "waiting").label("jobs_waiting"),
                counted(Job, "failed").label("jobs_failed"),
            )
        ).one()
    return {
        "waiting": row.waiting,
        "oldest_waiting_seconds": round(float(row.lag), 1),
        "failed": row.failed,
        "jobs_waiting": row.jobs_waiting,
        "jobs_failed": row.jobs_failed,
    }
