"""Delivering: against a server that is away, breaks off, is busy, accepts, refuses, or is no coordinator at all."""

import time
from typing import ClassVar

import pytest
from fake_coordinator import APPLIED, HALF, HANG, RESET, problem, scripted_server

from agent import http_client, spool
from agent.result_delivery import deliver as deliver_result
from agent.retrying import Delays

PAYLOAD = {"composite": "2^101-1", "results": {"curves_completed": 3}}


def accepted(submission=7, **headers):
    where = {"Location": f"/api/v1/submissions/{submission}"} | headers
    return (202, where, {"status": "accepted", "submission_id": submission})


def state(word, **more):
    return (200, {}, {"submission_id": 7, "state": word} | more)


@pytest.fixture
def deliver(tmp_path):
    spool.prepare_spool(tmp_path)

    def deliver(address, timeout=30.0):
        entry = spool.add_entry(tmp_path, "key-1", address, PAYLOAD)
        waits = []
        answer = deliver_result(
            entry, timeout=timeout, delays=Delays(0.01, 120.0), on_wait=lambda answer, delay: waits.append(delay)
        )
        entry.release()
        return answer, waits

    return deliver


def test_applied_at_once(deliver):
    with scripted_server(APPLIED) as (address, requests):
        answer, waits = deliver(address)
    assert answer.verdict == "settled"
    assert answer.body["current_t_level"] == 12.5
    ((method, path, headers, body),) = requests
    assert (method, path, body) == ("POST", "/api/v1/submit_result", PAYLOAD)
    assert headers["Idempotency-Key"] == "key-1"
    assert waits == []


@pytest.mark.parametrize(
    "trouble",
    [
        RESET,
        HALF,
        problem(503, "database_away", Retry_After="0"),
        problem(429, "too_many_requests"),
        (500, {}, "<html>oops</html>"),
        (502, {}, ""),
        (200, {}, "<html>please log in to this hotel's network</html>"),
        (404, {"Content-Type": "text/html"}, "<html>nginx</html>"),
        (301, {"Location": "https://elsewhere/"}, ""),
    ],
)
def test_what_settles_nothing_is_sent_again_under_the_same_key(deliver, trouble):
    with scripted_server(trouble, trouble, APPLIED) as (address, requests):
        answer, waits = deliver(address)
    assert answer.verdict == "settled"
    assert [(method, headers["Idempotency-Key"], body) for method, _, headers, body in requests] == [
        ("POST", "key-1", PAYLOAD)
    ] * 3
    assert len(waits) == 2


def test_an_answer_that_never_comes_is_a_timeout(deliver, monkeypatch):
    monkeypatch.setattr(http_client, "READ_TIMEOUT", 1.0)
    with scripted_server(HANG, APPLIED) as (address, requests):
        answer, _ = deliver(address)
    assert answer.verdict == "settled"
    assert len(requests) == 2


def test_nobody_listens(deliver):
    answer, waits = deliver("http://127.0.0.1:1", timeout=1.0)
    assert answer.verdict == "later"
    assert "no answer from http://127.0.0.1:1/api/v1/submit_result" in answer.message
    assert len(waits) >= 2
    # Back-off: each wait is at least half of twice the one before at its shortest.
    assert all(delay >= 0.005 * 2**i for i, delay in enumerate(waits))


def test_without_a_timeout_there_is_one_attempt(deliver):
    with scripted_server(problem(503, "database_away")) as (address, requests):
        answer, waits = deliver(address, timeout=0)
    assert (answer.verdict, len(requests), waits) == ("later", 1, [])
    assert "database_away" in answer.message


def test_the_server_s_retry_after_is_honoured(deliver):
    with scripted_server(problem(429, "too_many_requests", Retry_After="1"), APPLIED) as (address, _):
        started = time.monotonic()
        answer, waits = deliver(address)
    assert answer.verdict == "settled"
    assert waits == [1.0]
    assert time.monotonic() - started >= 1.0


def test_a_retry_after_beyond_the_timeout_ends_the_attempts(deliver):
    with scripted_server(problem(503, "database_away", Retry_After="3600")) as (address, requests):
        answer, waits = deliver(address)
    assert (answer.verdict, len(requests), waits) == ("later", 1, [])


def test_accepted_then_applied(deliver):
    with scripted_server(accepted(), state("received"), RESET, state("received"), state("applied")) as (
        address,
        requests,
    ):
        answer, _ = deliver(address)
    assert answer.verdict == "settled"
    assert [method for method, *_ in requests] == ["POST"] + ["GET"] * 4
    assert {path for _, path, *_ in requests[1:]} == {"/api/v1/submissions/7"}


def test_accepted_then_duplicate(deliver):
    with scripted_server(accepted(), state("duplicate")) as (address, _):
        assert deliver(address)[0].verdict == "settled"


@pytest.mark.parametrize("word", ["rejected", "failed"])
def test_accepted_then_given_up(deliver, word):
    with scripted_server(accepted(), state(word, reason="factor_does_not_divide", detail="999 no")) as (address, _):
        answer, _ = deliver(address)
    assert answer.verdict == "refused"
    assert answer.message == f"{word}: factor_does_not_divide, 999 no"


def test_accepted_and_not_settled_in_time(deliver):
    with scripted_server(accepted(), state("received")) as (address, _):
        answer, _ = deliver(address, timeout=0.1)
    assert answer.verdict == "accepted"


def test_a_submission_that_cannot_be_found_is_sent_again(deliver):
    # A database restored from a backup knows nothing of what it accepted since.
    with scripted_server(accepted(), problem(404, "not_found"), accepted(8), state("applied")) as (address, requests):
        assert deliver(address)[0].verdict == "settled"
    assert [(method, path.rsplit("/", 1)[1]) for method, path, *_ in requests] == [
        ("POST", "submit_result"),
        ("GET", "7"),
        ("POST", "submit_result"),
        ("GET", "8"),
    ]


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "factor_does_not_divide"), (404, "unknown_composite"), (413, "too_large"), (422, "malformed")],
)
def test_a_refusal_is_final(deliver, status, reason):
    with scripted_server(problem(status, reason)) as (address, requests):
        answer, _ = deliver(address)
    assert (answer.verdict, answer.status, answer.body["reason"]) == ("refused", status, reason)
    assert len(requests) == 1


@pytest.mark.parametrize(
    "not_a_verdict",
    [problem(404, "not_found"), (400, {}, "<html>bad gateway of some kind</html>"), (422, {}, {"detail": "?"})],
)
def test_a_wrong_address_refuses_nothing(deliver, not_a_verdict):
    with scripted_server(not_a_verdict) as (address, _):
        assert deliver(address, timeout=0)[0].verdict == "later"


def test_a_422_tells_each_field(deliver):
    status, headers, body = problem(422, "malformed")
    body["errors"] = [{"field": "parameters.b1", "message": "is required"}]
    with scripted_server((status, headers, body)) as (address, _):
        assert deliver(address)[0].message == "malformed, malformed it is, parameters.b1: is required"


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("", 0, 0),
        ("soon", 0, 0),
        ("-5", 0, 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 1e8, 1e10),
    ],
)
def test_retry_after(value, low, high):
    class Response:
        headers: ClassVar = {"Retry-After": value}

    assert low <= http_client.read_retry_after(Response()) <= high
