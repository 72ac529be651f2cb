"""Recalculating effort from the attempts: of one number at once, of many as a job that any worker goes on with.

Targets are computed in chunks that lock nothing, and written all at once or not at all. A recalculation of many is
a row of `recalculations`. Each chunk is committed together with the cursor behind it, so a recalculation that was
stopped anywhere goes on there. The targets that differ wait in `recalculated_efforts`. The last step computes these
once more without locks (coordinator/composites/planned_effort.py), and writes them in one unit of work: it locks their
composites and them, stores what was computed for those that have not changed since, and computes the others again.
"""

from time import monotonic
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Connection, Engine, Row, and_, delete, func, insert, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from coordinator.base import audit, jobs
from coordinator.base.audit import Actor
from coordinator.base.errors import ConflictError, composite_not_found
from coordinator.base.jobs import JobRef
from coordinator.base.many_rows import is_one_of
from coordinator.base.unit_of_work import session, step, unit_of_work
from coordinator.composites import lease_lifecycle, ledger, planned_effort, targets
from coordinator.composites.ledger import Difference
from models.tables import (
    Composite,
    EcmAttempt,
    Job,
    RecalculatedEffort,
    Recalculation,
    Target,
    TargetSource,
    ValueEffort,
)

log = structlog.get_logger("recalculation")

CHUNK = 500
# After so many seconds a task hands over to the next one: other jobs get their turn, and Flower has something to show.
SLICE_SECONDS = 20.0
COMPUTING, WRITING, DONE, FAILED = "computing", "writing", "done", "failed"

# Targets with ECM attempts, but without a t-level or sums. (A few curves at a small B1 give no t-level, and rightly.)
_of_target = TargetSource.target_id == Target.id
_HAS_ATTEMPTS = (
    select(EcmAttempt.id)
    .join(TargetSource, TargetSource.value_id == EcmAttempt.value_id)
    .where(_of_target, EcmAttempt.method == "ecm", EcmAttempt.voided_at.is_(None))
    .exists()
)
_HAS_SUMS = (
    select(ValueEffort.b1).join(TargetSource, TargetSource.value_id == ValueEffort.value_id).where(_of_target).exists()
)
_MISSING = ((Target.current_t_level == 0) | ~_HAS_SUMS) & _HAS_ATTEMPTS


class RecalculationStep(NamedTuple):
    """The state of a recalculation after a slice of it: `label` for Flower, and the numbers that were corrected."""

    is_finished: bool
    label: str
    differences: list[Difference]


class RecalculatedComposite(NamedTuple):
    """A number's t-level before and after its recalculation, and what was corrected."""

    previous_t_level: float
    current_t_level: float
    differences: list[Difference]


def recalculate_composite(engine: Engine, actor: Actor, composite_id: int) -> RecalculatedComposite:
    """Recalculate one number's sums, effort and t-level from its attempts and prior work. Raises NotFoundError."""
    with unit_of_work(engine, "recalculate_composite", composite=composite_id) as connection:
        target_ids = targets.ids_of(connection, [composite_id])
        sharing = targets.composites_of(connection, target_ids)
        if composite_id not in lease_lifecycle.lock_composites(connection, sorted({composite_id, *sharing})):
            raise composite_not_found(composite_id)
        level = select(Composite.current_t_level).where(Composite.id == composite_id)
        before: float = connection.execute(level).scalar_one()
        differences = ledger.recalculate(connection, targets.lock_of(connection, [composite_id]))
        after: float = connection.execute(level).scalar_one()
        audit.record(
            connection,
            actor,
            "recalculate",
            f"composite {composite_id}",
            before={"current_t_level": before},
            after={"current_t_level": after},
        )
    return RecalculatedComposite(before, after, differences)


