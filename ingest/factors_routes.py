"""Reading factors: a list, one by its id, and an export."""

from typing import Any

from flask import Response

from coordinator.reading import factors as registry
from ingest import openapi
from ingest.composites_routes import check_expression_length
from ingest.factor_files import CONTENT_TYPES, lines
from ingest.view_context import engine, json_of, settings
from models.wire.common import FactorPath
from models.wire.reading import ExportQuery, FactorListed, FactorsPage, FactorsQuery

UNKNOWN: dict[Any, Any] = {404: openapi.problem("`unknown_composite` or `unknown_project`")}

factors = openapi.blueprint("factors", openapi.READING)


@factors.get("/factors", operation_id="factors", responses={200: FactorsPage, **UNKNOWN})
def listed(query: FactorsQuery) -> Response:
    """Return a page of the factors that pass the filters, the newest or the largest first."""
    if query.composite is not None:
        check_expression_length(query.composite, "composite")
    filters = registry.FactorListFilters(
        query.composite, query.project, query.client_id, query.min_digits, query.max_digits, query.only_prime
    )
    found = registry.list_factors(
        engine(), filters, order=query.order, limit=query.limit, cursor=query.cursor, max_digits=settings().max_digits
    )
    return json_of(FactorsPage, {"factors": [row._mapping for row in found.rows], "next": found.next})


@factors.get(
    "/factors/<int:factor_id>",
    operation_id="factor",
    responses={200: FactorListed, 404: openapi.problem("`unknown_factor`")},
)
def one(path: FactorPath) -> Response:
    """Return one factor by its id."""
    return json_of(FactorListed, registry.read_factor(engine(), path.factor_id)._mapping)


@factors.get(
    "/export/factors",
    operation_id="export_factors",
    responses={
        200: {
            "description": "CSV with a header, or NDJSON",
            "content": {kind: {"schema": {"type": "string"}} for kind in ("text/csv", "application/x-ndjson")},
        },
        404: openapi.problem("`unknown_project`"),
    },
)
def export(query: ExportQuery) -> Response:
    """Stream all factors, or those of a project or a client, the oldest first."""
    batches = registry.export_factors(engine(), project=query.project, client_id=query.client_id, since=query.since)
    answer = Response(lines(batches, query.format), 200, content_type=CONTENT_TYPES[query.format])
    answer.headers["Content-Disposition"] = f"attachment; filename=factors.{query.format}"
    return answer
