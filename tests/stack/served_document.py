"""Compares every answer that tests receive with the served specification: its status and its shape are documented.

An answer is checked in the thread that receives it. Violations are collected, and fail the test at its end
(tests/conftest.py).
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema_rs
import pytest
import requests
from flask.testing import FlaskClient

# Parameters of these paths may contain slashes.
WITH_SLASHES = ("/stats/{composite}", "/by-name/{name}", "/work/status/{client_id}")
# All other paths of the web process are pages.
DOCUMENTED = re.compile(r"/api/v1/.*|/(health|ready|status|metrics)")
JSON, PROBLEM = "application/json", "application/problem+json"

servers: set[str] = set()
violations: list[str] = []
_lock = Lock()
_documents: dict[str, "ServedDocument"] = {}


class ServedDocument:
    """A specification that answers can be compared with."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._paths = sorted(
            ((_pattern(path, operations), path) for path, operations in document["paths"].items()),
            key=lambda entry: entry[1].count("{"),
        )
        self._validators: dict[str, Any] = {}

    def disagreement(self, method: str, path: str, status: int, content_type: str, body: bytes | None) -> str | None:
        """Return what is wrong with an answer, or None; `body` is None if it must not be read."""
        operation = self._operation(method.lower(), path)
        if operation is None:
            documented = {PROBLEM: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
        else:
            answer = operation["responses"].get(str(status))
            if answer is None:
                return f"status {status} is not documented"
            documented = self._resolved(answer)["content"]
        if content_type not in documented:
            return f"{content_type} is not documented with status {status}"
        if body is None or content_type not in (JSON, PROBLEM):
            return None
        errors = [f"{error.instance_path}: {error.message}" for error in self._errors(documented[content_type], body)]
        return "; ".join(errors)[:1000] or None

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        for pattern, template in self._paths:
            if pattern.fullmatch(path):
                return self._document["paths"][template].get(method)
        return None

    def _resolved(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in answer:
            answer = self._document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        return answer

    def _errors(self, content: dict[str, Any], body: bytes) -> Iterator[Any]:
        key = json.dumps(content["schema"])
        if key not in self._validators:
            schema = {"allOf": [content["schema"]], "components": self._document["components"]}
            self._validators[key] = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
        return self._validators[key].iter_errors(json.loads(body))


def _pattern(path: str, operations: dict[str, Any]) -> re.Pattern[str]:
    types = {
        parameter["name"]: parameter["schema"].get("type")
        for operation in operations.values()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "path"
    }

    def part(match: re.Match[str]) -> str:
        if path.endswith(WITH_SLASHES):
            return "(?s:.+)"
        return "[0-9]+" if types[match[1]] == "integer" else "[^/]+"

    return re.compile(re.sub(r"\{(\w+)\}", part, path))


def _note(document: ServedDocument, method: str, path: str, *answer: Any) -> None:
    wrong = document.disagreement(method, path, *answer)
    if wrong is not None:
        violations.append(f"{method} {path[:200]} -> {answer[0]}: {wrong}")


@contextmanager
def every_answer_is_checked() -> Iterator[None]:
    """Check every answer that Flask's test client gets, or requests gets from one of `servers`, in a `with` block."""
    send, call = requests.Session.send, FlaskClient.open

    def checked_send(session: requests.Session, request: Any, **options: Any) -> requests.Response:
        answer = send(session, request, **options)
        url = urlsplit(request.url)
        server = f"{url.scheme}://{url.netloc}"
        if server in servers and request.method not in ("HEAD", "OPTIONS") and DOCUMENTED.fullmatch(unquote(url.path)):
            with _lock:
                if "stack" not in _documents:
                    served = send(session, requests.Request("GET", f"{server}/openapi.json").prepare(), timeout=40)
                    _documents["stack"] = ServedDocument(served.json())
            content_type = answer.headers.get("Content-Type", "").partition(";")[0]
            # A streamed file must stay unread: the test reads it.
            body = answer.content if "json" in content_type and not options.get("stream") else None
            _note(_documents["stack"], request.method, unquote(url.path), answer.status_code, content_type, body)
        return answer

    def checked_call(client: FlaskClient, *args: Any, **options: Any) -> Any:
        answer = call(client, *args, **options)
        request = answer.request
        if request.method not in ("HEAD", "OPTIONS") and DOCUMENTED.fullmatch(request.path):
            with _lock:
                if "process" not in _documents:
                    from ingest.openapi import document

                    _documents["process"] = ServedDocument(document(client.application))
            body = answer.get_data() if "json" in answer.mimetype else None
            _note(_documents["process"], request.method, request.path, answer.status_code, answer.mimetype, body)
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests.Session, "send", checked_send)
        patch.setattr(FlaskClient, "open", checked_call)
        yield