def recalculate_all(engine: Engine, actor: Actor, *, only_missing: bool = False) -> list[Difference]:
    """Recalculate all numbers, or those whose effort is missing, in this process; returns what was corrected.

    A recalculation that was stopped is finished first. While this one runs, no worker takes up its job; if this process
    dies, one does. Raises ConflictError while another process runs a recalculation. Needs a second connection.
    """
    differences: list[Difference] = []
    stopped = recalculation_status(engine)
    if stopped is not None and stopped.finished_at is None and stopped.job_state == "waiting":
        differences += _run_alone(engine, stopped.id)
    row, _ = start_recalculation(engine, actor, only_missing=only_missing)
    return differences + _run_alone(engine, row.id)


def _run_alone(engine: Engine, recalculation_id: int) -> list[Difference]:
    chosen = (Job.kind == jobs.RECALCULATE, Job.target_id == recalculation_id)
    with engine.connect() as connection:
        job = connection.execute(select(Job.id, Job.request_count).where(*chosen)).one()
    with jobs.try_lock(engine, job.id) as is_alone:
        if not is_alone:
            raise _conflict()
        step = continue_recalculation(engine, recalculation_id, seconds=float("inf"))
        with unit_of_work(engine, "finish_job", job=job.id) as connection:
            jobs.finish(connection, job.id, job.request_count)
    return step.differences


def start_recalculation(engine: Engine, actor: Actor, *, only_missing: bool) -> tuple[Row[Any], list[JobRef]]:
    """Insert a recalculation of all numbers, or of those whose effort is missing; returns its row and its job.

    Raises ConflictError while another recalculation is unfinished.
    """
    with unit_of_work(engine, "start_recalculation") as connection:
        _finish_failed(connection)
        counted = select(func.count()).select_from(Target)
        total = connection.execute(counted.where(_MISSING) if only_missing else counted).scalar_one()
        begun = upsert(Recalculation).values(only_missing=only_missing, total=total)
        row = connection.execute(begun.on_conflict_do_nothing().returning(Recalculation)).one_or_none()
        if row is None:
            raise _conflict()
        audit.record(
            connection,
            actor,
            "recalculate",
            f"recalculation {row.id}",
            after={"only_missing": only_missing, "total": total},
        )
        return row, jobs.request(connection, jobs.RECALCULATE, row.id)


def _conflict() -> ConflictError:
    return ConflictError("recalculation_runs", "A recalculation runs already; see /admin/composites/recalculate-status")


def recalculation_status(engine: Engine) -> Row[Any] | None:
    """Return the latest recalculation with the state of its job (`job_state`, `job_error`); None if there was none."""
    own_job = and_(Job.kind == jobs.RECALCULATE, Job.target_id == Recalculation.id)
    columns: tuple[Any, ...] = (Recalculation, Job.state.label("job_state"), Job.error.label("job_error"))
    statement = select(*columns).outerjoin(Job, own_job).order_by(Recalculation.id.desc()).limit(1)
    with engine.connect() as connection:
        latest: Row[Any] | None = connection.execute(statement).one_or_none()
    return latest


def continue_recalculation(engine: Engine, recalculation_id: int, seconds: float = SLICE_SECONDS) -> RecalculationStep:
    """Compute chunks for `seconds` seconds, and write the result once all chunks are computed."""
    until = monotonic() + seconds
    while True:
        with engine.connect() as connection:
            row = connection.execute(select(Recalculation).where(Recalculation.id == recalculation_id)).one_or_none()
        if row is None or row.finished_at is not None:
            return RecalculationStep(True, "recalculate: done", [])
        if row.state == WRITING:
            changed, differences = _write(engine, row.id)
            return RecalculationStep(True, f"recalculate: done, {changed} of {row.total} corrected", differences)
        if monotonic() > until:
            return RecalculationStep(False, f"recalculate: {row.done} of {row.total}", [])
        _compute_chunk(engine, row)


def _finish_failed(connection: Connection) -> None:
    """Finish recalculations whose job has failed, and drop what they computed."""
    failed = (
        select(Recalculation.id, Job.error)
        .join(Job, and_(Job.kind == jobs.RECALCULATE, Job.target_id == Recalculation.id))
        .where(Recalculation.finished_at.is_(None), Job.state == "failed")
    )
    for row in connection.execute(failed).all():
        _finish(connection, row.id, FAILED, error=row.error)


