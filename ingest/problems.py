"""Errors as RFC 9457 problems: never a stack trace, always a word for programs and a sentence for people."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

import orjson
import structlog
from flask import Flask, Response, request
from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from werkzeug.exceptions import HTTPException

from coordinator.base.cursors import InvalidCursorError
from coordinator.base.errors import ConflictError, DomainError, NotFoundError
from coordinator.base.unit_of_work import CONFLICTS, is_transient, sqlstate
from coordinator.numbers.expressions import ExpressionError, shorten
from ingest import protocol_errors
from models.wire.common import Name, printable

_NAME = TypeAdapter(Annotated[Name, AfterValidator(printable)])

log = structlog.get_logger("problems")

REASONS = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    429: "too_many_requests",
    500: "internal_error",
    503: "database_away",
} | protocol_errors.REASONS
RETRY_SECONDS = 5
RETRY = {"Retry-After": str(RETRY_SECONDS)}


class ProblemError(Exception):
    """Raised anywhere in a request to answer it with a problem; `more` are further members of its body."""

    def __init__(
        self, status: int, reason: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail, self.more = status, reason, detail, more
        self.headers = headers or {}

    def response(self) -> Response:
        """The problem as an answer to the current request."""
        _, body = problem_body(self.status, self.reason, self.detail, request.path[:200], **self.more)
        return Response(body, self.status, self.headers, content_type="application/problem+json")


def problem_body(status: int, reason: str, detail: str, instance: str, **more: Any) -> tuple[str, bytes]:
    """Return (title, JSON) of a problem."""
    title = HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "reason": reason}
    return title, orjson.dumps(body | {"instance": instance} | more)


def invalid(error: ValidationError, whole: str = "body") -> ProblemError:
    """Return a 422 problem that names each invalid field of the body (or of `whole`) and what it should be."""
    errors = [
        {"field": ".".join(map(str, item["loc"])) or whole, "message": _complaint(item)}
        for item in error.errors(include_url=False, include_context=False)[:100]
    ]
    first = errors[0]
    return ProblemError(422, "invalid", f"{first['field']}: {first['message']}", errors=errors)


def checked_name(field: str, value: str) -> str:
    """Return `value`, stripped, if it can be a client's name; else raise a 422 problem."""
    try:
        return _NAME.validate_python(value)
    except ValidationError as error:
        message = _complaint(error.errors(include_url=False, include_context=False)[0])
        raise ProblemError(
            422, "invalid", f"{field}: {message}", errors=[{"field": field, "message": message}]
        ) from error


def _complaint(item: ErrorDetails) -> str:
    """Return one validation error as a sentence, in JSON's words rather than Python's."""
    kind, given = item["type"], item["input"]
    if kind == "missing":
        return "is required"
    if kind == "value_error":  # our own validators', which name the value themselves
        return item["msg"].removeprefix("Value error, ")
    message = "should be an object" if kind.startswith("model_") else item["msg"].replace("Input should", "should")
    if isinstance(given, dict | list):
        return f"{message}; this is an {'array' if isinstance(given, list) else 'object'}"
    return f"{message}; this is {shorten(orjson.dumps(str(given) if _is_long(given) else given).decode())}"


def _is_long(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > 63


def unreadable_number(error: ExpressionError) -> ProblemError:
    """Return a 422 problem for a number that cannot be read or is too large."""
    return ProblemError(422, error.reason, error.detail, errors=[{"field": error.field, "message": error.detail}])


def database_away() -> ProblemError:
    """Return a 503 problem that says that nothing was read or stored, and when to ask again."""
    if request.method in ("GET", "HEAD"):
        detail = f"The database does not answer. Ask again in {RETRY_SECONDS} seconds."
    else:
        detail = f"The database does not answer; nothing was stored. Send the same again in {RETRY_SECONDS} seconds."
    return ProblemError(503, "database_away", detail, headers=RETRY)


def in_conflict() -> ProblemError:
    """Return a 503 problem that says that others were changing the same rows, and when to ask again."""
    detail = "Other requests were changing the same rows, so nothing was stored."
    return ProblemError(503, "busy", f"{detail} Send the same again in {RETRY_SECONDS} seconds.", headers=RETRY)


def of_refusal(error: DomainError) -> ProblemError:
    """Return the problem of a domain error: 404 for a NotFoundError, 409 for a ConflictError, 400 for any other."""
    status = 404 if isinstance(error, NotFoundError) else 409 if isinstance(error, ConflictError) else 400
    return ProblemError(status, error.reason, f"{error}.")


def answer_with_problems(app: Flask, respond: Callable[[ProblemError], Response] = ProblemError.response) -> None:
    """Make every error of the app a problem, which `respond` makes an answer."""

    @app.errorhandler(ProblemError)
    def _problem(error: ProblemError) -> Response:
        return respond(error)

    @app.errorhandler(ExpressionError)
    def _unreadable(error: ExpressionError) -> Response:
        return respond(unreadable_number(error))

    @app.errorhandler(DomainError)
    def _refused(error: DomainError) -> Response:
        return respond(of_refusal(error))

    @app.errorhandler(InvalidCursorError)
    def _bad_cursor(error: InvalidCursorError) -> Response:
        detail = f"{error}."
        return respond(ProblemError(422, "bad_cursor", detail, errors=[{"field": "cursor", "message": detail}]))

    @app.errorhandler(HTTPException)
    def _http(error: HTTPException) -> Response:
        status = error.code or 500
        detail = error.description or HTTPStatus(status).phrase
        if status == 404:
            detail = f"There is nothing at {request.path[:200]}; see /docs for what there is."
        if status == 413:
            detail = f"The body is larger than {request.max_content_length} bytes; send it in parts."
        headers = dict(error.get_response().headers) if status in (405, 429) else {}
        allowed = {name: value for name, value in headers.items() if name in ("Allow", "Retry-After")}
        return respond(ProblemError(status, REASONS.get(status, "error"), detail, headers=allowed))

    @app.errorhandler(Exception)
    def _unexpected(error: Exception) -> Response:
        described = protocol_errors.describe(error)
        if described is not None:
            status, detail = described
            # What follows on this connection cannot be told from the rest of the body.
            return respond(ProblemError(status, REASONS[status], detail, headers={"Connection": "close"}))
        if is_transient(error):
            if sqlstate(error) in CONFLICTS:
                log.warning("Other transactions were in conflict with a request", error=str(error)[:200])
                return respond(in_conflict())
            log.warning("The database does not answer", error=str(error)[:200])
            return respond(database_away())
        log.exception("A request failed", path=request.path[:200])
        detail = "Something went wrong on this server; it has been logged. Sending the same again later is safe."
        return respond(ProblemError(500, "internal_error", detail))
