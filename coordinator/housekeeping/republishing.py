"""Finding submissions and jobs whose message was lost or has waited too long, to publish them again."""

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import Engine, Row, Table, bindparam, func, select, update

from coordinator.base.unit_of_work import unit_of_work
from models.tables import Job, Submission

# Waiting doubles with every ring up to 2**6 times the first: a long backlog is not published over and over.
MAX_DOUBLINGS = 6


def mark_stale_submissions(engine: Engine, *, republish_after: float, limit: int, patient: bool = True) -> list[Row]:
    """(id, client_id, composite, request_id) of submissions that have waited too long, oldest first, marked as rung.

    Every ring doubles the wait of `republish_after` seconds; not so unless `patient`, for a broker that has lost them all.
    The rows say when the bell was rung, now and before: give those it was not rung for to `submissions_not_rung`.
    """
    about = (Submission.client_id, Submission.payload["composite"].astext.label("composite"), Submission.request_id)
    return _mark(engine, Submission, "received", about, republish_after=republish_after, limit=limit, patient=patient)


def unmark_submissions(engine: Engine, marked: Iterable[Row]) -> None:
    """Take the marks of `submissions_to_ring` back: the bell was silent, and these are due the next time."""
    _unmark(engine, Submission, marked)


def mark_stale_jobs(engine: Engine, *, republish_after: float, limit: int, patient: bool = True) -> list[Row]:
    """(id, kind) of jobs that have waited too long, as `submissions_to_ring`."""
    return _mark(engine, Job, "waiting", (Job.kind,), republish_after=republish_after, limit=limit, patient=patient)


def unmark_jobs(engine: Engine, marked: Iterable[Row]) -> None:
    """Take the marks of `jobs_to_ring` back."""
    _unmark(engine, Job, marked)


def _mark(
    engine: Engine,
    table: type[Submission] | type[Job],
    state: str,
    about: tuple[Any, ...],
    *,
    republish_after: float,
    limit: int,
    patient: bool,
) -> list[Row]:
    doublings = func.least(table.publish_count, MAX_DOUBLINGS) if patient else 0
    wait = func.make_interval(0, 0, 0, 0, 0, 0, republish_after * func.power(2, doublings))
    due = (
        select(table.id, table.published_at)
        .where(table.state == state, table.published_at + wait <= func.now())
        .order_by(table.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte()  # computed once, whatever the plan: as a subquery it could run again and take more than its limit
    )
    mark = (
        update(table)
        .where(table.id == due.c.id)
        .values(publish_count=table.publish_count + 1, published_at=func.now())
        .returning(table.id, *about, table.published_at, due.c.published_at.label("published_before"))
    )
    with unit_of_work(engine, "ring_again", table=table.__tablename__) as connection:
        return sorted(connection.execute(mark), key=lambda row: row.id)


def _unmark(engine: Engine, table: type[Submission] | type[Job], marked: Iterable[Row]) -> None:
    # In order of their ids, as they were marked.
    rows = [{"row": one.id, "marked": one.published_at, "before": one.published_before} for one in marked]
    plain = cast(Table, table.__table__)
    # Whoever rang for one since then, or asked for it anew, has marked it with another time.
    take_back = (
        update(plain)
        .where(plain.c.id == bindparam("row"), plain.c.published_at == bindparam("marked"))
        .values(publish_count=plain.c.publish_count - 1, published_at=bindparam("before"))
    )
    with unit_of_work(engine, "not_rung", count=len(rows)) as connection:
        connection.execute(take_back, rows)
