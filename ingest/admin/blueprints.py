"""What all of administration shares: the key, and who asks."""

from typing import Any

import orjson
from flask import Response, request
from flask_openapi import APIBlueprint, Tag

from coordinator.base.audit import ADMIN, Actor
from ingest import openapi
from ingest.admin.admin_key import require_key

UNKNOWN_COMPOSITE: dict[Any, Any] = {404: openapi.problem("`unknown_composite`")}


def make(name: str, tag: Tag) -> APIBlueprint:
    """A blueprint behind the key."""
    blueprint = openapi.admin_blueprint(name, tag)
    blueprint.before_request(require_key)
    return blueprint


def request_actor() -> Actor:
    """Who asks, as the audit trail names it."""
    return Actor(ADMIN, request.environ.get("ecm.request_id"))


def answer(body: dict[str, Any], status: int = 200) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(body, default=str), status, content_type="application/json")
