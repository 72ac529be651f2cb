"""gunicorn's threaded worker, with problems (RFC 9457) for HTML pages, and threads that wait for the next request.

gunicorn passes every request of a connection from its main thread to another one and back, which costs more than to
read the request and to write the answer. Clients send several requests in a row: a result, the completion of its lease,
the next claim. So the thread that has answered stays with its connection for a moment.
"""

import select
import uuid
from socket import socket
from threading import Semaphore
from time import monotonic
from typing import Any

import structlog
from gunicorn import util
from gunicorn.workers.gthread import ThreadWorker

from ingest.problems import problem_body
from ingest.protocol_errors import REASONS, describe

log = structlog.get_logger("web")

INTERNAL = "Something went wrong on this server; it has been logged. Sending the same again later is safe."


# Milliseconds that a thread waits for the next request of its connection. A client that works for longer between two
# requests gets another thread.
STAY_MS = 50
# Seconds between two signs of life for gunicorn's main process, which waits for one for much longer (`timeout`).
NOTIFY_SECONDS = 1.0


class ProblemWorker(ThreadWorker):
    """Answers requests that never reach the application, and lets threads stay with their connections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The other threads are for requests of new connections.
        self._may_stay = Semaphore(self.cfg.threads // 2)
        self._notified = 0.0

    def notify(self) -> None:
        """Tell gunicorn's main process that this one lives: a system call, and gunicorn makes it for each event."""
        now = monotonic()
        if now - self._notified >= NOTIFY_SECONDS:
            self._notified = now
            super().notify()

    def handle(self, conn: Any) -> Any:
        """Answer a request, and those that follow it at once; return what gunicorn does with the connection then."""
        next_step = super().handle(conn)
        if next_step is not True or not self._may_stay.acquire(blocking=False):
            return next_step
        try:
            while next_step is True and self.alive and _has_request(conn):
                next_step = super().handle(conn)
        finally:
            self._may_stay.release()
        return next_step

    def handle_error(self, req: Any, client: socket, addr: Any, exc: BaseException) -> None:
        """Answer a request that cannot be read (4xx, 501, 505), or that failed outside the application (500)."""
        described = describe(exc)
        request_id = uuid.uuid4().hex
        path = str(getattr(req, "path", None) or "/")[:200]
        if described is None:
            log.error("A request failed", request=request_id, path=path, exc_info=exc)
            status, reason, detail = 500, "internal_error", INTERNAL
        else:
            status, detail = described
            reason = REASONS[status]
            address = addr[0] if addr else ""
            log.info("A request is not valid HTTP", request=request_id, address=address, status=status, error=detail)
        title, body = problem_body(status, reason, detail, path)
        head = (
            f"HTTP/1.1 {status} {title}\r\n"
            "Content-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\n"
            "Connection: close\r\n"
            "X-Content-Type-Options: nosniff\r\n"
            f"X-Request-ID: {request_id}\r\n\r\n"
        )
        try:
            util.write_nonblock(client, head.encode() + body)
        except OSError as error:
            log.debug("The client does not take its answer", request=request_id, error=str(error))


def _has_request(conn: Any) -> bool:
    """Return whether the next request of a connection begins, or its end comes, within STAY_MS."""
    if conn.parser.unreader.buf.getvalue():  # it has been read together with the last one
        return True
    poll = select.poll()
    poll.register(conn.sock, select.POLLIN)
    return bool(poll.poll(STAY_MS))
