"""Administration of numbers: find, show, set the priority, complete, delete, and recalculate effort."""

from typing import Any

from flask import Response, request
from sqlalchemy import Row

from coordinator.administration import deletions, edits, recalculation
from coordinator.administration.edits import Provenance
from coordinator.numbers.expressions import LONGEST_EXPRESSION
from coordinator.reading import counts, detail, lookup
from ingest import openapi
from ingest.admin.blueprints import UNKNOWN_COMPOSITE, answer, make, request_actor
from ingest.plurals import counted
from ingest.problems import ProblemError
from ingest.request_bodies import read_body
from ingest.view_context import engine, settings
from models.wire.administration import (
    Completion,
    CompositeDeleted,
    CompositeDetail,
    CompositesFound,
    CompositesStatus,
    FactorsAdded,
    FindQuery,
    NewPriority,
    PriorityQuery,
    PriorityState,
    RecalculateQuery,
    RecalculationState,
    TLevelRecalculated,
)
from models.wire.common import CompositePath
from tasks.publishing import publish_jobs

admin_composites = make("admin_composites", openapi.ADMIN_COMPOSITES)


@admin_composites.get("/composites/status", operation_id="admin_composites_status", responses={200: CompositesStatus})
def status() -> Response:
    """Return how many numbers there are of each kind; counts of large tables are estimates."""
    return answer(counts.composites_status(engine()))


@admin_composites.get("/composites/find", operation_id="admin_find_composites", responses={200: CompositesFound})
def find(query: FindQuery) -> Response:
    """Return the numbers that a value (number, expression, an old cofactor) or an id may mean.

    Results for this value go to the first of them.
    """
    text = query.q.strip()
    if len(text) > LONGEST_EXPRESSION and not text.isdigit():
        detail = f"q has {len(text)} characters; send at most {LONGEST_EXPRESSION}, or the number in decimal."
        raise ProblemError(422, "number_too_large", detail, errors=[{"field": "q", "message": detail}])
    rows = lookup.find_composites(engine(), text, settings().max_digits)
    return answer({"composites": [short(row) for row in rows]})


def short(row: Row[Any]) -> dict[str, object]:
    """Return a number as lists show it."""
    fields = dict(row._asdict())
    return {"composite_id": fields.pop("id"), **fields}


@admin_composites.get(
    "/composites/<int:composite_id>",
    operation_id="admin_composite",
    responses={200: CompositeDetail, **UNKNOWN_COMPOSITE},
)
def show(path: CompositePath) -> Response:
    """Return a number with its factors and their ids, its effort, open leases, projects and parts."""
    found = detail.read_columns(engine(), path.composite_id)
    return answer({"composite_id": found.pop("id"), **found})


@admin_composites.put(
    "/composites/<int:composite_id>/priority",
    operation_id="admin_set_priority",
    request_body=openapi.takes(NewPriority, required=False),
    responses={200: PriorityState, **UNKNOWN_COMPOSITE},
)
def set_priority(path: CompositePath, query: PriorityQuery) -> Response:
    """Set a number's priority, given in the query or in the body; numbers of higher priority are leased first."""
    priority = query.priority if query.priority is not None else read_body(NewPriority).priority
    before = edits.set_priority(engine(), request_actor(), path.composite_id, priority)
    message = f"The priority was {before}"
    return answer({"composite_id": path.composite_id, "priority": priority, "message": message})


@admin_composites.post(
    "/composites/<int:composite_id>/complete",
    operation_id="admin_complete",
    request_body=openapi.takes(Completion, required=False),
    responses={
        200: FactorsAdded,
        400: openapi.problem("`factor_does_not_divide`"),
        409: openapi.problem("`not_finished`: a composite part is left"),
        **UNKNOWN_COMPOSITE,
    },
)
def complete(path: CompositePath) -> Response:
    """Complete a number with the given and the known factors: their product must be the number, and all be prime.

    Idempotent.
    """
    completion = read_body(Completion) if request.get_data() else Completion()
    done = edits.complete_composite(
        engine(),
        request_actor(),
        path.composite_id,
        completion.factors,
        Provenance(completion.source, completion.found_at),
        cofactor_is_prime=completion.cofactor_is_prime,
        max_digits=settings().max_digits,
    )
    publish_jobs(done.to_publish)
    return answer(factors_answer(done, "The number is fully factored"))


