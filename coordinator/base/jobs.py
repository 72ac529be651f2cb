"""Jobs: rows that request long computations which follow from a result, and the lock of a running job.

The unit of work that needs a job requests it, and the job is published after the commit. A job computes without locks
and stores its result in a unit of work of its own. That unit of work checks the current state again, because a job may
run twice, late, or beside another one.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from coordinator.base.advisory_locks import JOB_LOCK
from models.tables import Job

TEST_COFACTOR = "test_cofactor"  # target: composite; tests whether its cofactor is prime
TEST_FACTOR = "test_factor"  # target: factor; tests whether it is prime
SPLIT_FACTOR = "split_factor"  # target: factor; splits it with FLINT
SHARE_FACTORS = "share_factors"  # target: composite; exchanges factors with the composites that share a value with it
GROUP_ORDER = "group_order"  # target: factor; computes the group order of its curve
RECALCULATE = "recalculate"  # target: recalculation; computes its next part or writes it
DROP_RESIDUE = "drop_residue"  # target: residue; deletes the file of a closed residue


@dataclass(frozen=True)
class JobRef:
    """The id and the kind of a job that is to be published after the commit."""

    job_id: int
    kind: str


def request(connection: Connection, kind: str, target_id: int) -> list[JobRef]:
    """Insert a job, or reset a finished one, because its input has changed. Returns the job to publish."""
    job_id = connection.execute(
        insert(Job)
        .values(kind=kind, target_id=target_id)
        .on_conflict_do_update(
            constraint="jobs_once",
            set_={
                "state": "waiting",
                "request_count": Job.request_count + 1,
                "tries": 0,
                "publish_count": 0,
                "published_at": func.now(),
                "error": None,
                "finished_at": None,
            },
        )
        .returning(Job.id)
    ).scalar_one()
    return [JobRef(job_id, kind)]


def request_once(connection: Connection, kind: str, target_id: int) -> list[JobRef]:
    """Request a job that runs only once. Returns the job to publish, or [] if it was requested before."""
    job_id = connection.execute(
        insert(Job).values(kind=kind, target_id=target_id).on_conflict_do_nothing().returning(Job.id)
    ).scalar_one_or_none()
    return [] if job_id is None else [JobRef(job_id, kind)]


def finish(connection: Connection, job_id: int, request_count: int) -> None:
    """Mark a job as done, unless it was requested again since it began, when its count was `request_count`."""
    connection.execute(
        update(Job)
        .where(Job.id == job_id, Job.request_count == request_count)
        .values(state="done", finished_at=func.now(), error=None)
    )


@contextmanager
def try_lock(engine: Engine, job_id: int) -> Iterator[bool]:
    """Lock this job for the duration of the block; yields False if another process has it locked.

    A separate connection holds the lock, so that the server releases it also if this process dies. The lock is
    released explicitly, because the release at a disconnect is late for a job that requests itself.
    """
    with engine.connect() as connection:
        # A transaction that stays open for as long as the job takes would hold up vacuum.
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        # A key has 32 bits. Two jobs whose ids differ by a multiple of 2**31 would at worst run one after the other.
        lock = func.pg_try_advisory_lock(JOB_LOCK, job_id % 2**31)
        is_locked = connection.execute(select(lock)).scalar_one()
        try:
            yield is_locked
        finally:
            if is_locked:
                with suppress(DBAPIError):
                    connection.execute(select(func.pg_advisory_unlock(JOB_LOCK, job_id % 2**31)))
