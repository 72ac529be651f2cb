"""Receiving results: check their shape, store them, publish them to the workers, and answer with their outcome."""

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
import structlog
from flask import Response, current_app, request
from pydantic import ValidationError
from sqlalchemy import Row

from coordinator.base.unit_of_work import is_transient
from coordinator.numbers.expressions import ExpressionError
from coordinator.results import inbox
from ingest import client_authentication, openapi, rate_limits, web_metrics
from ingest.problems import ProblemError, database_away, invalid, unreadable_number
from ingest.request_bodies import parse_json, read_body, received_body, without_nul
from ingest.view_context import engine, settings
from models.wire.common import PRINTABLE, SubmissionStatePath
from models.wire.results import BatchAnswer, ResultAnswer, SubmissionStatus, SubmitResult
from tasks import publishing

log = structlog.get_logger("results")

results = openapi.blueprint("results", openapi.RESULTS)

MOST_IN_A_BATCH = 1000
LONGEST_KEY = 200
LONGEST_WAIT = 20.0
SECONDS = re.compile("[0-9]+")

Answer = TypeVar("Answer")


@results.post(
    "/submit_result",
    operation_id="submit_result",
    security=openapi.BY_CLIENT,
    request_body=openapi.takes(SubmitResult),
    openapi_extensions=openapi.reads_headers("Prefer", "Idempotency-Key"),
    responses={
        200: ResultAnswer,
        202: ResultAnswer,
        400: openapi.problem(
            "The result was rejected and nothing but the submission was recorded: `factor_does_not_divide`, "
            "`composite_is_prime`, ...; or `bad_request`"
        ),
        404: openapi.problem("`unknown_composite`: this server takes results for its own numbers only"),
        422: openapi.problem("`invalid`, `malformed`, ...: nothing was stored; or `idempotency_key_reused`"),
        **openapi.CLIENT_KEY,
    },
)
def submit_result() -> Response:
    """Store one result, publish it, and answer with its outcome if a worker settles it within the wait."""
    result = read_body(SubmitResult)
    client_authentication.require_own_name(result.client_id)
    rate_limits.limit_client(result.client_id)
    inbox.check_numbers(result, settings().max_digits)
    # Check the headers before anything is stored.
    key, seconds = _idempotency_key(), _wait_seconds(settings().default_wait)
    receipt = _store_with_retries(
        lambda: current_app.config["INTAKE"].receive(
            result,
            key=key,
            max_raw_output=settings().max_raw_output,
            implicit_key_window=settings().implicit_key_window,
            request_id=request.environ.get("ecm.request_id"),
        ),
        settings().database_timeout,
    )
    web_metrics.RESULTS.labels("replayed" if receipt.replay else "stored").inc()
    settled = receipt.settled
    if settled is None and receipt.is_published:
        settled = current_app.config["OUTCOMES"].wait(receipt.submission_id, seconds)
    if settled is None or settled.state == "failed":
        return _accepted(receipt, settled)
    return _settled(settled, receipt.replay)


