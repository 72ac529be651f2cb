"""Tests whose answers do not agree with the specification fail."""

import pytest
import served_document

JSON = "application/json"
PROBLEM = "application/problem+json"
DOCUMENT = {
    "paths": {
        "/api/v1/things/{thing_id}": {
            "get": {
                "parameters": [{"name": "thing_id", "in": "path", "schema": {"type": "integer"}}],
                "responses": {
                    "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
                    "404": {"$ref": "#/components/responses/Gone"},
                },
            }
        },
        "/api/v1/things/first": {"get": {"responses": {"200": {"content": {"text/csv": {}}}}}},
    },
    "components": {
        "responses": {
            "Gone": {
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
            }
        },
        "schemas": {
            "Thing": {
                "type": "object",
                "required": ["name", "at"],
                "properties": {"name": {"type": "string"}, "at": {"type": "string", "format": "date-time"}},
            },
            "ProblemDetails": {"type": "object", "required": ["reason"]},
        },
    },
}


@pytest.fixture(scope="module")
def served():
    return served_document.ServedDocument(DOCUMENT)


@pytest.mark.parametrize(
    "answer",
    [
        ("/api/v1/things/1", 200, JSON, b'{"name": "a", "at": "2026-01-31T12:00:00Z"}'),
        ("/api/v1/things/1", 404, PROBLEM, b'{"reason": "unknown_thing"}'),
        ("/api/v1/things/first", 200, "text/csv", None),
        ("/api/v1/nothing", 404, PROBLEM, b'{"reason": "not_found"}'),
    ],
)
def test_answers_that_agree(served, answer):
    assert served.disagreement("GET", *answer) is None


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (("/api/v1/things/1", 200, JSON, b'{"name": "a"}'), '"at" is a required property'),
        (("/api/v1/things/1", 200, JSON, b'{"name": 1, "at": "2026-01-31T12:00:00Z"}'), "name"),
        (("/api/v1/things/1", 200, JSON, b'{"name": "a", "at": "yesterday"}'), "date-time"),
        (("/api/v1/things/1", 200, "text/html", None), "text/html is not documented"),
        (("/api/v1/things/1", 418, PROBLEM, b'{"reason": "teapot"}'), "status 418 is not documented"),
        (("/api/v1/things/1", 404, PROBLEM, b"{}"), "reason"),
        (("/api/v1/things/first", 200, JSON, b"{}"), "application/json is not documented"),
        (("/api/v1/nothing", 404, "text/html", None), "text/html is not documented"),
    ],
)
def test_answers_that_do_not_agree(served, answer, word):
    assert word in served.disagreement("GET", *answer)
