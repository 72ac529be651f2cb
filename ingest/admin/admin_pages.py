"""Administration in a browser: what /api/v1/admin does, with forms, for whoever has shown the admin key.

A form that is refused changes nothing; why is said on the page that it goes back to.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeVar

from flask import Blueprint, Response, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ValidationError

from coordinator.administration import dead_letters, edits, recalculation
from coordinator.base import audit
from coordinator.base.errors import DomainError, composite_not_found
from coordinator.leases import reservations
from ingest import login
from ingest.admin.admin_composites import recalculation_answer
from ingest.admin.admin_key import require_administration
from ingest.admin.admin_loading import load_file
from ingest.admin.blueprints import request_actor
from ingest.leases_routes import with_lease
from ingest.problems import Problem, invalid, of_refusal
from ingest.request_bodies import printable_name
from ingest.view_context import engine, settings
from models.wire_admin import NewPriority, RecalculateQuery
from models.wire_composites import LoadQuery, UploadForm
from models.wire_work import ReasonQuery, Reservation
from tasks.publishing import publish_jobs, publish_submission

FEW, SOME = 20, 60  # three lists of so many rows, each with its form, stay below 200 KB
# A cookie holds four thousand characters, and what was done is said in one.
LONGEST_SAYING = 600
CHOSEN_AT_ONCE = 100
LOOKING = ("GET", "HEAD")

admin_pages = Blueprint("admin_pages", __name__, url_prefix="/admin")
Model = TypeVar("Model", bound=BaseModel)


# Who may --------------------------------------------------------------------------------------------------------------


@admin_pages.before_request
def check_operator() -> ResponseReturnValue | None:
    """Nobody gets past the login without a session, and nothing is changed but by a form of this session."""
    require_administration()
    looks = request.method in LOOKING
    if request.endpoint != "admin_pages.log_in" and not login.is_operator():
        # Another site's form comes without the session's cookie: this answer must not put one in its place.
        back, over = (request.full_path.rstrip("?"), None) if looks else (None, 1)
        return redirect(url_for("admin_pages.log_in", next=back, over=over), 303)
    if not looks:
        # Lists are pasted into a field, which may be as large as any body.
        request.max_form_memory_size = request.max_content_length
        login.check_token()
    return None


@admin_pages.after_request
def keep_nothing(response: Response) -> Response:
    """These pages are no browser's or proxy's to keep."""
    response.headers["Cache-Control"] = "no-store"
    return response


@admin_pages.route("/login", methods=["GET", "POST"])
def log_in() -> ResponseReturnValue:
    """The form that asks for the admin key."""
    after = login.way_back(request.args.get("next")) or url_for("admin_pages.overview")
    if request.method in LOOKING:
        return redirect(after, 303) if login.is_operator() else render_template("admin/login.html")
    try:
        login.log_in(request.form.get("key", "").strip())
    except Problem as problem:
        return render_template("admin/login.html", refusal=problem.detail), problem.status, problem.headers
    return redirect(after, 303)


@admin_pages.post("/logout")
def log_out() -> ResponseReturnValue:
    """End the session."""
    login.log_out()
    return redirect(url_for("pages.overview"), 303)


# What is done ---------------------------------------------------------------------------------------------------------


def _done(back: str, do: Callable[[], str]) -> ResponseReturnValue:
    """`do` it, and go back to where what came of it is said."""
    try:
        said, kind = do(), "done"
    except DomainError as error:
        said, kind = of_refusal(error).detail, "refused"
    except Problem as problem:
        said, kind = problem.detail, "refused"
    flash(said if len(said) <= LONGEST_SAYING else f"{said[:LONGEST_SAYING]} ...", kind)
    return redirect(back, 303)


def _form(model: type[Model], **known: str) -> Model:
    """This request's form, with what is `known`; fields that were left empty are not given. Raises a 422 problem."""
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
    """Where administration begins: what was done last, and effort computed anew."""
    latest = recalculation.recalculation_status(engine())
    return render_template(
        "admin/overview.html",
        recalculation=recalculation_answer(latest) if latest is not None else None,
        events=audit.latest(engine(), FEW),
    )


@admin_pages.get("/find")
def find() -> ResponseReturnValue:
    """To the page of a number, found by any value it has had, or by its id."""
    word = request.args.get("q", "").strip()
    try:
        return redirect(_number(reservations.identify(engine(), word, settings().max_digits)), 303)
    except DomainError as error:
        flash(of_refusal(error).detail, "refused")
        return redirect(url_for("admin_pages.overview"), 303)


@admin_pages.post("/recalculate")
def recalculate_all() -> ResponseReturnValue:
    """Compute the effort of all numbers anew, or of those that lack it."""

    def do() -> str:
        only_missing = not _form(RecalculateQuery).recalculate_all
        row, to_publish = recalculation.start_recalculation(engine(), request_actor(), only_missing=only_missing)
        publish_jobs(to_publish)
        return f"Effort of {row.total:,} numbers is being computed anew."

    return _done(url_for("admin_pages.overview"), do)


# Numbers --------------------------------------------------------------------------------------------------------------


@admin_pages.route("/load", methods=["GET", "POST"])
def load() -> ResponseReturnValue:
    """Load numbers, from a file or as they are pasted: all of them, or none if one is not valid."""
    if request.method in LOOKING:
        return render_template("admin/load.html")
    try:
        report = _load()
    except Problem as problem:
        page = render_template("admin/load.html", refusal=problem.detail, errors=problem.more.get("errors", []))
        return page, problem.status, problem.headers
    return render_template("admin/load.html", report=report, errors=report["errors"])


