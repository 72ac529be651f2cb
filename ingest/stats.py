"""Reading what is known about a number."""

import orjson
from flask import Response, current_app
from pydantic import BaseModel, Field

from coordinator import queries
from coordinator.expressions import shorten
from ingest import openapi
from ingest.problems import Problem
from models.wire import CompositeStats

stats = openapi.blueprint("stats", openapi.READING)


class CompositePath(BaseModel):
    composite: str = Field(description="decimal or an expression; may contain /")


@stats.get(
    "/stats/<path:composite>",
    operation_id="composite_stats",
    responses={
        200: CompositeStats,
        404: openapi.problem("`unknown_composite`"),
        422: openapi.problem("No number, or too large a one"),
    },
)
def composite_stats(path: CompositePath) -> Response:
    """One composite's factors, effort and t-level, by any value it has ever had (number or expression)."""
    found = queries.composite_stats(
        current_app.config["ENGINE"], path.composite, current_app.config["SETTINGS"].max_digits
    )
    if found is None:
        raise Problem(404, "unknown_composite", f"{shorten(path.composite)} is not a number of this server.")
    return Response(orjson.dumps(found), 200, content_type="application/json")
