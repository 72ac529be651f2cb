"""What operators change on one number: its priority, factors known from elsewhere, its completion.

Each change is one unit of work with its audit row in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from gmpy2 import mpz
from sqlalchemy import Connection, Engine, Row, select, update

from coordinator.base import audit, jobs
from coordinator.base.audit import Actor
from coordinator.base.errors import ConflictError, InvalidClaimError, NotFoundError, composite_not_found
from coordinator.base.unit_of_work import repeats_after_deadlock, unit_of_work
from coordinator.composites import families, lease_lifecycle, registry, targets
from coordinator.composites.families import Divisor, FamilyMember
from coordinator.numbers.arithmetic import digit_count
from coordinator.numbers.expressions import ExpressionError, decimal, evaluate, shorten
from coordinator.numbers.factor_tree import KNOWN
from models.tables import Composite

# The most characters of a number in an audit row: only longer numbers are shortened.
MAX_AUDITED = 2000
_STATE: tuple[Any, ...] = (
    Composite.id,
    Composite.number,
    Composite.current_composite,
    Composite.is_prime,
    Composite.is_fully_factored,
    Composite.current_t_level,
    Composite.target_t_level,
    Composite.attempt_count,
    Composite.priority,
)


class Provenance(NamedTuple):
    """Who knows these factors, and since when."""

    source: str | None
    found_at: datetime | None


@dataclass
class AddedFactors:
    """The factors that were new and those known before, the composite's row after the change, jobs to publish."""

    new: list[str]
    known: list[str]
    row: Row[Any]
    to_publish: list[jobs.JobRef]


@repeats_after_deadlock
def set_priority(engine: Engine, actor: Actor, composite_id: int, priority: int) -> int:
    """Set a number's priority, and return the previous one. Raises NotFoundError."""
    with unit_of_work(engine, "set_priority", composite=composite_id) as connection:
        if not lease_lifecycle.lock_composites(connection, [composite_id]):
            raise composite_not_found(composite_id)
        chosen = Composite.id == composite_id
        before: int = connection.execute(select(Composite.priority).where(chosen)).scalar_one()
        connection.execute(update(Composite).where(chosen).values(priority=priority))
        targets.restate(connection, targets.lock_of(connection, [composite_id]))
        target = f"composite {composite_id}"
        audit.record(
            connection, actor, "set priority", target, before={"priority": before}, after={"priority": priority}
        )
    return before


@repeats_after_deadlock
def add_known_factors(
    engine: Engine, actor: Actor, written: str, factors: Sequence[str], provenance: Provenance, *, max_digits: int
) -> AddedFactors:
    """Use factors known from elsewhere on a number (named by any value it has had); they add no curves.

    Raises NotFoundError for the number, InvalidClaimError for a factor that is no proper divisor, and ExpressionError
    for a factor that cannot be read; in each case no factor is used.
    """
    registry.evaluate_ahead(written, max_digits)
    values = _read(factors, max_digits)
    with unit_of_work(engine, "add_factors") as connection:
        found = registry.find(connection, written, max_digits)
        if found is None:
            raise NotFoundError(
                "unknown_composite", f"{shorten(written)} is not a number of this server; load it first"
            )
        members = lock_members(connection, found.id, max_digits)
        return _use_factors(connection, actor, members, found.id, values, provenance=provenance)


