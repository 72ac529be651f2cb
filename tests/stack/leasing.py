"""Asking for work and telling how it goes, as clients and operators do it over HTTP."""

import uuid
from typing import Any

import requests
from bodies import plain
from stacks import Stack
from traffic import number, prime


def sized(digits: int) -> str:
    """A composite of exactly that many digits, with no factor below 20."""
    while len(value := str(prime(20) * prime(digits - 20))) != digits:
        pass
    return value


def named(what: str) -> str:
    """A name that no other test has."""
    return f"{what}-{uuid.uuid4().hex[:12]}"


def registered(stack: Stack, value: str | None = None, **fields: Any) -> str:
    """A number (its own, or `value`) that the coordinator knows by a result of one curve."""
    value = value or number().value
    answer = stack.submit(plain(value, results={"curves_completed": 1}, **fields))
    assert answer.status_code == 200, answer.text
    return value


def ask(stack: Stack, client: str, path: str = "/ecm-work", **query: Any) -> dict[str, Any]:
    """What a client gets when it asks for work: a lease, or none."""
    answer = stack.get(path, params={"client_id": client, **query})
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    if said["work_id"] is None:
        assert all(value is None for name, value in said.items() if name not in ("message", "retry_after")), said
        assert 1 <= said["retry_after"] <= 600
        assert said["message"]
    return said


def tell(stack: Stack, method: str, path: str, key: str | None = None, **query: Any) -> requests.Response:
    """POST, PUT or DELETE something of a lease; with the admin key, if there is one."""
    headers = {} if key is None else {"X-Admin-Key": key}
    return stack.http.request(method, stack.api + path, params=query, headers=headers, timeout=40)


def told(answer: requests.Response, status: str, *words: str) -> dict[str, Any]:
    """The state of a lease in an answer, which is this one, in these words."""
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    assert said["status"] == status, said
    assert set(said) == {"work_id", "status", "curves_completed", "curves_submitted", "expires_at", "message"}
    for word in words:
        assert word in said["message"], said["message"]
    return said


def bring(stack: Stack, client: str, lease: dict[str, Any], curves: int, **fields: Any) -> dict[str, Any]:
    """Submit that many curves of a lease, as its client does."""
    run = {"b1": lease["b1"], "curves": curves, "parametrization": lease["parametrization"]}
    body = plain(lease["composite"], work_id=lease["work_id"], client_id=client, **fields)
    body["parameters"] |= run
    answer = stack.submit(body)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def admin_key(stack: Stack) -> str:
    return (stack.home / "admin.key").read_text().strip()
