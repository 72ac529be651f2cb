"""Pages to look at: what /api/v1 says, for people. Nothing in them changes anything; ingest/admin/admin_pages.py does.

What clients control is only ever text in them: Jinja escapes it, and the policy of ingest/security_headers.py runs no script
that a page brings along.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, render_template, request, url_for
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, Field, ValidationError

from coordinator.administration import dead_letters
from coordinator.base.errors import composite_not_found
from coordinator.composites import statistics
from coordinator.leases import speeds
from coordinator.numbers.expressions import shorten
from coordinator.reading import admin_queries, batch_lookup, clients, detail, factors, health_queries, projects, search
from ingest.composites_routes import check_expression_length
from ingest.health_routes import installation
from ingest.openapi import API
from ingest.problems import Problem, invalid
from ingest.view_context import engine, settings
from models.wire_reading import CompositesQuery, FactorsQuery, PageQuery

HOURS_SHOWN = 48
FEW, SOME, MANY = 10, 50, 100
COUNTED = 1_000  # numbers of each project in a page of those

pages = Blueprint("pages", __name__, template_folder="templates", static_folder="static", static_url_path="/static")


class RankingQuery(BaseModel):
    limit: int = Field(MANY, ge=1, le=250)


# What templates write -------------------------------------------------------------------------------------------------


@pages.app_template_filter("moment")
def moment(value: datetime | str | None) -> str:
    """A time as people read it, in UTC."""
    if value is None:
        return "never"
    when = datetime.fromisoformat(value) if isinstance(value, str) else value
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M}"


@pages.app_template_filter("ago")
def ago(value: datetime | None) -> str:
    """How long ago, in one unit."""
    if value is None:
        return "never"
    seconds = max(0, (datetime.now(UTC) - value).total_seconds())
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"


@pages.app_template_filter("count")
def count(value: float | None) -> str:
    """A whole number with its thousands parted."""
    return "" if value is None else f"{value:,.0f}"


@pages.app_template_filter("bound")
def bound(value: int | None) -> str:
    """A B1 or B2 as the field writes it: 11e6 for 11,000,000."""
    if value is None:
        return ""
    if value == -1:
        return "default"
    zeros = len(str(value)) - len(str(value).rstrip("0"))
    return f"{value // 10**zeros}e{zeros}" if zeros >= 3 else f"{value:,}"


@pages.app_template_filter("facts")
def facts(values: dict[str, Any] | None) -> str:
    """What a record holds, in a line."""
    return ", ".join(
        f"{name}: {shorten(str(value), 80)}" for name, value in (values or {}).items() if value is not None
    )


pages.add_app_template_filter(shorten, "shorten")


def page_with(**changes: Any) -> str:
    """The address of this page with these parameters changed (None: left out)."""
    given = {**request.args.to_dict(), **changes}
    # What is asked for stays in the query: url_for has parameters of its own, which say where an address leads.
    path = url_for(request.endpoint or "pages.overview", **(request.view_args or {}))
    return f"{path}?{urlencode({key: value for key, value in given.items() if value})}"


pages.add_app_template_global(page_with, "page_with")


# Pages ----------------------------------------------------------------------------------------------------------------


@pages.get("/")
def overview() -> ResponseReturnValue:
    """What there is, and what goes on."""
    now = datetime.now(UTC)
    hours = statistics.hourly_statistics(engine(), HOURS_SHOWN, now)
    found = factors.list_factors(
        engine(), factors.FactorFilters(), limit=FEW, cursor=None, max_digits=settings().max_digits
    )
    return render_template(
        "overview.html",
        status=admin_queries.composites_status(engine()),
        charts=[bars(hours, "results"), bars(hours, "curves")],
        factors=found.rows,
        advanced=batch_lookup.top_progress(
            engine(), batch_lookup.ProgressFilters(), limit=FEW, max_digits=settings().max_digits
        ),
        clients=statistics.busiest_clients(engine(), now - timedelta(hours=24), FEW),
        most=health_queries.MOST_COUNTED,
    )


@pages.get("/numbers")
def numbers() -> ResponseReturnValue:
    """Numbers: filtered, sorted, searched, page by page."""
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
    """One number, with all that is known of it."""
    if composite_id >= 2**63:
        raise composite_not_found(composite_id)
    whole = detail.read_detail(engine(), composite_id, most=MANY)
    return render_template("number.html", **whole._asdict(), tree=_tree(whole.factors), most=MANY)


def _tree(found: list[Any]) -> list[tuple[int, Any]]:
    """(depth, factor) of a tree, each beneath what it was split from."""
    below: dict[int | None, list[Any]] = {}
    for row in found:
        below.setdefault(row.split_from_id, []).append(row)

    def walk(parent: int | None, depth: int) -> list[tuple[int, Any]]:
        rows = sorted(below.get(parent, []), key=lambda row: (row.digit_length, row.factor))
        return [line for row in rows for line in [(depth, row), *walk(row.id, depth + 1)]]

    return walk(None, 0)


@pages.get("/factors")
def all_factors() -> ResponseReturnValue:
    """Factors, the newest or the largest first."""
    query = _query(FactorsQuery)
    if query.composite is not None:
        check_expression_length(query.composite, "composite")
    filters = factors.FactorFilters(
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
    """Clients, those with most curves first, and those seen last."""
    query = _query(RankingQuery)
    now = datetime.now(UTC)
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
    """Projects by name."""
    query = _query(PageQuery)
    found = projects.list_projects(engine(), limit=min(query.limit, MANY), cursor=query.cursor, count_to=COUNTED)
    return render_template("projects.html", found=found, most=COUNTED)


@pages.get("/queue")
def queue() -> ResponseReturnValue:
    """What waits, what was refused or failed, and whether every part of the installation does its work."""
    parts = installation()
    # On the day when the database is away, this page must say so.
    is_there = "inbox" in parts["database"]
    settled, estimated = admin_queries.submissions_by_state(engine()) if is_there else ({}, False)
    return render_template(
        "queue.html",
        settled=settled,
        estimated=estimated,
        parts=parts,
        letters=dead_letters.list_dead_letters(engine(), limit=SOME, most_bytes=dead_letters.LISTED_BYTES)
        if is_there
        else [],
        most=health_queries.MOST_COUNTED,
        flower_port=settings().flower_port,
        host=request.host.rpartition(":")[0] or request.host,
    )


def bars(hours: list[statistics.HourlyStatistics], what: str) -> dict[str, Any]:
    """A chart of bars, an hour each: in points of a box of 480 by 120."""
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


def error_page(problem: Problem) -> Response:
    """A problem for people."""
    words = render_template("error.html", status=problem.status, words=problem.detail)
    return Response(words, problem.status, problem.headers)


def respond(problem: Problem) -> Response:
    """A problem for whoever asks: people who look at pages, or programs."""
    if request.path.startswith(f"{API}/") or (request.endpoint and request.blueprint not in ("pages", "admin_pages")):
        return problem.response()
    is_person = request.accept_mimetypes.best_match(["application/problem+json", "text/html"]) == "text/html"
    return error_page(problem) if request.endpoint or is_person else problem.response()
