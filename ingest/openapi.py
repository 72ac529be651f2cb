"""The specification at /openapi.json and its viewer at /docs, generated from the models that validate.

Views read raw bytes themselves (ingest/bodies.py), so bodies are documented here without the library parsing them.
"""

import json
from importlib.metadata import version
from typing import Any

from flask import Response, redirect
from flask_openapi import APIBlueprint, Info, OpenAPI, Tag
from flask_openapi.models import Schema
from flask_openapi_swagger.plugins import RegisterPlugin
from pydantic import BaseModel
from werkzeug.wrappers import Response as AnyResponse

from ingest.problems import invalid
from models.wire.common import ProblemDetails

API = "/api/v1"

RESULTS = Tag(name="Results", description="Sending results in and asking what became of them")
READING = Tag(name="Reading", description="What is known about numbers")
WORK = Tag(name="Work", description="Leases: what to run next, and how far it is")
RESIDUES = Tag(name="Residues", description="Stage 1 on one machine, stage 2 on another")
ADMIN_WORK = Tag(name="Administration: work", description="Reservations, pauses and leases, with X-Admin-Key")
ADMIN_COMPOSITES = Tag(name="Administration: numbers", description="Numbers and their effort, with X-Admin-Key")
ADMIN_RECORDS = Tag(name="Administration: records", description="Factors, attempts and projects, with X-Admin-Key")
ADMIN_SUBMISSIONS = Tag(name="Administration: dead letters", description="Refused and failed results, with X-Admin-Key")
ADMIN_RESIDUES = Tag(name="Administration: residues", description="Residues, with X-Admin-Key")
OPERATIONS = Tag(name="Operations", description="For load balancers, operators and Prometheus")

_bodies: dict[str, Any] = {}


def problem(description: str) -> dict[str, Any]:
    """A documented error answer."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}


def takes(model: type[BaseModel], *, many: bool = False) -> dict[str, Any]:
    """A documented JSON body that the view reads itself; `many`: an array or NDJSON of such objects."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    _bodies.update(schema.pop("$defs", {}) | {model.__name__: schema})
    one = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    if not many:
        return {"required": True, "content": {"application/json": one}}
    array = {"schema": {"type": "array", "items": one["schema"]}}
    return {"required": True, "content": {"application/json": array, "application/x-ndjson": one}}


AWAY: dict[Any, Any] = {503: problem("The database is away; send the same again later")}
TOO_MANY: dict[Any, Any] = {429: problem("Too many requests of this client or address; `Retry-After` says when")}
CLIENT_KEY: dict[Any, Any] = {
    401: problem("This server asks for the client's key, or the one in Authorization is none"),
    403: problem("`wrong_client`: the key is another client's"),
}
# An empty requirement beside the other: a key can be left out where it is not asked for.
BY_CLIENT: list[dict[str, list[str]]] = [{}, {"client_key": []}]


def blueprint(name: str, tag: Tag, url_prefix: str = API) -> APIBlueprint:
    """A blueprint whose views are documented under `tag`, with the errors that any of them can give."""
    errors = AWAY | TOO_MANY if url_prefix == API else AWAY
    return APIBlueprint(name, name, abp_tags=[tag], abp_responses=errors, url_prefix=url_prefix)


def client_blueprint(name: str, tag: Tag) -> APIBlueprint:
    """A blueprint for what clients do under their own names, with a key where the server asks for one."""
    errors = AWAY | TOO_MANY | CLIENT_KEY
    return APIBlueprint(name, name, abp_tags=[tag], abp_security=BY_CLIENT, abp_responses=errors, url_prefix=API)


def admin_blueprint(name: str, tag: Tag) -> APIBlueprint:
    """A blueprint under /api/v1/admin, documented as asking for the key."""
    errors: dict[Any, Any] = {
        401: problem("No X-Admin-Key"),
        403: problem("A wrong X-Admin-Key"),
        422: problem("A parameter or the body is missing or malformed"),
        **AWAY,
        **TOO_MANY,
    }
    key: list[dict[str, list[str]]] = [{"admin_key": []}]
    return APIBlueprint(name, name, abp_tags=[tag], abp_security=key, abp_responses=errors, url_prefix=f"{API}/admin")


def make_app() -> OpenAPI:
    """A Flask application that knows its own specification."""
    app = OpenAPI(
        "ingest",
        info=Info(
            title="ECM Coordinator",
            version=version("ecm-coordinator"),
            description="The coordination server for distributed integer factorization by ECM, P-1 and P+1.",
        ),
        doc_ui=False,
        validation_error_model=ProblemDetails,
        validation_error_callback=lambda error: invalid(error, "query").response(),
        security_schemes={
            "admin_key": {"type": "apiKey", "in": "header", "name": "X-Admin-Key"},
            "client_key": {"type": "http", "scheme": "bearer", "description": "`ecm-coordinator clients add NAME`"},
        },
        static_folder=None,
    )
    app.openapi_version = "3.1.0"
    return app


def serve(app: OpenAPI) -> None:
    """Serve the specification and its viewer, all of it from here; after every view is registered."""
    app.components_schemas.update({name: Schema(**schema) for name, schema in _bodies.items()})
    specification: list[bytes] = []

    def openapi() -> Response:
        if not specification:
            specification.append(json.dumps(app.api_doc).encode())
        return Response(specification[0], 200, content_type="application/json")

    def docs() -> AnyResponse:
        return redirect("/docs/swagger")

    app.add_url_rule("/openapi.json", "openapi_json", openapi)
    app.add_url_rule("/docs", "docs", docs)
    app.register_blueprint(RegisterPlugin.register(doc_url="../openapi.json"), url_prefix="/docs")
