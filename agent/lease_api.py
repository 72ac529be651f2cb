"""The server's requests about leases: get one, report its progress, close it.

read_lease_state() is where the agent decides that a lease is over. Nothing in this module waits or retries. A lease
whose answer was lost on its way is found by list_open_leases().
"""

import re
import uuid
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import requests

from agent.http_client import (
    NoAnswer,
    api_url,
    describe_problem,
    describe_unclear_answer,
    read_json_object,
    read_retry_after,
    send_request,
)
from agent.offers import Offer, read_offer
from models.limits import MAX_B1, MAX_B2, MAX_CURVES, MIN_B1, PARAMETRIZATIONS

OPEN_STATUSES = ("assigned", "claimed", "running")
OVER_STATUSES = ("completed", "failed", "timeout")
MAX_REASON_LENGTH = 200  # characters


@dataclass(frozen=True)
class Lease:
    """Curves on a number that the server has given to this client. `b2` None means GMP-ECM's default for B1."""

    work_id: str
    composite: str
    b1: int
    b2: int | None
    curves: int
    parametrization: int | None
    t_level: float
    target_t_level: float


@dataclass(frozen=True)
class LeaseRequest:
    """The filters of GET /ecm-work; None leaves the choice to the server."""

    work_type: str | None = None
    min_digits: int | None = None
    max_digits: int | None = None
    project: str | None = None
    composite: str | None = None
    stage1_only: int | None = None
    requested_b1: int | None = None


class LeaseReply(NamedTuple):
    """The state of a lease: `open`, `over` for any reason, or `unclear` because the answer does not say."""

    state: Literal["open", "over", "unclear"]
    message: str
    retry_after: float = 0.0

    @property
    def is_final(self) -> bool:
        return self.state != "unclear"


def request_lease(session: requests.Session, server: str, client_id: str, wanted: LeaseRequest) -> Offer[Lease]:
    """Ask for a shared lease of curves."""
    parameters = {name: value for name, value in asdict(wanted).items() if value is not None}
    parameters |= {"client_id": client_id, "shared": 1}
    response = send_request(session, "GET", f"{api_url(server)}/ecm-work", params=parameters)
    return read_offer(response, "work_id", "lease", read_lease)


def list_open_leases(session: requests.Session, server: str, client_id: str) -> list[tuple[Lease, int]] | str:
    """Return the client's open shared leases, each with the curves that results have reported for it.

    Returns a message if the server does not answer with a list.
    """
    response = send_request(session, "GET", f"{api_url(server)}/work/status/{quote(client_id, safe='')}")
    if isinstance(response, NoAnswer):
        return response.message
    body = read_json_object(response)
    assignments = body.get("assignments")
    if response.status_code != 200 or not isinstance(assignments, list):
        return describe_unclear_answer(response, body)
    found = []
    for one in assignments:
        # Other programs run leases of whole numbers and P-1 work; `agent stage1` runs those of stage 1 alone.
        if one.get("shared") and one.get("method") == "ecm" and one.get("b2") != 0 and _is_open(one):
            try:
                found.append((read_lease(one), max(0, int(one.get("curves_submitted") or 0))))
            except (TypeError, ValueError):
                continue
    return found


def start_lease(session: requests.Session, server: str, client_id: str, work_id: str) -> LeaseReply:
    """Report that the first curves of a lease begin.

    The server answers 404 for a lease that runs already, so `over` becomes `unclear`; report_progress() returns the
    state.
    """
    url = f"{api_url(server)}/work/{quote(work_id)}/start"
    state = read_lease_state(send_request(session, "POST", url, params={"client_id": client_id}))
    return state._replace(state="unclear") if state.state == "over" else state


def report_progress(session: requests.Session, server: str, client_id: str, work_id: str, curves: int) -> LeaseReply:
    """Send a heartbeat: `curves` of the lease have been run so far, whether or not their results were sent."""
    parameters: dict[str, Any] = {"client_id": client_id, "curves_completed": curves}
    url = f"{api_url(server)}/work/{quote(work_id)}/progress"
    return read_lease_state(send_request(session, "PUT", url, params=parameters))


def complete_lease(session: requests.Session, server: str, client_id: str, work_id: str) -> LeaseReply:
    """Close a lease as done although not all of its curves were run."""
    url = f"{api_url(server)}/work/{quote(work_id)}/complete"
    return read_closing_state(send_request(session, "POST", url, params={"client_id": client_id}))


def abandon_lease(session: requests.Session, server: str, client_id: str, work_id: str, reason: str) -> LeaseReply:
    """Return the rest of a lease to the server. The reason is cut to MAX_REASON_LENGTH printable characters."""
    printable = re.sub(r"[^ -~]+", " ", reason)[:MAX_REASON_LENGTH].strip()
    url = f"{api_url(server)}/work/{quote(work_id)}"
    parameters = {"client_id": client_id, "reason": printable}
    return read_closing_state(send_request(session, "DELETE", url, params=parameters))


def read_lease(body: dict[str, Any]) -> Lease:
    """Return the lease that an answer describes. Raises ValueError or TypeError for one that cannot be run.

    GMP-ECM reads the number and a file gets the id as its name, so both are checked.
    """
    composite = str(body.get("composite"))
    if not (composite.isascii() and composite.isdigit()):
        raise ValueError(f"composite {composite[:60]!r} is not a number")
    b2 = body.get("b2")
    return Lease(
        work_id=str(uuid.UUID(str(body.get("work_id")))),
        composite=composite,
        b1=read_whole_number(body, "b1", MIN_B1, MAX_B1),
        b2=None if b2 is None else read_whole_number(body, "b2", 0, MAX_B2),
        curves=read_whole_number(body, "curves", 1, MAX_CURVES),
        parametrization=(
            None
            if body.get("parametrization") is None
            else read_whole_number(body, "parametrization", PARAMETRIZATIONS[0], PARAMETRIZATIONS[-1])
        ),
        t_level=float(body.get("current_t_level") or 0.0),
        target_t_level=float(body.get("target_t_level") or 0.0),
    )


def read_whole_number(body: dict[str, Any], name: str, low: int, high: int) -> int:
    """Return an integer field of an answer. Raises ValueError if it is none from `low` to `high`."""
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} {str(value)[:60]!r} is not a whole number from {low} to {high}")
    return value


def read_lease_state(response: requests.Response | NoAnswer) -> LeaseReply:
    """Decide from an answer whether a lease is open or over.

    It is over if the server shows it with a final status or does not know it; every other answer is unclear.
    """
    if isinstance(response, NoAnswer):
        return LeaseReply("unclear", response.message)
    body = read_json_object(response)
    message = str(body.get("message") or body.get("status") or "")
    if response.status_code == 200 and _is_open(body):
        return LeaseReply("open", message)
    if response.status_code == 200 and body.get("status") in OVER_STATUSES:
        return LeaseReply("over", message)
    if response.status_code == 404 and body.get("reason") == "unknown_work":
        return LeaseReply("over", describe_problem(body))
    return LeaseReply("unclear", describe_unclear_answer(response, body), read_retry_after(response))


def read_closing_state(response: requests.Response | NoAnswer) -> LeaseReply:
    """Decide like read_lease_state(), and take 400, 409 and 422 as over, because asking again would change nothing."""
    state = read_lease_state(response)
    if isinstance(response, NoAnswer) or state.is_final:
        return state
    body = read_json_object(response)
    if body.get("reason") and response.status_code in (400, 409, 422):
        return LeaseReply("over", describe_problem(body))
    return state


def _is_open(body: dict[str, Any]) -> bool:
    return body.get("status") in OPEN_STATUSES
