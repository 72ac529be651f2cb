"""Applying a result: the unit of work that turns a submission into factors, an attempt and effort, or rejects it.

The steps, in this order:

 1. lock the submission; if it is settled, return its state (so a submission that is taken twice does no harm);
 2. find or register the composite (the number of a named lease first), and lock its family, the families that share
    targets with it, and these targets against changes by others;
 3. verify every claimed factor against the registered number, before anything is written;
 4. record the attempt, unless the same curves are recorded already;
 5. add the curves to the value they were run on and to its targets, and settle the residue that the result names;
 6. use the factors on every unfinished part of these families;
 7. count the curves on their lease;
 8. settle the submission with its outcome.

Steps 2 to 7 run inside a savepoint: a result that fails verification leaves only its own, rejected, row.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from gmpy2 import mpz
from sqlalchemy import Connection, Engine, Row, func, select, update
from sqlalchemy.dialects.postgresql import insert

from config.settings import Settings
from coordinator import effort
from coordinator.base import jobs
from coordinator.base.unit_of_work import savepoint, unit_of_work
from coordinator.composites import families, lease_lifecycle, ledger, registry, target_changes, targets, values
from coordinator.composites.families import Divisor
from coordinator.composites.values import sha256
from coordinator.numbers.arithmetic import PRIMALITY_AT_ONCE_DIGITS, digit_count, is_probable_prime
from coordinator.numbers.budget import Budget
from coordinator.numbers.expressions import (
    ExpressionError,
    decimal,
    evaluate,
    evaluate_number,
    evaluate_stored,
    shorten,
)
from coordinator.numbers.factor_tree import SUBMITTED
from coordinator.residues import residue_claims
from coordinator.results import delivery_attempts, inbox
from models.limits import STAGE1_ONLY
from models.tables import Composite, CompositeAlias, EcmAttempt, Submission, Target
from models.types import AnyRow
from models.wire.results import FoundFactor, SubmitResult, split_sigma

# A result waits no longer for a lock; then it is tried again later, and its worker is free for others.
LOCK_TIMEOUT_MS = 1000


class ResultRejectedError(Exception):
    """A result cannot be applied; `reason` is a word for programs, the message a sentence for people."""

    def __init__(self, reason: str, detail: str, true_factors: list[str] | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.true_factors = true_factors or []


@dataclass
class Applied:
    """The state of a submission after its unit of work, why it was rejected or failed, and the jobs to publish."""

    state: str
    factor_status: str | None = None
    detail: str | None = None
    to_publish: list[jobs.JobRef] = field(default_factory=list)


@dataclass
class Outcome:
    """The outcome of a result that was applied, or (`state` duplicate) that repeats recorded curves."""

    state: str
    attempt_id: int
    composite_id: int
    factor_status: str
    message: str
    current_t_level: float
    target_t_level: float
    # Whether the residue that the result names has had its stage 2 now; None if it names none.
    residue_completed: bool | None = None

    def answer(self) -> dict[str, Any]:
        """Return the outcome in the form that the submission stores and that clients get."""
        about_residue = {"residue_completed": self.residue_completed, "new_t_level": self.current_t_level}
        return {
            "attempt_id": self.attempt_id,
            "composite_id": self.composite_id,
            "factor_status": self.factor_status,
            "message": self.message,
            "current_t_level": self.current_t_level,
            "target_t_level": self.target_t_level,
            **(about_residue if self.residue_completed is not None else {}),
        }


def apply_result(
    engine: Engine, submission_id: int, settings: Settings, *, lock_timeout_ms: int = LOCK_TIMEOUT_MS
) -> Applied | None:
    """Apply one submission once, however often this is called; returns None if it does not exist.

    The delivery attempt is counted before the unit of work starts, and the count survives this process. Every fault is
    raised, and the submission is due again later. A transient fault does not count as an attempt, any other does.
    """
    counted = delivery_attempts.count_attempt(engine, submission_id)
    if counted is not None and counted > settings.max_deliveries:
        delivery_attempts.dead_letter(engine, submission_id, settings.max_deliveries)
        counted = None
    if counted is None:
        return _settled(engine, submission_id)
    try:
        return _apply(engine, submission_id, settings, lock_timeout_ms)
    except Exception as error:
        delivery_attempts.record_fault(engine, submission_id, error)
        raise


def _settled(engine: Engine, submission_id: int) -> Applied | None:
    statement = select(Submission.state, Submission.detail).where(Submission.id == submission_id)
    with engine.connect() as connection:
        row = connection.execute(statement).one_or_none()
    return None if row is None else Applied(row.state, detail=row.detail)


def _apply(engine: Engine, submission_id: int, settings: Settings, lock_timeout_ms: int) -> Applied:
    with unit_of_work(engine, "apply_result", submission=submission_id) as connection:
        submission = connection.execute(
            select(
                Submission.id,
                Submission.state,
                Submission.detail,
                Submission.payload,
                Submission.attempt_id,
                func.set_config("lock_timeout", str(lock_timeout_ms), True),
            )
            .where(Submission.id == submission_id)
            .with_for_update()
        ).one()
        if submission.state != "received":
            return Applied(submission.state, detail=submission.detail)
        result = SubmitResult.model_validate(submission.payload)
        try:
            with savepoint(connection):
                outcome, to_publish = _apply_verified(connection, submission, result, settings)
        except ResultRejectedError as refusal:
            _settle_rejected(connection, submission_id, refusal)
            return Applied("rejected", detail=f"{refusal.reason}: {refusal}")
        _settle_applied(connection, submission_id, outcome)
        return Applied(outcome.state, outcome.factor_status, to_publish=to_publish)


def _apply_verified(
    connection: Connection, submission: Row[Any], result: SubmitResult, settings: Settings
) -> tuple[Outcome, list[jobs.JobRef]]:
    """Run steps 2 to 7; the caller rolls them back if this raises ResultRejectedError."""
    to_publish: list[jobs.JobRef] = []
    notes: list[str] = []
    found, group = _lock(connection, result, settings, notes)
    composite = next(row for row in group if row.id == found.id)
    if composite.is_prime and composite.is_fully_factored:
        raise ResultRejectedError(
            "composite_is_prime", f"{shorten(result.composite)} is prime; there is nothing to factor"
        )
    divisors = _verify_claims(connection, found.id, result, settings, notes)
    if found.is_new_spelling:
        registry.learn_spelling(connection, found.id, result.composite)
    value_id, target_ids = _worked_value(connection, composite, result, settings)
    lease_id = None if found.lease is None else found.lease.id
    attempt_id, repeated = _record_attempt(
        connection, submission, composite, result, group=group, value_id=value_id, lease_id=lease_id
    )
    if not repeated:
        _add_effort(connection, target_ids, value_id, result)
    # The residue comes first: using factors may finish the number, and close its residues.
    stage2 = _settle_residue(connection, attempt_id, result, notes, found=bool(divisors))
    to_publish += stage2.to_publish if stage2 else []

    new_factors = False
    if divisors or found.is_new:
        budget = Budget(settings.arithmetic_seconds)
        members = families.load_family(connection, [row.id for row in group], settings.max_digits)
        credited = [divisor.credited(attempt_id, result.client_id, result.method) for divisor in divisors]
        try:
            change = families.use_divisors(connection, members, credited, found_on=composite.id, budget=budget)
        except families.TreeTooLargeError as error:
            raise ResultRejectedError("too_many_factors", f"{shorten(result.composite)}: {error}") from error
        new_factors = bool(change.new)
        to_publish += change.to_publish
        if found.is_new:
            to_publish += families.resolve_new(connection, members, budget).to_publish

    if found.lease is not None and not repeated:
        lease_lifecycle.count_curves(connection, [(found.lease, [result])])
    of_group = targets.ids_of(connection, [row.id for row in group])
    lease_lifecycle.refresh_eligibility(connection, sorted({*of_group, *target_ids}))
    if result.project:
        registry.join_project(connection, composite.id, result.project)

    if new_factors:
        status = "new_factor"
    elif repeated:
        status = "duplicate"
    else:
        status = "known_factor" if divisors else "no_factor"
    state = "duplicate" if repeated else "applied"
    message = "; ".join([summary(status, result, divisors), *notes])
    is_completed = stage2 and stage2.is_completed
    levels = select(Composite.current_t_level, Composite.target_t_level).where(Composite.id == composite.id)
    now = connection.execute(levels).one()
    return Outcome(
        state,
        attempt_id,
        composite.id,
        status,
        message,
        now.current_t_level,
        now.target_t_level,
        is_completed,
    ), to_publish


class _FoundComposite(NamedTuple):
    """The composite that a result belongs to, and the lease of it that the result names."""

    id: int
    root_id: int
    is_new: bool = False
    is_new_spelling: bool = False
    lease: AnyRow | None = None


def _lock(
    connection: Connection, result: SubmitResult, settings: Settings, notes: list[str]
) -> tuple[_FoundComposite, list[Row[Any]]]:
    """Find or register the composite; lock the families that share work with it, and their targets."""
    found = _find_or_register(connection, result, settings, notes)
    group = registry.lock_group(connection, found.root_id)
    if found.id not in {row.id for row in group}:
        # An operator has deleted the composite or its root since it was found, so this time it is registered.
        notes.clear()
        found = _find_or_register(connection, result, settings, notes)
        group = registry.lock_group(connection, found.root_id)
    return found, group


def _find_or_register(
    connection: Connection, result: SubmitResult, settings: Settings, notes: list[str]
) -> _FoundComposite:
    """Return the composite of a result. Raises ResultRejectedError for a number that cannot be a composite.

    A result that names a lease belongs to the leased number if its value is one that this number has had. Otherwise it
    belongs to the number that its value names, and the lease is used only if that is of the same family.
    """
    lease = None
    if result.work_id:
        lease, note = lease_lifecycle.find_lease(connection, result.work_id, result.client_id)
        notes += [note] if note else []
    try:
        if lease is not None and _has_had(connection, lease.composite_id, result.composite, settings):
            (root_id,) = registry.roots_of(connection, [lease.composite_id])
            return _FoundComposite(lease.composite_id, root_id, lease=lease)
        known = registry.find(connection, result.composite, settings.max_digits)
        if known is not None:
            if lease is not None and registry.roots_of(connection, [lease.composite_id]) != [known.root_id]:
                notes.append(f"work_id {lease.id} leases another number; the result counts without it")
                lease = None
            return _FoundComposite(known.id, known.root_id, is_new_spelling=known.is_new_spelling, lease=lease)
        value = evaluate_number(result.composite, settings.max_digits)
    except ExpressionError as error:
        raise ResultRejectedError(error.reason, error.detail) from error
    if lease is not None:
        notes.append(f"work_id {lease.id} leases another number; the result counts without it")
    if digit_count(value) > settings.max_digits_unknown:
        raise ResultRejectedError(
            "unknown_composite",
            f"{shorten(result.composite)} has {digit_count(value)} digits, and is no number of this server; an operator"
            f" must load numbers of more than {settings.max_digits_unknown} digits (MAX_DIGITS_UNKNOWN)",
        )
    if not settings.accept_unknown_composites:
        raise ResultRejectedError(
            "unknown_composite",
            f"{shorten(result.composite)} is not a number of this server; it must be loaded before results count",
        )
    prime = is_probable_prime(value) if digit_count(value) <= PRIMALITY_AT_ONCE_DIGITS else None
    if prime:
        raise ResultRejectedError(
            "composite_is_prime", f"{shorten(result.composite)} is prime; there is nothing to factor"
        )
    new_id = registry.register(connection, result.composite, value, is_prime=prime, registered_by=result.client_id)
    return _FoundComposite(new_id, registry.roots_of(connection, [new_id])[0], is_new=True)


def _has_had(connection: Connection, composite_id: int, written: str, settings: Settings) -> bool:
    """Return whether a composite has had the value `written`. Raises ExpressionError."""
    of_composite = select(CompositeAlias.value_sha256).where(CompositeAlias.composite_id == composite_id)

    def is_alias(text: str) -> bool:
        return connection.execute(of_composite.where(CompositeAlias.value_sha256 == sha256(text))).first() is not None

    if is_alias(written):
        return True
    if written.isascii() and written.isdigit():
        return False
    return is_alias(decimal(evaluate_number(written, settings.max_digits)))


def _worked_value(
    connection: Connection, composite: Row[Any], result: SubmitResult, settings: Settings
) -> tuple[int, list[int]]:
    """Return (the id of the value that the curves were run on, the targets for which they count).

    A value that no curve was run on before gets its row, and is linked to these targets.
    """
    value_sha256 = _value_sha256(connection, composite, result.composite)
    known = values.find_worked(connection, [value_sha256]) if value_sha256 is not None else {}
    if value_sha256 is not None and value_sha256 in known:
        value_id = known[value_sha256]
        return value_id, targets.lock_of_values(connection, [value_id])
    value = evaluate_number(result.composite, settings.max_digits)
    text = decimal(value)
    value_id = values.find_or_add_worked(connection, {sha256(text): text})[sha256(text)]
    target_changes.link_value(connection, value_id, value, composite.id)
    return value_id, targets.lock_of_values(connection, [value_id])


def _value_sha256(connection: Connection, composite: Row[Any], written: str) -> bytes | None:
    """Return the hash of the value that a spelling of a composite means; None if the spelling is not stored."""
    alias = (
        select(CompositeAlias.kind)
        .where(CompositeAlias.value_sha256 == sha256(written), CompositeAlias.composite_id == composite.id)
        .limit(1)
    )
    kind = connection.execute(alias).scalar_one_or_none()
    if kind is None:
        return None
    return bytes(composite.value_sha256) if kind == registry.NUMBER else sha256(written)


def _verify_claims(
    connection: Connection, composite_id: int, result: SubmitResult, settings: Settings, notes: list[str]
) -> list[Divisor]:
    """Return the claimed proper factors, each of which was proved to divide the registered number.

    1 and the number itself ("found input number") are left out with a note. If any claim does not divide, all are
    rejected, because a client with one wrong factor may have more faults: raises ResultRejectedError with the claims
    that do divide.
    """
    if not result.claims:
        return []
    written = connection.execute(select(Composite.number).where(Composite.id == composite_id)).scalar_one()
    number = evaluate_stored(written, settings.max_digits)
    divisors: list[Divisor] = []
    wrong: list[str] = []
    distinct: set[mpz] = set()
    together = mpz(1)
    for claim in result.claims:
        try:
            value = evaluate(claim.factor, settings.max_digits)
        except ExpressionError as error:
            raise ResultRejectedError(error.reason, error.detail) from error
        if value in (1, number):
            notes.append(f"{shorten(claim.factor)} is no proper factor and was left out")
        elif value < 1 or number % value != 0:
            wrong.append(shorten(claim.factor))
        else:
            divisors.append(_divisor(value, claim, result))
            together *= 1 if value in distinct else value
            distinct.add(value)
    if together > number:
        # Else one result could record a multiple of its number's size.
        raise ResultRejectedError(inbox.FACTORS_EXCEED_NUMBER, inbox.factors_exceed_number(written))
    if wrong:
        raise ResultRejectedError(
            "factor_does_not_divide",
            f"{', '.join(wrong[:5])} does not divide {shorten(written)}; check that the factor belongs to this number",
            true_factors=[decimal(divisor.value) for divisor in divisors],
        )
    return divisors


def _divisor(value: mpz, claim: FoundFactor, result: SubmitResult) -> Divisor:
    if claim.sigma is None:
        return Divisor(value, SUBMITTED)
    parametrization, sigma = split_sigma(claim.sigma)
    own = result.parametrization if parametrization is None else parametrization
    return Divisor(value, SUBMITTED, sigma=sigma, parametrization=own)


def _record_attempt(
    connection: Connection,
    submission: Row[Any],
    composite: Row[Any],
    result: SubmitResult,
    *,
    group: list[Row[Any]],
    value_id: int,
    lease_id: UUID | None,
) -> tuple[int, bool]:
    """Insert the attempt; returns (its id, False), or (the id of the attempt that recorded the same curves, True).

    Curves that were sent for another number with the same target are the same curves.
    """
    values_of_row = attempt_values(submission.id, submission.attempt_id, composite.id, value_id, result)
    values_of_row |= {"work_id": lease_id}
    sharing = [row.id for row in group if row.target_id == composite.target_id and row.id != composite.id]
    if values_of_row["curves_sha256"] is not None and sharing:
        hashes = [curves_sha256(composite_id, result) for composite_id in sharing]
        same = select(EcmAttempt.id).where(EcmAttempt.curves_sha256.in_(hashes)).order_by(EcmAttempt.id).limit(1)
        first_id = connection.execute(same).scalar_one_or_none()
        if first_id is not None:
            return first_id, True
    recorded = connection.execute(
        insert(EcmAttempt)
        .values(values_of_row)
        .on_conflict_do_nothing(index_elements=[EcmAttempt.curves_sha256])
        .returning(EcmAttempt.id)
    ).scalar_one_or_none()
    if recorded is not None:
        return recorded, False
    first = select(EcmAttempt.id).where(EcmAttempt.curves_sha256 == values_of_row["curves_sha256"])
    return connection.execute(first).scalar_one(), True


# The columns of `ecm_attempts` that a result determines.
ATTEMPT_COLUMNS = (
    "id",
    "composite_id",
    "value_id",
    "submission_id",
    "client_id",
    "method",
    "program",
    "program_version",
    "b1",
    "b2",
    "parametrization",
    "curves",
    "sigma",
    "execution_time",
    "curves_sha256",
)


def attempt_values(
    submission_id: int, attempt_id: int, composite_id: int, value_id: int, result: SubmitResult
) -> dict[str, Any]:
    """Return ATTEMPT_COLUMNS of a result, by name."""
    return {
        "id": attempt_id,
        "composite_id": composite_id,
        "value_id": value_id,
        "submission_id": submission_id,
        "client_id": result.client_id,
        "method": result.method,
        "program": result.program,
        "program_version": result.program_version,
        "b1": result.parameters.b1,
        "b2": result.b2 if result.parameters.b1 is not None else None,
        "parametrization": result.parametrization if result.method == "ecm" else None,
        "curves": result.curves,
        "sigma": " ".join(value for _, value in result.sigmas) or None,
        "execution_time": result.results.execution_time,
        "curves_sha256": curves_sha256(composite_id, result),
    }


def curves_sha256(composite_id: int, result: SubmitResult) -> bytes | None:
    """Hash what identifies curves: number, method, bounds, parametrization, sigmas and count; None without sigma."""
    if not result.sigmas:
        return None
    stated = result.parameters.parametrization
    sigmas = []
    for prefix, value in result.sigmas:
        own = result.parametrization if stated is not None or prefix is None else prefix
        sigmas.append(f"{own}:{int(value)}")
    parts = [composite_id, result.method, result.parameters.b1, result.b2, result.curves, *sorted(sigmas)]
    return hashlib.sha256(" ".join(map(str, parts)).encode()).digest()


def _add_effort(connection: Connection, target_ids: list[int], value_id: int, result: SubmitResult) -> None:
    """Add the run to the sums of its value and to the vectors of its locked targets, at constant cost."""
    run = run_of(result)
    has_curves = result.method == "ecm" and result.curves > 0
    if has_curves:
        ledger.add(connection, {ledger.Account(value_id, *run): result.curves})
    changes: dict[str, Any] = {"attempt_count": Target.attempt_count + 1, "last_attempt_at": func.clock_timestamp()}
    if reached_b1 := reached_p1_bound(result):
        column = Target.pm1_b1 if result.method == "pm1" else Target.pp1_b1
        changes[column.key] = func.greatest(column, reached_b1)
    for target in targets.lock(connection, target_ids):
        if has_curves:
            vector = effort.add_curves(target.effort, result.curves, *run)
            changes |= {"effort": vector, "current_t_level": effort.t_level(vector)}
        connection.execute(update(Target).where(Target.id == target.id).values(changes))
    targets.copy_to_composites(connection, target_ids)


def _settle_residue(
    connection: Connection, attempt_id: int, result: SubmitResult, notes: list[str], *, found: bool
) -> residue_claims.ResidueCompletion | None:
    """Settle the residue that a result names; None if it names none, or (with a note) one that does not fit."""
    if result.residue_id is None and result.residue_checksum is None:
        return None
    stage2, note = residue_claims.settle_stage2(connection, attempt_id, result, found=found)
    notes.append(stage2.message if stage2 else note or "")
    return stage2


def run_of(result: SubmitResult) -> tuple[int, int, int]:
    """Return (B1, B2, parametrization) of the curves of a result."""
    return result.parameters.b1 or 0, result.b2, result.parametrization


def reached_p1_bound(result: SubmitResult) -> int:
    """Return the B1 of a P-1 or P+1 run with stage 2; 0 for any other run."""
    is_complete = result.method in ("pm1", "pp1") and result.b2 != STAGE1_ONLY and result.curves > 0
    return result.parameters.b1 or 0 if is_complete else 0


def summary(status: str, result: SubmitResult, divisors: list[Divisor]) -> str:
    """Return a sentence for people about what this result changed."""
    found = ", ".join(shorten(decimal(divisor.value)) for divisor in divisors[:5])
    return {
        "new_factor": f"Result applied, new factor: {found}",
        "known_factor": f"Result applied, factor known before: {found}",
        "no_factor": f"Result applied, {result.curves} curves without a factor",
        "duplicate": "These curves were recorded before; nothing was added",
    }[status]


def _settle_applied(connection: Connection, submission_id: int, outcome: Outcome) -> None:
    connection.execute(
        update(Submission)
        .where(Submission.id == submission_id)
        .values(
            state=outcome.state,
            composite_id=outcome.composite_id,
            detail=None,
            outcome=outcome.answer(),
            settled_at=func.clock_timestamp(),
        )
    )


def _settle_rejected(connection: Connection, submission_id: int, refusal: ResultRejectedError) -> None:
    connection.execute(
        update(Submission)
        .where(Submission.id == submission_id)
        .values(
            state="rejected",
            reason=refusal.reason,
            detail=str(refusal),
            outcome={"true_factors": refusal.true_factors} if refusal.true_factors else None,
            settled_at=func.clock_timestamp(),
        )
    )
