"""Reading what is known about numbers: one, many at once, and lists of them."""

from typing import Any

from flask import Response

from coordinator.numbers.expressions import parse_number, shorten
from coordinator.reading import batch_lookup, detail, search
from ingest import openapi
from ingest.answers import engine, json_of, settings
from ingest.bodies import read_body
from ingest.problems import ProblemError
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

# The web process evaluates what it is asked for, and its other requests wait meanwhile.
LONGEST_EXPRESSION = 1000
TOO_MANY_ALIKE = "More numbers begin like this than can be looked through; these are only of some of them"
UNKNOWN: dict[Any, Any] = {404: openapi.problem("`unknown_composite`")}
UNKNOWN_PROJECT: dict[Any, Any] = {404: openapi.problem("`unknown_project`")}

stats = openapi.blueprint("stats", openapi.READING)


def check_written(written: str, field: str) -> None:
    """Raise a problem for what would take too long to be looked up here."""
    if len(written) > LONGEST_EXPRESSION and not written.isdigit():
        message = f"An expression of {len(written)} characters takes too long to compute here; "
        message += f"send at most {LONGEST_EXPRESSION} characters, or the number in decimal."
        raise ProblemError(422, "number_too_large", message, errors=[{"field": field, "message": message}])


@stats.get(
    "/stats/<path:composite>",
    operation_id="composite_stats",
    responses={200: CompositeStats, **UNKNOWN},
)
def composite_stats(path: WrittenNumberPath) -> Response:
    """Return a number's factors, effort and t-level, looked up by any value that the number has had.

    The value is the number itself or an old cofactor, in decimal or as an expression.
    """
    check_written(path.composite, "composite")
    parse_number(path.composite, settings().max_digits)
    found = detail.composite_stats(engine(), path.composite, settings().max_digits)
    if found is None:
        raise ProblemError(404, "unknown_composite", f"{shorten(path.composite)} is not a number of this server.")
    return json_of(CompositeStats, found)


@stats.get("/composites", operation_id="composites", responses={200: CompositesPage, **UNKNOWN_PROJECT})
def composites(query: CompositesQuery) -> Response:
    """List the numbers that pass the filters, page by page."""
    if query.text is not None:
        check_written(query.text, "text")
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
    message = TOO_MANY_ALIKE if found.is_cut else f"{len(found.rows)} numbers"
    rows = [row._mapping for row in found.rows]
    return json_of(CompositesPage, {"composites": rows, "next": found.next, "message": message})


@stats.get(
    "/composites/<int:composite_id>",
    operation_id="composite",
    responses={200: CompositeWhole, **UNKNOWN},
)
def composite(path: CompositePath) -> Response:
    """Return a number by its id, with its tree of factors and the work that it has and needs."""
    return json_of(CompositeWhole, detail.read_composite(engine(), path.composite_id))


@stats.get(
    "/composites/<int:composite_id>/effort",
    operation_id="composite_effort",
    responses={200: CompositeEffortAnswer, **UNKNOWN},
)
def composite_effort(path: CompositePath) -> Response:
    """Return the effort on a number: for factors of 10 to 100 digits the chance that one was missed, and the curves."""
    return json_of(CompositeEffortAnswer, detail.composite_effort(engine(), path.composite_id))


@stats.post(
    "/composites/batch-status",
    operation_id="batch_status",
    request_body=openapi.takes(Numbers),
    responses={200: BatchStatus},
)
def batch_status() -> Response:
    """Return the status of up to 1,000 numbers, each looked up by any value that it has had."""
    asked = read_body(Numbers)
    found = batch_lookup.read_batch_status(engine(), asked.numbers, settings().max_digits)
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


@stats.post(
    "/composites/top-progress",
    operation_id="top_progress",
    request_body=openapi.takes(TopProgress),
    responses={200: MostAdvanced, **UNKNOWN_PROJECT},
)
def top_progress() -> Response:
    """List the numbers that are nearest to their targets, nearest first."""
    asked = read_body(TopProgress)
    chosen = batch_lookup.ProgressFilters(
        project=asked.project_name,
        min_priority=asked.min_priority,
        include_factored=asked.include_factored,
        numbers=asked.formulas,
        min_difficulty=asked.min_difficulty,
        max_difficulty=asked.max_difficulty,
    )
    rows = batch_lookup.top_progress(engine(), chosen, limit=asked.limit, max_digits=settings().max_digits)
    return json_of(MostAdvanced, {"composites": [row._mapping for row in rows]})