def factors_answer(done: edits.AddedFactors, message: str) -> dict[str, object]:
    """Return the answer about factors that were found elsewhere."""
    return {
        "composite_id": done.row.id,
        "new_factors": done.new,
        "known_factors": done.known,
        "current_composite": done.row.current_composite,
        "is_fully_factored": done.row.is_fully_factored,
        "message": message,
    }


@admin_composites.delete(
    "/composites/<int:composite_id>",
    operation_id="admin_delete_composite",
    responses={
        200: CompositeDeleted,
        409: openapi.problem("`is_part`: another number's factor needs it"),
        **UNKNOWN_COMPOSITE,
    },
)
def delete(path: CompositePath) -> Response:
    """Delete a number with its attempts, factors, effort, leases and jobs, and the numbers that were split off it.

    The submissions of clients stay, as rejected (`composite_deleted`); operators can retry them.
    """
    gone, to_publish = deletions.delete_composite(engine(), request_actor(), path.composite_id, settings().max_digits)
    publish_jobs(to_publish)
    return answer({"deleted": gone, "message": f"Deleted or changed: {deleted_rows(gone)}"})


# What one row, and several rows, of each table are called; by the names that a deletion reports.
DELETED_NOUNS = {
    "submissions_refused": ("rejected submission", "rejected submissions"),
    "jobs": ("job", "jobs"),
    "factors": ("factor", "factors"),
    "ecm_residues": ("residue", "residues"),
    "ecm_attempts": ("attempt", "attempts"),
    "work_assignments": ("lease", "leases"),
    "composite_aliases": ("alias", "aliases"),
    "project_composites": ("project membership", "project memberships"),
    "composites": ("composite", "composites"),
}


def deleted_rows(deleted: dict[str, int]) -> str:
    """Return in words how many rows of which tables a deletion has deleted or changed."""
    return ", ".join(counted(count, *DELETED_NOUNS[table]) for table, count in deleted.items() if count)


# Effort ---------------------------------------------------------------------------------------------------------------


@admin_composites.post(
    "/composites/calculate-t-levels",
    operation_id="admin_calculate_t_levels",
    responses={202: RecalculationState, 409: openapi.problem("`recalculation_runs`: one is running already")},
)
def calculate_t_levels(query: RecalculateQuery) -> Response:
    """Start a recalculation of effort and t-levels from the attempts, of all numbers or of those that lack them.

    A worker computes without locks, and then writes all differences in one transaction. See recalculate-status.
    """
    row, to_publish = recalculation.start_recalculation(
        engine(), request_actor(), only_missing=not query.recalculate_all
    )
    publish_jobs(to_publish)
    return answer(recalculation_answer(row), 202, location="/admin/composites/recalculate-status")


@admin_composites.get(
    "/composites/recalculate-status", operation_id="admin_recalculate_status", responses={200: RecalculationState}
)
def recalculate_status() -> Response:
    """Return the progress of the latest recalculation."""
    row = recalculation.recalculation_status(engine())
    if row is None:
        return answer({**RecalculationState(state="none", message="No recalculation has run yet").model_dump()})
    return answer(recalculation_answer(row))


def recalculation_answer(row: Row[Any]) -> dict[str, object]:
    """Return the state of a recalculation as clients get it."""
    given_up = row.finished_at is None and getattr(row, "job_state", None) == "failed"
    state = recalculation.FAILED if given_up else row.state
    message = f"{row.done:,} of {counted(row.total, 'number')} computed"
    if row.changed is not None:
        message += f", {row.changed:,} corrected"
    return {
        "recalculation_id": row.id,
        "state": state,
        "only_missing": row.only_missing,
        "total": row.total,
        "done": row.done,
        "changed": row.changed,
        "error": row.error or getattr(row, "job_error", None),
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "message": message,
    }


@admin_composites.post(
    "/composites/<int:composite_id>/recalculate-t-level",
    operation_id="admin_recalculate_t_level",
    responses={200: TLevelRecalculated, **UNKNOWN_COMPOSITE},
)
def recalculate(path: CompositePath) -> Response:
    """Recalculate the effort and the t-level of one number from its attempts and prior work."""
    before, after, _ = recalculation.recalculate_composite(engine(), request_actor(), path.composite_id)
    message = "The t-level was right" if before == after else "The t-level has been corrected"
    levels = {"previous_t_level": before, "current_t_level": after}
    return answer({"composite_id": path.composite_id, **levels, "message": message})
