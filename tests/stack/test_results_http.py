"""Results over HTTP, as clients send them: to the whole coordinator, with a real worker, beat and broker."""

import json
import random
import threading

import pytest
import requests
from stacks import until
from traffic import number, prime

from coordinator import registry
from coordinator.expressions import evaluate_number

pytestmark = pytest.mark.stack

FIELDS = {
    "status",
    "submission_id",
    "attempt_id",
    "composite_id",
    "factor_status",
    "message",
    "current_t_level",
    "target_t_level",
}
PROBLEM_FIELDS = {"type", "title", "status", "detail", "reason", "instance"}


def plain(composite=None, **fields):
    """A result without a factor, unlike any other."""
    return {
        "client_id": "alice",
        "composite": composite or number().value,
        "parameters": {"b1": 50_000, "curves": 100, "sigma": f"1:{random.randrange(10**18)}"},
        **fields,
    }


def claiming(body, *factors, **parameters):
    """`body` with these factors claimed."""
    return body | {
        "results": {"factors_found": [{"factor": str(factor)} for factor in factors]},
        "parameters": body["parameters"] | parameters,
    }


def problem(answer, status, reason):
    """The body of a problem, checked for what every problem has."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"]
    body = answer.json()
    assert set(body) >= PROBLEM_FIELDS
    assert (body["status"], body["reason"]) == (status, reason)
    return body


# The seeds ---------------------------------------------------------------------------------------------------------


def test_a_number_with_a_factor_is_applied_completely(stack):
    composite = "123456789012345678901234567890123456789"
    body = {
        "client_id": "seed",
        "composite": composite,
        "method": "ecm",
        "parameters": {"b1": 50000, "b2": 5000000, "curves": 100, "sigma": "1:123456"},
        "results": {"factor_found": "123456789", "curves_completed": 100},
    }
    answer = stack.submit(body)
    assert answer.status_code == 200
    said = answer.json()
    assert set(said) == FIELDS
    assert (said["status"], said["factor_status"]) == ("success", "new_factor")
    assert said["current_t_level"] > 0
    stats = stack.get(f"/stats/{composite}").json()
    assert (stats["status"], stats["current_composite"]) == ("fully_factored", "1")
    product = 1
    for factor in stats["factors_found"]:
        product *= int(factor)
    assert product == int(composite)
    assert stats["ecm_work"]["effort_by_level"] == [{"b1": 50000, "curves": 100}]
    (first, *_) = stack.rows(
        "SELECT factor, sigma, attempt_id FROM factors WHERE composite_id = :id ORDER BY id", id=said["composite_id"]
    )
    assert tuple(first) == ("123456789", "123456", said["attempt_id"])
    # Once more: nothing is added.
    before = stack.counts()
    again = stack.submit(body)
    assert (again.status_code, again.json()["factor_status"]) == (200, "duplicate")
    assert again.json()["attempt_id"] == said["attempt_id"]
    assert stack.counts() == before


def test_a_factor_that_does_not_divide_is_refused_and_leaves_no_trace(stack):
    body = plain(str(prime(30) * prime(31)))
    before = stack.counts()
    refused = problem(stack.submit(claiming(body, 999)), 400, "factor_does_not_divide")
    assert "999" in refused["detail"]
    after = stack.counts()
    assert after.pop("submissions") == before.pop("submissions") + 1
    assert after == before
    state = stack.get(f"/submissions/{refused['submission_id']}").json()
    assert (state["state"], state["reason"], state["attempt_id"]) == ("rejected", "factor_does_not_divide", None)
    # A replay is the same refusal.
    assert problem(stack.submit(claiming(body, 999)), 400, "factor_does_not_divide") == refused


def test_without_parameters_it_is_not_even_stored(stack):
    before = stack.counts()
    body = {"client_id": "seed", "composite": number().value, "results": {"factor_found": "999"}}
    refused = problem(stack.submit(body), 422, "invalid")
    assert "parameters.b1 is required" in refused["detail"]
    assert refused["errors"]
    assert stack.counts() == before


def test_only_b1_is_enough(stack):
    body = {
        "client_id": "seed",
        "composite": "12345678901234567890",
        "parameters": {"b1": 50000},
        "results": {"factor_found": "123456789"},
    }
    said = stack.submit(body).json()
    (row,) = stack.rows("SELECT * FROM composites WHERE number = '12345678901234567890'")
    assert row.id == said["composite_id"]
    assert row.current_t_level > 0
    attempts = "SELECT count(*) FROM ecm_attempts WHERE composite_id = :id"
    assert stack.scalar(attempts, id=row.id) == 1
    first = "SELECT factor FROM factors WHERE composite_id = :id ORDER BY id LIMIT 1"
    assert stack.scalar(first, id=row.id) == "123456789"


# Waiting -----------------------------------------------------------------------------------------------------------


def test_who_does_not_wait_is_told_where_to_look(stack):
    answer = stack.submit(plain(), Prefer="respond-async")
    assert answer.status_code == 202
    said = answer.json()
    assert set(said) == FIELDS
    assert said["status"] == "accepted"
    assert said["composite_id"] is said["factor_status"] is said["current_t_level"] is None
    where = answer.headers["Location"]
    assert where == f"/api/v1/submissions/{said['submission_id']}"
    state = until(lambda: (now := stack.http.get(stack.url + where).json())["state"] != "received" and now)
    assert state["state"] == "applied"
    assert state["attempt_id"] == said["attempt_id"] == state["outcome"]["attempt_id"]
    assert state["settled_at"] > state["created_at"]


@pytest.mark.parametrize(
    ("prefer", "longest"), [("wait=1", 2.5), ("wait=0", 1.0), ("respond-async, wait=5", 1.0), ("wait = 1", 2.5)]
)
def test_a_wait_ends_when_it_should(stack, prefer, longest):
    stack.freeze("worker")
    try:
        answer = stack.submit(plain(), Prefer=prefer)
    finally:
        stack.thaw("worker")
    assert answer.status_code == 202
    assert answer.elapsed.total_seconds() < longest
    until(lambda: stack.unsettled() == 0)


def test_a_replay_waits_for_the_first(stack):
    body = plain()
    answers = []
    stack.freeze("worker")
    try:
        threads = [
            threading.Thread(target=lambda: answers.append(requests.post(f"{stack.api}/submit_result", json=body)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        until(lambda: stack.unsettled() == 1)
    finally:
        stack.thaw("worker")
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.json()["attempt_id"] for answer in answers}) == 1
    statuses = sorted(answer.json()["factor_status"] for answer in answers)
    assert statuses == ["duplicate"] * 5 + ["no_factor"]


# Idempotency -------------------------------------------------------------------------------------------------------


def test_a_key_stands_for_one_result_of_one_client(stack):
    key = f"run {random.randrange(10**9)}"
    first = plain()
    said = stack.submit(first, Idempotency_Key=key).json()
    again = stack.submit(first, Idempotency_Key=key).json()
    assert (again["factor_status"], again["submission_id"]) == ("duplicate", said["submission_id"])
    before = stack.counts()
    reused = problem(stack.submit(plain(), Idempotency_Key=key), 422, "idempotency_key_reused")
    assert reused["errors"][0]["field"] == "Idempotency-Key"
    assert stack.counts() == before
    other = stack.submit(plain(client_id="bob"), Idempotency_Key=key).json()
    assert other["status"] == "success"
    assert other["submission_id"] != said["submission_id"]


def test_the_same_run_twice_under_two_keys_counts_twice_only_without_sigma(stack):
    for sigma, status, curves in (("1:77", "duplicate", 100), (None, "no_factor", 200)):
        body = plain()
        body["parameters"]["sigma"] = sigma
        stack.submit(body, Idempotency_Key="one " + body["composite"])
        assert stack.submit(body, Idempotency_Key="two " + body["composite"]).json()["factor_status"] == status
        assert stack.get(f"/stats/{body['composite']}").json()["ecm_work"]["total_curves"] == curves


@pytest.mark.parametrize("key", ["k" * 201, "", b"tab\there", "caf\u00e9\u0085".encode("latin-1")])
def test_keys_that_cannot_be_kept_are_refused(stack, key):
    before = stack.counts()
    refused = problem(stack.submit(plain(), Idempotency_Key=key), 422, "malformed")
    assert "1 to 200 printable" in refused["detail"]
    assert stack.counts() == before


# Numbers that must work --------------------------------------------------------------------------------------------


def test_a_composite_factor_is_split(stack):
    one = number()
    body = claiming(plain(one.value), one.to_split)
    assert stack.submit(body).json()["factor_status"] == "new_factor"
    until(lambda: len(stack.get(f"/stats/{one.value}").json()["factors_found"]) == 2)


def test_a_repeated_factor_is_counted_as_often_as_it_divides(stack):
    p = prime(20)
    value = str(p**3 * prime(40) * prime(41))
    assert stack.submit(claiming(plain(value), p)).json()["factor_status"] == "new_factor"
    assert stack.get(f"/stats/{value}").json()["factors_found"] == [str(p)] * 3


def test_a_factor_found_by_two_clients_at_once_is_new_once(stack):
    one = number()
    stack.submit(plain(one.value))
    answers = []

    def find(client):
        body = claiming(plain(one.value, client_id=client), one.small)
        answers.append(requests.post(f"{stack.api}/submit_result", json=body).json())

    threads = [threading.Thread(target=find, args=(f"client {index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer["factor_status"] for answer in answers) == ["known_factor"] * 3 + ["new_factor"]
    assert stack.get(f"/stats/{one.value}").json()["factors_found"] == [one.small]
    assert stack.get(f"/stats/{one.value}").json()["ecm_work"]["total_attempts"] == 5


def test_a_result_for_an_old_cofactor_finds_its_number(stack):
    p, q, r = prime(15), prime(16), prime(80)
    value = p * q * r * prime(50)
    first = stack.submit(claiming(plain(str(value)), p)).json()
    old = value // p
    second = stack.submit(claiming(plain(str(old)), q)).json()
    assert (second["composite_id"], second["factor_status"]) == (first["composite_id"], "new_factor")
    # What is known of the number already is no fault, though it does not divide what was submitted.
    known = stack.submit(claiming(plain(str(value // (p * q))), p)).json()
    assert (known["composite_id"], known["factor_status"]) == (first["composite_id"], "known_factor")
    for spelling in (str(value), str(old), f"{value // (p * q)}*{p * q}"):
        stats = stack.get(f"/stats/{spelling}").json()
        assert stats["factors_found"] == [str(p), str(q)]
        assert stats["ecm_work"]["total_curves"] == 300


def test_5000_digits_work(stack):
    p = prime(20)
    value = p * (10**4980 + random.randrange(10**6) * 2 + 1)
    said = stack.submit(claiming(plain(value.digits()), p), Prefer="wait=20").json()
    assert said["factor_status"] == "new_factor"
    stats = stack.get(f"/stats/{value.digits()}").json()
    assert str(p) in stats["factors_found"]
    assert stats["composite"] == value.digits()


def test_1_and_the_number_itself_are_no_factors_and_no_fault(stack):
    body = plain()
    said = stack.submit(claiming(body, 1, body["composite"])).json()
    assert (said["status"], said["factor_status"]) == ("success", "no_factor")
    assert "no proper factor" in said["message"]


def test_stats_by_expression_and_for_what_nobody_knows(stack):
    n = random.randrange(200, 2000) * 2 + 1
    written = f"(10^{n}+{random.randrange(10**6) * 10})/10"
    assert stack.submit(plain(written, project="repunits")).json()["status"] == "success"
    stats = stack.get(f"/stats/{written}").json()
    assert (stats["composite"], stats["projects"]) == (written, ["repunits"])
    value = evaluate_number(written, 50_000).digits()
    assert stack.get(f"/stats/{value}").json() == stats
    assert stats["status"] == "composite"
    problem(stack.get(f"/stats/{number().value}"), 404, "unknown_composite")
    refused = problem(stack.get("/stats/10%2F3"), 422, "not_an_integer")
    assert "10/3" in refused["detail"]


def test_methods_but_ecm_leave_the_t_level_alone(stack):
    one = number().value
    for method in ("pm1", "pp1", "siqs", "nfs", "auto"):
        said = stack.submit(plain(one, method=method)).json()
        assert (said["status"], said["current_t_level"]) == ("success", 0.0)
    assert stack.get(f"/stats/{one}").json()["ecm_work"]["total_attempts"] == 5


# Batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "lines"])
def test_a_batch_has_a_verdict_for_each_and_a_bad_one_hurts_no_other(stack, form):
    good = [plain(), claiming(plain(), 999), plain()]
    bad = [{"client_id": "alice"}, plain("9^9^9^9"), "no object", claiming(plain(), 0), None]
    items = [good[0], *bad, good[1], good[0], good[2]]
    body = json.dumps(items) if form == "array" else "\n".join(["", *map(json.dumps, items), '{"broken', ""])
    answer = stack.submit_bytes(body.encode(), "/submit_results")
    assert answer.status_code == 200
    said = answer.json()
    refused = 5 if form == "array" else 6
    assert (said["accepted"], said["refused"], len(said["results"])) == (4, refused, 4 + refused)
    assert [verdict["index"] for verdict in said["results"]] == list(range(4 + refused))
    for verdict in said["results"][1:6] + said["results"][9:]:
        assert verdict["status"] == "refused"
        assert verdict["reason"]
        assert verdict["detail"]
    accepted = [said["results"][index] for index in (0, 6, 7, 8)]
    assert accepted[0]["submission_id"] == accepted[2]["submission_id"]
    until(lambda: stack.unsettled() == 0)
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
    status = until(lambda: (now := stack.status())["status"] == "ok" and now)
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
        said = problem(stack.submit(body), 500, "internal_error")
    finally:
        stack.run_sql("ALTER TABLE mislaid RENAME TO submissions")
    assert "Traceback" not in json.dumps(said)
    assert "relation" not in json.dumps(said)
    assert stack.submit(body).status_code == 200


def test_anyone_may_read_from_anywhere_and_trace_a_request(stack):
    answer = stack.get("/health", headers={"Origin": "https://example.org", "X-Request-ID": "trace-1"})
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert answer.headers["X-Request-ID"] == "trace-1"
    said = stack.submit(plain(), X_Request_ID="trace-2").json()
    kept = stack.scalar("SELECT request_id FROM submissions WHERE id = :id", id=said["submission_id"])
    assert kept == "trace-2"
    ids = {stack.get("/health", headers={"X-Request-ID": bad}).headers["X-Request-ID"] for bad in ("", "x" * 101)}
    assert len(ids) == 2
    assert all(len(one) == 32 for one in ids)


def test_flower_shows_each_submission_readably(stack):
    body = plain()
    said = stack.submit(body).json()
    tasks = f"http://127.0.0.1:{stack.flower_port}/api/tasks"

    def shown():
        answer = stack.http.get(tasks, params={"taskname": "tasks.results.apply_result"})
        wanted = f"'submission_id': {said['submission_id']},"
        return answer.ok and next((task for task in answer.json().values() if wanted in task["kwargs"]), None)

    task = until(shown)
    assert "'client': 'alice'" in task["kwargs"]
    assert f"'composite': '{body['composite'][:18]}...{body['composite'][-18:]}'" in task["kwargs"]
    until(lambda: shown()["state"] == "SUCCESS")
    assert shown()["result"] == "'applied'"


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
    said = closed.submit(body).json()
    assert (said["status"], said["submission_id"]) == ("success", refused["submission_id"])
    closed.assert_sound()
