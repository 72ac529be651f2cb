"""The public pages show people what /api/v1 shows programs. Forms are in ingest/admin/admin_pages.py alone.

Jinja escapes every text that clients control, and the policy of ingest/security_headers.py forbids inline scripts.
"""

from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, render_template, request, url_for
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, Field, ValidationError

from coordinator.administration import dead_letters
from coordinator.base import clock
from coordinator.base.errors import composite_not_found
from coordinator.composites import statistics
from coordinator.leases import speeds
from coordinator.numbers.expressions import shorten
from coordinator.reading import batch_lookup, clients, counts, detail, factors, health_queries, projects, search
from ingest.composites_routes import check_expression_length
from ingest.health_routes import read_components
from ingest.openapi import API
from ingest.plurals import counted
from ingest.problems import ProblemError, invalid
from ingest.view_context import engine, settings
from models.wire.common import PageQuery
from models.wire.reading import CompositesQuery, FactorsQuery

HOURS_SHOWN = 48
FEW, SOME, MANY = 10, 50, 100
SHOWN = ("pages", "admin_pages", "guide")  # blueprints whose errors are pages
MOST_COUNTED_IN_PROJECT = 1_000

pages = Blueprint("pages", __name__, template_folder="templates", static_folder="static", static_url_path="/static")


ERROR_HEADINGS = {
    400: "Request not accepted",
    401: "Log in first",
    403: "Not allowed",
    404: "Page not found",
    409: "Not possible now",
    413: "Too large",
    422: "Invalid request",
    429: "Too many requests",
    500: "Server error",
    503: "Temporarily unavailable",
}


class RankingQuery(BaseModel):
    limit: int = Field(MANY, ge=1, le=250)


# Filters and functions of the templates -------------------------------------------------------------------------------


@pages.app_template_filter("moment")
def moment(value: datetime | str | None) -> str:
    """Return a time in UTC to the minute; "never" for None."""
    if value is None:
        return "never"
    when = datetime.fromisoformat(value) if isinstance(value, str) else value
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M}"


@pages.app_template_filter("ago")
def ago(value: datetime | None) -> str:
    """Return how long ago a time was, in one unit; "never" for None."""
    if value is None:
        return "never"
    seconds = max(0, (datetime.now(UTC) - value).total_seconds())
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"


@pages.app_template_filter("count")
def count(value: float | None) -> str:
    """Return a whole number with thousands separators; nothing for None."""
    return "" if value is None else f"{value:,.0f}"


@pages.app_template_filter("bound")
def bound(value: int | None) -> str:
    """Return a B1 or B2 as GMP-ECM users write it: 11e6 for 11,000,000."""
    if value is None:
        return ""
    if value == -1:
        return "default"
    zeros = len(str(value)) - len(str(value).rstrip("0"))
    return f"{value // 10**zeros}e{zeros}" if zeros >= 3 else f"{value:,}"


@pages.app_template_filter("facts")
def facts(values: dict[str, Any] | None) -> str:
    """Return the values of an audit record in one line."""
    return ", ".join(
        f"{name}: {shorten(str(value), 80)}" for name, value in (values or {}).items() if value is not None
    )


@pages.app_template_filter("state")
def state_text(state: str) -> str:
    """Return the text of a state or a hold of a number."""
    return {"unknown": "primality unknown", "parked": "set aside"}.get(state, state.replace("_", " "))


@pages.app_template_filter("method")
def method_text(method: str) -> str:
    """Return a method's name as the literature writes it."""
    return {"ecm": "ECM", "pm1": "P-1", "pp1": "P+1"}.get(method, method)


pages.add_app_template_filter(shorten, "shorten")
pages.add_app_template_filter(counted, "counted")


