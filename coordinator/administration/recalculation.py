"""Recalculating effort over many numbers: computed in chunks that lock nothing, then written all at once or not at all.

A recalculation is a row, and a job goes on with it: each chunk is committed with the cursor behind it, so one that is
stopped anywhere goes on there. What was computed and found to differ waits in `recalculated_efforts`. The last step is
one unit of work: it locks what differs, by id; corrects its sums; takes over the vectors that were computed where the
number has not moved since, computes the others anew; and writes them all.
"""

from time import monotonic
from typing import Any, NamedTuple, cast

import numpy as np
from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Table,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from coordinator import effort
from coordinator.base import audit, jobs
from coordinator.base.audit import Actor
from coordinator.base.errors import ConflictError
from coordinator.base.jobs import JobRef
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import lease_lifecycle, ledger
from models.tables import Composite, CompositeEffort, EcmAttempt, Job, RecalculatedEffort, Recalculation

CHUNK = 500
# After so many seconds a task hands over to the next one: others get their turn, and Flower something to show.
SLICE_SECONDS = 20.0
COMPUTING, WRITING, DONE, FAILED = "computing", "writing", "done", "failed"

# Numbers with ECM attempts, but without a t-level or sums. (A few curves at a small B1 give no t-level, and rightly.)
_HAS_ATTEMPTS = (
    select(EcmAttempt.id)
    .where(EcmAttempt.composite_id == Composite.id, EcmAttempt.method == "ecm", EcmAttempt.voided_at.is_(None))
    .exists()
)
_HAS_SUMS = select(CompositeEffort.b1).where(CompositeEffort.composite_id == Composite.id).exists()
_MISSING = ((Composite.current_t_level == 0) | ~_HAS_SUMS) & _HAS_ATTEMPTS


class Step(NamedTuple):
    """Where a recalculation is after a slice of it; `label` says so in Flower."""

    is_finished: bool
    label: str


def start_recalculation(engine: Engine, actor: Actor, *, only_missing: bool) -> tuple[Row[Any], list[JobRef]]:
    """Begin a recalculation of all numbers, or of those whose effort is missing; its row and what to ring for.

    Raises Conflict while another one runs.
    """
    with unit_of_work(engine, "start_recalculation") as connection:
        _finish_failed(connection)
        counted = select(func.count()).select_from(Composite)
        total = connection.execute(counted.where(_MISSING) if only_missing else counted).scalar_one()
        begun = upsert(Recalculation).values(only_missing=only_missing, total=total)
        row = connection.execute(begun.on_conflict_do_nothing().returning(Recalculation)).one_or_none()
        if row is None:
            raise ConflictError(
                "recalculation_runs", "A recalculation runs already; see /admin/composites/recalculate-status"
            )
        audit.record(
            connection,
            actor,
            "recalculate",
            f"recalculation {row.id}",
            after={"only_missing": only_missing, "total": total},
        )
        return row, jobs.request(connection, jobs.RECALCULATE, row.id)


def recalculation_status(engine: Engine) -> Row | None:
    """The latest recalculation with the state of its job (`job_state`, `job_error`), or None if there was none."""
    of_it = and_(Job.kind == jobs.RECALCULATE, Job.target_id == Recalculation.id)
    statement = (
        select(Recalculation, Job.state.label("job_state"), Job.error.label("job_error"))
        .outerjoin(Job, of_it)
        .order_by(Recalculation.id.desc())
        .limit(1)
    )
    with engine.connect() as connection:
        latest: Row | None = connection.execute(statement).one_or_none()
    return latest


def continue_recalculation(engine: Engine, recalculation_id: int, seconds: float = SLICE_SECONDS) -> Step:
    """Compute chunks for so many seconds, and write when all are computed."""
    until = monotonic() + seconds
    while True:
        with engine.connect() as connection:
            row = connection.execute(select(Recalculation).where(Recalculation.id == recalculation_id)).one_or_none()
        if row is None or row.finished_at is not None:
            return Step(True, "recalculate: done")
        if row.state == WRITING:
            changed = _write(engine, row.id)
            return Step(True, f"recalculate: done, {changed} of {row.total} corrected")
        if monotonic() > until:
            return Step(False, f"recalculate: {row.done} of {row.total}")
        _compute_chunk(engine, row)


