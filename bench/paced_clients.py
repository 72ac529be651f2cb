"""Clients that send one result after the other until they are told to stop, and remember every answer.

A client that gets no answer, or 503, sends the same result again with the same key, to the next address. So each of its
results is acknowledged in the end, and must count once, whatever happened in between.
"""

import itertools
import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bench import load

ANSWER_SECONDS = 15.0  # a client's patience; a request may wait for its outcome for 10 s
PAUSE_AFTER_FAULT = 0.5
NO_ANSWER = 0

_keys = itertools.count(time.time_ns() % 2**60)


@dataclass(frozen=True)
class Request:
    """A request: when it began and ended (monotonic clock), its status (0: no answer), address, and submission."""

    began: float
    ended: float
    status: int
    address: str
    submission_id: int | None = None


@dataclass
class PacedClients:
    """Threads that send results for some numbers: each to one address first, `a_second` results a second."""

    addresses: Sequence[str]
    numbers: Sequence[str]
    a_second: float
    waiting: int  # clients that wait for their outcomes
    not_waiting: int
    requests: list[Request] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Start the clients, on the host of this thread."""
        for index in range(self.waiting + self.not_waiting):
            thread = threading.Thread(target=self._run, args=(index,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Let each client finish its result, and wait for that. Raises what ended a client before."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def acknowledged(self, but_not: str | None = None) -> list[int]:
        """Return the ids of the submissions that were acknowledged; `but_not` leaves out those of a host."""
        return [
            one.submission_id
            for one in list(self.requests)
            if one.submission_id is not None and urlsplit(one.address).hostname != but_not
        ]

    def _run(self, index: int) -> None:
        try:
            self._send_results(index)
        except Exception as error:
            self.errors.append(error)

    def _send_results(self, index: int) -> None:
        turn, connection = index, None
        headers = {} if index < self.waiting else {"Prefer": "respond-async"}
        due = time.monotonic()
        for count in itertools.count():
            due = max(due + 1 / self.a_second, time.monotonic() - 1)
            if self._stop.wait(max(0.0, due - time.monotonic())):
                break
            name = f"client-{index}"
            number = self.numbers[(index + count * (self.waiting + self.not_waiting)) % len(self.numbers)]
            headers["Idempotency-Key"] = f"{name}-{next(_keys)}"
            data = load.post("/api/v1/submit_result", load.result(number, name, 10), "localhost", headers)
            while True:
                address = self.addresses[turn % len(self.addresses)]
                request, connection = _send(connection, address, data)
                self.requests.append(request)
                if request.submission_id is not None:
                    break
                turn += 1
                if connection is not None:
                    connection.close()
                    connection = None
                time.sleep(PAUSE_AFTER_FAULT)
        if connection is not None:
            connection.close()


def _send(
    connection: load.KeepAliveConnection | None, address: str, data: bytes
) -> tuple[Request, load.KeepAliveConnection | None]:
    """Send a request; returns what became of it, and the connection for the next one (None: make another)."""
    began = time.monotonic()
    try:
        if connection is None:
            parts = urlsplit(address)
            connection = load.KeepAliveConnection(parts.hostname or "", parts.port or 80, timeout=ANSWER_SECONDS)
        status, body = connection.request(data)
    except OSError:
        if connection is not None:
            with suppress(OSError):
                connection.close()
        return Request(began, time.monotonic(), NO_ANSWER, address), None
    answer = json.loads(body)
    stored = answer["submission_id"] if status in (200, 202) else None
    if stored is None and status != 503:
        raise RuntimeError(f"a good result got {status}: {body[:300]!r}")
    return Request(began, time.monotonic(), status, address, stored), connection
