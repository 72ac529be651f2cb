"""What the clock does: expiring leases, finding what was left behind, pruning what need not be kept.

Everything here may run twice, late, or beside itself: each unit of work locks what it changes and looks again.
"""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Engine, Row, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from coordinator import work
from coordinator.jobs import Ring
from coordinator.unit_of_work import unit_of_work
from models.tables import Client, Job, Submission

PRUNE_BATCH = 5_000
# Waiting doubles with every ring up to 2**6 times the first: a long backlog is not published over and over.
MOST_DOUBLINGS = 6


def expire_work(engine: Engine, now: datetime) -> int:
    """Time out every lease whose time has run out by `now`; returns how many. Its curves can be leased again."""
    expired = 0
    while True:
        with unit_of_work(engine, "expire_work") as connection:
            # Ids first, then locks in everybody's order, then a second look at what they hold.
            overdue = work.overdue(connection, now)
            batch = work.expire(connection, overdue, now) if overdue else 0
        if not batch:
            return expired
        expired += batch


def _due(table: type[Submission] | type[Job], ring_after: float) -> ColumnElement[bool]:
    wait = func.make_interval(0, 0, 0, 0, 0, 0, ring_after * func.power(2, func.least(table.rings, MOST_DOUBLINGS)))
    return table.rung_at + wait <= func.now()


def submissions_to_ring(engine: Engine, *, ring_after: float, limit: int) -> list[Row]:
    """(id, client_id, composite) of submissions that have waited too long, oldest first, marked as rung."""
    with unit_of_work(engine, "ring_submissions") as connection:
        due = (
            select(Submission.id)
            .where(Submission.state == "received", _due(Submission, ring_after))
            .order_by(Submission.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte()  # computed once, whatever the plan: as a subquery it could run again and take more than its limit
        )
        return list(
            connection.execute(
                update(Submission)
                .where(Submission.id.in_(select(due.c.id)))
                .values(rings=Submission.rings + 1, rung_at=func.now())
                .returning(Submission.id, Submission.client_id, Submission.payload["composite"].astext)
            )
        )


def jobs_to_ring(engine: Engine, *, ring_after: float, limit: int) -> list[Ring]:
    """Jobs that have waited too long, marked as rung."""
    with unit_of_work(engine, "ring_jobs") as connection:
        due = (
            select(Job.id)
            .where(Job.state == "waiting", _due(Job, ring_after))
            .order_by(Job.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte()
        )
        rows = connection.execute(
            update(Job)
            .where(Job.id.in_(select(due.c.id)))
            .values(rings=Job.rings + 1, rung_at=func.now())
            .returning(Job.id, Job.kind)
        )
        return [Ring(row.id, row.kind) for row in rows]


def note_clients(engine: Engine) -> None:
    """Bring `clients` up to date with the submissions since it last was."""
    with unit_of_work(engine, "note_clients") as connection:
        # Some minutes of overlap: a slow intake's row can become visible after a younger one.
        newest = select(func.coalesce(func.max(Client.last_seen), func.to_timestamp(0))).scalar_subquery()
        seen = (
            select(Submission.client_id, func.min(Submission.created_at), func.max(Submission.created_at))
            .where(Submission.created_at > newest - func.make_interval(0, 0, 0, 0, 0, 5))
            .group_by(Submission.client_id)
            .order_by(Submission.client_id)
        )
        new = insert(Client).from_select(["name", "first_seen", "last_seen"], seen)
        connection.execute(
            new.on_conflict_do_update(
                index_elements=[Client.name],
                set_={"last_seen": func.greatest(Client.last_seen, new.excluded.last_seen)},
            )
        )


def prune(engine: Engine, now: datetime, *, raw_output_days: float | None, jobs_days: float | None) -> dict[str, int]:
    """Drop what its retention setting (days; None: keep) says may go; how much went. Submissions' rows never go."""
    gone = {"raw_output": 0, "jobs": 0}
    if raw_output_days is not None:
        old = (
            select(Submission.id)
            .where(
                Submission.raw_output.is_not(None),
                Submission.settled_at < now - timedelta(days=raw_output_days),
                Submission.state.in_(("applied", "duplicate")),
            )
            .limit(PRUNE_BATCH)
        )
        with unit_of_work(engine, "prune_raw_output") as connection:
            drop = update(Submission).where(Submission.id.in_(old.scalar_subquery())).values(raw_output=None)
            gone["raw_output"] = connection.execute(drop).rowcount
    if jobs_days is not None:
        finished = (
            select(Job.id)
            .where(Job.state == "done", Job.finished_at < now - timedelta(days=jobs_days))
            .limit(PRUNE_BATCH)
        )
        with unit_of_work(engine, "prune_jobs") as connection:
            gone["jobs"] = connection.execute(delete(Job).where(Job.id.in_(finished.scalar_subquery()))).rowcount
    return gone
