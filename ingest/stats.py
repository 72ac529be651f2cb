"""Reading what is known about a number."""

import orjson
from flask import Blueprint, Response, current_app

from coordinator import queries
from coordinator.expressions import shorten
from ingest.problems import Problem

stats = Blueprint("stats", __name__)


@stats.get("/stats/<path:composite>")
def composite_stats(composite: str) -> Response:
    """One composite's factors, effort and t-level, by any value it has ever had (number or expression)."""
    found = queries.composite_stats(
        current_app.config["ENGINE"], composite, current_app.config["SETTINGS"].max_digits
    )
    if found is None:
        raise Problem(404, "unknown_composite", f"{shorten(composite)} is not a number of this server.")
    return Response(orjson.dumps(found), 200, content_type="application/json")
