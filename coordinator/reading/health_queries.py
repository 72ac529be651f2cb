"""Queries of health checks: the state of the inbox, and the revision of the schema."""

from typing import Any

from sqlalchemy import ColumnElement, Engine, func, select

from models.migrate import current_revision
from models.tables import Job, Submission

MOST_COUNTED = 100_000


def schema_revision(engine: Engine) -> str | None:
    """Return the revision of the database's schema; None if it has none."""
    with engine.connect() as connection:
        return current_revision(connection)


def inbox_state(engine: Engine) -> dict[str, Any]:
    """Count waiting and failed submissions and jobs, up to MOST_COUNTED each; with the age of the oldest submission."""

    def counted(table: type[Submission] | type[Job], state: str) -> ColumnElement[int]:
        some = select(table.id).where(table.state == state).limit(MOST_COUNTED).subquery()
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
