"""Clients' keys in the database: shown once, stored as a hash, revoked, replaced, recorded."""

import pytest
from pipeline import rows, scalar

from coordinator.administration import client_keys
from coordinator.base.audit import Actor

ACTOR = Actor("operator")


def owner(engine, key):
    return client_keys.key_owner(engine, client_keys.hash_key(key))


def test_a_key_is_its_clients_until_it_is_revoked(engine):
    alice, bob = client_keys.add_key(engine, "alice", ACTOR), client_keys.add_key(engine, "bob", ACTOR)
    assert (owner(engine, alice), owner(engine, bob), owner(engine, "x")) == ("alice", "bob", None)
    client_keys.revoke_key(engine, "alice", ACTOR)
    assert (owner(engine, alice), owner(engine, bob)) == (None, "bob")
    again = client_keys.add_key(engine, "alice", ACTOR)
    assert again != alice
    assert (owner(engine, alice), owner(engine, again)) == (None, "alice")
    assert [row.name for row in client_keys.all_keys(engine)] == ["alice", "bob"]


def test_no_key_is_stored_or_recorded_in_clear(engine):
    key = client_keys.add_key(engine, "alice", ACTOR)
    assert scalar(engine, "SELECT key_sha256 FROM client_keys").tobytes() == client_keys.hash_key(key)
    assert key not in str(rows(engine, "SELECT * FROM client_keys")) + str(rows(engine, "SELECT * FROM admin_events"))


def test_an_invalid_change_of_a_key_changes_nothing(engine):
    key = client_keys.add_key(engine, "alice", ACTOR)
    with pytest.raises(client_keys.InvalidKeyError, match="alice has a key"):
        client_keys.add_key(engine, "alice", ACTOR)
    with pytest.raises(client_keys.InvalidKeyError, match="bob has no key"):
        client_keys.revoke_key(engine, "bob", ACTOR)
    assert owner(engine, key) == "alice"
    assert [row.action for row in rows(engine, "SELECT action FROM admin_events")] == ["add_client_key"]
    client_keys.revoke_key(engine, "alice", ACTOR)
    with pytest.raises(client_keys.InvalidKeyError):
        client_keys.revoke_key(engine, "alice", ACTOR)
