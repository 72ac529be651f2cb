"""The pages of administration: forms for what /api/v1/admin does, for browsers that have logged in with the admin key.

A form that is refused changes nothing, and the page that it returns to shows the reason.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeVar

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ValidationError

from coordinator.administration import dead_letters, edits, recalculation
from coordinator.base import audit
from coordinator.base.errors import DomainError, composite_not_found
from coordinator.leases import reservations
from coordinator.reading import lookup
from ingest import login
from ingest.admin.admin_composites import recalculation_answer
from ingest.admin.admin_key import require_administration
from ingest.admin.admin_loading import load_file
from ingest.admin.blueprints import request_actor
from ingest.leases_routes import with_lease
from ingest.plurals import counted
from ingest.problems import ProblemError, invalid, of_refusal
from ingest.request_bodies import printable_name
from ingest.security_headers import forbid_storing
from ingest.view_context import engine, settings
from models.wire.administration import NewPriority, ReasonQuery, RecalculateQuery, Reservation
from models.wire.loading import LoadQuery, UploadForm
from tasks.publishing import publish_jobs, publish_submissions

FEW, SOME = 20, 60  # three lists of 60 rows with their forms stay below 200 KB
# The message of what was done travels in a cookie of at most 4,000 characters.
LONGEST_MESSAGE = 600
MOST_SELECTED = 100
SAFE_METHODS = ("GET", "HEAD")

admin_pages = Blueprint("admin_pages", __name__, url_prefix="/admin")
Model = TypeVar("Model", bound=BaseModel)


# Access ---------------------------------------------------------------------------------------------------------------


@admin_pages.before_request
def check_operator() -> ResponseReturnValue | None:
    """Redirect browsers without a session to the login, and refuse forms without the token of this session."""
    require_administration()
    is_safe = request.method in SAFE_METHODS
    if request.endpoint != "admin_pages.log_in" and not login.is_operator():
        # A form of another site comes without the session's cookie; this answer must not replace that cookie.
        back, over = (request.full_path.rstrip("?"), None) if is_safe else (None, 1)
        return redirect(url_for("admin_pages.log_in", next=back, over=over), 303)
    if not is_safe:
        # A pasted list is a form field, which may be as large as any body.
        request.max_form_memory_size = request.max_content_length
        login.check_token()
    return None


admin_pages.after_request(forbid_storing)


@admin_pages.route("/login", methods=["GET", "POST"])
def log_in() -> ResponseReturnValue:
    """Show the form that asks for the admin key, or log in."""
    after = login.own_page(request.args.get("next")) or url_for("admin_pages.overview")
    if request.method in SAFE_METHODS:
        return redirect(after, 303) if login.is_operator() else render_template("admin/login.html")
    try:
        login.log_in(request.form.get("key", "").strip())
    except ProblemError as problem:
        return render_template("admin/login.html", refusal=problem.detail), problem.status, problem.headers
    return redirect(after, 303)


@admin_pages.post("/logout")
def log_out() -> ResponseReturnValue:
    """End the session."""
    login.log_out()
    return redirect(url_for("pages.overview"), 303)


# Forms ----------------------------------------------------------------------------------------------------------------


def _run_form(back: str, change: Callable[[], str]) -> ResponseReturnValue:
    """Run `change` and redirect to the page `back`, which shows the message that `change` returns or its error."""
    try:
        message, kind = change(), "done"
    except DomainError as error:
        message, kind = of_refusal(error).detail, "refused"
    except ProblemError as problem:
        message, kind = problem.detail, "refused"
    flash(message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} ...", kind)
    return redirect(back, 303)


def _form(model: type[Model], **known: str) -> Model:
    """Return this request's form and the `known` fields as a `model`, without empty fields. Raises a 422 problem."""
    given = {name: value for name, value in request.form.items() if value.strip() and name in model.model_fields}
    try:
        return model.model_validate(given | known)
    except ValidationError as error:
        raise invalid(error, "form") from error


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _number(composite_id: int) -> str:
    if composite_id >= 2**63:
        raise composite_not_found(composite_id)
    return url_for("pages.number", composite_id=composite_id)


