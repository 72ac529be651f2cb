"""Clients' keys on requests: `Authorization: Bearer KEY`, and acting under one's own name only.

Where keys are not required, one that is given must be right all the same, so that a typing error shows.
"""

from threading import Lock
from time import monotonic

from flask import current_app, g, request

from coordinator.administration import client_keys
from coordinator.base.unit_of_work import is_transient
from ingest.problems import Problem
from ingest.view_context import engine, settings

SCHEME = "bearer"
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="ecm-coordinator"'}
# For so long a key that was revoked may still open, in a process that has just seen it.
CACHED_SECONDS = 5.0
MOST_CACHED = 10_000

# Every route of these blueprints, and these routes, are a client's doing; the rest is reading.
BLUEPRINTS = ("leases", "residues")
ENDPOINTS = ("results.submit_result", "results.submit_results")


class KeyOwners:
    """Who owns which key, looked up by hash and remembered for some seconds."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str | None, float]] = {}
        self._lock = Lock()

    def of(self, key: str) -> str | None:
        """The client whose key this is; None for an unknown or revoked one."""
        key_sha256 = client_keys.hash_key(key)
        name, until = self._known.get(key_sha256, (None, 0.0))
        if monotonic() < until:
            return name
        try:
            owner = client_keys.key_owner(engine(), key_sha256)
        except Exception as error:
            # While the database is away whoever had the right key keeps it: results are waited for then, not refused.
            if name is None or not is_transient(error):
                raise
            return name
        with self._lock:
            if len(self._known) >= MOST_CACHED:
                self._known.clear()
            self._known[key_sha256] = (owner, monotonic() + CACHED_SECONDS)
        return owner


def authenticate_client() -> None:
    """Before a request that is a client's doing: its key, and every name in its address and headers, or a problem."""
    if request.blueprint not in BLUEPRINTS and request.endpoint not in ENDPOINTS:
        return
    given = request.headers.get("Authorization")
    if given is None:
        if settings().require_client_keys:
            detail = "This server asks clients for their key: send the header Authorization: Bearer KEY."
            raise Problem(401, "unauthorized", detail, headers=CHALLENGE)
        return
    scheme, _, key = given.partition(" ")
    name = current_app.config["KEY_OWNERS"].of(key.strip()) if scheme.lower() == SCHEME else None
    if name is None:
        detail = "The key in Authorization is no client's, or was revoked; it should read: Bearer KEY."
        raise Problem(401, "unauthorized", detail, headers=CHALLENGE)
    g.client_by_key = name
    for named in named_clients():
        require_own_name(named)


def named_clients() -> list[str]:
    """Whom a request's address and headers say that it comes from."""
    given = [*request.args.getlist("client_id"), *request.headers.getlist("X-Client-ID")]
    given += [value for name, value in (request.view_args or {}).items() if name == "client_id"]
    return [name.strip() for name in given]


def client_of_key() -> str | None:
    """The client whose key came with this request."""
    return g.get("client_by_key")


def require_own_name(client_id: str) -> None:
    """Raise a problem if this request has another client's key."""
    own = client_of_key()
    if own is not None and client_id != own:
        detail = f"This key is {own}'s, and the request is made as {client_id[:100]}; use your own name."
        raise Problem(403, "wrong_client", detail)
