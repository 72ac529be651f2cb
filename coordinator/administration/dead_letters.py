"""Dead letters, the failed and rejected submissions: operators read and retry them, and accept their true factors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gmpy2 import mpz
from sqlalchemy import (
    ColumnElement,
    Engine,
    Row,
    Select,
    and_,
    case,
    false,
    func,
    null,
    select,
    true,
    union_all,
    update,
)

from coordinator.administration.edits import MAX_AUDITED, lock_members
from coordinator.base import audit, jobs
from coordinator.base.audit import Actor
from coordinator.base.errors import ConflictError, NotFoundError
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import families, registry
from coordinator.composites.families import Divisor
from coordinator.numbers.expressions import evaluate, shorten
from coordinator.numbers.factor_tree import SUBMITTED
from coordinator.results import inbox
from models.tables import Submission
from models.wire.results import SubmitResult, split_sigma

DEAD_STATES = ("failed", "rejected")
# The outcome of a rejected submission lists its claims that are true, until an operator accepts them.
_TRUE_FACTORS = Submission.outcome.has_key("true_factors")
_WITH_FACTORS = and_(Submission.state == "rejected", _TRUE_FACTORS)
_HOLDS_FACTORS = and_(Submission.state == "rejected", func.coalesce(_TRUE_FACTORS, false()))
COLUMNS = (*inbox.STATE_COLUMNS, Submission.payload, Submission.request_id)
# The payload of a larger result is not read for one line of a list.
LISTED_BYTES = 10_000
_LISTED = [column for column in inbox.STATE_COLUMNS if column.key != "outcome"]


class RetryReport(NamedTuple):
    """A dead letter after a retry or an acceptance: its state, its accepted and its new factors, jobs to publish."""

    state: str
    client_id: str
    composite: str
    accepted: list[str]
    new: list[str]
    to_publish: list[jobs.JobRef]


def list_dead_letters(
    engine: Engine,
    states: Sequence[str] = DEAD_STATES,
    *,
    limit: int = 100,
    after: tuple[bool, int] | None = None,
    most_bytes: int | None = None,
) -> list[Row[Any]]:
    """List submissions in these states: rejected ones with true factors first, then all others, each newest first.

    Every row has the `composite` that the submission names and its `true_factors` (null if `holds_factors` is false).
    Both are null as well if the stored column that holds them has more than `most_bytes` bytes. `after`, the
    `holds_factors` and id of a row, continues the list behind that row.
    """
    rows: list[Row[Any]] = []
    with engine.connect() as connection:
        for with_factors in (True, False):
            if after is not None and after[0] < with_factors:
                continue
            if with_factors and "rejected" not in states:
                continue
            beyond = after[1] if after is not None and after[0] == with_factors else None
            kinds = [_WITH_FACTORS] if with_factors else [_kind(state) for state in states]
            rows += connection.execute(_newest(kinds, beyond, limit - len(rows), most_bytes))
            if len(rows) >= limit:
                break
    return rows


def _newest(
    kinds: Sequence[ColumnElement[bool]], beyond: int | None, limit: int, most_bytes: int | None
) -> Select[Any]:
    """Select the newest submissions of all kinds; reads each kind from the end of its own index."""
    ids = [select(Submission.id).where(kind).order_by(Submission.id.desc()).limit(limit) for kind in kinds]
    if beyond is not None:
        ids = [newest.where(Submission.id < beyond) for newest in ids]
    chosen = union_all(*(select(newest.subquery().c.id) for newest in ids)).subquery()
    composite: ColumnElement[Any] = Submission.payload["composite"].astext
    true_factors: ColumnElement[Any] = Submission.outcome["true_factors"]
    if most_bytes is not None:
        composite = case((func.pg_column_size(Submission.payload) <= most_bytes, composite))
        true_factors = case((func.pg_column_size(Submission.outcome) <= most_bytes, true_factors))
    claims = (composite.label("composite"), case((_HOLDS_FACTORS, true_factors)).label("true_factors"))
    columns = (*_LISTED, _HOLDS_FACTORS.label("holds_factors"), *claims)
    statement = select(*columns).join(chosen, chosen.c.id == Submission.id)
    return statement.order_by(Submission.id.desc()).limit(limit)


def _kind(state: str) -> ColumnElement[bool]:
    """Return the condition for submissions in `state`, without rejected ones that have true factors."""
    without_factors = and_(Submission.state == "rejected", _TRUE_FACTORS.is_not(true()))
    return without_factors if state == "rejected" else Submission.state == state


def read_submission(engine: Engine, submission_id: int) -> Row[Any]:
    """Return one submission with its payload and raw output. Raises NotFoundError."""
    columns = (*COLUMNS, Submission.raw_output, Submission.idempotency_key, _HOLDS_FACTORS.label("holds_factors"))
    with engine.connect() as connection:
        row = connection.execute(select(*columns).where(Submission.id == submission_id)).one_or_none()
    if row is None:
        raise _not_found(submission_id)
    return row


def retry(engine: Engine, actor: Actor, submission_id: int) -> RetryReport:
    """Queue a rejected or failed submission again, and reset its delivery attempts.

    Raises NotFoundError, and ConflictError for a submission in any other state.
    """
    with unit_of_work(engine, "retry_submission", submission=submission_id) as connection:
        row = _lock_dead_letter(connection, submission_id)
        inbox.requeue(connection, submission_id)
        before = {"state": row.state, "reason": row.reason, "tries": row.tries}
        audit.record(connection, actor, "retry", f"submission {submission_id}", before=before)
    return RetryReport("received", row.client_id, row.payload["composite"], [], [], [])


def accept_factors(engine: Engine, actor: Actor, submission_id: int, max_digits: int) -> RetryReport:
    """Use the true factors among the claims of a rejected submission, and credit them to its client.

    Every factor is proved to divide once more. The submission stays rejected, and its curves do not count. Raises
    NotFoundError, and ConflictError if the submission has no true factors or its number is unknown.
    """
    with unit_of_work(engine, "accept_factors", submission=submission_id) as connection:
        row = _lock_dead_letter(connection, submission_id)
        true = [mpz(text) for text in (row.outcome or {}).get("true_factors", [])]
        if not true:
            raise ConflictError(
                "no_true_factors", f"Submission {submission_id} holds no true factor; leave accept_factors out"
            )
        result = SubmitResult.model_validate(row.payload)
        found = registry.find(connection, result.composite, max_digits)
        if found is None:
            raise ConflictError(
                "unknown_composite", f"{shorten(result.composite)} is not a number of this server; load it"
            )
        members = lock_members(connection, found.id, max_digits)
        number = next(member.tree.number for member in members if member.id == found.id)
        divisors = [_credited(value, result, max_digits) for value in true if number % value == 0]
        change = families.use_divisors(connection, members, divisors, found_on=found.id)
        accepted = [divisor.value.digits() for divisor in divisors]
        named = ", ".join(shorten(text) for text in accepted[:5])
        connection.execute(
            update(Submission)
            .where(Submission.id == submission_id)
            .values(outcome=null(), detail=func.concat(Submission.detail, f" (an operator accepted {named})"))
        )
        used = {"composite_id": found.id, "factors": [shorten(text, MAX_AUDITED) for text in accepted]}
        target = f"submission {submission_id}"
        audit.record(connection, actor, "accept factors", target, before={"reason": row.reason}, after=used)
    new = [value.digits() for value in change.new]
    return RetryReport("rejected", row.client_id, result.composite, accepted, new, change.to_publish)


def _credited(value: mpz, result: SubmitResult, max_digits: int) -> Divisor:
    """Return the factor with the client, method, sigma and parametrization of its claim."""
    claim = next(claim for claim in result.claims if evaluate(claim.factor, max_digits) == value)
    prefix, sigma = (None, None) if claim.sigma is None else split_sigma(claim.sigma)
    own = result.parametrization if prefix is None else prefix
    return Divisor(
        value,
        SUBMITTED,
        client_id=result.client_id,
        method=result.method,
        sigma=sigma,
        parametrization=None if sigma is None else own,
    )


def _lock_dead_letter(connection: Any, submission_id: int) -> Row[Any]:
    """Lock a rejected or failed submission, and return its row. Raises NotFoundError, ConflictError."""
    lock = select(*COLUMNS).where(Submission.id == submission_id).with_for_update()
    row: Row[Any] | None = connection.execute(lock).one_or_none()
    if row is None:
        raise _not_found(submission_id)
    if row.state not in DEAD_STATES:
        raise ConflictError(
            "not_dead", f"Submission {submission_id} is {row.state}; only failed and rejected ones are retried"
        )
    return row


def _not_found(submission_id: int) -> NotFoundError:
    return NotFoundError("unknown_submission", f"There is no submission {submission_id}")
