"""Sending a result to the server until it is processed.

Sending again is always safe: every payload has its own Idempotency-Key, and the server answers a repeated key with the
outcome of the first request. So every unclear answer (none, half an answer, a proxy's error page) is retried, and only
two answers are final: the server has processed the result, or it will never accept it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urljoin

import requests

from agent import retrying
from agent.http_client import (
    NoAnswer,
    api_url,
    describe_problem,
    describe_unclear_answer,
    read_json_object,
    read_retry_after,
    send_request,
)
from agent.retrying import BackOff, Delays
from agent.spool import SpoolEntry

FINAL_REFUSALS = (400, 413, 422)  # and 404 for an unknown composite; any other 404 means that the address is wrong
SETTLED_STATES = ("applied", "duplicate")


@dataclass(frozen=True)
class DeliveryAnswer:
    """The outcome of one request about a result.

    `settled` (processed) and `refused` are final. `accepted`: the server has stored the result and will process it;
    its state is at `location`. `later`: the request must be repeated, after `retry_after` seconds if that is not 0.
    `status` is 0 if no answer came.
    """

    verdict: Literal["settled", "refused", "accepted", "later"]
    message: str
    status: int = 0
    body: dict[str, Any] = field(default_factory=dict)
    location: str = ""
    retry_after: float = 0.0

    @property
    def is_final(self) -> bool:
        return self.verdict in ("settled", "refused")


@dataclass
class Delivery:
    """A result that is being sent. `accepted` is the answer by which the server said that it has stored the result."""

    entry: SpoolEntry
    back_off: BackOff
    accepted: DeliveryAnswer | None = None

    def attempt(self, session: requests.Session) -> DeliveryAnswer:
        """Send the result, or ask for its state once the server has stored it."""
        if self.accepted:
            answer = get_submission_state(session, self.accepted.location)
        else:
            answer = post_result(session, self.entry.server, self.entry.key, self.entry.payload)
        if answer.verdict == "accepted" and self.accepted is None:
            self.accepted = answer
            self.back_off.reset()
        elif answer.status == 404:
            self.accepted = None  # the server has lost the submission, so the result is sent again
        return answer


def deliver(
    entry: SpoolEntry,
    *,
    timeout: float,
    session: requests.Session | None = None,
    on_wait: Callable[[DeliveryAnswer, float], None] = lambda answer, seconds: None,
    delays: Delays | None = None,
) -> DeliveryAnswer:
    """Send a result and ask for its state until the answer is final or `timeout` seconds are over.

    Returns the last answer; after `later` and `accepted` the entry must stay in the spool. `on_wait` gets each answer
    that is retried and the seconds until then.
    """
    session = session or requests.Session()
    deadline = time.monotonic() + timeout
    delivery = Delivery(entry, BackOff(delays or retrying.RESULT_DELAYS))
    return retrying.call_until_answered(
        lambda: delivery.attempt(session), lambda: deadline, back_off=delivery.back_off, on_wait=on_wait
    )


def post_result(session: requests.Session, server: str, key: str, payload: dict[str, Any]) -> DeliveryAnswer:
    """Send a result once."""
    url = f"{api_url(server)}/submit_result"
    response = send_request(session, "POST", url, json=payload, headers={"Idempotency-Key": key})
    if isinstance(response, NoAnswer):
        return DeliveryAnswer("later", response.message)
    body = read_json_object(response)
    status = response.status_code
    if status == 200 and body.get("status") == "success":
        message = str(body.get("message") or body.get("factor_status") or "processed")
        return DeliveryAnswer("settled", message, status, body)
    if status == 202:
        location = response.headers.get("Location") or f"/api/v1/submissions/{body.get('submission_id')}"
        return _accepted(response, body, urljoin(url, location))
    reason = body.get("reason")
    if reason and (status in FINAL_REFUSALS or (status == 404 and reason == "unknown_composite")):
        return DeliveryAnswer("refused", describe_problem(body), status, body)
    return _later(response, body)


def get_submission_state(session: requests.Session, url: str) -> DeliveryAnswer:
    """Ask once for the state of a result that the server has stored."""
    response = send_request(session, "GET", url)
    if isinstance(response, NoAnswer):
        return DeliveryAnswer("later", response.message)
    body = read_json_object(response)
    state = body.get("state")
    if response.status_code != 200 or not state:
        return _later(response, body)
    if state in SETTLED_STATES:
        return DeliveryAnswer("settled", str(state), 200, body)
    if state == "received":
        return _accepted(response, body, url)
    return DeliveryAnswer("refused", f"{state}: {describe_problem(body)}", 200, body)


def _accepted(response: requests.Response, body: dict[str, Any], location: str) -> DeliveryAnswer:
    message = "the server has stored the result and not processed it yet"
    return DeliveryAnswer("accepted", message, response.status_code, body, location, read_retry_after(response))


def _later(response: requests.Response, body: dict[str, Any]) -> DeliveryAnswer:
    message = describe_unclear_answer(response, body)
    return DeliveryAnswer("later", message, response.status_code, body, retry_after=read_retry_after(response))
