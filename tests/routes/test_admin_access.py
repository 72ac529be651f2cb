"""Every route of administration, found in the application itself, asks for the admin key before it does anything."""

import re

import pytest
from pipeline import counts

from config.settings import Settings

PREFIX = "/api/v1/admin"
WATCHED = ("composites", "factors", "ecm_attempts", "projects", "admin_events", "jobs", "ecm_residues")


def routes(app):
    """(method, path) of every route of administration, with an id or a name that exists nowhere."""
    return [
        (method, re.sub(r"<[^>]*>", "1", rule.rule).removeprefix(PREFIX))
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith(f"{PREFIX}/")
        for method in sorted(rule.methods - {"HEAD", "OPTIONS"})
    ]


def test_there_are_as_many_routes_as_the_specification_has(app, client):
    paths = client.get("/openapi.json").json["paths"]
    documented = [method for path in paths if path.startswith(f"{PREFIX}/") for method in paths[path]]
    assert len(routes(app)) == len(documented) > 30


@pytest.mark.parametrize(
    "key_problem",
    [(None, (401, "unauthorized")), *((key, (403, "forbidden")) for key in ("", "x" * 64, "\u00e4"))],
)
def test_no_route_answers_without_the_key(app, engine, admin, refused, key_problem):
    key, problem = key_problem
    before = counts(engine, WATCHED)
    for method, path in routes(app):
        body = refused(admin(method, path, key=key), *problem)
        assert "X-Admin-Key" in body["detail"], path
    assert counts(engine, WATCHED) == before


def test_a_server_without_a_key_lets_nobody_in(app, admin, refused, monkeypatch):
    monkeypatch.setitem(app.config, "SETTINGS", Settings(admin_api_key=""))
    for key in (None, "", "a guess"):
        assert "ADMIN_API_KEY" in refused(admin("GET", "/composites/status", key=key), 403, "forbidden")["detail"]
