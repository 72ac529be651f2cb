"""Whether a curve explains its find: the order of the curve that found a prime factor, against B1 and B2.

A remark for whoever wonders, never a reason to refuse: clients may send one sigma for every factor of a run.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gmpy2 import mpz
from sqlalchemy import Connection, Engine, Row, func, select, update
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

# Stage 2 pairs points d1 d2 apart at either end, and so meets some primes beyond the B2 that it covers; d1 is at most
# 11 dF and d2 at most 23. Where B2 was given, its last block of dF d1 points goes further too.
BEYOND_POINTS = 250
BEYOND_BLOCK = 12
# The least chance of the extension that is taken for an explanation.
LEAST_CHANCE = 0.001


class Finding(NamedTuple):
    """What is stored with a factor; `is_explained` None: unknown, and the remark says why."""

    group_order: str | None
    group_order_factors: str | None
    is_explained: bool | None
    order_remark: str | None


def ask(connection: Connection, factor_ids: Sequence[int]) -> list[jobs.JobRef]:
    """Ask for the orders of those of these factors that are primes found by a curve whose sigma is known."""
    if not factor_ids:
        return []
    found = sorted(row.id for row in connection.execute(_claims(factor_ids)))
    return [job for factor_id in found for job in jobs.request_once(connection, jobs.GROUP_ORDER, factor_id)]


def run(engine: Engine, job: Row[Any]) -> None:
    """Find the order of one factor's curve and store what it explains. Harmless if there is nothing to find."""
    with unit_of_work(engine, "read_claim", job=job.id) as connection:
        claim = connection.execute(_claims([job.target_id])).one_or_none()
    finding = None if claim is None else examine(claim)
    with unit_of_work(engine, "store_group_order", job=job.id, factor=job.target_id) as connection:
        if claim is not None and finding is not None:
            _store(connection, claim, finding)
        jobs.finish(connection, job.id, job.request_count)


def examine(claim: Any) -> Finding:
    """What there is to say of a claim: `factor`, `sigma`, `parametrization`, and `b1` and `b2` of its run, if known."""
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
        return Finding(decimal(order), _written(factors), None, "the bounds of its run are not known")
    return Finding(
        decimal(order), _written(factors), *explains(elliptic.point_order(curve, factors), claim.b1, claim.b2)
    )


def explains(order: dict[mpz, int], b1: int, b2: int | None) -> tuple[bool, str | None]:
    """(whether a run with these bounds removes this order of its starting point, what is remarkable about that)."""
    large = [(prime, count) for prime, count in sorted(order.items()) if prime > 3 and prime**count > b1]
    if not large:
        return True, None
    # Stage 2 removes one prime, once; of a power, what is left must be within B1.
    prime, count = large[-1]
    if len(large) > 1 or prime ** (count - 1) > b1:
        parts = " and ".join(_power(*part) for part in large)
        return False, f"not explained: B1 = {b1} leaves {parts} of the order"
    return _explained_by_stage2(prime, b1, b2)


def _explained_by_stage2(prime: mpz, b1: int, b2: int | None) -> tuple[bool, str | None]:
    plan = effort.stage2_plan(b1, b2)
    given_block = 0 if b2 is None or b2 == DEFAULT_B2 else BEYOND_BLOCK * plan.dF**2
    said = f"the order has {prime}, beyond B2 = {plan.b2}"
    if plan.b2 == 0:
        return False, f"not explained: the order has {prime}, above B1 = {b1}, and there was no stage 2"
    if prime <= plan.b2:
        return True, None
    if prime <= plan.b2 + BEYOND_POINTS * plan.dF + given_block:
        return True, f"{said} by so little that stage 2 may meet it"
    chance = _extension_chance(plan, prime)
    if chance >= LEAST_CHANCE:
        return True, f"{said}: the extension of stage 2 meets it in {chance:.1%} of runs"
    return False, f"not explained: {said}"


def _extension_chance(plan: effort.Stage2Plan, prime: mpz) -> float:
    """How likely stage 2's polynomial meets a prime beyond B2 (docs/effort.md, the extension, for one prime)."""
    pairs = plan.dF**2 * plan.k
    return sum(share * -math.expm1(-pairs * times / float(prime)) for times, share in brent_suyama_multipliers(plan.S))


def _claims(factor_ids: Sequence[int]) -> Any:
    """Those prime factors with the sigma that found them: their own, or that of the nearest above that has one."""
    claimed_by_sigma = Factor.sigma.is_not(None)
    above = (
        select(Factor.id.label("prime_id"), Factor.id, Factor.split_from_id, claimed_by_sigma.label("claimed"))
        .where(Factor.id.in_(factor_ids), Factor.is_prime.is_(True), Factor.group_order.is_(None))
        .cte("above", recursive=True)
    )
    above = above.union_all(
        select(above.c.prime_id, Factor.id, Factor.split_from_id, claimed_by_sigma)
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


def _store(connection: Connection, claim: Row[Any], finding: Finding) -> None:
    # Others write factors under their family's locks: in one order for all.
    registry.lock_family(connection, claim.root_id)
    connection.execute(update(Factor).where(Factor.id == claim.id).values(finding._asdict()))
    if claim.claimed_id == claim.id or finding.is_explained is None:
        return
    # A composite find is explained if each of its primes is.
    said: dict[str, Any] = {"is_explained": finding.is_explained}
    still_open = Factor.is_explained.is_not(False)
    if not finding.is_explained:
        said["order_remark"] = f"its factor {claim.factor} is not explained"
    connection.execute(update(Factor).where(Factor.id == claim.claimed_id, still_open).values(said))


def _written(order: dict[mpz, int]) -> str:
    return " * ".join(_power(prime, count) for prime, count in sorted(order.items()))


def _power(prime: mpz, count: int) -> str:
    return f"{prime:d}" if count == 1 else f"{prime:d}^{count}"
