"""Batches, operations and a server of its own numbers only, over HTTP, to the whole coordinator."""

import json

import pytest
from bodies import claiming, plain, problem
from stacks import wait_until

from coordinator.composites import registry
from coordinator.numbers.expressions import evaluate_number

pytestmark = pytest.mark.stack


# Batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "lines"])
def test_a_batch_has_a_verdict_for_each_and_a_bad_one_hurts_no_other(stack, form):
    good = [plain(), claiming(plain(), 999), plain()]
    bad = [{"client_id": "alice"}, plain("9^9^9^9"), "no object", claiming(plain(), 0), None]
    items = [good[0], *bad, good[1], good[0], good[2]]
    body = json.dumps(items) if form == "array" else "\n".join(["", *map(json.dumps, items), '{"broken', ""])
    answer = stack.submit_bytes(body.encode(), "/submit_results")
    assert answer.status_code == 200
    reply = answer.json()
    refused = 5 if form == "array" else 6
    assert (reply["accepted"], reply["refused"], len(reply["results"])) == (4, refused, 4 + refused)
    assert [verdict["index"] for verdict in reply["results"]] == list(range(4 + refused))
    for verdict in reply["results"][1:6] + reply["results"][9:]:
        assert verdict["status"] == "refused"
        assert verdict["reason"]
        assert verdict["detail"]
    accepted = [reply["results"][index] for index in (0, 6, 7, 8)]
    assert accepted[0]["submission_id"] == accepted[2]["submission_id"]
    wait_until(lambda: stack.unsettled() == 0)
    states = [stack.get(f"/submissions/{verdict['submission_id']}").json()["state"] for verdict in accepted]
    assert states == ["applied", "rejected", "applied", "applied"]
    stack.assert_sound()


def test_batches_have_an_end(stack):
    before = stack.counts()
    body = json.dumps([{}] * 1001).encode()
    assert "1001" in problem(stack.submit_bytes(body, "/submit_results"), 422, "batch_too_large")["detail"]
    for empty in (b"", b"[]", b"\n\n"):
        problem(stack.submit_bytes(empty, "/submit_results"), 422, "malformed")
    problem(stack.submit_bytes(b"[{", "/submit_results"), 422, "malformed")
    assert stack.counts() == before


# Operations --------------------------------------------------------------------------------------------------------


def test_health_ready_and_status(stack):
    for path in ("/health", "/api/v1/health", "/ready"):
        assert stack.http.get(stack.url + path).status_code == 200
    status = wait_until(lambda: (now := stack.status())["status"] == "ok" and now)
    assert all(status[part]["ok"] for part in ("database", "broker", "workers", "beat"))
    assert {beat["name"].split("@")[0] for beat in status["workers"]["heartbeats"]} == {"worker", "analysis"}
    assert {"waiting", "failed", "oldest_waiting_seconds"} <= set(status["database"]["inbox"])


def test_metrics_count_what_came_in(stack):
    def received():
        lines = stack.http.get(f"{stack.url}/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    before = received()
    body = plain()
    stack.submit(body)
    stack.submit(body)
    stack.submit_bytes(json.dumps([body, plain(), body]).encode(), "/submit_results")
    after = received()
    for outcome, more in (("stored", 2), ("replayed", 3)):
        name = f'ecm_results_received_total{{outcome="{outcome}"}}'
        assert after[name] == before.get(name, 0) + more
    assert after["ecm_dead_letters"] == 0
    assert any(name.startswith("ecm_request_seconds_bucket") for name in after)


def test_every_error_is_a_problem(stack):
    http = stack.http
    problem(http.get(f"{stack.url}/nowhere"), 404, "not_found")
    problem(stack.get("/submissions/999999999"), 404, "unknown_submission")
    problem(stack.get(f"/submissions/{10**30}"), 404, "unknown_submission")
    answer = http.get(f"{stack.api}/submit_result")
    problem(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["Allow"]


def test_a_fault_of_the_server_is_a_problem_without_its_stack_trace(stack):
    body = plain()
    stack.run_sql("ALTER TABLE submissions RENAME TO mislaid")
    try:
        reply = problem(stack.submit(body), 500, "internal_error")
    finally:
        stack.run_sql("ALTER TABLE mislaid RENAME TO submissions")
    assert "Traceback" not in json.dumps(reply)
    assert "relation" not in json.dumps(reply)
    assert stack.submit(body).status_code == 200


def test_anyone_may_read_from_anywhere_and_trace_a_request(stack):
    answer = stack.get("/health", headers={"Origin": "https://example.org", "X-Request-ID": "trace-1"})
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert answer.headers["X-Request-ID"] == "trace-1"
    reply = stack.submit(plain(), X_Request_ID="trace-2").json()
    kept = stack.scalar("SELECT request_id FROM submissions WHERE id = :id", id=reply["submission_id"])
    assert kept == "trace-2"
    ids = {stack.get("/health", headers={"X-Request-ID": bad}).headers["X-Request-ID"] for bad in ("", "x" * 101)}
    assert len(ids) == 2
    assert all(len(request_id) == 32 for request_id in ids)


def test_flower_shows_each_submission_readably(stack):
    body = plain()
    reply = stack.submit(body).json()
    tasks = f"http://127.0.0.1:{stack.flower_port}/api/tasks"

    def shown():
        answer = stack.http.get(tasks, params={"taskname": "tasks.results.apply_result"})
        wanted = f"'submission_id': {reply['submission_id']},"
        return answer.ok and next((task for task in answer.json().values() if wanted in task["kwargs"]), None)

    task = wait_until(shown)
    assert "'client': 'alice'" in task["kwargs"]
    assert f"'composite': '{body['composite'][:18]}...{body['composite'][-18:]}'" in task["kwargs"]
    wait_until(lambda: shown()["state"] == "SUCCESS")
    assert shown()["result"] == "applied, no_factor"


def test_flower_tells_a_rejected_result_from_an_applied_one(stack):
    reply = stack.submit(claiming(plain(), 999)).json()
    task = f"http://127.0.0.1:{stack.flower_port}/api/task/info/submission-{reply['submission_id']}"
    shown = wait_until(
        lambda: (answer := stack.http.get(task)).ok and answer.json()["state"] == "FAILURE" and answer.json()
    )
    assert shown["exception"].startswith("rejected: factor_does_not_divide: 999 does not divide")


# Closed to unknown numbers -----------------------------------------------------------------------------------------


def test_unknown_numbers_are_answered_404_where_they_are_not_accepted_until_they_are_loaded(make_stack):
    closed = make_stack("--no-flower", "--workers", "1", ACCEPT_UNKNOWN_COMPOSITES="false")
    body = plain()
    before = closed.counts() | {"submissions": 1}
    refused = problem(closed.submit(body), 404, "unknown_composite")
    assert "must be loaded" in refused["detail"]
    assert closed.counts() == before
    problem(closed.submit(body), 404, "unknown_composite")
    with closed.database.begin() as connection:
        registry.register(connection, body["composite"], evaluate_number(body["composite"], 50_000), is_prime=False)
    reply = closed.submit(body).json()
    assert (reply["status"], reply["submission_id"]) == ("success", refused["submission_id"])
    closed.assert_sound()
