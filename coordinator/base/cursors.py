"""Cursors: where a list goes on, as an opaque text that fits only the question whose answer it came with."""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Row

CHECK_BYTES = 9
MAX_LENGTH = 1000


class InvalidCursorError(Exception):
    """A cursor of another question, or none at all; the message is for people."""


class Page(NamedTuple):
    """Some rows of a list, and the cursor of those that follow (None: there are no more)."""

    rows: list[Row]
    next: str | None


def encode(question: str, place: Sequence[int | str]) -> str:
    """The cursor of a `place` (what the last row shown is sorted by) in the answer to a `question`."""
    body = orjson.dumps(list(place))
    return base64.urlsafe_b64encode(_check(question, body) + body).rstrip(b"=").decode()


def decode(question: str, cursor: str, kinds: Sequence[type]) -> list[Any]:
    """The place that `cursor` stands for in the answer to this `question`; its parts are of these `kinds`.

    Anybody can compute the check, so that a place is looked at like any other input. Raises BadCursor.
    """
    try:
        raw = base64.b64decode(cursor[:MAX_LENGTH].encode() + b"=" * (-len(cursor) % 4), b"-_", validate=True)
        check, body = raw[:CHECK_BYTES], raw[CHECK_BYTES:]
        place = orjson.loads(body) if check == _check(question, body) else None
    except (ValueError, binascii.Error):
        place = None
    if not isinstance(place, list) or [type(part) for part in place] != list(kinds):
        raise InvalidCursorError(
            "This cursor is not of this sort and these filters; leave it out to begin at the first page"
        )
    # What PostgreSQL cannot take.
    if any(part > 2**63 - 1 or part < -(2**63) if isinstance(part, int) else "\x00" in part for part in place):
        raise InvalidCursorError("This cursor is of no list; leave it out to begin at the first page")
    return place


def to_json_value(key: Any) -> Any:
    """What a row is sorted by, as a part of a place."""
    return key.astimezone(UTC).isoformat() if isinstance(key, datetime) else key


def parse_time(part: str) -> datetime:
    """The time that a part of a place stands for. Raises BadCursor."""
    try:
        return datetime.fromisoformat(part).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidCursorError("This cursor names no time; leave it out to begin at the first page") from None


def _check(question: str, body: bytes) -> bytes:
    return hashlib.sha256(question.encode() + b"\n" + body).digest()[:CHECK_BYTES]
