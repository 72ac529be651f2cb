"""Running the jobs of coordinator/base/jobs.py: each kind has a runner in RUNNERS.

A runner reads its target, computes without a lock or an open transaction, and then writes in one unit of work that
looks at the target again, because it may have changed meanwhile.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import structlog
from gmpy2 import mpz
from sqlalchemy import Connection, Engine, Row, func, select, update
from sqlalchemy.orm import aliased

from config.settings import settings
from coordinator.administration import recalculation
from coordinator.base import jobs
from coordinator.base.jobs import JobRef
from coordinator.base.unit_of_work import is_conflict, is_poison, public_message, unit_of_work
from coordinator.composites import families, group_orders, registry
from coordinator.composites.families import Change, Divisor
from coordinator.composites.values import sha256
from coordinator.numbers.factor_tree import SUBMITTED
from coordinator.numbers.limited import OutOfTimeError, factorize_within, is_prime_within
from coordinator.residues import residue_expiry, residue_storage
from models.tables import Composite, Factor, Job, Target

log = structlog.get_logger("analysis")

_JOB_COLUMNS: tuple[Any, ...] = (
    Job.id,
    Job.kind,
    Job.target_id,
    Job.request_count,
    Job.priority,
    Job.client_id,
    Job.tries,
    Job.timeouts,
    Job.interruptions,
    Job.worker,
    Job.running_since,
    Job.error,
)
# Tries that ran out of time or whose process died, of one job: the first, and at most two more.
MAX_TIMEOUTS = 3
# Restarts of a worker during a job are no tries, but a job that ends its worker each time must not run for ever.
MAX_INTERRUPTIONS = 20


class RunJob(NamedTuple):
    """A job that has run: its id, its kind, the jobs to publish that follow from it, and the fault that ended it."""

    job_id: int
    kind: str
    to_publish: list[JobRef]
    fault: Exception | None = None


def run_best(
    engine: Engine,
    *,
    worker: str,
    max_deliveries: int,
    max_digits: int,
    time_limit_error: type[Exception] = TimeoutError,
) -> RunJob | None:
    """Run the best of the waiting jobs (coordinator/base/jobs.py) that no other process runs; None if there is none.

    Delivery attempts are counted before the job starts, so that a job that kills its process every time ends as
    `failed`. A fault is returned with the job; a transient one does not count as an attempt. `time_limit_error` is
    what the caller's time limit raises. `worker` names the process that outlives a child which dies while it runs a
    job: if it is another one at the next try, the worker was restarted, and that is no fault of the job. Needs a second
    connection while it runs.
    """
    postponed: RunJob | None = None
    with engine.connect() as connection:
        candidates = list(jobs.best_waiting(connection))
    for job_id in candidates:
        with jobs.try_lock(engine, job_id) as is_alone:
            job = _begin(engine, job_id, max_deliveries, worker) if is_alone else None
            if job is None:
                continue
            try:
                return RunJob(job_id, job.kind, _run(engine, job, max_digits, time_limit_error))
            except Exception as fault:
                failed = RunJob(job_id, job.kind, [], fault)
                if not is_conflict(fault):
                    return failed
                postponed = postponed or failed  # what it needs is locked; another job may not need it
    return postponed


def run_job(
    engine: Engine, job_id: int, *, max_deliveries: int, max_digits: int, worker: str = "by hand"
) -> list[JobRef]:
    """Run one job as `run_best` does; does nothing to a job that is done, does not exist or runs already."""
    with jobs.try_lock(engine, job_id) as is_alone:
        job = _begin(engine, job_id, max_deliveries, worker) if is_alone else None
        return [] if job is None else _run(engine, job, max_digits, TimeoutError)


def _run(engine: Engine, job: Row[Any], max_digits: int, time_limit_error: type[Exception]) -> list[JobRef]:
    is_this = (Job.id == job.id, Job.request_count == job.request_count)
    try:
        to_publish = RUNNERS[job.kind](engine, job, max_digits)
    except Exception as error:
        with unit_of_work(engine, "record_job_fault", job=job.id) as connection:
            change: dict[str, Any] = {"error": public_message(error)}
            if isinstance(error, time_limit_error):
                change |= {"timeouts": Job.timeouts + 1}
            elif not is_poison(error):
                change = {"tries": Job.tries - 1}
            connection.execute(update(Job).where(*is_this).values(change))
            _end(connection, job)
        raise
    with unit_of_work(engine, "end_job", job=job.id) as connection:
        _end(connection, job)
    return to_publish


def _begin(engine: Engine, job_id: int, max_deliveries: int, worker: str) -> Row[Any] | None:
    """Count a delivery attempt of a waiting job, and return its row; None if it is done, or has failed by now."""
    with unit_of_work(engine, "begin_job", job=job_id) as connection:
        waiting = select(*_JOB_COLUMNS).where(Job.id == job_id, Job.state == "waiting").with_for_update()
        job = connection.execute(waiting).one_or_none()
        if job is None:
            return None
        tries, timeouts, interruptions = job.tries, job.timeouts, job.interruptions
        if job.worker is not None:  # its last run left no trace of its end
            if job.worker != worker and interruptions < MAX_INTERRUPTIONS:
                tries, interruptions = tries - 1, interruptions + 1
            else:
                timeouts += 1
                _end(connection, job)
        change: dict[str, Any] = {"timeouts": timeouts, "interruptions": interruptions}
        if timeouts >= MAX_TIMEOUTS or tries >= max_deliveries:
            why = job.error or f"its process died or ran out of time at each of {tries} tries"
            change |= {"state": "failed", "error": why, "finished_at": func.now(), "worker": None}
            connection.execute(update(Job).where(Job.id == job_id).values(change))
            log.error("Job failed", job=job_id, kind=job.kind, target=job.target_id, why=why)
            return None
        change |= {"tries": max(tries, 0) + 1, "worker": worker, "running_since": func.clock_timestamp()}
        begin = update(Job).where(Job.id == job_id).values(change).returning(*_JOB_COLUMNS)
        return connection.execute(begin).one()


def _end(connection: Connection, job: Row[Any]) -> None:
    """Record that a run has ended, and add its time to the share of the job's client."""
    seconds = connection.execute(select(func.extract("epoch", func.clock_timestamp() - job.running_since))).scalar_one()
    jobs.charge(connection, job.client_id, min(float(seconds), settings().analysis_time_limit))
    connection.execute(update(Job).where(Job.id == job.id).values(worker=None, running_since=None))


