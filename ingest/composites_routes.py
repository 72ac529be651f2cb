"""Reading numbers: one by its value or id, many at once, and lists."""

from typing import Any

from flask import Response

from coordinator.numbers.expressions import LONGEST_EXPRESSION, parse_number, shorten
from coordinator.reading import batch_lookup, detail, search
from ingest import openapi
from ingest.plurals import counted
from ingest.problems import ProblemError
from ingest.request_bodies import read_body
from ingest.view_context import engine, json_of, settings
from models.wire.common import CompositePath, WrittenNumberPath
from models.wire.reading import (
    BatchStatus,
    CompositeEffortAnswer,
    CompositesPage,
    CompositesQuery,
    CompositeStats,
    CompositeWhole,
    MostAdvanced,
    Numbers,
    TopProgress,
)

TOO_MANY_ALIKE = "Too many numbers begin like this to search all of them; this list is incomplete"
UNKNOWN: dict[Any, Any] = {404: openapi.problem("`unknown_composite`")}
UNKNOWN_PROJECT: dict[Any, Any] = {404: openapi.problem("`unknown_project`")}

composites = openapi.blueprint("composites", openapi.READING)


def check_expression_length(written: str, field: str) -> None:
    """Raise a 422 problem for an expression that would take too long to evaluate here."""
    if len(written) > LONGEST_EXPRESSION and not written.isdigit():
        message = f"An expression of {len(written)} characters takes too long to compute here; "
        message += f"send at most {LONGEST_EXPRESSION} characters, or the number in decimal."
        raise ProblemError(422, "number_too_large", message, errors=[{"field": field, "message": message}])


@composites.get(
    "/stats/<path:composite>",
    operation_id="composite_stats",
    responses={200: CompositeStats, **UNKNOWN},
)
def composite_stats(path: WrittenNumberPath) -> Response:
    """Return a number's factors, effort and t-level, looked up by any value that the number has had.

    The value is the number itself or an old cofactor, in decimal or as an expression.
    """
    check_expression_length(path.composite, "composite")
    parse_number(path.composite, settings().max_digits)
    found = detail.composite_stats(engine(), path.composite, settings().max_digits)
    if found is None:
        raise ProblemError(404, "unknown_composite", f"{shorten(path.composite)} is not a number of this server.")
    return json_of(CompositeStats, found)


@composites.get("/composites", operation_id="composites", responses={200: CompositesPage, **UNKNOWN_PROJECT})
def composites_page(query: CompositesQuery) -> Response:
    """List the numbers that pass the filters, page by page."""
    if query.text is not None:
        check_expression_length(query.text, "text")
    given = query.model_dump(include=set(search.CompositeFilters.__dataclass_fields__))
    found = search.list_composites(
        engine(),
        search.CompositeFilters(**given),
        sort=query.sort,
        descending=query.descending,
        limit=query.limit,
        cursor=query.cursor,
        max_digits=settings().max_digits,
    )
    message = TOO_MANY_ALIKE if found.is_cut else counted(len(found.rows), "number")
    rows = [row._mapping for row in found.rows]
    return json_of(CompositesPage, {"composites": rows, "next": found.next, "message": message})


@composites.get(
    "/composites/<int:composite_id>",
    operation_id="composite",
    responses={200: CompositeWhole, **UNKNOWN},
)
def composite(path: CompositePath) -> Response:
    """Return one number by its id: all of /stats, its tree of factors, its open work and the work that it needs."""
    return json_of(CompositeWhole, detail.read_composite(engine(), path.composite_id))


@composites.get(
    "/composites/<int:composite_id>/effort",
    operation_id="composite_effort",
    responses={200: CompositeEffortAnswer, **UNKNOWN},
)
def composite_effort(path: CompositePath) -> Response:
    """Return the effort on a number: the chance that a factor of 10 to 100 digits was missed, and the curves."""
    return json_of(CompositeEffortAnswer, detail.composite_effort(engine(), path.composite_id))


@composites.post(
    "/composites/batch-status",
    operation_id="batch_status",
    request_body=openapi.takes(Numbers),
    responses={200: BatchStatus},
)
def batch_status() -> Response:
    """Return the state of up to 1,000 numbers, each by any value it has ever had."""
    request_body = read_body(Numbers)
    found = batch_lookup.read_batch_status(engine(), request_body.numbers, settings().max_digits)
    results = [
        {
            "number": shorten(one.number),
            "composite": None if one.row is None else one.row._mapping,
            "message": None if one.row is not None else one.problem or "is not a number of this server",
        }
        for one in found
    ]
    known = sum(one.row is not None for one in found)
    return json_of(BatchStatus, {"results": results, "found": known, "not_found": len(found) - known})


@composites.post(
    "/composites/top-progress",
    operation_id="top_progress",
    request_body=openapi.takes(TopProgress),
    responses={200: MostAdvanced, **UNKNOWN_PROJECT},
)
def top_progress() -> Response:
    """Return the numbers that are closest to their targets, the closest first."""
    query = read_body(TopProgress)
    filters = batch_lookup.ProgressFilters(
        project=query.project_name,
        min_priority=query.min_priority,
        include_factored=query.include_factored,
        numbers=query.formulas,
        min_difficulty=query.min_difficulty,
        max_difficulty=query.max_difficulty,
    )
    rows = batch_lookup.top_progress(engine(), filters, limit=query.limit, max_digits=settings().max_digits)
    return json_of(MostAdvanced, {"composites": [row._mapping for row in rows]})
