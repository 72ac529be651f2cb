"""The intake's views against a database, with a bell that nobody hears: what they answer, and that they keep it."""

import json
import random

import pytest

from config.settings import Settings
from coordinator.results import applying
from ingest.app import create_app
from tasks import publishing

COMPOSITE = "123456789012345678901234567890123456789"


@pytest.fixture
def settings(database_url):
    return Settings(database_url=database_url, redis_url="redis://127.0.0.1:1/0", default_wait=0, database_timeout=0)


@pytest.fixture
def bell(monkeypatch):
    """Rings that were asked for."""
    rung = []
    monkeypatch.setattr(publishing, "publish_submission", lambda *about: rung.append(about) or True)
    return rung


@pytest.fixture
def app(settings, bell, engine, monkeypatch):
    # What belongs to a whole process is left as other tests found it.
    monkeypatch.setattr("ingest.app.process_engine", lambda *_: engine)
    monkeypatch.setattr("ingest.app.configure_logging", lambda *_: None)
    monkeypatch.setattr(publishing, "use_short_timeouts", lambda: None)
    return create_app(settings)


@pytest.fixture
def client(app):
    return app.test_client()


def plain(composite=COMPOSITE, **fields):
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
    applying.apply_result(app.config["ENGINE"], submission_id, app.config["SETTINGS"])


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

    monkeypatch.setattr(publishing, "publish_submission", broken)
    answer = send(client, plain())
    assert answer.status_code == 202
    assert client.get(answer.headers["Location"]).json["state"] == "received"
    assert [verdict["status"] for verdict in send_batch(client, plain(), plain())["results"]] == ["accepted"] * 2


# What became of it -------------------------------------------------------------------------------------------------


def test_a_replay_in_a_batch_is_answered_by_what_became_of_the_first(app, client):
    good, bad, new = plain(), claiming(999), plain()
    first = send_batch(client, good, bad)["results"]
    for verdict in first:
        apply(app, verdict["submission_id"])
    same_curves = good | {"program": "another payload"}
    repeated = send_batch(client, same_curves)["results"][0]
    apply(app, repeated["submission_id"])
    said = send_batch(client, good, bad, same_curves, new)
    assert (said["accepted"], said["refused"]) == (3, 1)
    applied, refused, duplicate, waiting = said["results"]
    ids = {"submission_id": first[0]["submission_id"], "attempt_id": first[0]["attempt_id"]}
    assert applied == {"index": 0, "status": "success", **ids}
    assert refused.pop("detail").startswith("999 ")
    assert refused == {
        "index": 1,
        "status": "refused",
        "submission_id": first[1]["submission_id"],
        "reason": "factor_does_not_divide",
    }
    assert duplicate == {"index": 2, "status": "success", **ids, "submission_id": repeated["submission_id"]}
    assert waiting["status"] == "accepted"


def test_a_duplicates_state_names_the_attempt_that_counted(app, client):
    body = plain()
    first, second = (send(client, item).json for item in (body, body | {"program": "another payload"}))
    for said in (first, second):
        apply(app, said["submission_id"])
    state = client.get(f"/api/v1/submissions/{second['submission_id']}").json
    assert (state["state"], state["attempt_id"]) == ("duplicate", first["attempt_id"])
    assert state["outcome"]["attempt_id"] == first["attempt_id"] != second["attempt_id"]


# Batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "lines"])
def test_a_nul_hurts_only_the_item_that_has_it(client, form):
    items = [plain(), plain(client_id="a\0b"), plain() | {"a\0key": 1}, plain(program="\\u0000"), ["\0"]]
    body = json.dumps(items) if form == "array" else "\n".join(map(json.dumps, items))
    said = client.post("/api/v1/submit_results", data=body).json
    verdicts = said["results"]
    assert [verdict["status"] for verdict in verdicts] == ["accepted", "refused", "refused", "accepted", "refused"]
    for verdict in verdicts:
        assert verdict["status"] == "accepted" or "NUL" in verdict["detail"]
