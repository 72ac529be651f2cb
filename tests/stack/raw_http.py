"""Requests that no HTTP library would send, written byte by byte, and the answers to them."""

import contextlib
import json
import socket
import threading
from typing import Any, NamedTuple

TIMEOUT = 30.0
FIELDS = {"type", "title", "status", "detail", "reason", "instance"}


class RawAnswer(NamedTuple):
    """An answer as it came over the socket."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def exchange(port: int, request: bytes, *, half_close: bool = False) -> RawAnswer:
    """Send `request` and read until the server closes; `half_close` closes our direction after the request."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as connection:

        def send() -> None:
            with contextlib.suppress(OSError):  # the server refused it before its end
                connection.sendall(request)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)

        # The server may stop reading and answer before the end of the request.
        sending = threading.Thread(target=send)
        sending.start()
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                received += data
        sending.join(TIMEOUT)
    return parse(received)


def parse(received: bytes) -> RawAnswer:
    """Return the first answer in the received bytes."""
    head, _, rest = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert first.startswith("HTTP/1.1 "), received[:300]
    length = int(headers["content-length"]) if "content-length" in headers else len(rest)
    return RawAnswer(int(first.split()[1]), headers, rest[:length])


def assert_problem(answer: RawAnswer, status: int, reason: str) -> dict[str, Any]:
    """Check that an answer is a problem with this status and reason; returns its body."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    body: dict[str, Any] = answer.json()
    assert set(body) >= FIELDS
    assert (body["status"], body["reason"]) == (status, reason)
    assert "Traceback" not in body["detail"]
    return body
