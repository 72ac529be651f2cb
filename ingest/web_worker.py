"""gunicorn's threaded worker, with every error of its own as a problem (RFC 9457) instead of an HTML page."""

import uuid
from socket import socket
from typing import Any

import structlog
from gunicorn import util
from gunicorn.workers.gthread import ThreadWorker

from ingest.problems import problem_body
from ingest.protocol_errors import REASONS, describe

log = structlog.get_logger("web")

INTERNAL = "Something went wrong on this server; it has been logged. Sending the same again later is safe."


class ProblemWorker(ThreadWorker):
    """Answers requests that never reach the application."""

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
