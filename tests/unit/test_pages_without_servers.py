"""The pages while the database and the broker are away: what can be said is said, and the rest comes later."""

import pytest

from config.settings import Settings
from ingest.app import create_app
from models.engine import make_engine
from tasks import publishing


@pytest.fixture
def client(monkeypatch):
    # Nobody listens there.
    url = "postgresql://ecm@127.0.0.1:1/ecm"
    monkeypatch.setattr("ingest.app.process_engine", lambda *_: make_engine(url))
    monkeypatch.setattr("ingest.app.configure_logging", lambda *_: None)
    monkeypatch.setattr(publishing, "use_short_timeouts", lambda: None)
    settings = Settings(database_url=url, redis_url="redis://127.0.0.1:1/0", admin_api_key="a key")
    return create_app(settings).test_client()


def test_the_queue_says_that_they_are_away(client):
    answer = client.get("/queue")
    assert answer.status_code == 200
    assert "the database does not answer" in answer.text
    assert "the broker does not answer" in answer.text


@pytest.mark.parametrize("path", ["/", "/numbers", "/numbers/1", "/factors", "/clients", "/projects"])
def test_other_pages_ask_for_patience(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.mimetype) == (503, "text/html")
    assert answer.headers["Retry-After"] == "5"
    assert "The database does not answer. Ask again in 5 seconds." in answer.text


def test_an_operator_can_log_in_and_is_told_too(client):
    token = client.get("/admin/login").text.partition('name="csrf_token" value="')[2].partition('"')[0]
    assert client.post("/admin/login", data={"key": "a key", "csrf_token": token}).status_code == 303
    assert client.get("/admin").status_code == 503
    assert client.get("/admin/load").status_code == 200


def test_without_an_admin_key_nobody_is_let_in(client):
    client.application.config["SETTINGS"] = Settings(admin_api_key="")
    for path in ("/admin", "/admin/login"):
        answer = client.get(path)
        assert answer.status_code == 403
        assert "has no admin key" in answer.text
