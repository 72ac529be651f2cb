"""Reading what is known about a number."""

import orjson
from flask import Response, current_app
from pydantic import BaseModel, Field

from coordinator import queries
from coordinator.expressions import parse_number, shorten
from ingest import openapi
from ingest.problems import Problem
from models.wire import CompositeStats

# The web process evaluates what it is asked for, and its other requests wait meanwhile.
LONGEST_EXPRESSION = 1000

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
    max_digits = current_app.config["SETTINGS"].max_digits
    if len(path.composite) > LONGEST_EXPRESSION and not path.composite.isdigit():
        detail = f"An expression of {len(path.composite)} characters takes too long to compute here; "
        detail += f"send at most {LONGEST_EXPRESSION} characters, or the number in decimal."
        raise Problem(422, "number_too_large", detail, errors=[{"field": "composite", "message": detail}])
    parse_number(path.composite, max_digits)
    found = queries.composite_stats(current_app.config["ENGINE"], path.composite, max_digits)
    if found is None:
        raise Problem(404, "unknown_composite", f"{shorten(path.composite)} is not a number of this server.")
    return Response(orjson.dumps(found), 200, content_type="application/json")
