"""Jobs: rows that request long computations which follow from a result, and the lock of a running job.

The unit of work that needs a job requests it, and the job is published after the commit. A job computes without locks
and stores its result in a unit of work of its own. That unit of work checks the current state again, because a job may
run twice, late, or beside another one.

A worker runs the waiting job that is best at that time, whichever message woke it: first by priority (numbers that
clients have registered come last), then those of the client whose jobs ran for the shortest time lately, then the
oldest.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    String,
    and_,
    case,
    cast,
    delete,
    func,
    literal,
    null,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from coordinator.base import clock
from coordinator.base.advisory_locks import JOB_LOCK
from models.tables import Composite, Factor, Job, JobShare

TEST_COFACTOR = "test_cofactor"  # target: composite; tests whether its cofactor is prime
TEST_FACTOR = "test_factor"  # target: factor; tests whether it is prime
SPLIT_FACTOR = "split_factor"  # target: factor; splits it with FLINT
SHARE_FACTORS = "share_factors"  # target: composite; exchanges factors with the composites that share a value with it
REGISTER_PARTS = "register_parts"  # target: composite; gives its next large parts composites of their own
GROUP_ORDER = "group_order"  # target: factor; computes the group order of its curve
RECALCULATE = "recalculate"  # target: recalculation; computes its next part or writes it
DROP_RESIDUE = "drop_residue"  # target: residue; deletes the file of a closed residue
OF_COMPOSITES = (TEST_COFACTOR, SHARE_FACTORS, REGISTER_PARTS)
OF_FACTORS = (TEST_FACTOR, SPLIT_FACTOR, GROUP_ORDER)

# Priorities: jobs about numbers that an operator has loaded, and those about numbers that a result registered.
LISTED, UNLISTED = 0, 1
# So many jobs about the parts of one number wait at a time, and after so many that ran out of time it gets no more.
MOST_WAITING, MOST_UNKNOWN = 20, 5
# A worker looks at so many jobs of one client, and at so many in all: the first ones may be running elsewhere.
MOST_OF_A_CLIENT, MOST_CANDIDATES = 20, 100
HALF_LIFE_SECONDS = 3600
FORGOTTEN_HALF_LIVES = 24  # a share of hours is less than a hundredth of a second then
_OPERATORS = ""  # the client of operators' jobs in `job_shares`


@dataclass(frozen=True)
class JobRef:
    """The id and the kind of a job that is to be published after the commit."""

    job_id: int
    kind: str


def request(connection: Connection, kind: str, target_id: int) -> list[JobRef]:
    """Insert a job, or reset a finished one, because its input has changed. Returns the job to publish."""
    return request_all(connection, kind, [target_id])


def request_all(connection: Connection, kind: str, target_ids: Iterable[int]) -> list[JobRef]:
    """Request a job for each of these targets, as `request` does. Returns the jobs to publish."""
    # In this order, so that no two units of work deadlock.
    ids = sorted(set(target_ids))
    if not ids:
        return []
    wanted = func.unnest(literal(ids, ARRAY(BigInteger))).column_valued("wanted_id")
    values = _values(kind, wanted)
    new = insert(Job).from_select(list(values), select(*values.values()))
    requested = connection.execute(
        new.on_conflict_do_update(
            constraint="jobs_once",
            set_={
                "state": "waiting",
                "request_count": Job.request_count + 1,
                "priority": text("excluded.priority"),
                "client_id": text("excluded.client_id"),
                "tries": 0,
                "timeouts": 0,
                "interruptions": 0,
                "published_at": func.now(),
                "error": None,
                "finished_at": None,
            },
        ).returning(Job.id)
    ).scalars()
    return [JobRef(job_id, kind) for job_id in requested]


def request_once(connection: Connection, kind: str, target_id: int) -> list[JobRef]:
    """Request a job that runs only once. Returns the job to publish, or [] if it was requested before."""
    job_id = connection.execute(
        insert(Job).values(_values(kind, target_id)).on_conflict_do_nothing().returning(Job.id)
    ).scalar_one_or_none()
    return [] if job_id is None else [JobRef(job_id, kind)]


def request_parts(connection: Connection, wanted: Sequence[tuple[str, int]]) -> list[JobRef]:
    """Request the next ones of these jobs (kind, target) about parts of one number, each once.

    At most MOST_WAITING of them wait at a time, and none is requested after MOST_UNKNOWN ran out of their time: a
    result can have a thousand factors that take minutes each. Returns the jobs to publish.
    """
    if not wanted:
        return []
    chosen = tuple_(Job.kind, Job.target_id).in_(wanted)
    states = {
        (row.kind, row.target_id): row.state
        for row in connection.execute(select(Job.kind, Job.target_id, Job.state).where(chosen))
    }
    found = list(states.values())
    if found.count("unknown") + found.count("failed") >= MOST_UNKNOWN:
        return []
    new = [job for job in wanted if job not in states][: max(0, MOST_WAITING - found.count("waiting"))]
    return [ref for kind, target_id in new for ref in request_once(connection, kind, target_id)]


def _values(kind: str, target_id: int | ColumnElement[int]) -> dict[str, Any]:
    """Return the columns of a new job: its priority, and the client who caused it, follow from its target."""
    client: Any = null()
    registered_by: Any = null()
    if kind in OF_COMPOSITES:
        registered_by = select(Composite.registered_by).where(Composite.id == target_id).scalar_subquery()
        client = registered_by
    elif kind in OF_FACTORS:
        of_factor = Factor.id == target_id
        joined = Composite.id == Factor.composite_id
        registered_by = select(Composite.registered_by).join(Factor, joined).where(of_factor).scalar_subquery()
        finder = func.coalesce(Factor.client_id, Composite.registered_by)
        client = select(finder).join(Composite, joined).where(of_factor).scalar_subquery()
    priority = case((cast(registered_by, String).is_not(None), UNLISTED), else_=LISTED)
    return {"kind": literal(kind), "target_id": target_id, "priority": priority, "client_id": client}


_BEST = text("""
WITH RECURSIVE clients AS (
    (SELECT coalesce(client_id, '') AS client FROM jobs WHERE state = 'waiting' AND priority = :priority
     ORDER BY coalesce(client_id, '') LIMIT 1)
    UNION ALL
    SELECT (SELECT coalesce(client_id, '') FROM jobs
            WHERE state = 'waiting' AND priority = :priority AND coalesce(client_id, '') > clients.client
            ORDER BY coalesce(client_id, '') LIMIT 1)
    FROM clients WHERE clients.client IS NOT NULL
)
SELECT next.id FROM clients CROSS JOIN LATERAL (
    SELECT id FROM jobs
    WHERE state = 'waiting' AND priority = :priority AND coalesce(client_id, '') = clients.client
    ORDER BY id LIMIT :of_a_client
) next LEFT JOIN job_shares ON job_shares.client_id = clients.client
ORDER BY coalesce(seconds * power(0.5, extract(epoch FROM now() - counted_at) / :half_life), 0), next.id
LIMIT :candidates
""").bindparams(of_a_client=MOST_OF_A_CLIENT, half_life=HALF_LIFE_SECONDS, candidates=MOST_CANDIDATES)


def best_waiting(connection: Connection) -> Iterator[int]:
    """Yield the ids of waiting jobs, the one that is to run first before the others; some may be running already.

    The query walks along an index from client to client, so its time depends on their number, not on that of the jobs.
    """
    for priority in (LISTED, UNLISTED):
        yield from connection.execute(_BEST, {"priority": priority}).scalars().all()


def take_over(connection: Connection, composite_ids: Sequence[int]) -> list[JobRef]:
    """Give the jobs about these composites the priority of listed numbers, and those that ran out of time another try.

    Returns the jobs to publish.
    """
    factors = select(Factor.id).where(Factor.composite_id.in_(composite_ids))
    of_composites = and_(Job.kind.in_(OF_COMPOSITES), Job.target_id.in_(composite_ids))
    about = or_(of_composites, and_(Job.kind.in_(OF_FACTORS), Job.target_id.in_(factors)))
    connection.execute(update(Job).where(about, Job.state == "waiting").values(priority=LISTED))
    unknown = select(Job.kind, Job.target_id).where(about, Job.state == "unknown").order_by(Job.id)
    given_up = connection.execute(unknown).all()
    return [ref for job in given_up for ref in request(connection, job.kind, job.target_id)]


def charge(connection: Connection, client_id: str | None, seconds: float) -> None:
    """Add running time to a client's share."""
    kept = func.power(0.5, func.extract("epoch", func.now() - JobShare.counted_at) / HALF_LIFE_SECONDS)
    new = insert(JobShare).values(client_id=client_id or _OPERATORS, seconds=seconds)
    connection.execute(
        new.on_conflict_do_update(
            index_elements=[JobShare.client_id],
            set_={"seconds": JobShare.seconds * kept + new.excluded.seconds, "counted_at": func.now()},
        )
    )


def forget_shares(connection: Connection) -> int:
    """Delete the shares that have faded away; returns their number. Names of clients cost a stranger nothing."""
    oldest = func.now() - clock.interval(float(FORGOTTEN_HALF_LIVES * HALF_LIFE_SECONDS))
    return connection.execute(delete(JobShare).where(JobShare.counted_at < oldest)).rowcount


def finish(connection: Connection, job_id: int, request_count: int) -> None:
    """Mark a job as done, unless it was requested again since it began, when its count was `request_count`."""
    connection.execute(
        update(Job)
        .where(Job.id == job_id, Job.request_count == request_count)
        .values(state="done", finished_at=func.now(), error=None)
    )


def give_up(connection: Connection, job_id: int, request_count: int, why: str) -> None:
    """Mark a job as `unknown`: it ran out of its time. It is not tried again, unless its input changes."""
    connection.execute(
        update(Job)
        .where(Job.id == job_id, Job.request_count == request_count)
        .values(state="unknown", finished_at=func.now(), error=why)
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
