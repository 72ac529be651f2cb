"""Administration of factors, attempts and projects, and the counts of all tables."""

from typing import Any

from flask import Response

from coordinator.administration import deletions, edits, project_edits
from coordinator.administration.edits import Provenance
from coordinator.base import clock
from coordinator.reading import counts
from ingest import openapi
from ingest.admin.admin_composites import factors_answer
from ingest.admin.blueprints import UNKNOWN_COMPOSITE, answer, make, request_actor
from ingest.plurals import counted
from ingest.request_bodies import read_body
from ingest.view_context import engine, settings
from models.wire.administration import (
    AttemptDeleted,
    AttemptsVoided,
    FactorDeleted,
    FactorsAdded,
    KnownFactors,
    NewProject,
    ProjectState,
    Summary,
    Voiding,
    WhyQuery,
)
from models.wire.common import AttemptPath, FactorPath, ProjectNamePath, ProjectPath
from tasks.publishing import publish_jobs

admin_records = make("admin_records", openapi.ADMIN_RECORDS)


@admin_records.post(
    "/factors",
    operation_id="admin_add_factors",
    request_body=openapi.takes(KnownFactors),
    responses={200: FactorsAdded, 400: openapi.problem("`factor_does_not_divide`"), **UNKNOWN_COMPOSITE},
)
def add_factors() -> Response:
    """Record factors that were found elsewhere, without curves: each is verified, and all are used or none."""
    body = read_body(KnownFactors)
    provenance = Provenance(body.source, body.found_at)
    most = settings().max_digits
    done = edits.add_known_factors(
        engine(), request_actor(), body.composite.strip(), body.factors, provenance, max_digits=most
    )
    publish_jobs(done.to_publish)
    return answer(factors_answer(done, f"{counted(len(done.new), 'new factor')}, {len(done.known)} known before"))


@admin_records.delete(
    "/factors/<int:factor_id>",
    operation_id="admin_delete_factor",
    responses={
        200: FactorDeleted,
        404: openapi.problem("`unknown_factor`"),
        409: openapi.problem("`has_been_worked_on`: a composite of its own has; `is_part`: delete it on the root"),
    },
)
def delete_factor(path: FactorPath) -> Response:
    """Delete a factor and the factors that it was split into; the cofactor is multiplied by its value again.

    Factors that follow from the others, and small ones, are found again at once.
    """
    composite_id, left, to_publish = deletions.delete_factor(
        engine(), request_actor(), path.factor_id, settings().max_digits
    )
    publish_jobs(to_publish)
    fields = {"factor_id": path.factor_id, "composite_id": composite_id, "current_composite": left}
    return answer({**fields, "message": "The factor was deleted"})


@admin_records.delete(
    "/attempts/<int:attempt_id>",
    operation_id="admin_delete_attempt",
    responses={200: AttemptDeleted, 404: openapi.problem("`unknown_attempt`")},
)
def delete_attempt(path: AttemptPath, query: WhyQuery) -> Response:
    """Delete an attempt with its effort; factors stay. Its submission becomes rejected (`attempt_deleted`)."""
    composite_id, t_level = deletions.delete_attempt(engine(), request_actor(), path.attempt_id, query.reason)
    fields = {"attempt_id": path.attempt_id, "composite_id": composite_id, "current_t_level": t_level}
    return answer({**fields, "message": "The attempt was deleted"})


@admin_records.post(
    "/attempts/void",
    operation_id="admin_void_attempts",
    request_body=openapi.takes(Voiding),
    responses={200: AttemptsVoided},
)
def void_attempts() -> Response:
    """Void the attempts of a broken client in a period: rows stay and are marked, effort is rebuilt, factors stay."""
    body = read_body(Voiding)
    done = deletions.void_attempts(
        engine(),
        request_actor(),
        body.client_id,
        since=body.since,
        until=body.until or clock.now(engine()),
        program=body.program,
        reason=body.reason,
    )
    message = f"{counted(done.attempts, 'attempt')} on {counted(done.composites, 'number')} voided"
    if done.waiting:
        message += f"; not applied yet: {counted(done.waiting, 'result')} of that period; void again when they are"
    return answer({**done._asdict(), "message": message})


@admin_records.post(
    "/projects",
    operation_id="admin_create_project",
    request_body=openapi.takes(NewProject),
    responses={201: ProjectState, 409: openapi.problem("`project_exists`")},
)
def create_project() -> Response:
    """Create a project."""
    row = project_edits.create_project(engine(), request_actor(), read_body(NewProject).name)
    made = {"project_id": row.id, "name": row.name, "composites": 0, "message": "The project was created"}
    return answer(made, 201, location=f"/projects/{row.id}")


UNKNOWN_PROJECT: dict[Any, Any] = {404: openapi.problem("`unknown_project`")}


@admin_records.delete(
    "/projects/<int:project_id>",
    operation_id="admin_delete_project",
    responses={200: ProjectState, **UNKNOWN_PROJECT},
)
def delete_project(path: ProjectPath) -> Response:
    """Delete a project; its numbers stay."""
    gone = project_edits.delete_project(engine(), request_actor(), project_id=path.project_id)
    return answer({**gone, "message": "The project was deleted; its numbers stay"})


@admin_records.delete(
    "/projects/by-name/<path:name>",
    operation_id="admin_delete_project_by_name",
    responses={200: ProjectState, **UNKNOWN_PROJECT},
)
def delete_project_by_name(path: ProjectNamePath) -> Response:
    """Delete a project by its name; its numbers stay."""
    gone = project_edits.delete_project(engine(), request_actor(), name=path.name)
    return answer({**gone, "message": "The project was deleted; its numbers stay"})


@admin_records.get("/stats/summary", operation_id="admin_summary", responses={200: Summary})
def summary() -> Response:
    """Return how many rows there are of each kind; counts of large tables are estimates."""
    return answer(counts.summarize_database(engine()))
