"""One HTTP request to the server and what its answer says; nothing in this module waits or retries."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from requests.auth import AuthBase

CONNECT_TIMEOUT = 10.0
# The server may hold a result for 15 s while its database is away and 10 s for the outcome; a slow line adds to that.
READ_TIMEOUT = 60.0


@dataclass(frozen=True)
class BearerKey(AuthBase):
    """Adds the client's key to requests. It is an `auth` because ~/.netrc would replace a plain header."""

    key: str = field(repr=False)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.key}"
        return request


_auth: BearerKey | None = None


def use_key(key: str | None) -> None:
    """Set the key that this process sends with every request from now on; None or "" sends no key."""
    global _auth
    _auth = BearerKey(key) if key else None


@dataclass(frozen=True)
class NoAnswer:
    """A request that got no HTTP answer; `message` says which and why."""

    message: str


def api_url(server: str) -> str:
    """Return the address of the server's API, without a slash at its end."""
    return f"{server.rstrip('/')}/api/v1"


def send_request(session: requests.Session, method: str, url: str, **options: Any) -> requests.Response | NoAnswer:
    """Send one request and return its answer. Redirects are not followed: they would turn a POST into a GET."""
    try:
        return session.request(
            method, url, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT), allow_redirects=False, auth=_auth, **options
        )
    except requests.RequestException as error:
        return NoAnswer(f"no answer from {url} ({type(error).__name__})")


def read_json_object(response: requests.Response) -> dict[str, Any]:
    """Return the body if it is a JSON object, else {}: a proxy's error page, for example."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def read_retry_after(response: requests.Response) -> float:
    """Return the seconds that `Retry-After` asks for (RFC 9110: a number of seconds, or a date); 0 without one."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def describe_problem(body: dict[str, Any]) -> str:
    """Return the reason, the detail and the field errors of a problem document in one line."""
    parts = [str(body[name]) for name in ("reason", "detail") if body.get(name)]
    parts += [f"{error.get('field')}: {error.get('message')}" for error in body.get("errors") or []]
    return ", ".join(parts) or "no reason given"


def describe_unclear_answer(response: requests.Response, body: dict[str, Any]) -> str:
    """Return a line about an answer that decides nothing, with what the user can check."""
    if response.is_redirect:
        return f"redirected to {response.headers['Location']}; use that address for --server"
    if body.get("reason"):
        return describe_problem(body)
    return f"{response.url} answered {response.status_code}, which is not a coordinator's answer; check --server"
