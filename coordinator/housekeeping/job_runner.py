"""Running the jobs of coordinator/base/jobs.py: each kind has a runner in RUNNERS.

A runner reads its target, computes without a lock or an open transaction, and then writes in one unit of work that
looks at the target again, because it may have changed meanwhile.
"""

from dataclasses import replace
from typing import Any

import structlog
from gmpy2 import mpz
from sqlalchemy import Connection, Engine, Row, func, select, update
from sqlalchemy.orm import aliased

from config.settings import settings
from coordinator.administration import recalculation
from coordinator.base import jobs
from coordinator.base.jobs import JobRef
from coordinator.base.unit_of_work import is_poison, public_message, unit_of_work
from coordinator.composites import families, group_orders, registry
from coordinator.composites.families import Change, Divisor
from coordinator.composites.values import sha256
from coordinator.numbers.arithmetic import factorize, is_probable_prime
from coordinator.numbers.factor_tree import SUBMITTED
from coordinator.residues import residue_expiry, residue_storage
from models.tables import Composite, Factor, Job, Target

log = structlog.get_logger("analysis")

_JOB_COLUMNS: tuple[Any, ...] = (Job.id, Job.kind, Job.target_id, Job.request_count, Job.tries, Job.error)


def run_job(engine: Engine, job_id: int, *, max_deliveries: int, max_digits: int) -> list[JobRef]:
    """Run one job to its end, and return jobs to publish; does nothing to a job that is done or does not exist.

    A job that another process runs is left to that process. Delivery attempts are counted before the job starts, so
    that a job that kills its process every time ends as `failed`. Faults are raised; a transient one does not count,
    and the caller should try again. Needs a second connection while it runs.
    """
    with jobs.try_lock(engine, job_id) as is_alone:
        if is_alone:
            return _run(engine, job_id, max_deliveries, max_digits)
    log.info("Job runs already", job=job_id)
    return []


def _run(engine: Engine, job_id: int, max_deliveries: int, max_digits: int) -> list[JobRef]:
    job = _begin(engine, job_id, max_deliveries)
    if job is None:
        return []
    try:
        return RUNNERS[job.kind](engine, job, max_digits)
    except Exception as error:
        with unit_of_work(engine, "record_job_fault", job=job_id) as connection:
            change: dict[str, Any] = {"error": public_message(error)}
            if not is_poison(error):
                change = {"tries": Job.tries - 1}
            connection.execute(
                update(Job).where(Job.id == job_id, Job.request_count == job.request_count).values(change)
            )
        raise


def _begin(engine: Engine, job_id: int, max_deliveries: int) -> Row[Any] | None:
    """Count a delivery attempt of a waiting job, and return its row; None if it is done, or has failed by now."""
    with unit_of_work(engine, "begin_job", job=job_id) as connection:
        job = connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.state == "waiting")
            .values(tries=Job.tries + 1)
            .returning(*_JOB_COLUMNS)
        ).one_or_none()
        if job is not None and job.tries > max_deliveries:
            why = job.error or "its process died or ran out of time at every try"
            connection.execute(
                update(Job).where(Job.id == job_id).values(state="failed", error=why, finished_at=func.now())
            )
            log.error("Job failed", job=job_id, kind=job.kind, target=job.target_id, why=why)
            return None
    return job


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
        is_prime = is_probable_prime(cofactor)
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


def _known_primality(connection: Connection, value: str) -> bool | None:
    """Return whether a value in decimal is prime, if its target or a factor with this value says so by now."""
    tested = select(Target.is_prime).where(Target.value_sha256 == sha256(value), Target.is_prime.is_not(None))
    factor = select(Factor.is_prime).where(Factor.factor_sha256 == sha256(value), Factor.is_prime.is_not(None))
    known: bool | None = connection.execute(tested.union_all(factor).limit(1)).scalar_one_or_none()
    return known


def _test_factor(engine: Engine, job: Row[Any], max_digits: int) -> list[JobRef]:
    factor = _read_factor(engine, job)
    is_prime = factor is not None and is_probable_prime(mpz(factor.factor))
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
    primes = factorize(mpz(factor.factor)) if factor is not None and not factor.is_split else {}
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
    jobs.GROUP_ORDER: _find_group_order,
    jobs.RECALCULATE: _recalculate,
    jobs.DROP_RESIDUE: _drop_residue,
}
