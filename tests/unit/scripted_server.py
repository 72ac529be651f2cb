"""An HTTP server in a thread that answers what a test tells it to, and remembers what it was asked."""

import json
import socket
import struct
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RESET, HALF, HANG = "reset", "half", "hang"

APPLIED = (200, {}, {"status": "success", "submission_id": 7, "factor_status": "no_factor", "current_t_level": 12.5})


def problem(status, reason, **headers):
    return (
        status,
        {"Content-Type": "application/problem+json"}
        | {name.replace("_", "-"): value for name, value in headers.items()},
        {"title": "no", "status": status, "reason": reason, "detail": f"{reason} it is"},
    )


@contextmanager
def scripted_server(*script):
    """Yield (address, requests). Requests are (method, path, headers, body); the last answer of `script` repeats.

    An answer is (status, headers, body), or RESET (the connection), HALF (an answer that breaks off), HANG (none), or a
    function of the request that returns one of these.
    """
    requests = []
    answers = list(script)
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = (self.command, self.path, dict(self.headers), json.loads(body) if body else None)
            requests.append(request)
            step = answers.pop(0) if len(answers) > 1 else answers[0]
            if callable(step):
                step = step(*request)
            if step == RESET:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            if step == HANG:
                over.wait(10)
                self.close_connection = True
                return
            status, headers, content = (200, {}, {"status": "success"}) if step == HALF else step
            text = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text) + 100 * (step == HALF)))
            self.end_headers()
            self.wfile.write(text)
            self.close_connection = step == HALF

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
