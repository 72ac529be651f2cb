"""The specification at /openapi.json and its viewer at /docs, generated from the models that validate.

flask-openapi collects the operations with their answers. Views read raw bytes themselves (ingest/request_bodies.py), so
bodies are documented here without the library parsing them; and its own schema classes round 64-bit bounds and drop
keywords, so all schemas come from pydantic directly.
"""

import inspect
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any, get_type_hints

from flask import Response, redirect
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.info import Info
from flask_openapi.models.license import License
from flask_openapi.models.tag import Tag
from flask_openapi.openapi import OpenAPI
from flask_openapi.utils import parse_rule
from flask_openapi_swagger.plugins import RegisterPlugin
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from werkzeug.wrappers import Response as AnyResponse

from ingest.problems import invalid
from models.wire import administration, common, loading, reading, residues, work
from models.wire import results as results_models
from models.wire.common import ProblemDetails

API = "/api/v1"
REF = "#/components/schemas/"
PROBLEM = "application/problem+json"
DESCRIPTION = """\
The coordination server for distributed integer factorization by ECM, P-1 and P+1.

Every error is a problem document (RFC 9457): `reason` is a stable word for programs, `detail` a sentence for people.
Numbers are strings, in decimal or as expressions such as `2^1277-1`. Unknown fields and parameters are ignored, and an
empty query parameter is one that was not given. Times are in UTC.

Every answer has an `X-Request-ID`, the request's own if it has one. Requests under `/api/v1` are counted for each
address and client; `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset` describe the limit that is reached
first. A request whose expectation or HTTP version is not supported is answered with 417 or 505, and one with a method
that the address does not have with 405 and `Allow`.
"""

RESULTS = Tag(name="Results", description="Send results, and ask what happened to them")
READING = Tag(name="Reading", description="Numbers, factors, projects and clients")
WORK = Tag(name="Work", description="Leases: what to run next, and how far it is")
RESIDUES = Tag(name="Residues", description="One client runs stage 1, another one stage 2")
ADMIN_WORK = Tag(name="Administration: work", description="Reservations, pauses and leases, with X-Admin-Key")
ADMIN_COMPOSITES = Tag(name="Administration: numbers", description="Numbers and their effort, with X-Admin-Key")
ADMIN_RECORDS = Tag(name="Administration: records", description="Factors, attempts and projects, with X-Admin-Key")
ADMIN_SUBMISSIONS = Tag(
    name="Administration: failed results", description="Rejected and failed results, with X-Admin-Key"
)
ADMIN_RESIDUES = Tag(name="Administration: residues", description="Residues, with X-Admin-Key")
OPERATIONS = Tag(name="Operations", description="For load balancers, operators and Prometheus")

Json = dict[str, Any]


def problem(description: str) -> Json:
    """Return a documented error answer."""
    return {"description": description, "content": {PROBLEM: {"schema": {"$ref": f"{REF}ProblemDetails"}}}}


def takes(model: type[BaseModel], *, required: bool = True, or_array: bool = False) -> Json:
    """Return a documented JSON body that the view reads itself; `or_array`: an array of entries may stand alone."""
    schema: Json = {"$ref": f"{REF}{model.__name__}"}
    if or_array:
        schema = {"anyOf": [schema, {"type": "array", "minItems": 1}]}
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def takes_many(model: type[BaseModel], most: int) -> Json:
    """Return a documented body of several objects: an array, or NDJSON."""
    array = {"type": "array", "minItems": 1, "maxItems": most, "items": {"$ref": f"{REF}{model.__name__}"}}
    lines = {"type": "string", "description": f"One JSON object ({model.__name__}) per line."}
    return {
        "required": True,
        "content": {"application/json": {"schema": array}, "application/x-ndjson": {"schema": lines}},
    }


def reads_headers(*names: str) -> Json:
    """Return the extension of an operation that reads these of REQUEST_HEADERS."""
    return {"x-headers": list(names)}


