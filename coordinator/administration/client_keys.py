"""Keys with which clients prove their names: made once, stored as SHA-256, revoked but never deleted.

A key is 256 random bits, so nobody can find it from its SHA-256 by trying, and it needs no salt: one look-up by the
hash finds it.
"""

import hashlib
import secrets
from typing import Any

from sqlalchemy import Engine, Row, func, select, update
from sqlalchemy.dialects.postgresql import insert

from coordinator.base import audit
from coordinator.base.audit import Actor
from coordinator.base.unit_of_work import unit_of_work
from models.tables import ClientKey

RANDOM_BYTES = 32


class InvalidKeyError(Exception):
    """A key cannot be made or revoked; the message gives the reason and the remedy."""


def hash_key(key: str) -> bytes:
    """Return the SHA-256 by which a key is stored and looked up."""
    return hashlib.sha256(key.encode()).digest()


def add_key(engine: Engine, name: str, actor: Actor) -> str:
    """Make a key for the client `name`, or replace a revoked one, and return it; only its hash is stored.

    Raises InvalidKeyError if the client has a key in use.
    """
    key = secrets.token_urlsafe(RANDOM_BYTES)
    with unit_of_work(engine, "add_client_key") as connection:
        new = {"key_sha256": hash_key(key), "created_at": func.now(), "revoked_at": None}
        stored = connection.execute(
            insert(ClientKey)
            .values(name=name, **new)
            .on_conflict_do_update(index_elements=[ClientKey.name], set_=new, where=ClientKey.revoked_at.is_not(None))
        )
        if not stored.rowcount:
            raise InvalidKeyError(f"{name} has a key; revoke it first, and add a new one then")
        audit.record(connection, actor, "add_client_key", f"client {name}")
    return key


def revoke_key(engine: Engine, name: str, actor: Actor) -> None:
    """Revoke the key of the client `name`. Raises InvalidKeyError if the client has no key in use."""
    with unit_of_work(engine, "revoke_client_key") as connection:
        revoked = connection.execute(
            update(ClientKey)
            .where(ClientKey.name == name, ClientKey.revoked_at.is_(None))
            .values(revoked_at=func.now())
        )
        if not revoked.rowcount:
            raise InvalidKeyError(f"{name} has no key in use; `clients ls` shows who has")
        audit.record(connection, actor, "revoke_client_key", f"client {name}")


def all_keys(engine: Engine) -> list[Row[Any]]:
    """Return (name, created_at, revoked_at) of all keys, by name."""
    with unit_of_work(engine, "list_client_keys") as connection:
        columns = (ClientKey.name, ClientKey.created_at, ClientKey.revoked_at)
        return list(connection.execute(select(*columns).order_by(ClientKey.name)))


def key_owner(engine: Engine, key_sha256: bytes) -> str | None:
    """Return the name of the client whose key in use has this hash, or None."""
    with engine.connect() as connection:
        return connection.execute(
            select(ClientKey.name).where(ClientKey.key_sha256 == key_sha256, ClientKey.revoked_at.is_(None))
        ).scalar_one_or_none()