def page_with(**changes: Any) -> str:
    """Return the address of this page with these parameters changed, without those that are None."""
    given = {**request.args.to_dict(), **changes}
    # Not through url_for, which takes some names (_external, _anchor) as its own options.
    path = url_for(request.endpoint or "pages.overview", **(request.view_args or {}))
    return f"{path}?{urlencode({key: value for key, value in given.items() if value})}"


pages.add_app_template_global(page_with, "page_with")


# Pages ----------------------------------------------------------------------------------------------------------------


@pages.get("/")
def overview() -> ResponseReturnValue:
    """Show how many numbers there are of each kind, the last 48 hours, and the latest factors."""
    now = clock.now(engine())
    hours = statistics.hourly_statistics(engine(), HOURS_SHOWN, now)
    found = factors.list_factors(
        engine(), factors.FactorListFilters(), limit=FEW, cursor=None, max_digits=settings().max_digits
    )
    return render_template(
        "overview.html",
        status=counts.composites_status(engine()),
        tiles=_tiles(),
        charts=[bars(hours, "results"), bars(hours, "curves")],
        factors=found.rows,
        advanced=batch_lookup.top_progress(
            engine(), batch_lookup.ProgressFilters(), limit=FEW, max_digits=settings().max_digits
        ),
        clients=statistics.busiest_clients(engine(), now - timedelta(hours=24), FEW),
        most=health_queries.MOST_COUNTED,
    )


def _tiles() -> list[tuple[str, str, str | None]]:
    """Return (field of `composites_status`, label, address of the list of these numbers or None)."""
    held = url_for("admin_pages.leases", _anchor="held")
    below_target = url_for("pages.numbers", state="composite", max_progress=0.99, sort="progress", descending="true")
    return [
        ("total", "numbers", url_for("pages.numbers")),
        ("finished", "fully factored", url_for("pages.numbers", state="fully_factored")),
        ("wanting_ecm", "cofactors that need ECM", below_target),
        ("wanting_pm1", "cofactors that need P-1", None),  # no list has this filter
        ("primality_unknown", "primality unknown", url_for("pages.numbers", state="unknown")),
        ("paused", "paused", held),
        ("parked", f"set aside ({counted(settings().hold_after, 'client')} gave up)", held),
    ]


@pages.get("/numbers")
def numbers() -> ResponseReturnValue:
    """Show a page of numbers, filtered and sorted."""
    query = _query(CompositesQuery)
    if query.text is not None:
        check_expression_length(query.text, "text")
    found = search.list_composites(
        engine(),
        search.CompositeFilters(**query.model_dump(include=set(search.CompositeFilters.__dataclass_fields__))),
        sort=query.sort,
        descending=query.descending,
        limit=min(query.limit, MANY),
        cursor=query.cursor,
        max_digits=settings().max_digits,
    )
    sorts = (("id", "id"), ("digits", "digits"), ("t_level", "t-level"), ("progress", "progress"))
    return render_template("numbers.html", query=query, found=found, sorts=(*sorts, ("priority", "priority")))


@pages.get("/numbers/<int:composite_id>")
def number(composite_id: int) -> ResponseReturnValue:
    """Show one number with its factors, effort, leases and attempts."""
    if composite_id >= 2**63:
        raise composite_not_found(composite_id)
    whole = detail.read_detail(engine(), composite_id, most=MANY)
    return render_template("number.html", **whole._asdict(), tree=_tree(whole.factors), most=MANY)


def _tree(found: list[Any]) -> list[tuple[int, Any]]:
    """Return (depth, factor) of each factor, each after the factor that it was split from."""
    below: dict[int | None, list[Any]] = {}
    for row in found:
        below.setdefault(row.split_from_id, []).append(row)

    def walk(parent: int | None, depth: int) -> list[tuple[int, Any]]:
        rows = sorted(below.get(parent, []), key=lambda row: (row.digit_length, row.factor))
        return [line for row in rows for line in [(depth, row), *walk(row.id, depth + 1)]]

    return walk(None, 0)


