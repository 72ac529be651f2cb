"""What browsers are told: pages run only the server's own files, and the viewer its own script, by its hash."""

import base64
import hashlib
import re

import pytest
from flask import Flask, Response

from ingest import security_headers

PAGE = "<!doctype html><script>alert(1)</script><p>client</p>"


@pytest.fixture
def answers():
    app = Flask("test", static_folder=None)
    app.after_request(security_headers.add_headers)
    app.add_url_rule("/page", "page", lambda: PAGE)
    app.add_url_rule("/docs/viewer", "viewer", lambda: f"<style>p {{}}</style>{PAGE}<script src='x.js'></script>")
    app.add_url_rule("/json", "json", lambda: Response("{}", content_type="application/json"))
    app.add_url_rule("/stream", "stream", lambda: Response(iter([PAGE]), content_type="text/html"))
    app.add_url_rule("/own", "own", lambda: Response("", headers={"Content-Security-Policy": "sandbox"}))
    return app.test_client()


def policy(answer) -> dict[str, str]:
    parts = answer.headers["Content-Security-Policy"].split("; ")
    return {name: value for name, _, value in (part.partition(" ") for part in parts)}


@pytest.mark.parametrize("path", ["/page", "/json", "/stream", "/docs/viewer", "/nowhere"])
def test_every_answer_has_them(answers, path):
    headers = answers.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "same-origin"
    assert policy(answers.get(path))["default-src"] == "'none'"
    assert policy(answers.get(path))["frame-ancestors"] == "'none'"
    assert "unsafe" not in policy(answers.get(path)).get("script-src", "")


@pytest.mark.parametrize("path", ["/page", "/stream"])
def test_a_script_in_a_page_does_not_run(answers, path):
    said = policy(answers.get(path))
    assert said["script-src"] == said["style-src"] == "'self'"
    assert said["base-uri"] == "'none'"
    assert said["form-action"] == "'self'"


def test_the_viewers_own_script_runs_and_no_other(answers):
    said = policy(answers.get("/docs/viewer"))
    digest = base64.b64encode(hashlib.sha256(b"alert(1)").digest()).decode()
    assert said["script-src"] == f"'self' 'sha256-{digest}'"
    assert said["style-src"] == "'self' 'unsafe-inline'"


def test_what_is_no_page_loads_nothing(answers):
    assert set(policy(answers.get("/json"))) == {"default-src", "frame-ancestors"}


def test_a_view_may_have_its_own(answers):
    assert answers.get("/own").headers["Content-Security-Policy"] == "sandbox"


def test_hashes_are_of_what_stands_between_the_tags():
    assert re.findall(security_headers._INLINE, b"<SCRIPT type='x'>\n1<2\n</SCRIPT><script src=a></script>") == [
        b"\n1<2\n",
        b"",
    ]
