"""What a process remembers about clients' keys: those of clients stay, however many others are tried."""

import pytest

from coordinator.administration import client_keys
from ingest import client_authentication
from ingest.client_authentication import MOST_CACHED, MOST_UNKNOWN, KeyOwners


@pytest.fixture
def asked(monkeypatch):
    """The hashes that were looked up in the database, where `key n` is `client n`'s."""
    hashes = []
    known = {client_keys.hash_key(f"key {n}"): f"client {n}" for n in range(MOST_CACHED + 10)}
    monkeypatch.setattr(client_authentication, "engine", lambda: None)
    monkeypatch.setattr(client_keys, "key_owner", lambda _, key: hashes.append(key) or known.get(key))
    return hashes


def test_unknown_keys_do_not_drive_out_those_of_clients(asked):
    owners = KeyOwners()
    assert owners.of("key 1") == "client 1"
    for n in range(10_000):
        assert owners.of(f"guess {n}") is None
    asked.clear()
    assert owners.of("key 1") == "client 1"
    assert asked == []
    assert len(owners._unknown) == MOST_UNKNOWN


def test_an_unknown_key_is_looked_up_once(asked):
    owners = KeyOwners()
    assert [owners.of("guess"), owners.of("guess")] == [None, None]
    assert len(asked) == 1


def test_many_clients_drive_out_the_one_that_was_looked_up_first(asked):
    owners = KeyOwners()
    for n in range(MOST_CACHED + 1):
        assert owners.of(f"key {n}") == f"client {n}"
    asked.clear()
    assert owners.of(f"key {MOST_CACHED}") == f"client {MOST_CACHED}"
    assert owners.of("key 1") == "client 1"
    assert asked == []
    assert owners.of("key 0") == "client 0"
    assert len(asked) == 1


@pytest.mark.parametrize("first", [True, False])
def test_a_key_that_changes_its_state_is_in_one_of_the_caches_only(asked, monkeypatch, first):
    owners = KeyOwners()
    now = [0.0]
    monkeypatch.setattr(client_authentication, "monotonic", lambda: now[0])
    state = [first]
    monkeypatch.setattr(client_keys, "key_owner", lambda *_: "alice" if state[0] else None)
    assert owners.of("key") == ("alice" if first else None)
    state[0] = not first
    assert owners.of("key") == ("alice" if first else None)
    now[0] = 6.0
    assert owners.of("key") == (None if first else "alice")
    assert len(owners._known) + len(owners._unknown) == 1
