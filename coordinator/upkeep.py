"""What the clock does: expiring leases, finding what was left behind, pruning what need not be kept.

Everything here may run twice, late, or beside itself: each unit of work locks what it changes and looks again.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import Engine, Row, Table, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from coordinator import work
from coordinator.unit_of_work import unit_of_work
from models.engine import make_engine
from models.tables import Client, Composite, Job, Submission

PRUNE_BATCH = 5_000
RESTATE_BATCH = 200
# Waiting doubles with every ring up to 2**6 times the first: a long backlog is not published over and over.
MOST_DOUBLINGS = 6


def expire_work(engine: Engine, now: datetime) -> int:
    """Time out every lease whose time has run out by `now`; returns how many. Its curves can be leased again."""
    expired = 0
    while True:
        with unit_of_work(engine, "expire_work") as connection:
            # Ids first, then locks in everybody's order, then a second look at what they hold.
            overdue = work.overdue(connection, now)
            batch, left = work.expire(connection, overdue, now, wait=False) if overdue else (0, [])
        for composite_id in sorted({lease.composite_id for lease in left}):
            leases = [lease for lease in left if lease.composite_id == composite_id]
            with unit_of_work(engine, "expire_work_of_one", composite=composite_id) as connection:
                batch += work.expire(connection, leases, now, wait=True)[0]
        if not batch:
            return expired
        expired += batch


def restate_work(database_url: str) -> None:
    """As `restate_all`, for whoever has no engine yet."""
    engine = make_engine(database_url)
    try:
        restate_all(engine)
    finally:
        engine.dispose()


def restate_all(engine: Engine) -> None:
    """Say of every number anew what work it wants: after a migration, or when a limit on leases was changed.

    In batches by id, each a unit of work under its composites' locks.
    """
    after = 0
    while True:
        with unit_of_work(engine, "restate_work", after=after) as connection:
            batch = select(Composite.id).where(Composite.id > after).order_by(Composite.id).limit(RESTATE_BATCH)
            ids = list(connection.execute(batch).scalars())
            work.lock_composites(connection, ids)
            work.refresh(connection, ids)
        if not ids:
            return
        after = ids[-1]


def submissions_to_ring(engine: Engine, *, ring_after: float, limit: int, patient: bool = True) -> list[Row]:
    """(id, client_id, composite, request_id) of submissions that have waited too long, oldest first, marked as rung.

    Every ring doubles the wait of `ring_after` seconds; not so unless `patient`, for a broker that has lost them all.
    The rows say when the bell was rung, now and before: give those it was not rung for to `submissions_not_rung`.
    """
    about = (Submission.client_id, Submission.payload["composite"].astext.label("composite"), Submission.request_id)
    return _mark(engine, Submission, "received", about, ring_after=ring_after, limit=limit, patient=patient)


def submissions_not_rung(engine: Engine, marked: Iterable[Row]) -> None:
    """Take the marks of `submissions_to_ring` back: the bell was silent, and these are due the next time."""
    _unmark(engine, Submission, marked)


def jobs_to_ring(engine: Engine, *, ring_after: float, limit: int, patient: bool = True) -> list[Row]:
    """(id, kind) of jobs that have waited too long, as `submissions_to_ring`."""
    return _mark(engine, Job, "waiting", (Job.kind,), ring_after=ring_after, limit=limit, patient=patient)


def jobs_not_rung(engine: Engine, marked: Iterable[Row]) -> None:
    """Take the marks of `jobs_to_ring` back."""
    _unmark(engine, Job, marked)


def _mark(
    engine: Engine,
    table: type[Submission] | type[Job],
    state: str,
    about: tuple[Any, ...],
    *,
    ring_after: float,
    limit: int,
    patient: bool,
) -> list[Row]:
    doublings = func.least(table.rings, MOST_DOUBLINGS) if patient else 0
    wait = func.make_interval(0, 0, 0, 0, 0, 0, ring_after * func.power(2, doublings))
    due = (
        select(table.id, table.rung_at)
        .where(table.state == state, table.rung_at + wait <= func.now())
        .order_by(table.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte()  # computed once, whatever the plan: as a subquery it could run again and take more than its limit
    )
    mark = (
        update(table)
        .where(table.id == due.c.id)
        .values(rings=table.rings + 1, rung_at=func.now())
        .returning(table.id, *about, table.rung_at, due.c.rung_at.label("rung_before"))
    )
    with unit_of_work(engine, "ring_again", table=table.__tablename__) as connection:
        return sorted(connection.execute(mark), key=lambda row: row.id)


def _unmark(engine: Engine, table: type[Submission] | type[Job], marked: Iterable[Row]) -> None:
    # In order of their ids, as they were marked.
    rows = [{"row": one.id, "marked": one.rung_at, "before": one.rung_before} for one in marked]
    plain = cast(Table, table.__table__)
    # Whoever rang for one since then, or asked for it anew, has marked it with another time.
    take_back = (
        update(plain)
        .where(plain.c.id == bindparam("row"), plain.c.rung_at == bindparam("marked"))
        .values(rings=plain.c.rings - 1, rung_at=bindparam("before"))
    )
    with unit_of_work(engine, "not_rung", count=len(rows)) as connection:
        connection.execute(take_back, rows)


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
        gone["raw_output"] = _prune_raw_output(engine, now - timedelta(days=raw_output_days))
    if jobs_days is not None:
        gone["jobs"] = _prune_jobs(engine, now - timedelta(days=jobs_days))
    return gone


def _prune_raw_output(engine: Engine, before: datetime) -> int:
    gone, since = 0, datetime.min.replace(tzinfo=UTC)
    while True:
        # The conditions of an index: oldest first, and from where the last batch ended, lest each batch pass again by
        # all the rejected ones that are kept.
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
        gone += len(settled)
        if len(settled) < PRUNE_BATCH:
            return gone
        since = max(at for at in settled if at)


def _prune_jobs(engine: Engine, before: datetime) -> int:
    gone = 0
    finished = select(Job.id).where(Job.state == "done", Job.finished_at < before).limit(PRUNE_BATCH)
    old = finished.with_for_update(skip_locked=True).cte()
    while True:
        with unit_of_work(engine, "prune_jobs") as connection:
            batch = connection.execute(delete(Job).where(Job.id == old.c.id)).rowcount
        gone += batch
        if batch < PRUNE_BATCH:
            return gone
