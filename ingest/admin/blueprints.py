"""What the routes of administration share: blueprints behind the key, the actor, and JSON answers."""

from typing import Any

import orjson
from flask import Response, request
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag

from coordinator.base.audit import ADMIN, Actor
from ingest import openapi
from ingest.admin.admin_key import require_key

UNKNOWN_COMPOSITE: dict[Any, Any] = {404: openapi.problem("`unknown_composite`")}


def make(name: str, tag: Tag) -> APIBlueprint:
    """Return a blueprint whose routes require the admin key."""
    blueprint = openapi.admin_blueprint(name, tag)
    blueprint.before_request(require_key)
    return blueprint


def request_actor() -> Actor:
    """Return the actor of this request for the audit log."""
    return Actor(ADMIN, request.environ.get("ecm.request_id"))


def answer(body: dict[str, Any], status: int = 200, *, location: str | None = None) -> Response:
    """Return a JSON answer; `location` is where to ask about what was created or accepted."""
    headers = {} if location is None else {"Location": f"{openapi.API}{location}"}
    return Response(orjson.dumps(body, default=str), status, headers, content_type="application/json")
