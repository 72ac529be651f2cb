"""Loading numbers over HTTP: a text or CSV file, a JSON array of numbers, or numbers with known factors and work."""

from collections.abc import Iterable
from typing import IO, Any

from flask import Response, request
from pydantic import ValidationError

from coordinator.loading.list_formats import InputRow, JsonFields, ListError, RowError, read_list
from coordinator.loading.load import (
    InvalidNumbersError,
    LoadConflictError,
    LoadInProgressError,
    LoadSummary,
    load_numbers,
)
from ingest import openapi
from ingest.admin.blueprints import answer, make, request_actor
from ingest.problems import ProblemError, invalid
from ingest.request_bodies import parse_json, printable_name, received_body, refuse_encoding, uploaded_file
from ingest.view_context import engine, settings
from models.wire.loading import BulkComposites, BulkNumbers, LoadDefaults, LoadQuery, LoadReport, UploadForm
from tasks import publishing

# The longest line of a table: up to CELLS numbers of the most digits, and BESIDES other characters.
CELLS, BESIDES = 8, 100_000
# Long lists are checked in one other process, because this one has other requests to answer.
PROCESSES = 1
BUSY_RETRY = {"Retry-After": "30"}

admin_loading = make("admin_loading", openapi.ADMIN_COMPOSITES)

REFUSALS: dict[Any, Any] = {
    413: openapi.problem("`body_too_large`: load longer lists with `ecm-coordinator composites import`"),
    415: openapi.problem("`unsupported_media_type`: compressed, or no multipart/form-data"),
    422: openapi.problem("`invalid_numbers`: nothing was stored, `errors` names the first 100; or `malformed`, ..."),
}
FILE = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {
            "type": "string",
            "format": "binary",
            "description": "One number per line, or CSV with a header.",
        },
        "default_priority": {"type": "integer"},
        "project_name": {"type": "string"},
    },
}


@admin_loading.post(
    "/composites/upload",
    operation_id="admin_upload",
    request_body={"required": True, "content": {"multipart/form-data": {"schema": FILE}}},
    responses={200: LoadReport, **REFUSALS},
)
def upload(query: LoadQuery) -> Response:
    """Load a text or CSV file: all of it, or nothing if a line is invalid (`on_error=skip`: all valid lines)."""
    file = uploaded_file("numbers.txt")
    defaults = _merged(_validated(UploadForm, request.form.to_dict()), query)
    return answer(load_file(file.stream, printable_name(file.filename or ""), defaults, query))


@admin_loading.post(
    "/composites/bulk",
    operation_id="admin_bulk",
    request_body=openapi.takes(BulkNumbers, or_array=True),
    responses={200: LoadReport, **REFUSALS},
)
def bulk(query: LoadQuery) -> Response:
    """Load an array of numbers; `default_priority` and `project_name` may also be in the query."""
    numbers, defaults = _items("numbers", BulkNumbers)
    given = (_given_number(place, item) for place, item in enumerate(numbers, 1))
    return answer(_load(given, _merged(defaults, query), query, "bulk"))


@admin_loading.post(
    "/composites/bulk-structured",
    operation_id="admin_bulk_structured",
    request_body=openapi.takes(BulkComposites, or_array=True),
    responses={200: LoadReport, **REFUSALS},
)
def bulk_structured(query: LoadQuery) -> Response:
    """Load numbers with their known factors and work. On registered numbers, fields that are left out do not change."""
    composites, defaults = _items("composites", BulkComposites)
    given = (_given_composite(place, item) for place, item in enumerate(composites, 1))
    return answer(_load(given, _merged(defaults, query), query, "bulk-structured"))


# Reading bodies -----------------------------------------------------------------------------------------------------


def _items(name: str, model: type[LoadDefaults]) -> tuple[list[Any], LoadDefaults]:
    """Return (the array that is the body or its field `name`, the defaults beside the array)."""
    refuse_encoding()
    body = received_body()
    if not body:
        raise ProblemError(422, "malformed", f"The body is empty; send an array or an object with `{name}`.", errors=[])
    value = parse_json(body)
    if isinstance(value, list):
        return value, LoadDefaults()
    parsed = _validated(model, value)
    items: list[Any] = getattr(parsed, name)
    return items, parsed


def _validated(model: type[Any], value: Any) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error) from error


def _merged(defaults: LoadDefaults, query: LoadDefaults) -> LoadDefaults:
    """Return the defaults of the body, and those of the query where the body has none."""
    given = {name: value for name, value in defaults if name in LoadDefaults.model_fields and value is not None}
    return LoadDefaults(**{name: getattr(query, name) for name in LoadDefaults.model_fields} | given)


def _given_number(place: int, item: Any) -> InputRow:
    if isinstance(item, dict | list) or item is None:
        return InputRow(place, "", error=RowError("invalid", "should be a number in a text, such as 2^1277-1"))
    return InputRow(place, item.strip() if isinstance(item, str) else item)


def _given_composite(place: int, item: Any) -> InputRow:
    if not isinstance(item, dict):
        return _given_number(place, item)
    if "number" not in item:
        return InputRow(place, "", error=RowError("invalid", "number is required"))
    return InputRow(place, item["number"], JsonFields({name: item[name] for name in item if name != "number"}))


# Loading ----------------------------------------------------------------------------------------------------------


def load_file(stream: IO[bytes], name: str, defaults: LoadDefaults, query: LoadQuery) -> dict[str, Any]:
    """Load a text or CSV file called `name`; returns the LoadReport. Raises a problem that names the invalid lines."""
    try:
        listing = read_list(stream, name, CELLS * settings().max_digits + BESIDES)  # type: ignore[arg-type]
        return _load(listing.numbers, defaults, query, f"upload {name}", listing.ignored_columns)
    except ListError as error:
        raise _unreadable(error) from error


def _load(
    numbers: Iterable[InputRow],
    defaults: LoadDefaults,
    query: LoadQuery,
    source: str,
    ignored_columns: list[str] | None = None,
) -> dict[str, Any]:
    try:
        report = load_numbers(
            engine(),
            numbers,
            max_digits=settings().max_digits,
            actor=request_actor(),
            source=source,
            project=defaults.project_name,
            priority=defaults.default_priority,
            skip_bad=query.on_error == "skip",
            dry_run=query.dry_run,
            processes=PROCESSES,
        )
    except ListError as error:
        raise _unreadable(error) from error
    except (LoadInProgressError, LoadConflictError) as error:
        raise ProblemError(503, "busy", f"{error}.", headers=BUSY_RETRY) from error
    except InvalidNumbersError as error:
        body = _load_report(error.report, ignored_columns)
        body["errors"] = [{"field": f"line {bad['line']}", **bad} for bad in body["errors"]]
        raise ProblemError(422, "invalid_numbers", f"{error}.", **body) from error
    publishing.publish_jobs(report.to_publish)
    return _load_report(report, ignored_columns)


def _load_report(report: LoadSummary, ignored_columns: list[str] | None) -> dict[str, Any]:
    body = LoadReport(**report.answer(), ignored_columns=ignored_columns or [], message=report.summary())
    return body.model_dump()


def _unreadable(error: ListError) -> ProblemError:
    return ProblemError(422, error.reason, f"{error}.", errors=[])