REQUEST_HEADERS: dict[str, Json] = {
    "X-Client-ID": {
        "required": True,
        "description": "The client's name.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[!-~]([ -~]*[!-~])?$"},
    },
    "Idempotency-Key": {
        "required": False,
        "description": "A key of the client's choice for this result: a repetition with the same key changes nothing.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[!-~]([ -~]*[!-~])?$"},
    },
    "Prefer": {
        "required": False,
        "description": "`respond-async`: do not wait; `wait=N`: wait for at most N seconds (0 to 20) (RFC 7240).",
        "schema": {"type": "string"},
        "examples": {"asynchronous": {"value": "respond-async"}, "patient": {"value": "wait=20"}},
    },
}
RESPONSE_HEADERS: dict[str, Json] = {
    "Retry-After": {"description": "The number of seconds after which to try again.", "schema": {"type": "integer"}},
    "Location": {"description": "The address to ask about what was accepted or created.", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "How to send a key.", "schema": {"type": "string"}},
    "X-Residue-SHA256": {"description": "The SHA-256 of the file.", "schema": {"type": "string"}},
}

# What any request can be answered with, whatever the operation is; one that has a body, with more.
ANY_REQUEST = {
    400: ("BadRequest", problem("`bad_request`: the request is not valid HTTP")),
    414: ("AddressTooLong", problem("`address_too_long`: the address has more than 8,190 bytes")),
    431: ("HeadersTooLarge", problem("`headers_too_large`: the header fields are too large or too many")),
    500: ("InternalError", problem("`internal_error`: a fault of this server")),
}
ANY_BODY = {
    413: ("BodyTooLarge", problem("`body_too_large`")),
    501: ("NotImplemented", problem("`not_implemented`: the transfer coding is not supported")),
}
AWAY: dict[Any, Any] = {503: problem("`database_away`: send the same again later")}
TOO_MANY: dict[Any, Any] = {429: problem("`too_many_requests` of this client or address")}
INVALID: dict[Any, Any] = {422: problem("A parameter or the body is missing or malformed; `errors` names the fields")}
CLIENT_KEY: dict[Any, Any] = {
    401: problem("`unauthorized`: this server needs the client's key, or the key is unknown or revoked")
    | {"headers": {"WWW-Authenticate": {}}},
    403: problem("`wrong_client`: the key belongs to another client"),
}
# An empty requirement beside the other: a key can be left out where it is not asked for.
BY_CLIENT: list[dict[str, list[str]]] = [{}, {"client_key": []}]
STATUS_HEADERS = {"201": ["Location"], "202": ["Location"], "429": ["Retry-After"], "503": ["Retry-After"]}


def blueprint(name: str, tag: Tag) -> APIBlueprint:
    """Return a blueprint whose views are documented under `tag`, with the errors that each of them can give."""
    return APIBlueprint(name, name, abp_tags=[tag], abp_responses=AWAY | TOO_MANY, url_prefix=API)


def operations_blueprint(name: str, tag: Tag) -> APIBlueprint:
    """Return a blueprint outside of /api/v1, whose requests are not counted."""
    return APIBlueprint(name, name, abp_tags=[tag], url_prefix="/")


def client_blueprint(name: str, tag: Tag) -> APIBlueprint:
    """Return a blueprint for what clients do under their own names, with a key where the server needs one."""
    errors = AWAY | TOO_MANY | CLIENT_KEY
    return APIBlueprint(name, name, abp_tags=[tag], abp_security=BY_CLIENT, abp_responses=errors, url_prefix=API)


def admin_blueprint(name: str, tag: Tag) -> APIBlueprint:
    """Return a blueprint under /api/v1/admin, documented with the key that it needs."""
    errors: dict[Any, Any] = {
        401: problem("`unauthorized`: X-Admin-Key is missing"),
        403: problem("`forbidden`: X-Admin-Key is wrong, or this server has no admin key"),
        **AWAY,
        **TOO_MANY,
    }
    key: list[dict[str, list[str]]] = [{"admin_key": []}]
    return APIBlueprint(name, name, abp_tags=[tag], abp_security=key, abp_responses=errors, url_prefix=f"{API}/admin")


