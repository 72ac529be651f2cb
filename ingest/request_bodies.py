"""Reading request bodies: raw bytes to pydantic models, without what JSON parsers disagree about."""

from typing import Any, TypeVar

import jiter
from flask import request
from pydantic import BaseModel, ValidationError
from werkzeug.datastructures import FileStorage

from ingest.problems import ProblemError, invalid

Model = TypeVar("Model", bound=BaseModel)


def parse_json(body: bytes, *, nul_allowed: bool = False) -> Any:
    """Return the value of a JSON text; raises a 422 problem that names the fault and its place.

    Stricter than most parsers: no NaN or Infinity, no key twice, no lone surrogates, no deep nesting (200 levels), and
    no NUL characters, which PostgreSQL cannot store (`nul_allowed`: the caller checks the parts with `without_nul`).
    """
    try:
        value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        detail = str(error)[:300]
        if "number out of range" in detail:
            detail += "; numbers of thousands of digits are sent as strings"
        elif "hex escape" in detail:
            detail += "; \\u is followed by four hexadecimal digits, and half of a surrogate pair by its other half"
        raise ProblemError(422, "malformed", f"The body is not valid JSON: {detail}", errors=[]) from error
    # The escape may also be the harmless text "\\u0000", so search the value if it occurs at all.
    return without_nul(value) if b"\\u0000" in body and not nul_allowed else value


def without_nul(value: Any) -> Any:
    """Return `value`, a part of a JSON text; raises a 422 problem if a string in it has a NUL character."""
    if _has_nul(value):
        raise ProblemError(422, "malformed", "A text in the body has a NUL character (\\u0000); remove it.", errors=[])
    return value


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any("\x00" in key or _has_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_has_nul, value))


def received_body() -> bytes:
    """Return the request's body; raises a 413 problem, or 400 for a body that ends before its Content-Length."""
    body = request.get_data(cache=False)
    length = request.content_length
    # gunicorn says that its streams end by themselves, and so nobody else compares.
    if length is not None and len(body) < length:
        detail = f"The body ended after {len(body):,} of {length:,} bytes; send all of it again."
        raise ProblemError(400, "bad_request", detail, headers={"Connection": "close"})
    return body


def read_body(model: type[Model]) -> Model:
    """The request's JSON body as a `model`; raises a 400, 413 or 422 problem."""
    body = received_body()
    if not body:
        raise ProblemError(422, "malformed", "The body is empty; send a JSON object.", errors=[])
    value = parse_json(body)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error) from error


def uploaded_file(example: str) -> FileStorage:
    """Return the field `file` of a multipart/form-data body; raises a 413, 415 or 422 problem."""
    refuse_encoding()
    if request.mimetype != "multipart/form-data":
        detail = f"Send the file as multipart/form-data in the field `file`, as `curl -F file=@{example}` does."
        raise ProblemError(415, "unsupported_media_type", detail)
    # Fields may be as large as files, so that the error of a list sent as a field names the field.
    request.max_form_memory_size = request.max_content_length
    file = request.files.get("file")
    if file is None:
        where = "is no file; send it as one" if "file" in request.form else "is missing; send the file in it"
        detail = f"The field `file` {where}, as `curl -F file=@{example}` does."
        raise ProblemError(422, "malformed", detail, errors=[{"field": "file", "message": "is required"}])
    return file


def refuse_encoding() -> None:
    """Raise a 415 problem for a compressed body."""
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        detail = f"The body is compressed (Content-Encoding: {printable_name(encoding)[:40]}); send it as it is."
        raise ProblemError(415, "unsupported_media_type", detail)


def printable_name(name: str) -> str:
    """Return the name of a file as a log and a report can show it: printable, at most 200 characters."""
    return "".join(character if character.isprintable() else "?" for character in name)[:200]
