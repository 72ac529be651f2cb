"""Read-only questions: one composite's standing, the inbox's, the schema's."""

from typing import Any

from sqlalchemy import Engine, func, select

from coordinator import registry
from models.migrate import current_revision
from models.tables import Composite, CompositeEffort, Factor, Job, Project, ProjectComposite, Submission

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


def composite_stats(engine: Engine, written: str, max_digits: int) -> dict[str, Any] | None:
    """Everything about the composite that `written` names (any value it has ever had), or None if it is unknown.

    Factors are the leaves of its tree, with multiplicity, smallest first; curves are summed by B1.
    """
    with engine.connect() as connection:
        found = registry.find(connection, written, max_digits)
        if found is None:
            return None
        row = connection.execute(select(Composite).where(Composite.id == found.id)).one()
        factors = connection.execute(
            select(Factor.id, Factor.factor, Factor.multiplicity, Factor.split_from_id)
            .where(Factor.composite_id == found.id)
            .order_by(Factor.id)
        ).all()
        levels = connection.execute(
            select(CompositeEffort.b1, func.sum(CompositeEffort.curves + CompositeEffort.prior_curves).label("curves"))
            .where(CompositeEffort.composite_id == found.id)
            .group_by(CompositeEffort.b1)
            .order_by(CompositeEffort.b1)
        ).all()
        projects = connection.execute(
            select(Project.name)
            .join(ProjectComposite, ProjectComposite.project_id == Project.id)
            .where(ProjectComposite.composite_id == found.id)
            .order_by(Project.name)
        ).scalars()
        project_names = list(projects)
    finished = "prime" if row.is_prime else "fully_factored"
    return {
        "composite": row.number,
        "current_composite": row.current_composite,
        "digit_length": row.digit_length,
        "has_snfs_form": row.has_snfs_form,
        "snfs_difficulty": row.snfs_difficulty,
        "target_t_level": row.target_t_level,
        "current_t_level": row.current_t_level,
        "priority": row.priority,
        "status": finished if row.is_fully_factored else "composite",
        "factors_found": _leaves(factors),
        "ecm_work": {
            "total_attempts": row.attempt_count,
            "total_curves": int(sum(level.curves for level in levels)),
            "effort_by_level": [{"b1": level.b1, "curves": int(level.curves)} for level in levels],
            "last_attempt": row.last_attempt_at and row.last_attempt_at.isoformat(),
        },
        "projects": project_names,
    }


def _leaves(rows: Any) -> list[str]:
    """The values of the leaves of a factor tree given by its rows, each as often as it divides, smallest first."""
    split = {row.split_from_id for row in rows}
    times: dict[int, int] = {}
    leaves: list[str] = []
    for row in rows:  # parents have smaller ids
        times[row.id] = row.multiplicity * times.get(row.split_from_id, 1)
        if row.id not in split:
            leaves += [row.factor] * times[row.id]
    return sorted(leaves, key=lambda text: (len(text), text))
