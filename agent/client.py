"""Sending a result until the server has settled it.

Sending again is always safe: every payload has its own Idempotency-Key, and a replay answers with the first's outcome.
So whatever is unclear (no answer, half an answer, a proxy's error page) is sent again, and only two things end it: the
coordinator's word that the result is settled, or its word that it never will be.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urljoin

import requests
from requests.auth import AuthBase

from agent.spool import Entry

Verdict = Literal["settled", "refused", "accepted", "later"]

CONNECT_TIMEOUT = 10.0
# The server may hold a result 15 s for its database and 10 s for the outcome; a slow line comes on top.
READ_TIMEOUT = 60.0
FIRST_DELAY = 0.5
LONGEST_DELAY = 120.0
FINAL_REFUSALS = (400, 413, 422)  # and 404, when it speaks of an unknown composite and not of a wrong address
SETTLED_STATES = ("applied", "duplicate")


@dataclass(frozen=True)
class BearerKey(AuthBase):
    """The client's key on requests. As `auth` and not as a header, which a ~/.netrc would replace."""

    key: str = field(repr=False)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.key}"
        return request


_auth: BearerKey | None = None


def use_key(key: str | None) -> None:
    """Send this key with every request of this process from now on; None or empty: no key."""
    global _auth
    _auth = BearerKey(key) if key else None


@dataclass(frozen=True)
class Answer:
    """What one exchange with the server came to.

    `settled` and `refused` are final. `accepted`: the server has the result on its disk and will settle it; ask
    `location`. `later`: try again, not before `retry_after` seconds if given.
    """

    verdict: Verdict
    message: str
    status: int = 0
    body: dict[str, Any] = field(default_factory=dict)
    location: str = ""
    retry_after: float = 0.0


def deliver(
    entry: Entry,
    *,
    patience: float,
    session: requests.Session | None = None,
    on_wait: Callable[[Answer, float], None] = lambda answer, delay: None,
    first_delay: float = FIRST_DELAY,
) -> Answer:
    """Send an entry and follow it until it is settled or refused, or `patience` seconds are over.

    Waits grow from `first_delay` to two minutes, with jitter, and are never shorter than the server asks. `on_wait` is
    told why and how long. The last answer is returned; `later` and `accepted` mean that the entry must stay.
    """
    session = session or requests.Session()
    deadline = time.monotonic() + patience
    delay = first_delay
    accepted: Answer | None = None
    while True:
        answer = ask(session, accepted.location) if accepted else post(session, entry.server, entry.key, entry.payload)
        if answer.verdict in ("settled", "refused"):
            return answer
        if answer.verdict == "accepted" and accepted is None:
            accepted, delay = answer, first_delay
        elif answer.status == 404:
            accepted = None  # the address leads nowhere: the replay will tell
        # Full waits would let all agents come back in the same second after an outage.
        pause = max(answer.retry_after, delay * random.uniform(0.5, 1.0))
        if time.monotonic() + pause > deadline:
            return answer
        on_wait(answer, pause)
        time.sleep(pause)
        delay = min(delay * 2, LONGEST_DELAY)


def post(session: requests.Session, server: str, key: str, payload: dict[str, Any]) -> Answer:
    """POST a result once."""
    url = f"{server.rstrip('/')}/api/v1/submit_result"
    response = exchange(session, "POST", url, json=payload, headers={"Idempotency-Key": key})
    if isinstance(response, Answer):
        return response
    body = json_object(response)
    status = response.status_code
    if status == 200 and body.get("status") == "success":
        return Answer("settled", str(body.get("message") or body.get("factor_status") or "settled"), status, body)
    if status == 202:
        location = response.headers.get("Location") or f"/api/v1/submissions/{body.get('submission_id')}"
        return Answer(
            "accepted", "stored, not settled yet", status, body, urljoin(url, location), retry_after(response)
        )
    reason = body.get("reason")
    if reason and (status in FINAL_REFUSALS or (status == 404 and reason == "unknown_composite")):
        return Answer("refused", problem_text(body), status, body)
    return try_later(response, body)


def ask(session: requests.Session, url: str) -> Answer:
    """GET the state of a result that the server accepted."""
    response = exchange(session, "GET", url)
    if isinstance(response, Answer):
        return response
    body = json_object(response)
    state = body.get("state")
    if response.status_code != 200 or not state:
        return try_later(response, body)
    if state in SETTLED_STATES:
        return Answer("settled", str(state), 200, body)
    if state == "received":
        return Answer("accepted", "stored, not settled yet", 200, body, url, retry_after(response))
    return Answer("refused", f"{state}: {problem_text(body)}", 200, body)


def exchange(session: requests.Session, method: str, url: str, **options: Any) -> requests.Response | Answer:
    """One HTTP exchange, or why there was none. Redirects are not followed: they would turn a POST into a GET."""
    try:
        return session.request(
            method, url, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT), allow_redirects=False, auth=_auth, **options
        )
    except requests.RequestException as error:
        return Answer("later", f"no answer from {url} ({type(error).__name__})")


def try_later(response: requests.Response, body: dict[str, Any]) -> Answer:
    """An answer that settles nothing; its message says what to look at."""
    status = response.status_code
    if response.is_redirect:
        message = f"redirected to {response.headers['Location']}: give that address as --server"
    elif body.get("reason"):
        message = problem_text(body)
    else:
        message = f"{response.url} answered {status}, not as a coordinator would: is --server right?"
    return Answer("later", message, status, body, retry_after=retry_after(response))


def problem_text(body: dict[str, Any]) -> str:
    """A problem's own words for a person."""
    words = [str(body[name]) for name in ("reason", "detail") if body.get(name)]
    words += [f"{error.get('field')}: {error.get('message')}" for error in body.get("errors") or []]
    return ", ".join(words) or "no reason given"


def json_object(response: requests.Response) -> dict[str, Any]:
    """The body, if it is a JSON object; else an empty one (an error page of something in between)."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def retry_after(response: requests.Response) -> float:
    """Seconds that the server asks to wait (RFC 9110: a number of seconds, or a date); 0 if it does not."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
