"""Leases over HTTP: clients ask for ECM, P-1 or P+1 work, send heartbeats, and complete or abandon their leases."""

import uuid
from collections.abc import Callable
from typing import Any

import orjson
from flask import Response, request
from pydantic import BaseModel
from sqlalchemy import Row

from coordinator.composites import lease_lifecycle
from coordinator.leases import claims
from coordinator.leases.claims import ContendedError
from coordinator.leases.work_request import Claim, NoWork, WorkRequest
from ingest import client_authentication, openapi
from ingest.problems import ProblemError
from ingest.security_headers import forbid_storing
from ingest.view_context import engine, settings
from models.limits import DEFAULT_B2
from models.wire.common import ClientPath, WorkPath
from models.wire.work import (
    AbandonQuery,
    AnyWork,
    AnyWorkQuery,
    ClientQuery,
    ClientWork,
    EcmWork,
    EcmWorkQuery,
    LeaseState,
    P1Work,
    P1WorkQuery,
    ProgressQuery,
    WorkFilters,
)

leases = openapi.client_blueprint("leases", openapi.WORK)

LEASES_SHOWN = 50
NOT_YOURS: dict[Any, Any] = {
    404: openapi.problem("`unknown_work`: no such lease, another client's, or in a state that forbids it")
}


leases.after_request(forbid_storing)


@leases.get("/ecm-work", operation_id="ecm_work", responses={200: EcmWork})
def ecm_work(query: EcmWorkQuery) -> Response:
    """Lease ECM work: a whole number for days, or some of its curves with `shared`."""
    work_request = _work_request(
        query,
        order=query.work_type or "standard",
        shared=query.shared,
        b1=query.requested_b1,
        stage1_only=query.stage1_only,
    )
    return _answer(EcmWork, work_request, _ecm_fields)


@leases.get("/p1-work", operation_id="p1_work", responses={200: P1Work})
def p1_work(query: P1WorkQuery) -> Response:
    """Lease P-1 or P+1 work, or both, on a number that still needs it."""
    return _answer(P1Work, _work_request(query, method=query.method), _p1_fields)


@leases.get("/work", operation_id="any_work", responses={200: AnyWork})
def any_work(query: AnyWorkQuery) -> Response:
    """Lease one run of the first method that has work, with the parameters of the run."""
    nothing: dict[str, Any] = {}  # there is always a method
    for method in query.methods.split(","):
        work_request = WorkRequest(
            query.client_id, method, shared=method == "ecm", min_digits=query.min_digits, max_digits=query.max_digits
        )
        claim = _claim(work_request)
        if isinstance(claim, Claim):
            return _json(AnyWork, _any_fields(claim))
        nothing = _no_work(claim)
    return _json(AnyWork, nothing)


@leases.post("/work/<work_id>/claim", operation_id="claim_work", responses={200: LeaseState, **NOT_YOURS})
def claim_work(path: WorkPath, query: ClientQuery) -> Response:
    """Set the state of an assigned lease to `claimed`."""
    return _lease(lambda work_id: lease_lifecycle.advance(engine(), work_id, query.client_id, "claimed"), path)


@leases.post("/work/<work_id>/start", operation_id="start_work", responses={200: LeaseState, **NOT_YOURS})
def start_work(path: WorkPath, query: ClientQuery) -> Response:
    """Set the state of an assigned or claimed lease to `running`."""
    return _lease(lambda work_id: lease_lifecycle.advance(engine(), work_id, query.client_id, "running"), path)


@leases.put(
    "/work/<work_id>/progress",
    operation_id="work_progress",
    responses={200: LeaseState, **NOT_YOURS},
)
def work_progress(path: WorkPath, query: ProgressQuery) -> Response:
    """Record a heartbeat, and extend the lease if curves advanced. A closed `status` says that the lease is over."""
    return _lease(
        lambda work_id: lease_lifecycle.heartbeat(
            engine(), work_id, query.client_id, query.curves_completed, query.message
        ),
        path,
    )


@leases.post(
    "/work/<work_id>/complete",
    operation_id="complete_work",
    responses={200: LeaseState, **NOT_YOURS},
)
def complete_work(path: WorkPath, query: ClientQuery) -> Response:
    """Complete a lease. Idempotent; a lease that is closed already stays as it is."""
    return _lease(lambda work_id: lease_lifecycle.complete(engine(), work_id, query.client_id), path)


@leases.delete("/work/<work_id>", operation_id="abandon_work", responses={200: LeaseState, **NOT_YOURS})
def abandon_work(path: WorkPath, query: AbandonQuery) -> Response:
    """Abandon a lease. Idempotent. Operators see the reason if other clients abandon the number, too."""
    return _lease(
        lambda work_id: lease_lifecycle.abandon(
            engine(), work_id, query.client_id or client_authentication.client_of_key(), query.reason
        ),
        path,
    )


@leases.get("/work/status/<path:client_id>", operation_id="client_work", responses={200: ClientWork})
def client_work(path: ClientPath) -> Response:
    """List a client's last 50 leases, open ones first, with all that the client needs to continue them."""
    rows = lease_lifecycle.client_leases(engine(), path.client_id, LEASES_SHOWN)
    return _json(ClientWork, {"client_id": path.client_id, "assignments": [assignment(row) for row in rows]})


