"""Residues over HTTP, as the agent's two stages need them. Nothing in here waits or tries again."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import requests

from agent.asking import Offer, read_offer
from agent.client import Answer, exchange, json_object, problem_text, retry_after, try_later
from agent.leases import api, whole
from models.limits import MAX_B1, MIN_B1

HEADER = "X-Client-ID"
DUPLICATE, FINISHED = "Duplicate residue", "composite_finished"
FINAL = (400, 404, 410, 413, 422)
PIECE = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """Which residues to ask for, in the words of GET /residues/work; None leaves it to the server."""

    min_digits: int | None = None
    max_digits: int | None = None
    min_b1: int | None = None
    max_b1: int | None = None
    project: str | None = None
    claim_timeout_hours: float | None = None


class Said(NamedTuple):
    """What came of a call: `done`, `refused` for good, or `unclear`: to be tried again."""

    state: Literal["done", "refused", "unclear"]
    message: str
    retry_after: float = 0.0


def ask(session: requests.Session, server: str, client_id: str, wanted: Wanted) -> Offer[dict[str, Any]]:
    """Ask for a residue to run stage 2 of; its fields."""
    parameters = {name: value for name, value in vars(wanted).items() if value is not None}
    response = exchange(session, "GET", f"{api(server)}/residues/work", params=parameters, headers={HEADER: client_id})
    return read_offer(response, "residue_id", "residue", read_residue)


def read_residue(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of a residue that are used. Raises ValueError or TypeError for one that cannot be run."""
    composite, checksum = str(body.get("composite")), str(body.get("checksum"))
    if not (composite.isascii() and composite.isdigit()):
        raise ValueError(f"composite {composite[:60]!r} is no number")
    if len(bytes.fromhex(checksum)) != hashlib.sha256().digest_size:
        raise ValueError(f"checksum {checksum[:70]!r} is no SHA-256")
    return {
        "residue_id": whole(body, "residue_id", 0, 2**63 - 1),
        "composite": composite,
        "checksum": checksum.lower(),
        "b1": whole(body, "b1", MIN_B1, MAX_B1),
        "parametrization": whole(body, "parametrization", 0, 3),
        "curves": whole(body, "curve_count", 1, 10**9),
    }


def download(session: requests.Session, server: str, client_id: str, residue: dict[str, Any], target: Path) -> Said:
    """Download a claimed residue's file; what is not byte for byte what was uploaded is not kept."""
    url = f"{api(server)}/residues/{residue['residue_id']}/download"
    response = exchange(session, "GET", url, headers={HEADER: client_id}, stream=True)
    if isinstance(response, Answer):
        return Said("unclear", response.message)
    if response.status_code != 200:
        return _said(response)
    digest = hashlib.sha256()
    try:
        with target.open("wb") as file:
            for piece in response.iter_content(PIECE):
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except requests.RequestException as error:
        return Said("unclear", f"the download of residue {residue['residue_id']} broke off ({type(error).__name__})")
    if digest.hexdigest() != residue["checksum"]:
        return Said("unclear", f"the download of residue {residue['residue_id']} is damaged")
    return Said("done", "downloaded")


def upload(session: requests.Session, server: str, client_id: str, file: Path, attempt_id: int) -> Said:
    """Upload the residue of an attempt's stage 1.

    One that the server has already is as good as uploaded, and of a finished number nobody needs one.
    """
    with file.open("rb") as content:
        response = exchange(
            session,
            "POST",
            f"{api(server)}/residues/upload",
            params={"stage1_attempt_id": attempt_id},
            headers={HEADER: client_id},
            files={"file": (file.name, content)},
        )
    if not isinstance(response, Answer):
        body = json_object(response)
        if DUPLICATE in str(body.get("detail")):
            return Said("done", "the server has it already")
        if body.get("reason") == FINISHED:
            return Said("done", "not needed, the number is finished")
    return _said(response)


def complete(session: requests.Session, server: str, client_id: str, residue_id: int, attempt_id: int) -> Said:
    """Say which attempt was a residue's stage 2."""
    url = f"{api(server)}/residues/{residue_id}/complete"
    body = {"stage2_attempt_id": attempt_id}
    return _said(exchange(session, "POST", url, headers={HEADER: client_id}, json=body))


def release(session: requests.Session, server: str, client_id: str, residue_id: int) -> Said:
    """Give a claim back."""
    url = f"{api(server)}/residues/{residue_id}/claim"
    return _said(exchange(session, "DELETE", url, headers={HEADER: client_id}), also_final=(409,))


def _said(response: requests.Response | Answer, also_final: tuple[int, ...] = ()) -> Said:
    if isinstance(response, Answer):
        return Said("unclear", response.message)
    body = json_object(response)
    if response.status_code == 200 and "residue_id" in body:
        return Said("done", str(body.get("message") or ""))
    if body.get("reason") and response.status_code in FINAL + also_final:
        return Said("refused", problem_text(body))
    return Said("unclear", try_later(response, body).message, retry_after(response))
