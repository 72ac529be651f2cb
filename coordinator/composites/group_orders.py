"""Group orders: whether the order of the curve that found a prime factor agrees with B1 and B2 of its run.

The result is a remark and never a reason to reject a factor: clients may send one sigma for all factors of a run.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gmpy2 import mpz
from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.orm import aliased

from coordinator import effort
from coordinator.base import jobs
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import registry
from coordinator.effort.stage2 import brent_suyama_multipliers
from coordinator.numbers import elliptic
from coordinator.numbers.arithmetic import factorize
from coordinator.numbers.expressions import decimal
from models.limits import DEFAULT_B2
from models.tables import Composite, EcmAttempt, Factor
from models.types import AnyRow

# Stage 2 covers pairs of points up to d1 d2 beyond either end, and so finds some primes above its B2; d1 is at most
# 11 dF and d2 at most 23. If the client gave B2, the last block of dF d1 points extends beyond it, too.
BEYOND_POINTS = 250
BEYOND_BLOCK = 12
# The smallest probability of a find by the Brent-Suyama extension that counts as an explanation.
MIN_PROBABILITY = 0.001


class Finding(NamedTuple):
    """The columns that describe a factor's group order. `is_explained`: None if unknown; `order_remark` says why."""

    group_order: str | None
    group_order_factors: str | None
    is_explained: bool | None
    order_remark: str | None


def request(connection: Connection, factor_ids: Sequence[int]) -> list[jobs.JobRef]:
    """Request a job for each prime among these factors that was found by a curve with a known sigma."""
    if not factor_ids:
        return []
    ids = sorted(row.id for row in connection.execute(_claims(factor_ids)))
    return [job for factor_id in ids for job in jobs.request_once(connection, jobs.GROUP_ORDER, factor_id)]


def run(engine: Engine, job: AnyRow) -> None:
    """Compute and store the finding of the job's factor; only finishes the job if the factor has no curve."""
    with unit_of_work(engine, "read_factor_claim", job=job.id) as connection:
        claim = connection.execute(_claims([job.target_id])).one_or_none()
    finding = None if claim is None else examine(claim)
    with unit_of_work(engine, "store_group_order", job=job.id, factor=job.target_id) as connection:
        if claim is not None and finding is not None:
            _store(connection, claim, finding)
        jobs.finish(connection, job.id, job.request_count)


def examine(claim: Any) -> Finding:
    """Compute the finding of a claim, a row with factor, sigma, parametrization, and b1 and b2 of its run (or None)."""
    p = mpz(claim.factor)
    if p >= mpz(10) ** elliptic.MAX_DIGITS:
        return Finding(None, None, None, f"not computed for factors of more than {elliptic.MAX_DIGITS} digits")
    try:
        curve = elliptic.curve(p, int(claim.sigma), claim.parametrization)
        order = elliptic.curve_order(curve)
    except elliptic.NoCurveError as error:
        return Finding(None, None, None, str(error))
    except elliptic.PariMissingError:
        return Finding(None, None, None, "not computed: the server lacks the extra `analysis`")
    except TimeoutError as error:
        return Finding(None, None, None, f"not computed: {error}")
    factors = factorize(order)
    if claim.b1 is None:
        return Finding(decimal(order), _format_factors(factors), None, "the bounds of its run are not known")
    return Finding(
        decimal(order), _format_factors(factors), *explains(elliptic.point_order(curve, factors), claim.b1, claim.b2)
    )


def explains(order: dict[mpz, int], b1: int, b2: int | None) -> tuple[bool, str | None]:
    """Return (whether a run with these bounds finds a point of this order, a remark or None)."""
    large = [(prime, count) for prime, count in sorted(order.items()) if prime > 3 and prime**count > b1]
    if not large:
        return True, None
    # Stage 2 covers one prime with exponent 1; the rest of its power must be within B1.
    prime, count = large[-1]
    if len(large) > 1 or prime ** (count - 1) > b1:
        parts = " and ".join(_format_power(*part) for part in large)
        return False, f"not explained: B1 = {b1} leaves {parts} of the order"
    return _explained_by_stage2(prime, b1, b2)


