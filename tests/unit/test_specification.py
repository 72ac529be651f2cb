"""The specification at /openapi.json: complete, consistent, and with one meaning for each name."""

import importlib
import pkgutil
import re
from collections import Counter

import jsonschema_rs
import pytest
from flask_openapi.utils import parse_rule
from pydantic import BaseModel

import ingest
import models.wire
from config.settings import Settings
from ingest import openapi
from ingest.app import create_app
from models.engine import make_engine
from tasks import publishing

NOWHERE = "postgresql://ecm@/ecm?host=/nowhere/at-all"
# What browsers look at, and the specification itself.
UNDOCUMENTED_BLUEPRINTS = {"pages", "admin_pages", "guide", "swagger"}
UNDOCUMENTED = {"openapi_json", "docs"}


@pytest.fixture(scope="module")
def app():
    with pytest.MonkeyPatch.context() as patch:
        # What belongs to a whole process is left as other tests found it.
        patch.setattr("ingest.app.process_engine", lambda *_: make_engine(NOWHERE))
        patch.setattr("ingest.app.configure_logging", lambda *_: None)
        patch.setattr(publishing, "use_short_timeouts", lambda: None)
        yield create_app(Settings(database_url=NOWHERE, redis_url="redis://127.0.0.1:1/0"))


@pytest.fixture(scope="module")
def document(app):
    answer = app.test_client().get("/openapi.json")
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    return answer.json


@pytest.fixture(scope="module")
def operations(document):
    """By (path, method)."""
    return {
        (path, method): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def models_of(package):
    """All models that the modules of a package define."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.name:
                yield value


def test_no_two_models_have_the_same_name():
    counts = Counter(model.__name__ for package in (models.wire, ingest) for model in models_of(package))
    assert [name for name, count in counts.items() if count > 1] == []
    assert set(openapi.wire_models()) == {model.__name__ for model in models_of(models.wire)}


def test_two_models_of_one_name_are_noticed(monkeypatch):
    twin = type("EcmWork", (BaseModel,), {"__module__": models.wire.reading.__name__})
    monkeypatch.setattr(models.wire.reading, "EcmWork", twin, raising=False)
    with pytest.raises(ValueError, match="EcmWork"):
        openapi.wire_models()


def test_every_route_is_in_the_specification(app, operations):
    routes = {
        (parse_rule(rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if rule.endpoint not in UNDOCUMENTED and rule.endpoint.partition(".")[0] not in UNDOCUMENTED_BLUEPRINTS
    }
    assert set(operations) == routes


def test_every_operation_says_what_it_is_and_has_a_success_answer(operations):
    names = [operation["operationId"] for operation in operations.values()]
    assert len(set(names)) == len(names)
    for place, operation in operations.items():
        assert operation["summary"], place
        assert "<br" not in operation.get("description", ""), place
        successes = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
        assert successes, place
        for answer in successes:
            assert all("schema" in content for content in answer["content"].values()), place


def test_every_error_is_a_problem(document, operations):
    shared = document["components"]["responses"]
    for place, operation in operations.items():
        for status, answer in operation["responses"].items():
            found = shared[answer["$ref"].rpartition("/")[2]] if "$ref" in answer else answer
            if status >= "400" and place != ("/status", "get"):
                schema = {"$ref": "#/components/schemas/ProblemDetails"}
                assert found["content"] == {"application/problem+json": {"schema": schema}}, (place, status)


def test_every_operation_has_the_answers_that_any_request_can_get(operations):
    for (path, method), operation in operations.items():
        answers = operation["responses"]
        assert {"400", "414", "431", "500"} <= set(answers), path
        assert ("413" in answers) == ("501" in answers) == ("requestBody" in operation), path
        has_input = "requestBody" in operation or bool(operation.get("parameters"))
        assert ("422" in answers) == has_input, path
        assert ("503" in answers) == (path not in ("/health", "/api/v1/health", "/metrics")), path
        assert (operation.get("security") == [{"admin_key": []}]) == path.startswith("/api/v1/admin/"), path
        assert method in ("get", "post", "put", "delete")


def test_headers_are_documented_where_they_are_read(operations):
    read = {
        path: {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "header"}
        for (path, _), operation in operations.items()
    }
    residues = ("upload", "work", "{residue_id}/download", "{residue_id}/complete", "{residue_id}/claim")
    expected = {f"/api/v1/residues/{path}": {"X-Client-ID"} for path in residues}
    expected["/api/v1/submit_result"] = {"Prefer", "Idempotency-Key"}
    assert {path: names for path, names in read.items() if names} == expected


def test_headers_of_answers_are_documented(operations):
    for (path, _), operation in operations.items():
        for status, answer in operation["responses"].items():
            headers = set(answer.get("headers", {}))
            assert ("Retry-After" in headers) == (status in ("429", "503")), (path, status)
            assert ("Location" in headers) == (status in ("201", "202")), (path, status)


def test_each_answer_has_its_own_schema(document, operations):
    schemas = document["components"]["schemas"]
    stats = operations["/api/v1/stats/{composite}", "get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert stats == {"$ref": "#/components/schemas/CompositeStats"}
    for name in ("CompositeStats", "CompositeWhole"):
        assert schemas[name]["properties"]["ecm_work"] == {"$ref": "#/components/schemas/EcmEffort"}
    assert set(schemas["EcmEffort"]["properties"]) == {
        *("total_attempts", "total_curves", "effort_by_level", "last_attempt")
    }
    assert "work_id" in schemas["EcmWork"]["properties"]


def test_bounds_are_exact(document):
    schemas = document["components"]["schemas"]
    bound = schemas["Stage2Done"]["properties"]["stage2_attempt_id"]["exclusiveMaximum"]
    assert (bound, type(bound)) == (2**63, int)


def test_schemas_are_sound_and_every_reference_leads_somewhere(document):
    text = str(document)
    for reference in set(re.findall(r"'\$ref': '(#[^']*)'", text)):
        place = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema | {"$schema": "https://json-schema.org/draft/2020-12/schema"})


def test_parameters_in_addresses_are_never_null(operations):
    for place, operation in operations.items():
        for parameter in operation.get("parameters", []):
            assert "null" not in str(parameter["schema"]), (place, parameter)
