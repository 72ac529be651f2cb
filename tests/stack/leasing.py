"""Requests for work and reports about leases, as clients and operators send them over HTTP."""

import uuid
from typing import Any

import requests
from bodies import plain
from stacks import Stack
from traffic import prime, random_number


def random_composite(digits: int) -> str:
    """Return a random composite of exactly that many digits, which has no prime factor below 20 digits."""
    while len(value := str(prime(20) * prime(digits - 20))) != digits:
        pass
    return value


def unique_name(what: str) -> str:
    """Return a name that no other test has."""
    return f"{what}-{uuid.uuid4().hex[:12]}"


def register_number(stack: Stack, value: str | None = None, **fields: Any) -> str:
    """Register a number (`value`, or a random one) by a result of one curve, and return it."""
    value = value or random_number().value
    answer = stack.submit(plain(value, results={"curves_completed": 1}, **fields))
    assert answer.status_code == 200, answer.text
    return value


def request_work(stack: Stack, client: str, path: str = "/ecm-work", **query: Any) -> dict[str, Any]:
    """Request work, check an answer without a lease, and return the answer's body."""
    answer = stack.get(path, params={"client_id": client, **query})
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    if reply["work_id"] is None:
        assert all(value is None for name, value in reply.items() if name not in ("message", "retry_after")), reply
        assert 1 <= reply["retry_after"] <= 600
        assert reply["message"]
    return reply


def call_api(stack: Stack, method: str, path: str, key: str | None = None, **query: Any) -> requests.Response:
    """Send a request to a path of the API, with the admin key if one is given."""
    headers = {} if key is None else {"X-Admin-Key": key}
    return stack.http.request(method, stack.api + path, params=query, headers=headers, timeout=40)


def assert_lease(answer: requests.Response, status: str, *words: str) -> dict[str, Any]:
    """Check that an answer shows a lease with this status and these words in its message; returns the lease."""
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    assert reply["status"] == status, reply
    assert set(reply) == {"work_id", "status", "curves_completed", "curves_submitted", "expires_at", "message"}
    for word in words:
        assert word in reply["message"], reply["message"]
    return reply


def submit_curves(stack: Stack, client: str, lease: dict[str, Any], curves: int, **fields: Any) -> dict[str, Any]:
    """Submit that many curves of a lease as its client does, and return the answer's body."""
    run = {"b1": lease["b1"], "curves": curves, "parametrization": lease["parametrization"]}
    body = plain(lease["composite"], work_id=lease["work_id"], client_id=client, **fields)
    body["parameters"] |= run
    answer = stack.submit(body)
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def set_priority(stack: Stack, number: str, priority: int) -> None:
    """Give a number a priority, as an operator does."""
    composite_id = stack.scalar("SELECT id FROM composites WHERE number = :number", number=number)
    url = f"{stack.api}/admin/composites/{composite_id}/priority"
    headers = {"X-Admin-Key": admin_key(stack)}
    response = stack.http.put(url, json={"priority": priority}, headers=headers, timeout=60)
    assert response.status_code == 200, response.text


def admin_key(stack: Stack) -> str:
    return (stack.home / "admin.key").read_text().strip()