def _finish(connection: Connection, recalculation_id: int, state: str, **values: Any) -> None:
    connection.execute(delete(RecalculatedEffort).where(RecalculatedEffort.recalculation_id == recalculation_id))
    connection.execute(
        update(Recalculation)
        .where(Recalculation.id == recalculation_id)
        .values(state=state, finished_at=func.clock_timestamp(), **values)
    )


# Computing ------------------------------------------------------------------------------------------------------------


def _compute_chunk(engine: Engine, recalculation: Row[Any]) -> None:
    columns = ledger.COMPARED_COLUMNS
    with engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True) as connection:
        chosen = select(*columns).where(Target.id > recalculation.cursor).order_by(Target.id).limit(CHUNK)
        chunk = connection.execute(chosen.where(_MISSING) if recalculation.only_missing else chosen).all()
        ids = [target.id for target in chunk]
        wrong_sums = ledger.targets_with_wrong_sums(connection, ids)
        wrongly_repeated = targets.wrongly_repeated(connection, ids)
        correct = ledger.compute(connection, ids)
    differing = [
        target.id
        for target in chunk
        if target.id in wrong_sums or target.id in wrongly_repeated or correct[target.id].difference_from(target)
    ]
    after = recalculation.cursor
    with unit_of_work(engine, "recalculate_chunk", recalculation=recalculation.id, after=after) as connection:
        # Another process may have computed the same chunk; then the cursor has moved.
        moved = connection.execute(
            update(Recalculation)
            .where(
                Recalculation.id == recalculation.id,
                Recalculation.cursor == after,
                Recalculation.state == COMPUTING,
            )
            .values(
                done=Recalculation.done + len(ids),
                cursor=ids[-1] if ids else after,
                state=COMPUTING if len(ids) == CHUNK else WRITING,
            )
        )
        if moved.rowcount and differing:
            # A target may have been deleted since it was read.
            still = select(literal(recalculation.id), Target.id).where(is_one_of(Target.id, differing))
            locked = still.with_for_update(read=True, key_share=True)
            connection.execute(insert(RecalculatedEffort).from_select(["recalculation_id", "target_id"], locked))


# Writing --------------------------------------------------------------------------------------------------------------


_DIFFERING = "SELECT target_id FROM recalculated_efforts WHERE recalculation_id = :recalculation"
_SOURCES = f"SELECT value_id FROM target_sources WHERE target_id IN ({_DIFFERING})"


def _write(engine: Engine, recalculation_id: int) -> tuple[int, list[Difference]]:
    """Write everything that differs, or nothing; returns how many targets were written, and what was corrected."""
    own = {"recalculation": recalculation_id}
    with session(engine) as connection:
        planned_effort.start(connection)
        with step(connection):
            planned_effort.use_one_snapshot(connection)
            planned_effort.watch(connection, _DIFFERING, **own)
            planned_effort.correct_sums(connection, _SOURCES, **own)
        planned_effort.compute(connection)
        with unit_of_work(connection, "write_recalculation", **own):
            ids = list(connection.execute(text(_DIFFERING), own).scalars())
            lease_lifecycle.lock_composites(connection, targets.composites_of(connection, ids))
            locked = set(targets.lock_ids(connection, ids))
            wrong_values = ledger.correct_sums(connection, connection.execute(text(_SOURCES), own).scalars())
            # Wrong sums may be those of other targets as well.
            affected = locked.union(targets.lock_of_values(connection, wrong_values))
            stored = planned_effort.store(connection, affected)
            moved = ledger.compute(connection, affected - stored)
            differences = planned_effort.differences(connection, stored) + ledger.store_differing(connection, moved)
            _finish(connection, recalculation_id, DONE, changed=len(locked))
    for difference in differences:
        log.warning("Effort corrected", **difference._asdict())
    return len(locked), differences