def _load() -> dict[str, Any]:
    wish, defaults = _form(LoadQuery), _form(UploadForm)
    file, pasted = request.files.get("file"), request.form.get("numbers", "")
    if file is not None and file.filename:
        if pasted.strip():
            raise Problem(422, "invalid", "There is both a file and a list; load one after the other.")
        return load_file(file.stream, printable_name(file.filename), defaults, wish)
    return load_file(BytesIO(pasted.encode()), "pasted.txt", defaults, wish)


@admin_pages.post("/numbers/<int:composite_id>/priority")
def set_priority(composite_id: int) -> ResponseReturnValue:
    """Higher priorities are leased first."""
    back = _number(composite_id)

    def do() -> str:
        priority = _form(NewPriority).priority
        before = edits.set_priority(engine(), request_actor(), composite_id, priority)
        return f"The priority is {priority}; it was {before}."

    return _done(back, do)


@admin_pages.post("/numbers/<int:composite_id>/reserve")
def reserve(composite_id: int) -> ResponseReturnValue:
    """Keep a number for another method elsewhere."""
    back = _number(composite_id)

    def do() -> str:
        wish = _form(Reservation, composite_identifier=str(composite_id))
        row = reservations.reserve(
            engine(),
            composite_id,
            wish.client_id,
            wish.method,
            wish.duration_hours,
            details=None,
            max_digits=settings().max_digits,
            actor=request_actor(),
        )
        return f"It is reserved for {row.client_id} until {row.expires_at:%Y-%m-%d %H:%M} UTC."

    return _done(back, do)


@admin_pages.post("/numbers/<int:composite_id>/pause")
def pause(composite_id: int) -> ResponseReturnValue:
    """No work on a number until it is resumed."""
    back = _number(composite_id)

    def do() -> str:
        reservations.pause(engine(), composite_id, _form(ReasonQuery).reason, request_actor())
        return "It gets no work until it is resumed."

    return _done(back, do)


@admin_pages.post("/numbers/<int:composite_id>/resume")
def resume(composite_id: int) -> ResponseReturnValue:
    """Let a paused or parked number be worked on again."""
    back = url_for("admin_pages.leases") if request.form.get("from") == "work" else _number(composite_id)

    def do() -> str:
        reservations.resume(engine(), composite_id, request_actor())
        return f"Number {composite_id} gets work again."

    return _done(back, do)


@admin_pages.post("/numbers/<int:composite_id>/recalculate")
def recalculate(composite_id: int) -> ResponseReturnValue:
    """Compute one number's effort anew."""
    back = _number(composite_id)

    def do() -> str:
        before, after = edits.recalculate(engine(), request_actor(), composite_id)
        if before == after:
            return f"It was right: t{after:.2f}."
        return f"It was t{before:.2f} and is t{after:.2f} now."

    return _done(back, do)


# Work -----------------------------------------------------------------------------------------------------------------


@admin_pages.get("/work")
def leases() -> ResponseReturnValue:
    """Reservations, numbers kept from work, and leases."""
    return render_template(
        "admin/leases.html",
        reserved=reservations.list_open_leases(engine(), reserving=True, limit=SOME),
        held=reservations.held_composites(engine(), SOME),
        leases=reservations.list_open_leases(engine(), reserving=False, limit=SOME),
        most=SOME,
    )


@admin_pages.post("/work/<work_id>/end")
def end_work(work_id: str) -> ResponseReturnValue:
    """Release a reservation, or cancel a lease."""

    def do() -> str:
        reason = _form(ReasonQuery).reason
        row = with_lease(lambda id_: reservations.cancel(engine(), id_, reason, request_actor()), work_id)
        return f"The {row.method} work of {row.client_id} is {row.status}."

    return _done(url_for("admin_pages.leases"), do)


# Dead letters ---------------------------------------------------------------------------------------------------------


@admin_pages.get("/letters")
def failed_results() -> ResponseReturnValue:
    """What was refused or failed, to be sent again."""
    after = None
    kind, _, place = request.args.get("cursor", "").partition("-")
    if _is_id(place):
        after = (kind == "1", int(place))
    rows = dead_letters.list_dead_letters(engine(), limit=SOME, after=after, most_bytes=dead_letters.LISTED_BYTES)
    onward = f"{int(rows[-1].holds_factors)}-{rows[-1].id}" if len(rows) == SOME else None
    return render_template("admin/failed_results.html", letters=rows, next=onward)


@admin_pages.post("/letters")
def retry() -> ResponseReturnValue:
    """Queue those chosen again, or use their true factors; each by itself, so that one refusal stops no other."""
    chosen = [int(text) for text in request.form.getlist("submission") if _is_id(text)]
    accepting = request.form.get("do") == "accept"

    def do() -> str:
        if not chosen:
            raise Problem(422, "invalid", "None was chosen; tick those that are meant.")
        refusals, found = [], 0
        for submission_id in chosen[:CHOSEN_AT_ONCE]:
            try:
                found += _accept(submission_id) if accepting else _send_again(submission_id)
            except DomainError as error:
                refusals.append(f"{submission_id}: {error}")
        done = f"{found} factors were used." if accepting else f"{found} queued again."
        return " ".join([done, *(f"{words}." for words in refusals)])

    return _done(url_for("admin_pages.failed_results"), do)


def _accept(submission_id: int) -> int:
    done = dead_letters.accept_factors(engine(), request_actor(), submission_id, settings().max_digits)
    publish_jobs(done.to_publish)
    return len(done.accepted)


def _send_again(submission_id: int) -> int:
    done = dead_letters.retry(engine(), request_actor(), submission_id)
    publish_submission(submission_id, done.client_id, done.composite)
    return 1
