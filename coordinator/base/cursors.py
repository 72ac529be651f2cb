"""Cursors: the place where the next page of a list begins, as an opaque text that is valid for one query only."""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from models.types import AnyRow

CHECKSUM_BYTES = 9
MAX_LENGTH = 1000


class InvalidCursorError(Exception):
    """The cursor belongs to another query or is not a cursor; the message is for people."""


class Page(NamedTuple):
    """Some rows of a list, and the cursor of the next page (None: this is the last page)."""

    rows: list[AnyRow]
    next: str | None


def encode(query: str, place: Sequence[int | str]) -> str:
    """Return the cursor of `place`, the sort keys of the last row of a page, in the result of `query`."""
    body = orjson.dumps(list(place))
    return base64.urlsafe_b64encode(_checksum(query, body) + body).rstrip(b"=").decode()


def decode(query: str, cursor: str, types: Sequence[type]) -> list[Any]:
    """Return the place that `cursor` encodes for `query`: one sort key for each of `types`.

    Anybody can compute the checksum, so the sort keys are validated like any other input. Raises InvalidCursorError.
    """
    try:
        raw = base64.b64decode(cursor[:MAX_LENGTH].encode() + b"=" * (-len(cursor) % 4), b"-_", validate=True)
        checksum, body = raw[:CHECKSUM_BYTES], raw[CHECKSUM_BYTES:]
        place = orjson.loads(body) if checksum == _checksum(query, body) else None
    except (ValueError, binascii.Error):
        place = None
    if not isinstance(place, list) or [type(key) for key in place] != list(types):
        raise InvalidCursorError(
            "This cursor is not of this sort and these filters; leave it out to begin at the first page"
        )
    # PostgreSQL accepts neither integers beyond 64 bits nor the character NUL.
    if any(key > 2**63 - 1 or key < -(2**63) if isinstance(key, int) else "\x00" in key for key in place):
        raise InvalidCursorError("This cursor is of no list; leave it out to begin at the first page")
    return place


def to_json_value(key: Any) -> Any:
    """Return a sort key as a JSON value for a cursor."""
    return key.astimezone(UTC).isoformat() if isinstance(key, datetime) else key


def parse_time(key: str) -> datetime:
    """Return the time that a sort key of a cursor encodes, in UTC. Raises InvalidCursorError."""
    try:
        return datetime.fromisoformat(key).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidCursorError("This cursor names no time; leave it out to begin at the first page") from None


def _checksum(query: str, body: bytes) -> bytes:
    return hashlib.sha256(query.encode() + b"\n" + body).digest()[:CHECKSUM_BYTES]
