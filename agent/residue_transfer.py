"""The server's requests about residues: claim, download, upload, complete. Nothing in this module waits or retries."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from agent.lease_api import read_whole_number
from agent.offers import Offer, read_offer
from models.limits import MAX_B1, MIN_B1

CLIENT_HEADER = "X-Client-ID"
DUPLICATE_DETAIL, FINISHED_REASON = "Duplicate residue", "composite_finished"
FINAL_STATUSES = (400, 404, 410, 413, 422)
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ResidueFilters:
    """The filters of GET /residues/work; None leaves the choice to the server."""

    min_digits: int | None = None
    max_digits: int | None = None
    min_b1: int | None = None
    max_b1: int | None = None
    project: str | None = None
    claim_timeout_hours: float | None = None


class TransferResult(NamedTuple):
    """The outcome of a request: `done`, `refused` for good, or `unclear`, so that it must be repeated."""

    state: Literal["done", "refused", "unclear"]
    message: str
    retry_after: float = 0.0

    @property
    def is_final(self) -> bool:
        return self.state != "unclear"


def request_residue(
    session: requests.Session, server: str, client_id: str, filters: ResidueFilters
) -> Offer[dict[str, Any]]:
    """Claim a residue for stage 2 and return its fields."""
    parameters = {name: value for name, value in vars(filters).items() if value is not None}
    url = f"{api_url(server)}/residues/work"
    response = send_request(session, "GET", url, params=parameters, headers={CLIENT_HEADER: client_id})
    return read_offer(response, "residue_id", "residue", read_residue)


def read_residue(body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a residue that stage 2 needs. Raises ValueError or TypeError if it cannot be run."""
    composite, checksum = str(body.get("composite")), str(body.get("checksum"))
    if not (composite.isascii() and composite.isdigit()):
        raise ValueError(f"composite {composite[:60]!r} is not a number")
    if len(bytes.fromhex(checksum)) != hashlib.sha256().digest_size:
        raise ValueError(f"checksum {checksum[:70]!r} is not a SHA-256 checksum")
    return {
        "residue_id": read_whole_number(body, "residue_id", 0, 2**63 - 1),
        "composite": composite,
        "checksum": checksum.lower(),
        "b1": read_whole_number(body, "b1", MIN_B1, MAX_B1),
        "parametrization": read_whole_number(body, "parametrization", 0, 3),
        "curves": read_whole_number(body, "curve_count", 1, 10**9),
    }


def download_residue(
    session: requests.Session, server: str, client_id: str, residue: dict[str, Any], target: Path
) -> TransferResult:
    """Download a claimed residue's file to `target`; `done` only if its SHA-256 is the residue's."""
    url = f"{api_url(server)}/residues/{residue['residue_id']}/download"
    response = send_request(session, "GET", url, headers={CLIENT_HEADER: client_id}, stream=True)
    if isinstance(response, NoAnswer):
        return TransferResult("unclear", response.message)
    if response.status_code != 200:
        return _read_result(response)
    digest = hashlib.sha256()
    try:
        with target.open("wb") as file:
            for chunk in response.iter_content(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except requests.RequestException as error:
        message = f"the download of residue {residue['residue_id']} was cut off ({type(error).__name__})"
        return TransferResult("unclear", message)
    if digest.hexdigest() != residue["checksum"]:
        return TransferResult("unclear", f"the download of residue {residue['residue_id']} is damaged")
    return TransferResult("done", "downloaded")


def upload_residue(
    session: requests.Session, server: str, client_id: str, file: Path, attempt_id: int
) -> TransferResult:
    """Upload the residue of an attempt's stage 1.

    `done` also if the server has it already, or the number is finished, so that no stage 2 is needed.
    """
    with file.open("rb") as content:
        response = send_request(
            session,
            "POST",
            f"{api_url(server)}/residues/upload",
            params={"stage1_attempt_id": attempt_id},
            headers={CLIENT_HEADER: client_id},
            files={"file": (file.name, content)},
        )
    if not isinstance(response, NoAnswer):
        body = read_json_object(response)
        if DUPLICATE_DETAIL in str(body.get("detail")):
            return TransferResult("done", "the server already has it")
        if body.get("reason") == FINISHED_REASON:
            return TransferResult("done", "not needed, the number is finished")
    return _read_result(response)


def complete_residue(
    session: requests.Session, server: str, client_id: str, residue_id: int, attempt_id: int
) -> TransferResult:
    """Link a residue with the attempt that was its stage 2; repeating this changes nothing."""
    url = f"{api_url(server)}/residues/{residue_id}/complete"
    body = {"stage2_attempt_id": attempt_id}
    return _read_result(send_request(session, "POST", url, headers={CLIENT_HEADER: client_id}, json=body))


def release_residue(session: requests.Session, server: str, client_id: str, residue_id: int) -> TransferResult:
    """Give up the claim on a residue."""
    url = f"{api_url(server)}/residues/{residue_id}/claim"
    response = send_request(session, "DELETE", url, headers={CLIENT_HEADER: client_id})
    return _read_result(response, also_final=(409,))


def _read_result(response: requests.Response | NoAnswer, also_final: tuple[int, ...] = ()) -> TransferResult:
    if isinstance(response, NoAnswer):
        return TransferResult("unclear", response.message)
    body = read_json_object(response)
    if response.status_code == 200 and "residue_id" in body:
        return TransferResult("done", str(body.get("message") or ""))
    if body.get("reason") and response.status_code in FINAL_STATUSES + also_final:
        return TransferResult("refused", describe_problem(body))
    return TransferResult("unclear", describe_unclear_answer(response, body), read_retry_after(response))
