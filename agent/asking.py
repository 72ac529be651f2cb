"""Asking the server for something to do, and insisting on an answer to what must be said."""

import random
import time
from collections.abc import Callable
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import requests

from agent.client import Answer, json_object, problem_text, retry_after, try_later

FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0  # seconds between two tries

Thing = TypeVar("Thing")


class Offer(NamedTuple, Generic[Thing]):
    """What came of asking: a thing to work on, or why there is none and in how many seconds to ask again.

    `none`: the server knows of no such work. `refused`: it will not take the question as it is put. `unclear`: no
    answer or not the coordinator's; it may have given us something all the same.
    """

    thing: Thing | None
    message: str
    retry_after: float = 0.0
    verdict: Literal["given", "none", "refused", "unclear"] = "given"


def read_offer(
    response: requests.Response | Answer, id_field: str, what: str, read: Callable[[dict[str, Any]], Thing]
) -> Offer[Thing]:
    """The offer that an answer makes of a thing with that field for its id.

    `read` makes the thing of the body, and raises ValueError or TypeError for one that cannot be run.
    """
    if isinstance(response, Answer):
        return Offer(None, response.message, verdict="unclear")
    body = json_object(response)
    if response.status_code == 200 and id_field in body and "retry_after" in body:
        message = str(body.get("message") or "")
        if body[id_field] is None:
            return Offer(None, message or f"no {what}", pause(body["retry_after"]), "none")
        try:
            return Offer(read(body), message)
        except (TypeError, ValueError) as error:
            return Offer(None, f"{response.url} offers a {what} that cannot be run: {error}", verdict="unclear")
    if body.get("reason") and response.status_code in (400, 422):
        return Offer(None, problem_text(body), verdict="refused")
    return Offer(None, try_later(response, body).message, retry_after(response), "unclear")


def pause(value: Any) -> float:
    """Seconds to wait before asking again, from an answer's body."""
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1e6 else 60.0


class Reply(Protocol):
    """What a call came to; one that is `unclear` is to be tried again, not before `retry_after` seconds."""

    @property
    def state(self) -> str: ...

    @property
    def retry_after(self) -> float: ...


Said = TypeVar("Said", bound=Reply)


def insist(call: Callable[[], Said], deadline: Callable[[], float]) -> Said:
    """Call until the server answers, or the deadline would be over (monotonic; it may come nearer meanwhile)."""
    delay = FIRST_DELAY
    while True:
        reply = call()
        seconds = max(reply.retry_after, delay * random.uniform(0.5, 1.0))
        if reply.state != "unclear" or time.monotonic() + seconds > deadline():
            return reply
        time.sleep(seconds)
        delay = min(2 * delay, LONGEST_DELAY)
