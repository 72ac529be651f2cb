"""Long work that follows from a result: rows that ask for it, and what each kind does.

A job is asked for in the unit of work that needs it and rung for after the commit. It computes without locks, then
records what it found in a unit of work of its own, which looks again at what it finds there: a job may run twice, late,
or beside another one.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from coordinator.base.advisory_locks import JOB_LOCK
from models.tables import Job

TEST_COFACTOR = "test_cofactor"  # target: composite; is what is left of it prime?
TEST_FACTOR = "test_factor"  # target: factor; is it prime?
SPLIT_FACTOR = "split_factor"  # target: factor; split it with FLINT
SHARE_FACTORS = "share_factors"  # target: composite; offer its factors to those that share a value, and theirs to it
GROUP_ORDER = "group_order"  # target: factor; does the order of its curve explain the find?
RECALCULATE = "recalculate"  # target: recalculation; go on with it
DROP_RESIDUE = "drop_residue"  # target: residue; delete its file, now that it is closed


@dataclass(frozen=True)
class JobRef:
    """Something to publish after the commit: a job, by id and kind."""

    job_id: int
    kind: str


def request(connection: Connection, kind: str, target_id: int) -> list[JobRef]:
    """Ask for a job, also if it has been done before: what it looks at has changed."""
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
    """Ask for a job that needs doing once; nothing to ring if it was asked for before."""
    job_id = connection.execute(
        insert(Job).values(kind=kind, target_id=target_id).on_conflict_do_nothing().returning(Job.id)
    ).scalar_one_or_none()
    return [] if job_id is None else [JobRef(job_id, kind)]


def finish(connection: Connection, job_id: int, asked: int) -> None:
    """Mark done what was asked `asked` times when it began; a request made meanwhile keeps it waiting."""
    connection.execute(
        update(Job)
        .where(Job.id == job_id, Job.request_count == asked)
        .values(state="done", finished_at=func.now(), error=None)
    )


@contextmanager
def try_lock(engine: Engine, job_id: int) -> Iterator[bool]:
    """Whether this job runs nowhere else; if so, it will not until the block ends.

    Held on a connection of its own, beside the one that the job works with. That connection is never used again: the
    server lets go of the lock when it ends, also if this process dies. That takes it a moment, in which a job that
    has just asked for itself anew would be passed by: so it is unlocked first, where that is possible.
    """
    with engine.connect() as connection:
        # No transaction stays open for as long as the job takes: vacuum would wait for it.
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        # The lock's number has 32 bits. Two jobs that differ by 2**31 would at worst run one after the other.
        lock = func.pg_try_advisory_lock(JOB_LOCK, job_id % 2**31)
        got = connection.execute(select(lock)).scalar_one()
        try:
            yield got
        finally:
            if got:
                with suppress(DBAPIError):
                    connection.execute(select(func.pg_advisory_unlock(JOB_LOCK, job_id % 2**31)))