@repeats_after_deadlock
def complete_composite(
    engine: Engine,
    actor: Actor,
    composite_id: int,
    factors: Sequence[str],
    provenance: Provenance,
    *,
    cofactor_is_prime: bool,
    max_digits: int,
) -> AddedFactors:
    """Finish a number: these factors and the known ones must make it a product of primes. Idempotent.

    With `cofactor_is_prime` an untested cofactor is taken for prime on the operator's word. Raises NotFoundError,
    InvalidClaimError as `add_known_factors` does, and ConflictError if a composite part would remain; in each case
    nothing changes.
    """
    values = _read(factors, max_digits)
    with unit_of_work(engine, "complete", composite=composite_id) as connection:
        members = lock_members(connection, composite_id, max_digits)
        target = f"composite {composite_id}"
        added = _use_factors(connection, actor, members, composite_id, values, provenance=provenance)
        member = _member(members, composite_id)
        if cofactor_is_prime and member.tree.cofactor_is_prime is None:
            cofactor = shorten(decimal(member.tree.cofactor), MAX_AUDITED)
            added.to_publish += families.record_cofactor_primality(connection, members, member, prime=True).to_publish
            audit.record(connection, actor, "take for prime", target, after={"cofactor": cofactor})
        if not member.tree.finished:
            raise ConflictError(
                "not_finished", f"{_unfinished(member)}; send its factors, or pause it to keep it from work"
            )
        added.row = _state(connection, composite_id)
        audit.record(connection, actor, "complete", target, after={"is_fully_factored": True})
    return added


def lock_members(connection: Connection, composite_id: int, max_digits: int) -> list[FamilyMember]:
    """Lock and load the whole group of a composite, the root of its own family first. Raises NotFoundError."""
    roots = registry.roots_of(connection, [composite_id])
    locked = registry.lock_group(connection, roots[0]) if roots else []
    if composite_id not in {row.id for row in locked}:
        raise composite_not_found(composite_id)
    return families.load_family(connection, [row.id for row in locked], max_digits)


def _use_factors(
    connection: Connection,
    actor: Actor,
    members: list[FamilyMember],
    composite_id: int,
    values: list[mpz],
    *,
    provenance: Provenance,
) -> AddedFactors:
    number = _member(members, composite_id).tree.number
    for value in values:
        if not 1 < value < number or number % value != 0:
            raise InvalidClaimError(
                "factor_does_not_divide",
                f"{_short(value)} is no proper factor of {_short(number)}; check that it belongs to this number",
            )
    before = _state(connection, composite_id)
    divisors = [Divisor(value, KNOWN, source=provenance.source, found_at=provenance.found_at) for value in values]
    change = families.use_divisors(connection, members, divisors, found_on=composite_id)
    new = [decimal(value) for value in values if value in change.new]
    known = [decimal(value) for value in values if value not in change.new]
    after = _state(connection, composite_id)
    if values:
        found_at = provenance.found_at and provenance.found_at.isoformat()
        added: dict[str, Any] = {"factors": [shorten(text, MAX_AUDITED) for text in new + known]}
        added |= {"source": provenance.source, "found_at": found_at}
        target = f"composite {composite_id}"
        audit.record(connection, actor, "add factors", target, before=_audited(before), after=_audited(after) | added)
    return AddedFactors(new, known, after, change.to_publish)


def _read(factors: Sequence[str], max_digits: int) -> list[mpz]:
    """Evaluate factors; returns each value once. Raises ExpressionError, whose `.field` names the factor."""
    values: dict[mpz, None] = {}
    for place, text in enumerate(factors):
        try:
            values[evaluate(text, max_digits)] = None
        except ExpressionError as error:
            error.field = f"factors.{place}"
            raise
    return list(values)


def _short(value: mpz) -> str:
    return shorten(decimal(value))


def _unfinished(member: FamilyMember) -> str:
    tree = member.tree
    if tree.cofactor > 1 and tree.cofactor_is_prime is not True:
        part, prime = tree.cofactor, tree.cofactor_is_prime
    else:
        part, prime = next((leaf.value, leaf.is_prime) for leaf in tree.leaves() if leaf.is_prime is not True)
    reason = "is composite" if prime is False else "has not been tested for primality yet"
    return f"{_short(part)}, a part of {digit_count(part)} digits, {reason}"


def _member(members: list[FamilyMember], composite_id: int) -> FamilyMember:
    return next(member for member in members if member.id == composite_id)


def _state(connection: Connection, composite_id: int) -> Row[Any]:
    return connection.execute(select(*_STATE).where(Composite.id == composite_id)).one()


def _audited(row: Row[Any]) -> dict[str, Any]:
    left = shorten(row.current_composite, MAX_AUDITED)
    return {"current_composite": left, "is_prime": row.is_prime, "is_fully_factored": row.is_fully_factored}
