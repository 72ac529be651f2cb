"""What the server offers when the agent asks for work: a lease, or a residue."""

from collections.abc import Callable
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import requests

from agent.http_client import (
    NoAnswer,
    describe_problem,
    describe_unclear_answer,
    read_json_object,
    read_retry_after,
)

DEFAULT_PAUSE = 60.0  # seconds, if the server names no sensible time
LONGEST_PAUSE = 1e6
NO_REASON = "No matching work right now"  # if the server gives none

Thing = TypeVar("Thing")


class Offer(NamedTuple, Generic[Thing]):
    """The answer to a request for work.

    `given`: `thing` is the lease or the residue. `none`: there is no matching work; ask again in `retry_after` seconds.
    `refused`: the server rejects the request as it is. `unclear`: no answer, or not one of a coordinator; the server
    may have given out something all the same.
    """

    thing: Thing | None
    message: str
    retry_after: float = 0.0
    verdict: Literal["given", "none", "refused", "unclear"] = "given"


def read_offer(
    response: requests.Response | NoAnswer, id_field: str, noun: str, read: Callable[[dict[str, Any]], Thing]
) -> Offer[Thing]:
    """Return the offer in an answer. `id_field` is the field that is null when there is no work.

    `read` makes the thing from the body, and raises ValueError or TypeError for one that cannot be run.
    """
    if isinstance(response, NoAnswer):
        return Offer(None, response.message, verdict="unclear")
    body = read_json_object(response)
    if response.status_code == 200 and id_field in body and "retry_after" in body:
        if body[id_field] is None:
            # The pause is in `retry_after`, and the agent names its own.
            reason = str(body.get("message") or NO_REASON).partition("; ask again")[0].removesuffix(".")
            return Offer(None, reason, read_pause(body["retry_after"]), "none")
        try:
            return Offer(read(body), str(body.get("message") or ""))
        except (TypeError, ValueError) as error:
            return Offer(None, f"{response.url} offers a {noun} that cannot be run: {error}", verdict="unclear")
    if body.get("reason") and response.status_code in (400, 422):
        return Offer(None, describe_problem(body), verdict="refused")
    return Offer(None, describe_unclear_answer(response, body), read_retry_after(response), "unclear")


def read_pause(value: Any) -> float:
    """Return the seconds that an answer's body asks to wait, or a minute if the value makes no sense."""
    return float(value) if isinstance(value, (int, float)) and 0 < value < LONGEST_PAUSE else DEFAULT_PAUSE