def make_app() -> OpenAPI:
    """Return a Flask application that collects its own specification."""
    app = OpenAPI(
        "ingest",
        info=Info(
            title="ECM Coordinator",
            version=version("ecm-coordinator"),
            description=DESCRIPTION,
            license=License(name="Apache-2.0", identifier="Apache-2.0"),
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
    specification: list[bytes] = []

    def openapi() -> Response:
        if not specification:
            specification.append(json.dumps(document(app)).encode())
        return Response(specification[0], 200, content_type="application/json")

    def docs() -> AnyResponse:
        return redirect("/docs/swagger")

    app.add_url_rule("/openapi.json", "openapi_json", openapi)
    app.add_url_rule("/docs", "docs", docs)
    app.register_blueprint(RegisterPlugin.register(doc_url="../openapi.json"), url_prefix="/docs")


# The document --------------------------------------------------------------------------------------------------------


def document(app: OpenAPI) -> Json:
    """Return the specification of all operations of the application."""
    made: Json = json.loads(json.dumps(app.api_doc))
    for path, method, view in _views(app):
        operation = made["paths"].get(path, {}).get(method)
        if operation is not None:
            _complete(operation, view)
    components = made["components"]
    components["responses"] = dict((ANY_REQUEST | ANY_BODY).values())
    components["headers"] = RESPONSE_HEADERS
    components["schemas"] = _schemas(made["paths"], components["responses"])
    return made


def _views(app: OpenAPI) -> Iterator[tuple[str, str, Any]]:
    """Yield the (path, method, view function) of every rule."""
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            yield parse_rule(rule.rule), method.lower(), inspect.unwrap(app.view_functions[rule.endpoint])


def _complete(operation: Json, view: Any) -> None:
    summary, _, description = (inspect.getdoc(view) or "").partition("\n\n")
    operation["summary"] = " ".join(summary.split()).removesuffix(".")
    operation.pop("description", None)
    if description:
        operation["description"] = description
    hints = get_type_hints(view)
    parameters = [
        *_parameters("path", hints.get("path")),
        *_parameters("query", hints.get("query")),
        *({"name": name, "in": "header", **REQUEST_HEADERS[name]} for name in operation.pop("x-headers", [])),
    ]
    if parameters:
        operation["parameters"] = parameters
    _complete_responses(operation)


def _parameters(place: str, model: type[BaseModel] | None) -> Iterator[Json]:
    if model is None:
        return
    schema = model.model_json_schema()
    for name, described in schema["properties"].items():
        shown = {key: value for key, value in described.items() if key not in ("title", "description")}
        # An address has no null: what is not given is left out.
        if "anyOf" in shown:
            shown["anyOf"] = [variant for variant in shown["anyOf"] if variant != {"type": "null"}]
        if shown.get("default", ...) is None:
            del shown["default"]
        parameter = {"name": name, "in": place, "required": place == "path" or name in schema.get("required", ())}
        if "description" in described:
            parameter["description"] = described["description"]
        yield parameter | {"schema": shown}


def _complete_responses(operation: Json) -> None:
    responses = operation["responses"]
    has_body = "requestBody" in operation
    # flask-openapi documents 422 everywhere, in a shape of its own.
    if PROBLEM not in responses["422"]["content"]:
        del responses["422"]
        if has_body or operation.get("parameters"):
            responses["422"] = INVALID[422]
    for status, (name, _) in (ANY_REQUEST | (ANY_BODY if has_body else {})).items():
        responses.setdefault(str(status), {"$ref": f"#/components/responses/{name}"})
    for status, response in responses.items():
        if names := [*response.get("headers", {}), *STATUS_HEADERS.get(status, ())]:
            response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    operation["responses"] = dict(sorted(responses.items()))


def wire_models() -> dict[str, type[BaseModel]]:
    """Return all models of models/wire by name; raises ValueError if two have the same name."""
    found: dict[str, type[BaseModel]] = {}
    for module in (common, results_models, work, residues, reading, loading, administration):
        for name, value in vars(module).items():
            if not (inspect.isclass(value) and issubclass(value, BaseModel) and value.__module__ == module.__name__):
                continue
            if name in found:
                raise ValueError(f"{module.__name__} and {found[name].__module__} both have a model {name}")
            found[name] = value
    return found


def _schemas(paths: Json, responses: Json) -> Json:
    """Return the schemas of the models that are referred to: bodies as they are read, answers as they are written."""
    models = wire_models()
    used: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {}
    for path in paths.values():
        for operation in path.values():
            for name in _references(operation.get("requestBody")):
                used[models[name], "validation"] = None
            for name in _references([operation["responses"], responses]):
                used[models[name], "serialization"] = None
    inputs: Sequence[tuple[type[BaseModel], JsonSchemaMode]] = list(used)
    _, schemas = models_json_schema(inputs, ref_template=f"{REF}{{model}}")
    return dict(sorted(schemas["$defs"].items()))


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if str(part.get("$ref", "")).startswith(REF):
            yield part["$ref"].removeprefix(REF)
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)