def _seconds(job: Row[Any]) -> float:
    """Return the processor time that a job may use: less about a number that no operator has loaded."""
    # A tenth is left for reading and writing the number.
    most = 0.9 * settings().analysis_time_limit
    return most if job.priority == jobs.LISTED else min(most, settings().client_job_seconds)


def _test_cofactor(engine: Engine, job: Row[Any], max_digits: int) -> list[JobRef]:
    with unit_of_work(engine, "read_cofactor", job=job.id) as connection:
        found = connection.execute(
            select(Composite.current_composite, Composite.is_prime, Composite.parent_id).where(
                Composite.id == job.target_id
            )
        ).one_or_none()
        untested = found.current_composite if found is not None and found.is_prime is None else None
        # Each number with this cofactor has a job of its own, and the test of a large one takes minutes.
        is_prime = None if untested is None else _known_primality(connection, untested)
    cofactor = None if untested is None else mpz(untested)
    if cofactor is not None and is_prime is None:
        try:
            is_prime = is_prime_within(cofactor, _seconds(job))
        except OutOfTimeError as error:
            return _leave_unknown(engine, job, str(error))
    with unit_of_work(engine, "test_cofactor", job=job.id, composite=job.target_id) as connection:
        change = Change()
        if found is not None and cofactor is not None and is_prime is not None:
            members = _lock_group(connection, found.parent_id or job.target_id, max_digits)
            member = next(member for member in members if member.id == job.target_id)
            # A factor may have been divided out meanwhile; then another request for the smaller cofactor waits.
            if member.tree.cofactor == cofactor and member.tree.cofactor_is_prime is None:
                change = families.record_cofactor_primality(connection, members, member, is_prime)
        jobs.finish(connection, job.id, job.request_count)
    return change.to_publish


def _leave_unknown(
    engine: Engine, job: Row[Any], why: str, root_id: int | None = None, max_digits: int = 0
) -> list[JobRef]:
    """End a job that ran out of its time, and request the next jobs about parts of the number `root_id`."""
    log.warning("Job ran out of its time", job=job.id, kind=job.kind, target=job.target_id, why=why)
    change = Change()
    with unit_of_work(engine, "leave_unknown", job=job.id) as connection:
        jobs.give_up(connection, job.id, job.request_count, why)
        if root_id is not None:
            families.write_back(connection, _lock_group(connection, root_id, max_digits), change)
    return change.to_publish


def _known_primality(connection: Connection, value: str) -> bool | None:
    """Return whether a value in decimal is prime, if its target or a factor with this value says so by now."""
    tested = select(Target.is_prime).where(Target.value_sha256 == sha256(value), Target.is_prime.is_not(None))
    factor = select(Factor.is_prime).where(Factor.factor_sha256 == sha256(value), Factor.is_prime.is_not(None))
    known: bool | None = connection.execute(tested.union_all(factor).limit(1)).scalar_one_or_none()
    return known


def _test_factor(engine: Engine, job: Row[Any], max_digits: int) -> list[JobRef]:
    factor = _read_factor(engine, job)
    try:
        is_prime = factor is not None and is_prime_within(mpz(factor.factor), _seconds(job))
    except OutOfTimeError as error:
        return _leave_unknown(engine, job, str(error), factor and factor.root_id, max_digits)
    with unit_of_work(engine, "test_factor", job=job.id, factor=job.target_id) as connection:
        change = Change()
        if factor is not None:
            members = _lock_group(connection, factor.root_id, max_digits)
            change = families.record_factor_primality(connection, members, job.target_id, is_prime)
        jobs.finish(connection, job.id, job.request_count)
    return change.to_publish


