"""Authentication of clients by `Authorization: Bearer KEY`; a key is valid for its client's name only.

A wrong key is refused also where keys are not required, so that a typing error shows.
"""

from threading import Lock
from time import monotonic

from flask import current_app, g, request

from coordinator.administration import client_keys
from coordinator.base.unit_of_work import is_transient
from ingest.problems import ProblemError
from ingest.view_context import engine, settings

SCHEME = "bearer"
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="ecm-coordinator"'}
# Seconds for which a process remembers a key, and thus for which a revoked key may still work.
CACHED_SECONDS = 5.0
# Keys that are nobody's are remembered apart, so that guessing keys does not drive out the keys of clients.
MOST_CACHED, MOST_UNKNOWN = 10_000, 1_000

# Clients act through the routes of these blueprints and through these routes; all other routes read.
BLUEPRINTS = ("leases", "residues")
ENDPOINTS = ("results.submit_result", "results.submit_results")


class KeyOwners:
    """The owners of keys, looked up by hash and remembered for CACHED_SECONDS."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str, float]] = {}
        self._unknown: dict[bytes, float] = {}
        self._lock = Lock()

    def of(self, key: str) -> str | None:
        """Return the client whose key this is; None for an unknown or revoked key."""
        key_sha256 = client_keys.hash_key(key)
        name, until = self._known.get(key_sha256, (None, 0.0))
        if monotonic() < until:
            return name
        if monotonic() < self._unknown.get(key_sha256, 0.0):
            return None
        try:
            owner = client_keys.key_owner(engine(), key_sha256)
        except Exception as error:
            # A known key stays valid while the database is away: its results wait then, they are not refused.
            if name is None or not is_transient(error):
                raise
            return name
        with self._lock:
            self._remember(key_sha256, owner, monotonic() + CACHED_SECONDS)
        return owner

    def _remember(self, key_sha256: bytes, owner: str | None, until: float) -> None:
        # Removed first: the dictionaries then have the keys in the order in which they were looked up.
        self._known.pop(key_sha256, None)
        self._unknown.pop(key_sha256, None)
        if owner is None:
            self._unknown[key_sha256] = until
        else:
            self._known[key_sha256] = (owner, until)
        if len(self._known) > MOST_CACHED:
            del self._known[next(iter(self._known))]
        if len(self._unknown) > MOST_UNKNOWN:
            del self._unknown[next(iter(self._unknown))]


def authenticate_client() -> None:
    """Check the key of a request by a client, and that it names no other client; raises a 401 or 403 problem."""
    if request.blueprint not in BLUEPRINTS and request.endpoint not in ENDPOINTS:
        return
    given = request.headers.get("Authorization")
    if given is None:
        if settings().require_client_keys:
            detail = "This server asks clients for their key: send the header Authorization: Bearer KEY."
            raise ProblemError(401, "unauthorized", detail, headers=CHALLENGE)
        return
    scheme, _, key = given.partition(" ")
    name = current_app.config["KEY_OWNERS"].of(key.strip()) if scheme.lower() == SCHEME else None
    if name is None:
        detail = "The key in Authorization is no client's, or was revoked; it should read: Bearer KEY."
        raise ProblemError(401, "unauthorized", detail, headers=CHALLENGE)
    g.client_by_key = name
    for named in named_clients():
        require_own_name(named)


def named_clients() -> list[str]:
    """Return the clients that the address and the headers of this request name."""
    given = [*request.args.getlist("client_id"), *request.headers.getlist("X-Client-ID")]
    given += [value for name, value in (request.view_args or {}).items() if name == "client_id"]
    return [name.strip() for name in given]


def acting_client() -> str | None:
    """Return the client that a request without a key is made as: the first one that it names, if it names any."""
    # The routes of residues read this header, whatever the address names beside it.
    if request.blueprint == "residues":
        given = request.headers.get("X-Client-ID")
        return given.strip() if given else None
    return next(iter(named_clients()), None)


def client_of_key() -> str | None:
    """Return the client whose key came with this request, or None."""
    client: str | None = g.get("client_by_key")
    return client


def require_own_name(client_id: str) -> None:
    """Raise a 403 problem if this request has the key of another client."""
    own = client_of_key()
    if own is not None and client_id != own:
        detail = f"This key is {own}'s, and the request is made as {client_id[:100]}; use your own name."
        raise ProblemError(403, "wrong_client", detail)
