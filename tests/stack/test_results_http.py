"""Results over HTTP, as clients send them: to the whole coordinator, with a real worker, beat and broker."""

import random
import threading

import pytest
import requests
from bodies import FIELDS, claiming, plain, problem
from stacks import wait_until
from traffic import prime, random_number

from coordinator.numbers.expressions import evaluate_number

pytestmark = pytest.mark.stack


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
    reply = answer.json()
    assert set(reply) == FIELDS
    assert (reply["status"], reply["factor_status"]) == ("success", "new_factor")
    assert reply["current_t_level"] > 0
    stats = stack.get(f"/stats/{composite}").json()
    assert (stats["status"], stats["current_composite"]) == ("fully_factored", "1")
    product = 1
    for factor in stats["factors_found"]:
        product *= int(factor)
    assert product == int(composite)
    assert stats["ecm_work"]["effort_by_level"] == [{"b1": 50000, "curves": 100}]
    (first, *_) = stack.rows(
        "SELECT factor, sigma, attempt_id FROM factors WHERE composite_id = :id ORDER BY id", id=reply["composite_id"]
    )
    assert tuple(first) == ("123456789", "123456", reply["attempt_id"])
    # Once more: nothing is added.
    before = stack.counts()
    again = stack.submit(body)
    assert (again.status_code, again.json()["factor_status"]) == (200, "duplicate")
    assert again.json()["attempt_id"] == reply["attempt_id"]
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
    body = {"client_id": "seed", "composite": random_number().value, "results": {"factor_found": "999"}}
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
    reply = stack.submit(body).json()
    (row,) = stack.rows("SELECT * FROM composites WHERE number = '12345678901234567890'")
    assert row.id == reply["composite_id"]
    assert row.current_t_level > 0
    attempts = "SELECT count(*) FROM ecm_attempts WHERE composite_id = :id"
    assert stack.scalar(attempts, id=row.id) == 1
    first = "SELECT factor FROM factors WHERE composite_id = :id ORDER BY id LIMIT 1"
    assert stack.scalar(first, id=row.id) == "123456789"


# Waiting -----------------------------------------------------------------------------------------------------------


def test_who_does_not_wait_is_told_where_to_look(stack):
    answer = stack.submit(plain(), Prefer="respond-async")
    assert answer.status_code == 202
    reply = answer.json()
    assert set(reply) == FIELDS
    assert reply["status"] == "accepted"
    assert reply["composite_id"] is reply["factor_status"] is reply["current_t_level"] is None
    where = answer.headers["Location"]
    assert where == f"/api/v1/submissions/{reply['submission_id']}"
    state = wait_until(lambda: (now := stack.http.get(stack.url + where).json())["state"] != "received" and now)
    assert state["state"] == "applied"
    assert state["attempt_id"] == reply["attempt_id"] == state["outcome"]["attempt_id"]
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
    wait_until(lambda: stack.unsettled() == 0)


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
        wait_until(lambda: stack.unsettled() == 1)
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
    reply = stack.submit(first, Idempotency_Key=key).json()
    again = stack.submit(first, Idempotency_Key=key).json()
    assert (again["factor_status"], again["submission_id"]) == ("duplicate", reply["submission_id"])
    before = stack.counts()
    reused = problem(stack.submit(plain(), Idempotency_Key=key), 422, "idempotency_key_reused")
    assert reused["errors"][0]["field"] == "Idempotency-Key"
    assert stack.counts() == before
    other = stack.submit(plain(client_id="bob"), Idempotency_Key=key).json()
    assert other["status"] == "success"
    assert other["submission_id"] != reply["submission_id"]


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
    chosen = random_number()
    body = claiming(plain(chosen.value), chosen.to_split)
    assert stack.submit(body).json()["factor_status"] == "new_factor"
    wait_until(lambda: len(stack.get(f"/stats/{chosen.value}").json()["factors_found"]) == 2)


def test_a_repeated_factor_is_counted_as_often_as_it_divides(stack):
    p = prime(20)
    value = str(p**3 * prime(40) * prime(41))
    assert stack.submit(claiming(plain(value), p)).json()["factor_status"] == "new_factor"
    assert stack.get(f"/stats/{value}").json()["factors_found"] == [str(p)] * 3


def test_a_factor_found_by_two_clients_at_once_is_new_once(stack):
    chosen = random_number()
    stack.submit(plain(chosen.value))
    answers = []

    def find(client):
        body = claiming(plain(chosen.value, client_id=client), chosen.small)
        answers.append(requests.post(f"{stack.api}/submit_result", json=body).json())

    threads = [threading.Thread(target=find, args=(f"client {index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer["factor_status"] for answer in answers) == ["known_factor"] * 3 + ["new_factor"]
    assert stack.get(f"/stats/{chosen.value}").json()["factors_found"] == [chosen.small]
    assert stack.get(f"/stats/{chosen.value}").json()["ecm_work"]["total_attempts"] == 5


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
    reply = stack.submit(claiming(plain(value.digits()), p), Prefer="wait=20").json()
    assert reply["factor_status"] == "new_factor"
    stats = stack.get(f"/stats/{value.digits()}").json()
    assert str(p) in stats["factors_found"]
    assert stats["composite"] == value.digits()


def test_1_and_the_number_itself_are_no_factors_and_no_fault(stack):
    body = plain()
    reply = stack.submit(claiming(body, 1, body["composite"])).json()
    assert (reply["status"], reply["factor_status"]) == ("success", "no_factor")
    assert "no proper factor" in reply["message"]


def test_stats_by_expression_and_for_what_nobody_knows(stack):
    n = random.randrange(200, 2000) * 2 + 1
    written = f"(10^{n}+{random.randrange(10**6) * 10})/10"
    assert stack.submit(plain(written, project="repunits")).json()["status"] == "success"
    stats = stack.get(f"/stats/{written}").json()
    assert (stats["composite"], stats["projects"]) == (written, ["repunits"])
    value = evaluate_number(written, 50_000).digits()
    assert stack.get(f"/stats/{value}").json() == stats
    assert stats["status"] == "composite"
    problem(stack.get(f"/stats/{random_number().value}"), 404, "unknown_composite")
    refused = problem(stack.get("/stats/10%2F3"), 422, "not_an_integer")
    assert "10/3" in refused["detail"]


def test_methods_but_ecm_leave_the_t_level_alone(stack):
    chosen = random_number().value
    for method in ("pm1", "pp1", "siqs", "nfs", "auto"):
        reply = stack.submit(plain(chosen, method=method)).json()
        assert (reply["status"], reply["current_t_level"]) == ("success", 0.0)
    assert stack.get(f"/stats/{chosen}").json()["ecm_work"]["total_attempts"] == 5
