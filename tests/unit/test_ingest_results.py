"""The intake's views against a database, with a bell that nobody hears: what they answer, and that they keep it."""

import json
import random

import pytest

from config.settings import Settings
from coordinator import results
from ingest.app import create_app
from tasks import doorbell

P = "1000000000000000000000000000057"


@pytest.fixture
def settings(database_url):
    return Settings(database_url=database_url, redis_url="redis://127.0.0.1:1/0", default_wait=0, database_patience=0)


@pytest.fixture
def bell(monkeypatch):
    """Rings that were asked for."""
    rung = []
    monkeypatch.setattr(doorbell, "ring_submission", lambda *about: rung.append(about) or True)
    return rung


@pytest.fixture
def app(settings, bell, engine, monkeypatch):
    # What belongs to a whole process is left as other tests found it.
    monkeypatch.setattr("ingest.app.process_engine", lambda *_: engine)
    monkeypatch.setattr("ingest.app.configure_logging", lambda *_: None)
    monkeypatch.setattr(doorbell, "make_impatient", lambda: None)
    return create_app(settings)


@pytest.fixture
def client(app):
    return app.test_client()


def plain(composite=P, **fields):
    parameters = {"b1": 50_000, "curves": 100, "sigma": f"1:{random.randrange(10**18)}"}
    return {"client_id": "alice", "composite": composite, "parameters": parameters, **fields}


def claiming(factor):
    return plain() | {"results": {"factor_found": str(factor)}}


def send(client, body, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/api/v1/submit_result", json=body, headers=headers)


def send_batch(client, *items):
    answer = client.post("/api/v1/submit_results", data=json.dumps(items))
    assert answer.status_code == 200, answer.text
    return answer.json


def apply(app, submission_id):
    results.apply_result(app.config["ENGINE"], submission_id, app.config["SETTINGS"])


# Nothing fails after storing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", ["9" * 400, "-" + "9" * 400, "9" * 5000, "1e400", "\u00b2"])
def test_no_wish_for_a_wait_fails_what_was_stored(app, client, monkeypatch, wait):
    waited = []
    monkeypatch.setattr(app.config["POLLER"], "wait", lambda _, seconds: waited.append(seconds))
    answer = send(client, plain(), Prefer=f"wait={wait}")
    assert answer.status_code == 202
    assert waited[0] == (20 if wait.isdecimal() else 0)


@pytest.mark.parametrize("fault", [RuntimeError("a bug"), ValueError("no such transport"), KeyError("hostname")])
def test_a_bell_that_breaks_fails_nothing_that_was_stored(client, monkeypatch, fault):
    def broken(*about):
        raise fault

    monkeypatch.setattr(doorbell, "ring_submission", broken)
    answer = send(client, plain())
    assert answer.status_code == 202
    assert client.get(answer.headers["Location"]).json["state"] == "received"
    assert [verdict["status"] for verdict in send_batch(client, plain(), plain())["results"]] == ["accepted"] * 2