@pages.get("/factors")
def all_factors() -> ResponseReturnValue:
    """Show a page of factors, the newest or the largest first."""
    query = _query(FactorsQuery)
    if query.composite is not None:
        check_expression_length(query.composite, "composite")
    filters = factors.FactorListFilters(
        query.composite, query.project, query.client_id, query.min_digits, query.max_digits, query.only_prime
    )
    found = factors.list_factors(
        engine(),
        filters,
        order=query.order,
        limit=min(query.limit, MANY),
        cursor=query.cursor,
        max_digits=settings().max_digits,
    )
    return render_template("factors.html", query=query, found=found)


@pages.get("/clients")
def all_clients() -> ResponseReturnValue:
    """Show clients by their number of curves, and those seen most recently."""
    query = _query(RankingQuery)
    now = clock.now(engine())
    ranking = statistics.rank_clients(engine(), query.limit)
    return render_template(
        "clients.html",
        ranking=ranking,
        speeds=speeds.client_speeds(engine(), [row.name for row in ranking]),
        today=statistics.curves_since(engine(), now - timedelta(hours=24), [row.name for row in ranking]),
        latest=clients.list_clients(engine(), limit=FEW).rows,
    )


@pages.get("/projects")
def all_projects() -> ResponseReturnValue:
    """Show a page of projects by name."""
    query = _query(PageQuery)
    found = projects.list_projects(
        engine(), limit=min(query.limit, MANY), cursor=query.cursor, count_to=MOST_COUNTED_IN_PROJECT
    )
    return render_template("projects.html", found=found, most=MOST_COUNTED_IN_PROJECT)


@pages.get("/queue")
def queue() -> ResponseReturnValue:
    """Show how many results wait, which were rejected or failed, and whether every component works."""
    components = read_components()
    # This page has to work while the database is away, to say that it is.
    database_answers = "inbox" in components["database"]
    settled, estimated = counts.submissions_by_state(engine()) if database_answers else ({}, False)
    return render_template(
        "queue.html",
        settled=settled,
        estimated=estimated,
        components=components,
        failed_results=dead_letters.list_dead_letters(engine(), limit=SOME, most_bytes=dead_letters.LISTED_BYTES)
        if database_answers
        else [],
        most=health_queries.MOST_COUNTED,
        flower_port=settings().flower_port,
        host=request.host.rpartition(":")[0] or request.host,
    )


def bars(hours: list[statistics.HourlyStatistics], what: str) -> dict[str, Any]:
    """Return a bar chart of the hourly `what`, one bar per hour, in units of a view box of 480 by 120."""
    values = [getattr(hour, what) for hour in hours]
    most = max(values)
    width = 480 / len(hours)
    return {
        "what": what,
        "most": most,
        "total": sum(values),
        "bars": [
            {"x": place * width, "width": width * 0.8, "height": 100 * value / most if most else 0, "value": value}
            | {"hour": hour.hour}
            for place, (hour, value) in enumerate(zip(hours, values, strict=True))
        ],
    }


# Errors ---------------------------------------------------------------------------------------------------------------


def _query(model: type[Any]) -> Any:
    given = {name: value for name, value in request.args.to_dict().items() if value}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid(error, "query") from error


def error_page(problem: ProblemError) -> Response:
    """Answer with a problem as a page."""
    heading = ERROR_HEADINGS.get(problem.status) or HTTPStatus(problem.status).phrase
    page = render_template("error.html", status=problem.status, heading=heading, detail=problem.detail)
    return Response(page, problem.status, problem.headers)


def respond(problem: ProblemError) -> Response:
    """Return a problem as a page for browsers, as JSON for programs."""
    if request.path.startswith(f"{API}/") or (request.endpoint and request.blueprint not in SHOWN):
        return problem.response()
    is_person = request.accept_mimetypes.best_match(["application/problem+json", "text/html"]) == "text/html"
    return error_page(problem) if request.endpoint or is_person else problem.response()