@results.post(
    "/submit_results",
    operation_id="submit_results",
    security=openapi.BY_CLIENT,
    request_body=openapi.takes_many(SubmitResult, MOST_IN_A_BATCH),
    responses={
        200: BatchAnswer,
        422: openapi.problem("`malformed`: the body is no batch; or `batch_too_large`"),
        **openapi.CLIENT_KEY,
    },
)
def submit_results() -> Response:
    """Store up to 1,000 results (a JSON array or NDJSON) with a verdict for each; an invalid result affects no other.

    An array that is not valid JSON is refused as a whole (422), because the end of each result is unknown. With NDJSON
    such a fault affects its line only.
    """
    items = _batch_items()
    verdicts: list[dict[str, Any]] = []
    valid: list[tuple[int, SubmitResult]] = []
    for index, item in enumerate(items):
        try:
            result = SubmitResult.model_validate(parse_json(item) if isinstance(item, bytes) else without_nul(item))
            client_authentication.require_own_name(result.client_id)
            inbox.check_numbers(result, settings().max_digits)
        except (ValidationError, ExpressionError, ProblemError) as error:
            verdicts.append({"index": index, **_refusal(_as_problem(error))})
        else:
            valid.append((index, result))
    rate_limits.limit_batch(len(items), Counter(result.client_id for _, result in valid))
    receipts = _store_with_retries(
        lambda: inbox.receive_many(
            engine(),
            [(result, None) for _, result in valid],
            max_raw_output=settings().max_raw_output,
            implicit_key_window=settings().implicit_key_window,
            request_id=request.environ.get("ecm.request_id"),
        ),
        settings().database_timeout,
    )
    waiting = []
    for (index, result), receipt in zip(valid, receipts, strict=True):
        if isinstance(receipt, inbox.IdempotencyKeyReusedError):
            verdicts.append({"index": index, **_refusal(_key_reused())})
            continue
        web_metrics.RESULTS.labels("replayed" if receipt.replay else "stored").inc()
        if receipt.settled is None:
            waiting.append((receipt.submission_id, result.client_id, result.composite))
        verdicts.append({"index": index, **_verdict(receipt)})
    publish(waiting)
    verdicts.sort(key=lambda verdict: verdict["index"])
    refused = sum(verdict["status"] == "refused" for verdict in verdicts)
    return _json({"accepted": len(items) - refused, "refused": refused, "results": verdicts}, 200)


@results.get(
    "/submissions/<int:submission_id>",
    operation_id="submission_state",
    responses={200: SubmissionStatus, 404: openapi.problem("`unknown_submission`")},
)
def submission_state(path: SubmissionStatePath) -> Response:
    """Return the state of a submission, and its outcome once it is settled."""
    row = None
    if path.submission_id < 2**63:
        row = inbox.submission_row(engine(), path.submission_id)
    if row is None:
        raise ProblemError(404, "unknown_submission", f"There is no submission {str(path.submission_id)[:30]}.")
    # The attempt id that a duplicate reserved was never used: its outcome names the attempt that counted.
    outcome = _success(row) if row.state in ("applied", "duplicate") else None
    return _json(
        {
            "submission_id": row.id,
            "client_id": row.client_id,
            "state": row.state,
            "created_at": row.created_at.isoformat(),
            "settled_at": row.settled_at and row.settled_at.isoformat(),
            "tries": row.tries,
            "attempt_id": row.attempt_id if row.state == "received" else outcome and outcome["attempt_id"],
            "composite_id": row.composite_id,
            "reason": row.reason,
            "detail": row.detail,
            "outcome": outcome,
        },
        200,
    )


def _batch_items() -> list[Any]:
    """Return the values of an array, or the lines still to be parsed.

    A line that is not valid JSON is refused alone; an array that is not valid JSON is refused as a whole, because the
    end of each result is unknown.
    """
    body = received_body()
    is_array = body.lstrip()[:1] == b"["
    items = parse_json(body, nul_allowed=True) if is_array else [line for line in body.splitlines() if line.strip()]
    if not items:
        raise ProblemError(
            422, "malformed", "The batch is empty; send a JSON array or one JSON object a line.", errors=[]
        )
    if len(items) > MOST_IN_A_BATCH:
        detail = f"The batch has {len(items)} results; send at most {MOST_IN_A_BATCH} at a time."
        raise ProblemError(422, "batch_too_large", detail, errors=[])
    return items


def _verdict(receipt: inbox.Receipt) -> dict[str, Any]:
    """Return the verdict on a stored result; on a replay it is the outcome of the first submission."""
    first = receipt.settled
    if first is None:
        return {"status": "accepted", "submission_id": receipt.submission_id, "attempt_id": receipt.attempt_id}
    if first.state == "rejected":
        return {"status": "refused", "submission_id": first.id, "reason": first.reason, "detail": first.detail}
    if first.state == "failed":
        ids = {"submission_id": first.id, "attempt_id": receipt.attempt_id}
        return {"status": "accepted", **ids, "reason": first.reason, "detail": _failure(first)}
    return {"status": "success", "submission_id": first.id, "attempt_id": first.outcome["attempt_id"]}


