"""Requests that gunicorn cannot read as HTTP, as problems: the status, a word for programs, a sentence for people.

gunicorn meets them in two places: in the head of a request, before the application sees it (ingest/web_worker.py), and
in a chunked body, while the application reads it (ingest/problems.py).
"""

from typing import Any

from gunicorn.http.errors import (
    ChunkMissingTerminator,
    ConfigurationProblem,
    ExpectationFailed,
    InvalidChunkExtension,
    InvalidChunkSize,
    InvalidHeader,
    InvalidHeaderName,
    InvalidHTTPVersion,
    InvalidRequestLine,
    InvalidRequestMethod,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ObsoleteFolding,
    ParseException,
    UnsupportedTransferCoding,
)

from coordinator.numbers.expressions import shorten

REASONS = {
    400: "bad_request",
    414: "address_too_long",
    417: "expectation_failed",
    431: "headers_too_large",
    501: "not_implemented",
    505: "http_version_not_supported",
}
# These are faults of this server, although gunicorn raises them as it parses.
OUR_OWN = (ConfigurationProblem, InvalidResponseHeader, InvalidResponseHeaderName)


# By exception: the status, the detail, and the attribute that the detail quotes.
DESCRIPTIONS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (
        UnsupportedTransferCoding,
        501,
        "The Transfer-Encoding {} is not supported; only chunked is.",
        "hdr",
    ),
    (ExpectationFailed, 417, "The expectation {} is not supported; only 100-continue is.", "expect"),
    (InvalidRequestMethod, 400, "The method {} is not valid.", "method"),
    (InvalidRequestLine, 400, "The request line {} is not valid.", "req"),
    (ObsoleteFolding, 400, "The header field {} is folded; send it in one line.", "hdr"),
    (InvalidHeader, 400, "The header field {} is not valid.", "hdr"),
    (InvalidHeaderName, 400, "The header field name {} is not valid.", "hdr"),
    (InvalidChunkSize, 400, "The chunk size {} is not a hexadecimal number.", "data"),
    (InvalidChunkExtension, 400, "A chunk extension is not valid: {}.", "reason"),
    (ChunkMissingTerminator, 400, "A chunk has another length than it says: {} follows it instead of CRLF.", "term"),
)


def describe(error: BaseException) -> tuple[int, str] | None:
    """Return the (status, detail) of a request that is not valid HTTP; None if `error` is not the client's fault."""
    if isinstance(error, OUR_OWN) or not isinstance(error, ParseException | NoMoreData):
        return None
    if isinstance(error, InvalidHTTPVersion):
        return _describe_version(error.version)
    for kind, status, detail, attribute in DESCRIPTIONS:
        if isinstance(error, kind):
            return status, detail.format(_quoted(getattr(error, attribute)))
    return _describe_whole(error)


def _describe_version(version: Any) -> tuple[int, str]:
    # gunicorn gives the numbers of a version that it understands, else the text.
    if isinstance(version, tuple):
        return 505, f"HTTP/{'.'.join(map(str, version))} is not supported; use HTTP/1.1."
    return 400, f"The HTTP version {_quoted(version)} is not valid; use HTTP/1.1."


def _describe_whole(error: Exception) -> tuple[int, str]:
    text = shorten(ascii(str(error))[1:-1])
    if isinstance(error, LimitRequestLine):
        return 414, f"The address is too long: {text}. Send long numbers in the body of a POST request."
    if isinstance(error, LimitRequestHeaders):
        return 431, f"The header fields are too large or too many: {text}."
    if isinstance(error, NoMoreData):
        return 400, "The connection was closed before the end of the request."
    return 400, f"This is not a valid HTTP request: {text}."


def _quoted(value: Any) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes | bytearray) else str(value)
    return shorten(ascii(text))
