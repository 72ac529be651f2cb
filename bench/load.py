"""A load generator with little overhead: keep-alive connections, prebuilt requests, one thread per connection."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter, time_ns
from typing import Any

_sigmas = count(time_ns())


def result(number: str, client: str, curves: int, **fields: Any) -> dict[str, Any]:
    """Return the body of a result of so many curves, with a sigma that no other result has."""
    sigma = f"1:{next(_sigmas) % 2**62}"
    return {
        "client_id": client,
        "composite": number,
        "method": "ecm",
        "program": "gmp-ecm",
        "program_version": "7.0.6",
        "parameters": {"b1": 50_000, "curves": curves, "parametrization": 1, "sigma": sigma},
        "results": {"curves_completed": curves, "execution_time": 3.5},
    } | fields


@dataclass
class Measured:
    """A run of requests: its seconds, the seconds of each answer, and the number of answers by status."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """The latency in milliseconds that `share` (0-1) of the requests did not exceed."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class KeepAliveConnection:
    """One keep-alive HTTP/1.1 connection that sends bytes and reads one answer."""

    def __init__(self, host: str, port: int, timeout: float = 60.0) -> None:
        self._socket = socket.create_connection((host, port), timeout=timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def request(self, data: bytes) -> tuple[int, bytes]:
        """Send a whole request; returns the status and the body of the answer."""
        self._socket.sendall(data)
        while b"\r\n\r\n" not in self._rest:
            self._receive()
        head, _, body = self._rest.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        self._rest = body
        while len(self._rest) < length:
            self._receive()
        body, self._rest = self._rest[:length], self._rest[length:]
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._rest += data


def post(path: str, body: dict[str, Any], host: str, headers: dict[str, str] | None = None) -> bytes:
    """The bytes of a POST of `body` as JSON."""
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def run(host: str, port: int, connections: int, requests: Callable[[int], Iterator[bytes]]) -> Measured:
    """Send the requests of every connection, one after the other on each, with all connections at the same time."""
    measured = Measured()
    lock = threading.Lock()
    errors: list[Exception] = []
    lists = [list(requests(index)) for index in range(connections)]
    ready = threading.Barrier(connections + 1)

    def work(mine: list[bytes]) -> None:
        latencies: list[float] = []
        statuses: dict[int, int] = {}
        try:
            connection = KeepAliveConnection(host, port)
        except OSError as error:
            errors.append(error)
            ready.abort()  # the others must not wait for this connection
            return
        ready.wait()
        try:
            for data in mine:
                began = perf_counter()
                status, _ = connection.request(data)
                latencies.append(perf_counter() - began)
                statuses[status] = statuses.get(status, 0) + 1
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()
        with lock:
            measured.latencies += latencies
            for status, count in statuses.items():
                measured.statuses[status] = measured.statuses.get(status, 0) + count

    threads = [threading.Thread(target=work, args=(mine,)) for mine in lists]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
    except threading.BrokenBarrierError:
        raise errors[0] from None
    began = perf_counter()
    for thread in threads:
        thread.join()
    measured.seconds = perf_counter() - began
    if errors:
        raise errors[0]
    return measured
