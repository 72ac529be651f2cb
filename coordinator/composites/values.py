"""The values that curves were run on: a value is known by the SHA-256 of its decimal text."""

import hashlib
from collections.abc import Mapping

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects.postgresql import insert

from models.tables import WorkedValue


def sha256(text: str) -> bytes:
    """Return the SHA-256 of a value's text, which is the key of the value."""
    return hashlib.sha256(text.encode()).digest()


_FIND = select(WorkedValue.value_sha256, WorkedValue.id).where(
    WorkedValue.value_sha256.in_(bindparam("hashes", expanding=True))
)
_ADD = insert(WorkedValue).on_conflict_do_nothing(index_elements=[WorkedValue.value_sha256])


def find_worked(connection: Connection, hashes: list[bytes]) -> dict[bytes, int]:
    """Return the ids of those of the values, given by their SHA-256, that curves were run on."""
    return {bytes(row.value_sha256): row.id for row in connection.execute(_FIND, {"hashes": hashes})}


def find_or_add_worked(connection: Connection, texts: Mapping[bytes, str]) -> dict[bytes, int]:
    """Return the ids of values, given as decimal texts by their SHA-256; values without a row get one."""
    hashes = sorted(texts)  # in this order, so that no two units of work deadlock
    found = find_worked(connection, hashes)
    missing = [value for value in hashes if value not in found]
    if missing:
        connection.execute(_ADD, [{"value_sha256": value, "value": texts[value]} for value in missing])
        found |= find_worked(connection, missing)
    return found
