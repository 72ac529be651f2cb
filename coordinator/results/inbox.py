"""The inbox: stores a result durably as it comes in, and reads the state of stored results.

This module checks only that a result is readable and whether it was sent before; coordinator/results/applying.py
applies it.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, Engine, Row, Table, bindparam, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from coordinator.base import clock
from coordinator.base.many_rows import arrays, rows_of_arrays
from coordinator.base.unit_of_work import run_statement, unit_of_work
from coordinator.numbers.expressions import LONGEST_EXPRESSION, ExpressionError, parse, parse_number, shorten
from models.tables import Submission
from models.wire.results import SubmitResult

# A result rejected for one of these reasons may be accepted later, so it is queued again when it is sent again.
PASSING_REASONS = ("unknown_composite",)
FACTORS_EXCEED_NUMBER = "factors_exceed_number"
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
_STORED = (
    "client_id",
    "idempotency_key",
    "key_is_implicit",
    "payload_sha256",
    "payload",
    "raw_output",
    "request_id",
)
# A row of another transaction with the same key holds up the results that are stored with it no longer than this.
_KEY_TIMEOUT = func.set_config("lock_timeout", "100", True).is_not(None)
_STORE_NEW = (
    insert(SUBMISSIONS)
    .from_select(_STORED, select(rows_of_arrays(SUBMISSIONS, _STORED)).where(_KEY_TIMEOUT), include_defaults=False)
    .on_conflict_do_nothing(constraint="submissions_key")
    .returning(SUBMISSIONS.c.id, SUBMISSIONS.c.attempt_id, SUBMISSIONS.c.client_id, SUBMISSIONS.c.idempotency_key)
)
_SETTLED = select(*STATE_COLUMNS).where(
    Submission.id.in_(bindparam("ids", expanding=True)), Submission.state != "received"
)


class IdempotencyKeyReusedError(Exception):
    """The client has used this idempotency key for another result."""


@dataclass(frozen=True)
class Receipt:
    """The ids of a stored result. `replay`: it was sent before; `settled` is its row if it is settled already.

    `is_published`: workers were told that it waits.
    """

    submission_id: int
    attempt_id: int
    replay: bool = False
    settled: Row[Any] | None = None
    is_published: bool = False


def check_numbers(result: SubmitResult, max_digits: int) -> None:
    """Raise ExpressionError for a number that cannot be evaluated, before anything is stored.

    The same for factors that have more digits together than the number, as far as their sizes can be seen without
    computing them, and for too many characters in their expressions. `.field` of the error names the number's field.
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
    characters = 0
    sizes: dict[str, float] = {}
    try:
        number = parse_number(result.composite, max_digits).root
        for field, text in numbers:
            characters += 0 if text.isdigit() else len(text)
            if characters > LONGEST_EXPRESSION:
                detail = (
                    f"{shorten(text)} and the factors before it have more than {LONGEST_EXPRESSION} characters; "
                    "send them in decimal"
                )
                raise ExpressionError("number_too_large", detail)
            factor = parse(text, max_digits).root
            if factor.exact == 0:
                raise ExpressionError("malformed_number", f"{field} is 0, which divides nothing; leave it out")
            sizes[text] = max(0.0, factor.low)
        field = "results.factors_found"
        # Some programs name the number itself among its factors.
        least = sum(sorted(sizes.values())[: -1 if max(sizes.values(), default=0.0) > number.low - 1e-6 else None])
        if least > number.high + 1e-6:
            raise ExpressionError(FACTORS_EXCEED_NUMBER, factors_exceed_number(result.composite))
    except ExpressionError as error:
        error.field = field
        raise


def factors_exceed_number(written: str) -> str:
    """Return the sentence that refuses factors whose product is larger than their number."""
    return f"the factors together are larger than {shorten(written)}; send only factors of this number, and each once"


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
    return receive_row(engine, row, keeps_key=key is not None or bool(result.sigmas), window=implicit_key_window)


def receive_row(engine: Engine, row: dict[str, Any], *, keeps_key: bool, window: float) -> Receipt:
    """Store a row that `submission_values` made, as `receive` does; `keeps_key`: its key is good for ever."""
    with unit_of_work(engine, "receive_result", client=row["client_id"]) as connection:
        return _receive(connection, row, keeps_key=keeps_key, window=window)


def receive_new(engine: Engine, rows: list[dict[str, Any]]) -> list[Receipt | None]:
    """Store those of these rows whose keys are new, by one statement; returns a receipt, or None, for each, in order.

    They are durable when this returns.
    """
    # In the order of their keys, so that two such statements cannot deadlock.
    ordered = sorted(rows, key=_key)
    # The log line names all requests, so that each leads to its transaction.
    requests = sorted({row["request_id"] for row in rows if row["request_id"]})
    parameters = arrays(ordered, _STORED)
    stored = run_statement(engine, "receive_results", _STORE_NEW, parameters, count=len(rows), requests=requests)
    receipts = {(row.client_id, row.idempotency_key): Receipt(row.id, row.attempt_id) for row in stored}
    # Of two rows with one key, the first has the receipt; the second is a replay.
    return [receipts.pop(_key(row), None) for row in rows]


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["client_id"], row["idempotency_key"]


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


def _receive(connection: Connection, row: dict[str, Any], *, keeps_key: bool, window: float) -> Receipt:
    new = connection.execute(_STORE, row).one_or_none()
    if new is not None:
        return Receipt(new.id, new.attempt_id)
    same_key = (
        Submission.client_id == row["client_id"],
        Submission.idempotency_key == row["idempotency_key"],
    )
    if not keeps_key:
        # The window of the older submission is over: it keeps its row, and its key becomes free.
        older = func.now() - clock.interval(window)
        connection.execute(
            update(Submission)
            .where(*same_key, Submission.key_is_implicit, Submission.created_at <= older)
            .values(idempotency_key=func.concat(Submission.idempotency_key, literal("/"), Submission.id))
        )
        new = connection.execute(_STORE, row).one_or_none()
        if new is not None:
            return Receipt(new.id, new.attempt_id)
    first = connection.execute(select(*STATE_COLUMNS, Submission.payload_sha256).where(*same_key)).one()
    if first.payload_sha256 != row["payload_sha256"]:
        raise IdempotencyKeyReusedError(row["idempotency_key"])
    # A failed one has used up its tries, and held workers for as long: only an operator sends it again.
    if first.state == "rejected" and first.reason in PASSING_REASONS:
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
            due_at=func.now(),
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
                receipts[index] = _receive(connection, rows[index], keeps_key=is_kept, window=implicit_key_window)
            except IdempotencyKeyReusedError as error:
                receipts[index] = error
    return [receipts[index] for index in range(len(rows))]


def settled_rows(engine: Engine, submission_ids: list[int]) -> list[Row[Any]]:
    """Return the rows of the submissions among `submission_ids` that are settled."""
    with engine.connect() as connection:
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        return list(autocommit.execute(_SETTLED, {"ids": submission_ids}))


def submission_row(engine: Engine, submission_id: int) -> Row[Any] | None:
    """Return one submission's row, or None if it does not exist."""
    with engine.connect() as connection:
        return connection.execute(select(*STATE_COLUMNS).where(Submission.id == submission_id)).one_or_none()
