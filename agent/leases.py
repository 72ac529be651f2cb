"""Leases over HTTP: asking for work, saying how far it is, and giving it back.

Nothing in here waits or tries again. A lease that was asked for and whose answer was lost is found by open_leases().
"""

import re
import uuid
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import requests

from agent.asking import Offer, read_offer
from agent.client import Answer, exchange, json_object, problem_text, retry_after, try_later
from models.limits import MAX_B1, MAX_B2, MAX_CURVES, MIN_B1, PARAMETRIZATIONS

OPEN = ("assigned", "claimed", "running")
OVER = ("completed", "failed", "timeout")
LONGEST_REASON = 200  # characters of why a lease is given back


@dataclass(frozen=True)
class Lease:
    """So many curves on a number, ours to run until the server says otherwise. `b2` None: GMP-ECM's default for B1."""

    work_id: str
    composite: str
    b1: int
    b2: int | None
    curves: int
    parametrization: int | None
    t_level: float
    target_t_level: float


@dataclass(frozen=True)
class Wanted:
    """What work to ask for, in the words of GET /ecm-work; None leaves it to the server."""

    work_type: str | None = None
    min_digits: int | None = None
    max_digits: int | None = None
    project: str | None = None
    composite: str | None = None
    stage1_only: int | None = None
    requested_b1: int | None = None


class Standing(NamedTuple):
    """How a lease stands: `open`, `over` for whatever reason, or `unclear` because the server did not say."""

    state: Literal["open", "over", "unclear"]
    message: str
    retry_after: float = 0.0


def ask_for_work(session: requests.Session, server: str, client_id: str, wanted: Wanted) -> Offer[Lease]:
    """Ask for a shared lease of curves."""
    parameters = {name: value for name, value in asdict(wanted).items() if value is not None}
    parameters |= {"client_id": client_id, "shared": 1}
    return read_offer(
        exchange(session, "GET", f"{api(server)}/ecm-work", params=parameters), "work_id", "lease", read_lease
    )


def open_leases(session: requests.Session, server: str, client_id: str) -> list[tuple[Lease, int]] | str:
    """The client's open shared leases, each with the curves that results have brought for it; a string says why not."""
    response = exchange(session, "GET", f"{api(server)}/work/status/{quote(client_id, safe='')}")
    if isinstance(response, Answer):
        return response.message
    body = json_object(response)
    assignments = body.get("assignments")
    if response.status_code != 200 or not isinstance(assignments, list):
        return try_later(response, body).message
    found = []
    for one in assignments:
        # Leases of whole numbers and P-1 work are other programs', those of stage 1 alone `agent stage1`'s.
        if one.get("shared") and one.get("method") == "ecm" and one.get("b2") != 0 and one.get("status") in OPEN:
            try:
                found.append((read_lease(one), max(0, int(one.get("curves_submitted") or 0))))
            except (TypeError, ValueError):
                continue
    return found


def start(session: requests.Session, server: str, client_id: str, work_id: str) -> Standing:
    """Say that the lease's first curves begin.

    A lease that runs already cannot be started, so a 404 leaves open how it stands: progress() tells.
    """
    response = exchange(session, "POST", f"{api(server)}/work/{quote(work_id)}/start", params={"client_id": client_id})
    standing = read_standing(response)
    return standing._replace(state="unclear") if standing.state == "over" else standing


def progress(session: requests.Session, server: str, client_id: str, work_id: str, curves: int) -> Standing:
    """The heartbeat: `curves` of the lease have been run so far, sent or not."""
    parameters: dict[str, Any] = {"client_id": client_id, "curves_completed": curves}
    return read_standing(exchange(session, "PUT", f"{api(server)}/work/{quote(work_id)}/progress", params=parameters))


def complete(session: requests.Session, server: str, client_id: str, work_id: str) -> Standing:
    """Close a lease that has served its purpose, though not all of its curves were run."""
    url = f"{api(server)}/work/{quote(work_id)}/complete"
    return read_closing(exchange(session, "POST", url, params={"client_id": client_id}))


def abandon(session: requests.Session, server: str, client_id: str, work_id: str, reason: str) -> Standing:
    """Give back what is left of a lease, and say why."""
    words = re.sub(r"[^ -~]+", " ", reason)[:LONGEST_REASON].strip()
    url = f"{api(server)}/work/{quote(work_id)}"
    return read_closing(exchange(session, "DELETE", url, params={"client_id": client_id, "reason": words}))


def read_lease(body: dict[str, Any]) -> Lease:
    """The lease that an answer describes. Raises ValueError or TypeError for one that cannot be run.

    What GMP-ECM reads and what becomes a file's name is taken from the network, so both are looked at.
    """
    composite = str(body.get("composite"))
    if not (composite.isascii() and composite.isdigit()):
        raise ValueError(f"composite {composite[:60]!r} is no number")
    b2 = body.get("b2")
    return Lease(
        work_id=str(uuid.UUID(str(body.get("work_id")))),
        composite=composite,
        b1=whole(body, "b1", MIN_B1, MAX_B1),
        b2=None if b2 is None else whole(body, "b2", 0, MAX_B2),
        curves=whole(body, "curves", 1, MAX_CURVES),
        parametrization=(
            None
            if body.get("parametrization") is None
            else whole(body, "parametrization", PARAMETRIZATIONS[0], PARAMETRIZATIONS[-1])
        ),
        t_level=float(body.get("current_t_level") or 0.0),
        target_t_level=float(body.get("target_t_level") or 0.0),
    )


def whole(body: dict[str, Any], name: str, low: int, high: int) -> int:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} {str(value)[:60]!r} is no whole number from {low} to {high}")
    return value


def read_standing(response: requests.Response | Answer) -> Standing:
    if isinstance(response, Answer):
        return Standing("unclear", response.message)
    body = json_object(response)
    message = str(body.get("message") or body.get("status") or "")
    if response.status_code == 200 and body.get("status") in OPEN:
        return Standing("open", message)
    if response.status_code == 200 and body.get("status") in OVER:
        return Standing("over", message)
    if response.status_code == 404 and body.get("reason") == "unknown_work":
        return Standing("over", problem_text(body))
    return Standing("unclear", try_later(response, body).message, retry_after(response))


def read_closing(response: requests.Response | Answer) -> Standing:
    """Like read_standing(); any plain refusal ends it too, because asking again would change nothing."""
    standing = read_standing(response)
    if isinstance(response, Answer) or standing.state != "unclear":
        return standing
    body = json_object(response)
    if body.get("reason") and response.status_code in (400, 409, 422):
        return Standing("over", problem_text(body))
    return standing


def api(server: str) -> str:
    return f"{server.rstrip('/')}/api/v1"