@admin_pages.get("")
def overview() -> ResponseReturnValue:
    """Show the audit log and the latest recalculation of effort."""
    latest = recalculation.recalculation_status(engine())
    return render_template(
        "admin/overview.html",
        recalculation=recalculation_answer(latest) if latest is not None else None,
        events=audit.latest(engine(), FEW),
    )


@admin_pages.get("/find")
def find() -> ResponseReturnValue:
    """Redirect to the page of a number, found by any value it has had or by its id."""
    query = request.args.get("q", "").strip()
    try:
        return redirect(_number(lookup.identify_composite(engine(), query, settings().max_digits)), 303)
    except DomainError as error:
        flash(of_refusal(error).detail, "refused")
        return redirect(url_for("admin_pages.overview"), 303)


@admin_pages.post("/recalculate")
def recalculate_all() -> ResponseReturnValue:
    """Start a recalculation of the effort of all numbers, or of those that lack it."""

    def change() -> str:
        only_missing = not _form(RecalculateQuery).recalculate_all
        row, to_publish = recalculation.start_recalculation(engine(), request_actor(), only_missing=only_missing)
        publish_jobs(to_publish)
        return f"Recalculating the effort of {counted(row.total, 'number')}."

    return _run_form(url_for("admin_pages.overview"), change)


# Numbers --------------------------------------------------------------------------------------------------------------


@admin_pages.route("/load", methods=["GET", "POST"])
def load() -> ResponseReturnValue:
    """Load numbers from a file or a pasted list: all of them, or none if one is invalid."""
    if request.method in SAFE_METHODS:
        return render_template("admin/load.html")
    try:
        report = _load()
    except ProblemError as problem:
        page = render_template("admin/load.html", refusal=problem.detail, errors=problem.more.get("errors", []))
        return page, problem.status, problem.headers
    return render_template("admin/load.html", report=report, errors=report["errors"])


def _load() -> dict[str, Any]:
    query, defaults = _form(LoadQuery), _form(UploadForm)
    file, pasted = request.files.get("file"), request.form.get("numbers", "")
    if file is not None and file.filename:
        if pasted.strip():
            raise ProblemError(422, "invalid", "There are both a file and a list; load them one after the other.")
        return load_file(file.stream, printable_name(file.filename), defaults, query)
    return load_file(BytesIO(pasted.encode()), "pasted.txt", defaults, query)


@admin_pages.post("/numbers/<int:composite_id>/priority")
def set_priority(composite_id: int) -> ResponseReturnValue:
    """Set the priority of a number; numbers of higher priority are leased first."""
    back = _number(composite_id)

    def change() -> str:
        priority = _form(NewPriority).priority
        before = edits.set_priority(engine(), request_actor(), composite_id, priority)
        return f"The priority is {priority}; it was {before}."

    return _run_form(back, change)


@admin_pages.post("/numbers/<int:composite_id>/reserve")
def reserve(composite_id: int) -> ResponseReturnValue:
    """Reserve a number for another method elsewhere."""
    back = _number(composite_id)

    def change() -> str:
        form = _form(Reservation, composite_identifier=str(composite_id))
        row = reservations.reserve(
            engine(),
            composite_id,
            form.client_id,
            form.method,
            form.duration_hours,
            details=None,
            max_digits=settings().max_digits,
            actor=request_actor(),
        )
        return f"The number is reserved for {row.client_id} until {row.expires_at:%Y-%m-%d %H:%M} UTC."

    return _run_form(back, change)


@admin_pages.post("/numbers/<int:composite_id>/pause")
def pause(composite_id: int) -> ResponseReturnValue:
    """Pause a number: it gets no work until it is resumed."""
    back = _number(composite_id)

    def change() -> str:
        reservations.pause(engine(), composite_id, _form(ReasonQuery).reason, request_actor())
        return "The number gets no work until it is resumed."

    return _run_form(back, change)


