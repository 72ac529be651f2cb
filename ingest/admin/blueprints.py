"""What all of administration shares: the key, who asks, and refusals as problems."""

from typing import Any

import orjson
from flask import Response, current_app, request
from flask_openapi import APIBlueprint, Tag
from sqlalchemy import Engine

from config.settings import Settings
from coordinator.audit import ADMIN, By
from coordinator.refusals import Conflict, Refusal, Unknown
from ingest import openapi
from ingest.admin.access import require_key
from ingest.problems import Problem

UNKNOWN_COMPOSITE: dict[Any, Any] = {404: openapi.problem("`unknown_composite`")}


def make(name: str, tag: Tag) -> APIBlueprint:
    """A blueprint behind the key, whose views may raise what the coordinator refuses."""
    blueprint = openapi.admin_blueprint(name, tag)
    blueprint.before_request(require_key)
    blueprint.register_error_handler(Refusal, _refused)
    return blueprint


def _refused(error: Refusal) -> Response:
    status = 404 if isinstance(error, Unknown) else 409 if isinstance(error, Conflict) else 400
    return Problem(status, error.reason, f"{error}.").response()


def by() -> By:
    """Who asks, as the audit trail names it."""
    return By(ADMIN, request.environ.get("ecm.request_id"))


def engine() -> Engine:
    """This process's engine."""
    found: Engine = current_app.config["ENGINE"]
    return found


def settings() -> Settings:
    """The application's settings."""
    found: Settings = current_app.config["SETTINGS"]
    return found


def answer(body: dict[str, Any], status: int = 200) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(body, default=str), status, content_type="application/json")
