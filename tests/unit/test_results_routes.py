"""Routes that receive results, on a real database and without a broker: their answers, and what they store."""

import json
import random
from time import process_time
from urllib.parse import quote

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
def published(monkeypatch):
    """The arguments of every publication, which no worker receives."""
    calls = []
    monkeypatch.setattr(publishing, "publish_submissions", lambda stored: calls.extend(stored) or True)
    return calls


@pytest.fixture
def app(settings, published, engine, monkeypatch):
    # These settings belong to the whole process, which other tests share.
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
def test_no_value_of_prefer_fails_a_stored_result(app, client, monkeypatch, wait):
    waited = []
    monkeypatch.setattr(app.config["OUTCOMES"], "wait", lambda _, seconds: waited.append(seconds))
    answer = send(client, plain(), Prefer=f"wait={wait}")
    assert answer.status_code == 202
    assert waited[0] == (20 if wait.isdecimal() else 0)


@pytest.mark.parametrize("fault", [RuntimeError("a bug"), ValueError("no such transport"), KeyError("hostname")])
def test_a_failed_publication_fails_no_stored_result(client, monkeypatch, fault):
    def fail(*arguments):
        raise fault

    monkeypatch.setattr(publishing, "publish_submissions", fail)
    answer = send(client, plain())
    assert answer.status_code == 202
    assert client.get(answer.headers["Location"]).json["state"] == "received"
    assert [verdict["status"] for verdict in send_batch(client, plain(), plain())["results"]] == ["accepted"] * 2


# Outcomes ----------------------------------------------------------------------------------------------------


def test_a_replay_in_a_batch_is_answered_by_the_outcome_of_the_first(app, client):
    good, bad, new = plain(), claiming(999), plain()
    first = send_batch(client, good, bad)["results"]
    for verdict in first:
        apply(app, verdict["submission_id"])
    same_curves = good | {"program": "another payload"}
    repeated = send_batch(client, same_curves)["results"][0]
    apply(app, repeated["submission_id"])
    answer = send_batch(client, good, bad, same_curves, new)
    assert (answer["accepted"], answer["refused"]) == (3, 1)
    applied, refused, duplicate, waiting = answer["results"]
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


def test_the_state_of_a_duplicate_names_the_attempt_that_counted(app, client):
    body = plain()
    first, second = (send(client, item).json for item in (body, body | {"program": "another payload"}))
    for answer in (first, second):
        apply(app, answer["submission_id"])
    state = client.get(f"/api/v1/submissions/{second['submission_id']}").json
    assert (state["state"], state["attempt_id"]) == ("duplicate", first["attempt_id"])
    assert state["outcome"]["attempt_id"] == first["attempt_id"] != second["attempt_id"]


def test_a_failed_result_that_is_sent_again_is_answered_with_its_reason_and_not_queued(client, engine, published):
    body = claiming(3)
    first = send(client, body).json
    with engine.begin() as connection:
        failed = (
            "UPDATE submissions SET state = 'failed', reason = 'worker_died', detail = 'its worker died', tries = 5"
        )
        connection.exec_driver_sql(failed)
    published.clear()
    again = send(client, body)
    assert again.status_code == 202
    assert (again.json["status"], again.json["submission_id"]) == ("accepted", first["submission_id"])
    assert "not applied (its worker died)" in again.json["message"]
    assert "sending it again changes nothing" in again.json["message"]
    state = client.get(again.headers["Location"]).json
    assert (state["state"], state["reason"], state["tries"]) == ("failed", "worker_died", 5)
    (verdict,) = send_batch(client, body)["results"]
    assert (verdict["status"], verdict["submission_id"]) == ("accepted", first["submission_id"])
    assert verdict["reason"] == "worker_died"
    assert "its worker died" in verdict["detail"]
    assert published == []


@pytest.mark.parametrize("how", ["one", "batch"])
def test_factors_that_are_larger_than_their_number_are_refused_before_they_are_stored(client, how):
    overlapping = plain("15") | {"results": {"factors_found": [{"factor": factor} for factor in ("3", "5", "7")]}}
    if how == "one":
        answer = send(client, overlapping)
        assert answer.status_code == 422
        refusal = answer.json
        assert refusal["errors"][0]["field"] == "results.factors_found"
    else:
        (refusal,) = send_batch(client, overlapping)["results"]
    assert refusal["reason"] == "factors_exceed_number"


# Batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "lines"])
def test_a_nul_fails_only_the_item_that_has_it(client, form):
    items = [plain(), plain(client_id="a\0b"), plain() | {"a\0key": 1}, plain(program="\\u0000"), ["\0"]]
    body = json.dumps(items) if form == "array" else "\n".join(map(json.dumps, items))
    verdicts = client.post("/api/v1/submit_results", data=body).json["results"]
    assert [verdict["status"] for verdict in verdicts] == ["accepted", "refused", "refused", "accepted", "refused"]
    for verdict in verdicts:
        assert verdict["status"] == "accepted" or "NUL" in verdict["detail"]


# Doors ---------------------------------------------------------------------------------------------------------------

COSTLY = "+".join(f"3^{exponent}" for exponent in range(104_000, 103_560, -1))
LONG = "1+" * 2_000 + "1"


@pytest.mark.parametrize("text", [COSTLY, LONG])
@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/ecm-work?client_id=alice&composite={}",
        "/api/v1/p1-work?client_id=alice&composite={}",
        "/api/v1/stats/{}",
        "/api/v1/factors?composite={}",
    ],
)
def test_an_expression_that_is_long_or_takes_long_is_refused_at_every_door(client, path, text):
    started = process_time()
    answer = client.get(path.format(quote(text)))
    assert (answer.status_code, answer.json["reason"]) == (422, "number_too_large")
    assert process_time() - started < 0.5


@pytest.mark.parametrize("text", [COSTLY, LONG])
def test_the_same_in_results_and_in_look_ups_of_many(client, text):
    started = process_time()
    for body in (plain(text), claiming(text)):
        answer = send(client, body)
        assert (answer.status_code, answer.json["reason"]) == (422, "number_too_large")
    found = client.post("/api/v1/composites/batch-status", json={"numbers": [text] * 5}).json
    assert [item["composite"] for item in found["results"]] == [None] * 5
    assert process_time() - started < 0.5
