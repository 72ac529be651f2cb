"""The inbox: stores a result durably as it comes in, and reads the state of stored results.

This module checks only that a result is readable and whether it was sent before; coordinator/results/applying.py
applies it.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import Connection, Engine, Row, Table, bindparam, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from coordinator.base.unit_of_work import unit_of_work
from coordinator.numbers.expressions import ExpressionError, parse, parse_number
from models.tables import Submission
from models.wire.results import SubmitResult

# A result rejected for one of these reasons may be accepted later, so it is queued again when it is sent again.
PASSING_REASONS = ("unknown_composite",)
STATE_COLUMNS = (
    Submission.id,
    Submission.client_id,
    Submission.state,
    Submission.reason,
    Submission.detail,
    Submission.outcome,
    Submission.attempt_id,
    Submission.composite_id,
    Submission.tries,
    Submission.created_at,
    Submission.settled_at,
)
# On the plain table: building an insert with the ORM takes longer than running it.
SUBMISSIONS = cast(Table, Submission.__table__)
_STORE = (
    insert(SUBMISSIONS)
    .on_conflict_do_nothing(constraint="submissions_key")
    .returning(SUBMISSIONS.c.id, SUBMISSIONS.c.attempt_id)
)
_SETTLED = select(*STATE_COLUMNS).where(
    Submission.id.in_(bindparam("ids", expanding=True)), Submission.state != "received"
)


class IdempotencyKeyReusedError(Exception):
    """The client has used this idempotency key for another result."""


@dataclass(frozen=True)
class Receipt:
    """The ids of a stored result. `replay`: it was sent before; `settled` is its row if it is settled already."""

    submission_id: int
    attempt_id: int
    replay: bool = False
    settled: Row[Any] | None = None


def check_numbers(result: SubmitResult, max_digits: int) -> None:
    """Raise ExpressionError for a number that cannot be evaluated, before anything is stored.

    `.field` of the error names the number's field.
    """
    numbers: list[tuple[str, str]] = []
    if result.results.factors_found:
        numbers += [
            (f"results.factors_found.{index}.factor", found.factor)
            for index, found in enumerate(result.results.factors_found)
        ]
    elif result.results.factor_found:
        numbers.append(("results.factor_found", result.results.factor_found))
    field = "composite"
    try:
        parse_number(result.composite, max_digits)
        for field, text in numbers:
            if parse(text, max_digits).root.exact == 0:
                raise ExpressionError("malformed_number", f"{field} is 0, which divides nothing; leave it out")
    except ExpressionError as error:
        error.field = field
        raise


def receive(
    engine: Engine,
    result: SubmitResult,
    *,
    key: str | None,
    max_raw_output: int,
    implicit_key_window: float,
    request_id: str | None = None,
) -> Receipt:
    """Store one result; it is durable when this returns. A result that was sent before is only looked up.

    `key` is the client's Idempotency-Key, if it sent one. Else the hash of the payload is the key: for ever if the
    payload has a sigma, else for `implicit_key_window` seconds, because two honest runs without sigma can look alike.
    Raises IdempotencyKeyReusedError.
    """
    row = submission_values(result, key=key, max_raw_output=max_raw_output, request_id=request_id)
    with unit_of_work(engine, "receive_result", client=result.client_id) as connection:
        return _receive(
            connection,
            row,
            keeps_key=key is not None or bool(result.sigmas),
            window=timedelta(seconds=implicit_key_window),
        )


def submission_values(
    result: SubmitResult, *, key: str | None, max_raw_output: int, request_id: str | None
) -> dict[str, Any]:
    """Return the `submissions` row for a result: the payload as parsed, its hash, and the end of its raw output."""
    # Without defaults, so that a field added in a later version does not change old payloads' hashes.
    payload = result.model_dump(mode="json", exclude_defaults=True)
    canonical = result.model_dump_json(exclude_defaults=True)
    payload_sha256 = hashlib.sha256(canonical.encode()).digest()
    raw_output = payload.pop("raw_output", None)
    if raw_output is not None:
        raw_output = raw_output[-max_raw_output:] if max_raw_output else None
    return {
        "client_id": result.client_id,
        "idempotency_key": key if key is not None else payload_sha256.hex(),
        "key_is_implicit": key is None,
        "payload_sha256": payload_sha256,
        "payload": payload,
        "raw_output": raw_output,
        "request_id": request_id,
    }


def _receive(connection: Connection, row: dict[str, Any], *, keeps_key: bool, window: timedelta) -> Receipt:
    new = connection.execute(_STORE, row).one_or_none()
    if new is not None:
        return Receipt(new.id, new.attempt_id)
    same_key = (
        Submission.client_id == row["client_id"],
        Submission.idempotency_key == row["idempotency_key"],
    )
    if not keeps_key:
        # The window of the older submission is over: it keeps its row, and its key becomes free.
        connection.execute(
            update(Submission)
            .where(*same_key, Submission.key_is_implicit, Submission.created_at <= datetime.now(UTC) - window)
            .values(idempotency_key=func.concat(Submission.idempotency_key, literal("/"), Submission.id))
        )
        new = connection.execute(_STORE, row).one_or_none()
        if new is not None:
            return Receipt(new.id, new.attempt_id)
    first = connection.execute(select(*STATE_COLUMNS, Submission.payload_sha256).where(*same_key)).one()
    if first.payload_sha256 != row["payload_sha256"]:
        raise IdempotencyKeyReusedError(row["idempotency_key"])
    if first.state == "failed" or (first.state == "rejected" and first.reason in PASSING_REASONS):
        requeue(connection, first.id)
        return Receipt(first.id, first.attempt_id)
    return Receipt(first.id, first.attempt_id, replay=True, settled=None if first.state == "received" else first)


def requeue(connection: Connection, submission_id: int) -> None:
    """Queue a failed or rejected submission again, as if it had just come in; does nothing to any other."""
    connection.execute(
        update(Submission)
        .where(Submission.id == submission_id, or_(Submission.state == "failed", Submission.state == "rejected"))
        .values(
            state="received",
            tries=0,
            publish_count=0,
            published_at=func.now(),
            reason=None,
            detail=None,
            outcome=None,
            settled_at=None,
        )
    )


def receive_many(
    engine: Engine,
    results: list[tuple[SubmitResult, str | None]],
    *,
    max_raw_output: int,
    implicit_key_window: float,
    request_id: str | None = None,
) -> list[Receipt | IdempotencyKeyReusedError]:
    """Store a list of (result, key) in one unit of work; returns a receipt or an error for each, in order."""
    window = timedelta(seconds=implicit_key_window)
    rows = [
        submission_values(result, key=key, max_raw_output=max_raw_output, request_id=request_id)
        for result, key in results
    ]
    receipts: dict[int, Receipt | IdempotencyKeyReusedError] = {}
    with unit_of_work(engine, "receive_results", count=len(results)) as connection:
        # In the order of their keys, so that two batches with the same results cannot deadlock.
        for index in sorted(range(len(rows)), key=lambda i: (rows[i]["client_id"], rows[i]["idempotency_key"])):
            result, key = results[index]
            is_kept = key is not None or bool(result.sigmas)
            try:
                receipts[index] = _receive(connection, rows[index], keeps_key=is_kept, window=window)
            except IdempotencyKeyReusedError as error:
                receipts[index] = error
    return [receipts[index] for index in range(len(rows))]


def settled_rows(engine: Engine, submission_ids: list[int]) -> list[Row[Any]]:
    """Return the rows of the submissions among `submission_ids` that are settled."""
    with engine.connect() as connection:
        return list(connection.execute(_SETTLED, {"ids": submission_ids}))


def submission_row(engine: Engine, submission_id: int) -> Row[Any] | None:
    """Return one submission's row, or None if it does not exist."""
    with engine.connect() as connection:
        return connection.execute(select(*STATE_COLUMNS).where(Submission.id == submission_id)).one_or_none()
