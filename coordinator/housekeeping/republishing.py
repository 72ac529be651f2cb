"""Finding submissions and jobs whose message was lost, or has waited too long, so that they are published again."""

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import Engine, Row, Table, bindparam, func, select, update

from coordinator.base.unit_of_work import unit_of_work
from models.tables import Job, Submission

# Each publication doubles the wait for the next, up to 2**6 times the first: a backlog is not published all the time.
MAX_DOUBLINGS = 6


def mark_stale_submissions(
    engine: Engine, *, republish_after: float, limit: int, respect_backoff: bool = True
) -> list[Row[Any]]:
    """Mark submissions that have waited too long as published; returns their rows, oldest first, for publishing.

    The wait is `republish_after` seconds, doubled with every publication; `respect_backoff=False` leaves the doubling
    out, for a broker that has lost all messages. Rows have id, client_id, composite, request_id, published_at and
    published_before. Pass the rows that could not be published to `unmark_submissions`.
    """
    about = (Submission.client_id, Submission.payload["composite"].astext.label("composite"), Submission.request_id)
    return _mark(
        engine,
        Submission,
        "received",
        about,
        republish_after=republish_after,
        limit=limit,
        respect_backoff=respect_backoff,
    )


def unmark_submissions(engine: Engine, marked: Iterable[Row[Any]]) -> None:
    """Undo `mark_stale_submissions` for submissions that could not be published: they are due again next time."""
    _unmark(engine, Submission, marked)


def mark_stale_jobs(
    engine: Engine, *, republish_after: float, limit: int, respect_backoff: bool = True
) -> list[Row[Any]]:
    """Mark jobs that have waited too long as published; returns rows with id and kind, as `mark_stale_submissions`."""
    return _mark(
        engine,
        Job,
        "waiting",
        (Job.kind,),
        republish_after=republish_after,
        limit=limit,
        respect_backoff=respect_backoff,
    )


def unmark_jobs(engine: Engine, marked: Iterable[Row[Any]]) -> None:
    """Undo `mark_stale_jobs` for jobs that could not be published."""
    _unmark(engine, Job, marked)


def _mark(
    engine: Engine,
    table: type[Submission] | type[Job],
    state: str,
    about: tuple[Any, ...],
    *,
    republish_after: float,
    limit: int,
    respect_backoff: bool,
) -> list[Row[Any]]:
    doublings = func.least(table.publish_count, MAX_DOUBLINGS) if respect_backoff else 0
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
    with unit_of_work(engine, "republish", table=table.__tablename__) as connection:
        return sorted(connection.execute(mark), key=lambda row: row.id)


def _unmark(engine: Engine, table: type[Submission] | type[Job], marked: Iterable[Row[Any]]) -> None:
    # In the order of their ids, as they were marked.
    rows = [{"row": row.id, "marked": row.published_at, "before": row.published_before} for row in marked]
    plain = cast(Table, table.__table__)
    # A row that was published or requested again since then has another time, and keeps its mark.
    unmark = (
        update(plain)
        .where(plain.c.id == bindparam("row"), plain.c.published_at == bindparam("marked"))
        .values(publish_count=plain.c.publish_count - 1, published_at=bindparam("before"))
    )
    with unit_of_work(engine, "unmark_unpublished", count=len(rows)) as connection:
        connection.execute(unmark, rows)