def _refusal(problem: ProblemError) -> dict[str, Any]:
    return {"status": "refused", "reason": problem.reason, "detail": problem.detail}


def _as_problem(error: ValidationError | ExpressionError | ProblemError) -> ProblemError:
    if isinstance(error, ValidationError):
        return invalid(error)
    return unreadable_number(error) if isinstance(error, ExpressionError) else error


def _idempotency_key() -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not (0 < len(key) <= LONGEST_KEY and PRINTABLE.fullmatch(key)):
        detail = f"Idempotency-Key should be 1 to {LONGEST_KEY} printable characters."
        raise ProblemError(422, "malformed", detail, errors=[{"field": "Idempotency-Key", "message": detail}])
    return key


def publish(stored: list[tuple[int, str, str]]) -> bool:
    """Publish stored results (id, client, composite); returns whether that worked.

    Never raises: a stored result must not get an error.
    """
    try:
        return publishing.publish_submissions(stored)
    except Exception:
        log.exception("Publishing results failed; housekeeping will publish them", count=len(stored))
        return False


def _wait_seconds(default: float) -> float:
    """Return the seconds to wait (RFC 7240): from `Prefer: respond-async` or `Prefer: wait=N`, else `default`."""
    prefer = request.headers.get("Prefer")
    if not prefer:
        return default
    preferences = [preference.strip().lower() for preference in prefer.split(",")]
    if "respond-async" in preferences:
        return 0.0
    for preference in preferences:
        name, _, value = preference.partition("=")
        if name.strip() == "wait":
            # RFC 7240: a preference that is not understood is ignored. float() accepts any number of digits (inf).
            seconds = value.strip().strip('"')
            return min(LONGEST_WAIT, float(seconds)) if SECONDS.fullmatch(seconds) else default
    return default


def _store_with_retries(store: Callable[[], Answer], seconds: float) -> Answer:
    """Return `store()`, retried for at most `seconds` while the database is away; raises a 503 problem then."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return store()
        except inbox.IdempotencyKeyReusedError:
            raise _key_reused() from None
        except Exception as error:
            if not is_transient(error):
                raise
            if time.monotonic() >= deadline:
                raise database_away() from error
        time.sleep(0.2)


def _key_reused() -> ProblemError:
    detail = "This Idempotency-Key was used before for a different result; give every result a key of its own."
    return ProblemError(422, "idempotency_key_reused", detail, errors=[{"field": "Idempotency-Key", "message": detail}])


def _failure(row: Row[Any]) -> str:
    """Return what a client is told about a stored result that could not be applied."""
    why = f"Result stored, and not applied ({row.detail})"
    return f"{why}; an operator has to look at it, and sending it again changes nothing"


def _accepted(receipt: inbox.Receipt, failed: Row[Any] | None = None) -> Response:
    body = {
        "status": "accepted",
        "submission_id": receipt.submission_id,
        "attempt_id": receipt.attempt_id,
        "composite_id": None,
        "factor_status": None,
        "message": "Result stored; it will be applied soon" if failed is None else _failure(failed),
        "current_t_level": None,
        "target_t_level": None,
    }
    response = _json(body, 202)
    response.headers["Location"] = f"/api/v1/submissions/{receipt.submission_id}"
    return response


def _settled(row: Row[Any], replay: bool) -> Response:
    if row.state == "rejected":
        status = 404 if row.reason == "unknown_composite" else 400
        raise ProblemError(status, row.reason, row.detail, submission_id=row.id)
    body = _success(row)
    if replay:
        body["factor_status"] = "duplicate"
        body["message"] = "This result was received before; nothing was added"
    return _json(body, 200)


def _success(row: Row[Any]) -> dict[str, Any]:
    return {"status": "success", "submission_id": row.id, **row.outcome}


def _json(body: dict[str, Any], status: int) -> Response:
    return Response(orjson.dumps(body), status, content_type="application/json")
