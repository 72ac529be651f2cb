"""Submissions for operators: what was refused or failed, sent again by hand, and true factors that a refusal hides."""

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
# The outcome of a refused submission says which of its claims are true, until they are accepted.
_TRUE_FACTORS = Submission.outcome.has_key("true_factors")
_WITH_FACTORS = and_(Submission.state == "rejected", _TRUE_FACTORS)
_HOLDS_FACTORS = and_(Submission.state == "rejected", func.coalesce(_TRUE_FACTORS, false()))
COLUMNS = (*inbox.STATE_COLUMNS, Submission.payload, Submission.request_id)
# A result of megabytes is not taken out of storage to be shown in a line.
LISTED_BYTES = 10_000


_LISTED = [column for column in inbox.STATE_COLUMNS if column.key != "outcome"]


class RetryReport(NamedTuple):
    """What came of sending again or accepting: the state then, whom to ring for, factors accepted and those new."""

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
    """Submissions in these states: the refused ones with true factors first, then the others, the newest first.

    Each with the `composite` that it names and its `true_factors` (null if `holds_factors` is false); null, too, where
    what they are in takes more than `most_bytes` in storage. `after` goes on behind one of these rows, given by its
    `holds_factors` and its id.
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
    """The newest of each kind, and then of all: each kind has an index that is read from its end."""
    ids = [select(Submission.id).where(kind).order_by(Submission.id.desc()).limit(limit) for kind in kinds]
    if beyond is not None:
        ids = [one.where(Submission.id < beyond) for one in ids]
    chosen = union_all(*(select(one.subquery().c.id) for one in ids)).subquery()
    composite: ColumnElement[Any] = Submission.payload["composite"].astext
    true_factors: ColumnElement[Any] = Submission.outcome["true_factors"]
    if most_bytes is not None:
        composite = case((func.pg_column_size(Submission.payload) <= most_bytes, composite))
        true_factors = case((func.pg_column_size(Submission.outcome) <= most_bytes, true_factors))
    said = (composite.label("composite"), case((_HOLDS_FACTORS, true_factors)).label("true_factors"))
    columns = (*_LISTED, _HOLDS_FACTORS.label("holds_factors"), *said)
    statement = select(*columns).join(chosen, chosen.c.id == Submission.id)
    return statement.order_by(Submission.id.desc()).limit(limit)


def _kind(state: str) -> ColumnElement[bool]:
    """Submissions in a state, but for refused ones with true factors."""
    refused = and_(Submission.state == "rejected", _TRUE_FACTORS.is_not(true()))
    return refused if state == "rejected" else Submission.state == state


def read_submission(engine: Engine, submission_id: int) -> Row[Any]:
    """One submission with its payload and raw output. Raises Unknown."""
    columns = (*COLUMNS, Submission.raw_output, Submission.idempotency_key, _HOLDS_FACTORS.label("holds_factors"))
    with engine.connect() as connection:
        row = connection.execute(select(*columns).where(Submission.id == submission_id)).one_or_none()
    if row is None:
        raise _unknown(submission_id)
    return row


def retry(engine: Engine, actor: Actor, submission_id: int) -> RetryReport:
    """Queue a refused or failed submission again, with its tries forgotten. Raises Unknown, Conflict."""
    with unit_of_work(engine, "retry_submission", submission=submission_id) as connection:
        row = _lock_dead_letter(connection, submission_id)
        inbox.requeue(connection, submission_id)
        before = {"state": row.state, "reason": row.reason, "tries": row.tries}
        audit.record(connection, actor, "retry", f"submission {submission_id}", before=before)
    return RetryReport("received", row.client_id, row.payload["composite"], [], [], [])


def accept_factors(engine: Engine, actor: Actor, submission_id: int, max_digits: int) -> RetryReport:
    """Use the true factors among the claims of a refused submission, credited to its client; it stays refused.

    Each is proved to divide once more. Its curves count no more than before. Raises Unknown, and Conflict if it has no
    true factors, or its number is not known.
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
        change = families.use_divisors(connection, members, divisors)
        accepted = [one.value.digits() for one in divisors]
        told = ", ".join(shorten(text) for text in accepted[:5])
        connection.execute(
            update(Submission)
            .where(Submission.id == submission_id)
            .values(outcome=null(), detail=func.concat(Submission.detail, f" (an operator accepted {told})"))
        )
        used = {"composite_id": found.id, "factors": [shorten(text, MAX_AUDITED) for text in accepted]}
        target = f"submission {submission_id}"
        audit.record(connection, actor, "accept factors", target, before={"reason": row.reason}, after=used)
    new = [value.digits() for value in change.new]
    return RetryReport("rejected", row.client_id, result.composite, accepted, new, change.to_publish)


def _credited(value: mpz, result: SubmitResult, max_digits: int) -> Divisor:
    """The factor as its client claimed it."""
    claim = next(one for one in result.claims if evaluate(one.factor, max_digits) == value)
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
    """The refused or failed submission, locked. Raises Unknown, Conflict."""
    lock = select(*COLUMNS).where(Submission.id == submission_id).with_for_update()
    row: Row[Any] | None = connection.execute(lock).one_or_none()
    if row is None:
        raise _unknown(submission_id)
    if row.state not in DEAD_STATES:
        raise ConflictError(
            "not_dead", f"Submission {submission_id} is {row.state}; only failed and rejected ones are retried"
        )
    return row


def _unknown(submission_id: int) -> NotFoundError:
    return NotFoundError("unknown_submission", f"There is no submission {submission_id}")