def _finish_failed(connection: Connection) -> None:
    """A recalculation whose job was given up is over, and what it computed is dropped."""
    given_up = (
        select(Recalculation.id, Job.error)
        .join(Job, and_(Job.kind == jobs.RECALCULATE, Job.target_id == Recalculation.id))
        .where(Recalculation.finished_at.is_(None), Job.state == "failed")
    )
    for row in connection.execute(given_up).all():
        _finish(connection, row.id, FAILED, error=row.error)


def _finish(connection: Connection, recalculation_id: int, state: str, **values: Any) -> None:
    connection.execute(delete(RecalculatedEffort).where(RecalculatedEffort.recalculation_id == recalculation_id))
    connection.execute(
        update(Recalculation)
        .where(Recalculation.id == recalculation_id)
        .values(state=state, finished_at=func.clock_timestamp(), **values)
    )


# Computing ------------------------------------------------------------------------------------------------------------

_COLUMNS = (
    Composite.id,
    Composite.effort,
    Composite.current_t_level,
    Composite.attempt_count,
    Composite.pm1_b1,
    Composite.pp1_b1,
)


def _compute_chunk(engine: Engine, row: Row[Any]) -> None:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True) as connection:
        chosen = select(*_COLUMNS).where(Composite.id > row.cursor).order_by(Composite.id).limit(CHUNK)
        chunk = connection.execute(chosen.where(_MISSING) if row.only_missing else chosen).all()
        ids = [one.id for one in chunk]
        correct = ledger.compute_from_attempts(connection, ids) if ids else {}
    differing = [
        {
            "recalculation_id": row.id,
            "composite_id": one.id,
            "effort": correct[one.id].vector,
            "seen_effort": one.effort,
            "attempt_count": one.attempt_count,
        }
        for one in chunk
        if not correct[one.id].agrees_with(one)
    ]
    with unit_of_work(engine, "recalculate_chunk", recalculation=row.id, after=row.cursor) as connection:
        # Whoever else computed the same chunk has moved the cursor.
        moved = connection.execute(
            update(Recalculation)
            .where(Recalculation.id == row.id, Recalculation.cursor == row.cursor, Recalculation.state == COMPUTING)
            .values(
                done=Recalculation.done + len(ids),
                cursor=ids[-1] if ids else row.cursor,
                state=COMPUTING if len(ids) == CHUNK else WRITING,
            )
        )
        if moved.rowcount and differing:
            connection.execute(insert(RecalculatedEffort), differing)


# Writing --------------------------------------------------------------------------------------------------------------

_composites = cast(Table, Composite.__table__)
_STORE = (
    update(_composites)
    .where(_composites.c.id == bindparam("composite"))
    .values(effort=bindparam("vector"), current_t_level=bindparam("t_level"))
)


def _write(engine: Engine, recalculation_id: int) -> int:
    """All of what differs, or nothing; how many composites were corrected."""
    with unit_of_work(engine, "write_recalculation", recalculation=recalculation_id) as connection:
        of_it = RecalculatedEffort.recalculation_id == recalculation_id
        locked = lease_lifecycle.lock_composites(
            connection, list(connection.execute(select(RecalculatedEffort.composite_id).where(of_it)).scalars())
        )
        for start_at in range(0, len(locked), ledger.VOID_BATCH):
            part = locked[start_at : start_at + ledger.VOID_BATCH]
            chosen = select(RecalculatedEffort).where(of_it, RecalculatedEffort.composite_id.in_(part))
            computed = {row.composite_id: row for row in connection.execute(chosen)}
            stored = connection.execute(select(*_COLUMNS).where(Composite.id.in_(part))).all()
            unmoved = [row.id for row in stored if _is_unchanged(row, computed[row.id])]
            moved = sorted({row.id for row in stored} - set(unmoved))
            if unmoved:
                _store_computed(connection, {one: computed[one].effort for one in unmoved})
            if moved:
                ledger.recalculate(connection, moved)
        _finish(connection, recalculation_id, DONE, changed=len(locked))
    return len(locked)


def _store_computed(connection: Connection, vectors: dict[int, np.ndarray]) -> None:
    """Store these vectors, which are what the attempts of locked composites give, and what else those say."""
    ids = list(vectors)
    ledger.correct_sums(connection, ids)
    connection.execute(
        _STORE,
        [{"composite": one, "vector": vector, "t_level": effort.t_level(vector)} for one, vector in vectors.items()],
    )
    ledger.store_from_attempts(connection, ids)
    lease_lifecycle.refresh_eligibility(connection, ids)


def _is_unchanged(now: Row[Any], then: Row[Any]) -> bool:
    return now.attempt_count == then.attempt_count and np.array_equal(now.effort, then.seen_effort)