def _split_factor(engine: Engine, job: Row[Any], max_digits: int) -> list[JobRef]:
    factor = _read_factor(engine, job)
    # A factor that was split since the request needs no minute of FLINT's time.
    is_whole = factor is not None and not factor.is_split
    try:
        primes = factorize_within(mpz(factor.factor), _seconds(job)) if factor is not None and is_whole else {}
    except OutOfTimeError as error:
        return _leave_unknown(engine, job, str(error), factor and factor.root_id, max_digits)
    with unit_of_work(engine, "split_factor", job=job.id, factor=job.target_id) as connection:
        change = Change()
        if factor is not None:
            members = _lock_group(connection, factor.root_id, max_digits)
            found_by = Divisor(mpz(factor.factor), attempt_id=factor.attempt_id, client_id=factor.client_id)
            change = families.use_divisors(connection, members, [replace(found_by, value=prime) for prime in primes])
        jobs.finish(connection, job.id, job.request_count)
    return change.to_publish


def _share_factors(engine: Engine, job: Row[Any], max_digits: int) -> list[JobRef]:
    """Try this composite's factors on every composite that shares a value with it, and theirs on this one."""
    to_publish: list[JobRef] = []
    with unit_of_work(engine, "read_sharers", job=job.id) as connection:
        own_ids = registry.family_ids(connection, job.target_id)
        others = registry.roots_of(connection, families.sharing_composites(connection, own_ids))
        own_values = families.leaf_values(connection, job.target_id)
        other_values = [value for other in others for value in families.leaf_values(connection, other)]
    # One group at a time, so that no unit of work holds the locks of very many families.
    for root_id, values in [(other, own_values) for other in others] + [(job.target_id, other_values)]:
        with unit_of_work(engine, "share_factors", job=job.id, composite=root_id) as connection:
            members = _lock_group(connection, root_id, max_digits)
            if not members:  # deleted meanwhile
                continue
            divisors = [Divisor(value, origin=SUBMITTED) for value in values]
            to_publish += families.use_divisors(connection, members, divisors).to_publish
    with unit_of_work(engine, "finish_job", job=job.id) as connection:
        jobs.finish(connection, job.id, job.request_count)
    return to_publish


def _register_parts(engine: Engine, job: Row[Any], max_digits: int) -> list[JobRef]:
    """Register composites for the next large parts of a number; writing its family back requests what is left."""
    change = Change()
    with unit_of_work(engine, "register_parts", job=job.id, composite=job.target_id) as connection:
        families.write_back(connection, _lock_group(connection, job.target_id, max_digits), change)
        jobs.finish(connection, job.id, job.request_count)
    return change.to_publish


def _find_group_order(engine: Engine, job: Row[Any], max_digits: int) -> list[JobRef]:
    group_orders.run(engine, job)
    return []


def _recalculate(engine: Engine, job: Row[Any], max_digits: int) -> list[JobRef]:
    """Run a slice of a recalculation; the request of the next slice resets the count of delivery attempts."""
    step = recalculation.continue_recalculation(engine, job.target_id)
    with unit_of_work(engine, "recalculate_slice", job=job.id, recalculation=job.target_id) as connection:
        if step.is_finished:
            jobs.finish(connection, job.id, job.request_count)
            return []
        to_publish = jobs.request(connection, job.kind, job.target_id)
    return [replace(job, kind=step.label) for job in to_publish]


def _read_factor(engine: Engine, job: Row[Any]) -> Row[Any] | None:
    part = aliased(Factor)
    is_split = select(part.id).where(part.composite_id == Factor.composite_id, part.split_from_id == Factor.id).exists()
    columns: tuple[Any, ...] = (
        Factor.factor,
        Factor.attempt_id,
        Factor.client_id,
        func.coalesce(Composite.parent_id, Composite.id).label("root_id"),
        is_split.label("is_split"),
    )
    statement = select(*columns).join(Composite, Composite.id == Factor.composite_id).where(Factor.id == job.target_id)
    with unit_of_work(engine, "read_factor", job=job.id) as connection:
        return connection.execute(statement).one_or_none()


def _lock_group(connection: Connection, root_id: int, max_digits: int) -> list[families.FamilyMember]:
    locked = registry.lock_group(connection, root_id)
    return families.load_family(connection, [row.id for row in locked], max_digits)


def _drop_residue(engine: Engine, job: Row[Any], max_digits: int) -> list[JobRef]:
    residue_expiry.delete_file(engine, residue_storage.storage(settings()), job.target_id)
    with unit_of_work(engine, "finish_job", job=job.id) as connection:
        jobs.finish(connection, job.id, job.request_count)
    return []


RUNNERS = {
    jobs.TEST_COFACTOR: _test_cofactor,
    jobs.TEST_FACTOR: _test_factor,
    jobs.SPLIT_FACTOR: _split_factor,
    jobs.SHARE_FACTORS: _share_factors,
    jobs.REGISTER_PARTS: _register_parts,
    jobs.GROUP_ORDER: _find_group_order,
    jobs.RECALCULATE: _recalculate,
    jobs.DROP_RESIDUE: _drop_residue,
}