def assignment(row: Row[Any]) -> dict[str, Any]:
    """Return a lease with its number as lists of leases show it."""
    return {
        "work_id": str(row.id),
        "composite_id": row.composite_id,
        "composite": row.current_composite,
        "digit_length": row.digit_length,
        "current_t_level": row.current_t_level,
        "target_t_level": row.target_t_level,
        "method": row.method,
        "b1": row.b1,
        "b2": None if row.b2 == DEFAULT_B2 else row.b2,
        "curves": row.curves,
        "parametrization": row.parametrization,
        "shared": row.curves is not None,
        "curves_completed": row.curves_completed,
        "curves_submitted": row.curves_submitted,
        "status": row.status,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "closed_at": row.closed_at,
        "message": row.message,
    }


def _work_request(query: WorkFilters, **more: Any) -> WorkRequest:
    return WorkRequest(
        query.client_id,
        composite=query.composite,
        min_digits=query.min_digits,
        max_digits=query.max_digits,
        min_priority=query.priority,
        project=query.project,
        min_target=query.min_target_tlevel,
        max_target=query.max_target_tlevel,
        max_current=query.max_current_tlevel,
        days=query.timeout_days,
        **more,
    )


def _claim(work_request: WorkRequest) -> Claim | NoWork:
    if request.method == "HEAD":  # Flask would lease work and leave the lease out of its answer
        raise ProblemError(
            405, "method_not_allowed", "Ask for work with GET: that leases it.", headers={"Allow": "GET"}
        )
    try:
        return claims.claim(engine(), work_request, settings())
    except ContendedError as error:
        detail = f"There is work, but {error}. Ask again in a second."
        raise ProblemError(503, "busy", detail, headers={"Retry-After": "1"}) from error


def _answer(model: type[BaseModel], work_request: WorkRequest, fields: Callable[[Claim], dict[str, Any]]) -> Response:
    claim = _claim(work_request)
    return _json(model, fields(claim) if isinstance(claim, Claim) else _no_work(claim))


def _no_work(none: NoWork) -> dict[str, Any]:
    return {"message": none.message, "retry_after": none.retry_after}


def _common_fields(claim: Claim) -> dict[str, Any]:
    return {
        "work_id": str(claim.work_id),
        "composite_id": claim.composite.id,
        "composite": claim.composite.current_composite,
        "digit_length": claim.composite.digit_length,
        "current_t_level": claim.composite.current_t_level,
        "target_t_level": claim.composite.target_t_level,
        "expires_at": claim.expires_at,
        "method": claim.method,
        "message": "Work leased",
    }


def _ecm_fields(claim: Claim) -> dict[str, Any]:
    if claim.plan is None:
        raise ValueError("an ECM lease has a plan")
    return _common_fields(claim) | {
        "prior_t_level": claim.prior_t_level,
        "b1": claim.plan.b1,
        "b2": _b2(claim.plan.b2),
        "curves": claim.plan.curves,
        "parametrization": claim.plan.parametrization,
        "shared": claim.shared,
    }


def _p1_fields(claim: Claim) -> dict[str, Any]:
    return _common_fields(claim) | {"pm1_b1": claim.pm1_b1, "pp1_b1": claim.pp1_b1}


def _any_fields(claim: Claim) -> dict[str, Any]:
    if claim.plan is None:
        parameters: dict[str, Any] = {"b1": claim.pm1_b1 or claim.pp1_b1, "b2": None}
    else:
        parameters = {
            "b1": claim.plan.b1,
            "b2": _b2(claim.plan.b2),
            "curves": claim.plan.curves,
            "parametrization": claim.plan.parametrization,
        }
    minutes = None if claim.minutes is None else round(claim.minutes, 2)
    return _common_fields(claim) | {"parameters": parameters, "estimated_time_minutes": minutes}


def _b2(b2: int) -> int | None:
    return None if b2 == DEFAULT_B2 else b2


def _lease(change: Callable[[uuid.UUID], Row[Any]], path: WorkPath) -> Response:
    """Apply `change` to the lease that `path` names, and answer with its new state."""
    return _json(LeaseState, lease_state(with_lease(change, path.work_id)))


def with_lease(change: Callable[[uuid.UUID], Row[Any]], work_id: str) -> Row[Any]:
    """Return the row that `change` returns for the lease `work_id`; raises a 404 problem if it finds no such lease."""
    try:
        lease_id = uuid.UUID(work_id)
    except ValueError as error:
        raise ProblemError(404, "unknown_work", f"{work_id[:60]!r} is no work_id; those are UUIDs.") from error
    try:
        return change(lease_id)
    except lease_lifecycle.LeaseNotFoundError as error:
        raise ProblemError(404, "unknown_work", f"{error}.") from error


def lease_state(row: Row[Any]) -> dict[str, Any]:
    """Return the state of a lease as clients get it."""
    return {
        "work_id": str(row.id),
        "status": row.status,
        "curves_completed": row.curves_completed,
        "curves_submitted": row.curves_submitted,
        "expires_at": row.expires_at,
        "message": f"This work is {row.status}" + (f": {row.message}" if row.message and row.closed_at else ""),
    }


def _json(model: type[BaseModel], body: dict[str, Any]) -> Response:
    """Return `body` as JSON with every field of `model`, null where `body` lacks it."""
    whole = {name: body.get(name) for name in model.model_fields}
    return Response(orjson.dumps(whole), 200, content_type="application/json")