def _explained_by_stage2(prime: mpz, b1: int, b2: int | None) -> tuple[bool, str | None]:
    plan = effort.stage2_plan(b1, b2)
    last_block = 0 if b2 is None or b2 == DEFAULT_B2 else BEYOND_BLOCK * plan.dF**2
    remark = f"the order has {prime}, beyond B2 = {plan.b2}"
    if plan.b2 == 0:
        return False, f"not explained: the order has {prime}, above B1 = {b1}, and there was no stage 2"
    if prime <= plan.b2:
        return True, None
    if prime <= plan.b2 + BEYOND_POINTS * plan.dF + last_block:
        return True, f"{remark} by so little that stage 2 may meet it"
    probability = _extension_probability(plan, prime)
    if probability >= MIN_PROBABILITY:
        return True, f"{remark}: the extension of stage 2 meets it in {probability:.1%} of runs"
    return False, f"not explained: {remark}"


def _extension_probability(plan: effort.Stage2Plan, prime: mpz) -> float:
    """Return the probability that stage 2's polynomial finds a prime above B2 (docs/effort.md, the extension)."""
    pairs = plan.dF**2 * plan.k
    return sum(share * -math.expm1(-pairs * times / float(prime)) for times, share in brent_suyama_multipliers(plan.S))


def _claims(factor_ids: Sequence[int]) -> Any:
    """Select the primes among these factors with the sigma that found them, their own or their nearest ancestor's."""
    has_sigma = Factor.sigma.is_not(None)
    above = (
        select(Factor.id.label("prime_id"), Factor.id, Factor.split_from_id, has_sigma.label("claimed"))
        .where(Factor.id.in_(factor_ids), Factor.is_prime.is_(True), Factor.group_order.is_(None))
        .cte("above", recursive=True)
    )
    above = above.union_all(
        select(above.c.prime_id, Factor.id, Factor.split_from_id, has_sigma)
        .join(above, Factor.id == above.c.split_from_id)
        .where(~above.c.claimed)
    )
    prime, claimed = aliased(Factor), aliased(Factor)
    return (
        select(
            prime.id,
            prime.factor,
            claimed.id.label("claimed_id"),
            claimed.sigma,
            claimed.parametrization,
            EcmAttempt.b1,
            EcmAttempt.b2,
            func.coalesce(Composite.parent_id, Composite.id).label("root_id"),
        )
        .join(above, above.c.prime_id == prime.id)
        .join(claimed, claimed.id == above.c.id)
        .join(Composite, Composite.id == prime.composite_id)
        .join(EcmAttempt, EcmAttempt.id == claimed.attempt_id, isouter=True)
        .where(above.c.claimed, claimed.method == "ecm", claimed.parametrization.is_not(None))
    )


def _store(connection: Connection, claim: AnyRow, finding: Finding) -> None:
    # Factors are written under the locks of their family, which every unit of work takes in the same order.
    registry.lock_family(connection, claim.root_id)
    connection.execute(update(Factor).where(Factor.id == claim.id).values(finding._asdict()))
    if claim.claimed_id == claim.id or finding.is_explained is None:
        return
    # A composite factor is explained if each of its primes is explained.
    values: dict[str, Any] = {"is_explained": finding.is_explained}
    is_not_refuted = Factor.is_explained.is_not(False)
    if not finding.is_explained:
        values["order_remark"] = f"its factor {claim.factor} is not explained"
    connection.execute(update(Factor).where(Factor.id == claim.claimed_id, is_not_refuted).values(values))


def _format_factors(order: dict[mpz, int]) -> str:
    return " * ".join(_format_power(prime, count) for prime, count in sorted(order.items()))


def _format_power(prime: mpz, count: int) -> str:
    return f"{prime:d}" if count == 1 else f"{prime:d}^{count}"