@admin_pages.post("/numbers/<int:composite_id>/resume")
def resume(composite_id: int) -> ResponseReturnValue:
    """Resume a number that is paused or set aside."""
    back = url_for("admin_pages.leases") if request.form.get("from") == "work" else _number(composite_id)

    def change() -> str:
        reservations.resume(engine(), composite_id, request_actor())
        return f"Number {composite_id} gets work again."

    return _run_form(back, change)


@admin_pages.post("/numbers/<int:composite_id>/recalculate")
def recalculate(composite_id: int) -> ResponseReturnValue:
    """Recalculate the effort of one number."""
    back = _number(composite_id)

    def change() -> str:
        before, after, _ = recalculation.recalculate_composite(engine(), request_actor(), composite_id)
        if before == after:
            return f"The t-level was right: t{after:.2f}."
        return f"The t-level was t{before:.2f} and is t{after:.2f} now."

    return _run_form(back, change)


# Work -----------------------------------------------------------------------------------------------------------------


@admin_pages.get("/work")
def leases() -> ResponseReturnValue:
    """Show reservations, numbers that are paused or set aside, and open leases."""
    return render_template(
        "admin/leases.html",
        reserved=reservations.list_open_leases(engine(), reserving=True, limit=SOME),
        held=reservations.held_composites(engine(), SOME),
        leases=reservations.list_open_leases(engine(), reserving=False, limit=SOME),
        most=SOME,
        hold_after=settings().hold_after,
    )


@admin_pages.post("/work/<work_id>/end")
def end_work(work_id: str) -> ResponseReturnValue:
    """Release a reservation, or cancel a lease."""

    def change() -> str:
        reason = _form(ReasonQuery).reason
        row = with_lease(lambda id_: reservations.end(engine(), id_, reason, request_actor()), work_id)
        return f"The {row.method} lease of {row.client_id} is {row.status}."

    return _run_form(url_for("admin_pages.leases"), change)


# Failed results -------------------------------------------------------------------------------------------------------


@admin_pages.get("/letters")
def failed_results() -> ResponseReturnValue:
    """Show rejected and failed results with a form to retry them."""
    after = None
    kind, _, place = request.args.get("cursor", "").partition("-")
    if _is_id(place):
        after = (kind == "1", int(place))
    rows = dead_letters.list_dead_letters(engine(), limit=SOME, after=after, most_bytes=dead_letters.LISTED_BYTES)
    following = f"{int(rows[-1].holds_factors)}-{rows[-1].id}" if len(rows) == SOME else None
    return render_template("admin/failed_results.html", failed_results=rows, next=following)


@admin_pages.post("/letters")
def retry() -> ResponseReturnValue:
    """Retry the selected results, or accept their true factors; each by itself, so that one error stops no other."""
    selected = [int(text) for text in request.form.getlist("submission") if _is_id(text)]
    accepting = request.form.get("do") == "accept"

    def change() -> str:
        if not selected:
            raise ProblemError(422, "invalid", "Select at least one result first.")
        errors, number = [], 0
        for submission_id in selected[:MOST_SELECTED]:
            try:
                number += _accept(submission_id) if accepting else _retry(submission_id)
            except DomainError as error:
                errors.append(f"{submission_id}: {error}")
        done = f"{counted(number, 'factor')} accepted." if accepting else f"{counted(number, 'result')} queued again."
        return " ".join([done, *(f"{error}." for error in errors)])

    return _run_form(url_for("admin_pages.failed_results"), change)


def _accept(submission_id: int) -> int:
    done = dead_letters.accept_factors(engine(), request_actor(), submission_id, settings().max_digits)
    publish_jobs(done.to_publish)
    return len(done.accepted)


def _retry(submission_id: int) -> int:
    done = dead_letters.retry(engine(), request_actor(), submission_id)
    publish_submissions([(submission_id, done.client_id, done.composite)])
    return 1
