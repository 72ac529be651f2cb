"""The one fake server of the agent's tests: HTTP in a thread, with a script of answers or with a coordinator's rules.

`scripted_server(*answers)` gives the answers of a script, whatever is asked. `fake_coordinator()` gives out leases and
residues and takes results as docs/api.md describes, without a database; fail() and lose_answer() make it misbehave.
"""

import hashlib
import json
import socket
import struct
import threading
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

RESET, HALF, HANG = "reset", "half", "hang"
APPLIED = (200, {}, {"status": "success", "submission_id": 7, "factor_status": "no_factor", "current_t_level": 12.5})
NUMBER = str((2**61 - 1) * (2**89 - 1))
OPEN = ("assigned", "claimed", "running")


def problem(status, reason, detail=None, **headers):
    """Return an answer that refuses; the names of `headers` have _ for -."""
    return (
        status,
        {"Content-Type": "application/problem+json"}
        | {name.replace("_", "-"): value for name, value in headers.items()},
        {"title": "no", "status": status, "reason": reason, "detail": detail or f"{reason} it is"},
    )


@contextmanager
def serving(answer):
    """Serve HTTP on a free port and yield the address. `answer(method, path, headers, body)` returns the answer.

    An answer is (status, headers, content) with content as bytes, text or an object for JSON; or RESET (the connection
    is reset), HALF (the answer breaks off) or HANG (no answer). `body` is an object if JSON was sent, else bytes.
    """
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Type") == "application/json":
                body = json.loads(body)
            step = answer(self.command, self.path, dict(self.headers), body or None)
            if step == RESET:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            if step == HANG:
                over.wait(60)
                self.close_connection = True
                return
            status, headers, content = (200, {}, {"status": "success"}) if step == HALF else step
            if not isinstance(content, (str, bytes)):
                content = json.dumps(content)
            text = content.encode() if isinstance(content, str) else content
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text) + 100 * (step == HALF)))
            self.end_headers()
            self.wfile.write(text)
            self.close_connection = step == HALF

        def log_message(self, *args):
            pass

    for method in ("GET", "POST", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.respond)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def scripted_server(*script):
    """Yield (address, requests). Requests are (method, path, headers, body); the last answer of `script` repeats."""
    requests = []
    answers = list(script)

    def answer(*request):
        requests.append(request)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    with serving(answer) as address:
        yield address, requests


class FakeCoordinator:
    """Leases and residues on offer, results by their key, and every call in order as (method, path).

    While `away` every connection is reset. With `finished` no residue is taken.
    """

    def __init__(self):
        self.lock = threading.RLock()
        self.address = ""
        self.offers, self.leases, self.residues, self.results, self.calls = [], {}, [], {}, []
        self.away = self.finished = False
        self.retry_after = 0.05
        self.no_work_message = "No matching work right now; ask again in 1 seconds."
        self._failures, self._lost = [], []

    # What a test sets up and looks at.

    def offer(self, curves, composite=NUMBER, **changes):
        """Offer a lease; return its id."""
        lease = {
            "work_id": str(uuid.uuid4()),
            "composite_id": 7,
            "composite": composite,
            "digit_length": len(composite),
            "current_t_level": 3.5,
            "target_t_level": 12.0,
            "method": "ecm",
            "b1": 200,
            "b2": None,
            "curves": curves,
            "parametrization": 1,
            "shared": True,
        }
        self.offers.append(lease | changes)
        return lease["work_id"]

    def fail(self, part, *answers, times=1):
        """Give these answers to the next calls whose path contains `part`, `times` over; the calls have no effect."""
        self._failures += [(part, answer) for _ in range(times) for answer in answers]

    def stop_failing(self):
        self._failures.clear()

    def lose_answer(self, part):
        """Break off the answer to the next call whose path contains `part`; the call has its effect."""
        self._lost.append(part)

    def counted(self, work_id):
        """The curves that results have brought for a lease."""
        sent = [result for result in self.results.values() if result.get("work_id") == work_id]
        return sum(result["results"]["curves_completed"] for result in sent)

    def closings(self):
        return [(method, path) for method, path in self.calls if method == "DELETE" or "/complete" in path]

    def called(self, part):
        return [path for _, path in self.calls if part in path]

    # What it does.

    def answer(self, method, path, headers, body):
        with self.lock:
            if self.away:
                return RESET
            self.calls.append((method, unquote(path)))
            for failure in self._failures:
                if failure[0] in path:
                    self._failures.remove(failure)
                    return failure[1]
            url = urlsplit(path)
            asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
            answer = self.act(method, url.path.removeprefix("/api/v1/").split("/"), asked, headers, body)
            for part in self._lost:
                if part in path:
                    self._lost.remove(part)
                    return HALF
            return answer

    def act(self, method, steps, asked, headers, body):
        if steps[0] == "submit_result":
            return self.take_result(headers["Idempotency-Key"], body)
        if steps[0] == "ecm-work":
            return self.give_lease(asked)
        if steps[:2] == ["work", "status"]:
            mine = [lease for lease in self.leases.values() if lease["client_id"] == unquote(steps[2])]
            listed = [lease | {"curves_submitted": self.counted(lease["work_id"])} for lease in mine]
            return (200, {}, {"client_id": steps[2], "assignments": listed})
        if steps[0] == "work":
            return self.change_lease(method, steps, asked)
        if steps[1] == "work":
            return self.give_residue()
        if steps[1] == "upload":
            return self.take_residue(int(asked["stage1_attempt_id"]), headers, body)
        residue = self.residues[int(steps[1])]
        if steps[2] == "download":
            return (200, {}, residue["file"])
        residue["status"] = {"complete": "completed", "claim": "available"}[steps[2]]
        return (200, {}, {"residue_id": int(steps[1]), "message": residue["status"]})

    def take_result(self, key, result):
        self.results.setdefault(key, result)
        lease = self.leases.get(result.get("work_id"))
        if lease and self.counted(lease["work_id"]) >= lease["curves"]:
            self.close_lease(lease, "completed", "all curves are done")
        applied = {"status": "success", "submission_id": 1, "current_t_level": 4.25, "message": "applied"}
        return (200, {}, applied | {"attempt_id": list(self.results).index(key) + 1})

    def give_lease(self, asked):
        if not self.offers:
            return self.no_work("work_id")
        lease = self.offers.pop(0) | {"client_id": asked["client_id"], "status": "assigned", "curves_completed": 0}
        self.leases[lease["work_id"]] = lease | {"message": "leased"}
        return (200, {}, lease | {"message": "leased", "retry_after": None})

    def no_work(self, id_field):
        return (200, {}, {id_field: None, "message": self.no_work_message, "retry_after": self.retry_after})

    def change_lease(self, method, steps, asked):
        lease = self.leases.get(steps[1])
        if lease is None or lease["client_id"] != asked["client_id"]:
            return problem(404, "unknown_work")
        if method == "PUT":
            lease["curves_completed"] = int(asked["curves_completed"])
        elif method == "DELETE":
            self.close_lease(lease, "failed", asked["reason"])
        elif steps[2] == "complete":
            self.close_lease(lease, "completed", "as asked")
        elif lease["status"] not in OPEN[:2]:
            return problem(404, "unknown_work")
        else:
            lease["status"] = "running"
        return (200, {}, lease)

    def close_lease(self, lease, status, message):
        if lease["status"] in OPEN:
            lease |= {"status": status, "message": message}

    def give_residue(self):
        for number, residue in enumerate(self.residues):
            if residue["status"] == "available":
                residue["status"] = "claimed"
                return (200, {}, residue["offer"] | {"residue_id": number, "retry_after": None})
        return self.no_work("residue_id")

    def take_residue(self, attempt, headers, body):
        boundary = headers["Content-Type"].split("boundary=")[1].encode()
        file = body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--" + boundary, 1)[0]
        checksum = hashlib.sha256(file).hexdigest()
        if self.finished:
            return problem(400, "composite_finished", "is finished")
        for number, residue in enumerate(self.residues):
            if residue["offer"]["checksum"] == checksum:
                detail = f"Duplicate residue (checksum matches residue ID {number})"
                return problem(400, "duplicate_residue", detail)
        return self.store_residue(file, attempt)

    def store_residue(self, file, attempt):
        first = dict(tag.strip().split("=", 1) for tag in file.decode().split("\n")[0].split(";") if "=" in tag)
        offer = {"composite": first["N"], "b1": int(first["B1"]), "parametrization": int(first["PARAM"])}
        offer |= {"curve_count": file.count(b"METHOD="), "checksum": hashlib.sha256(file).hexdigest()}
        self.residues.append({"file": file, "offer": offer, "attempt": attempt, "status": "available"})
        return (200, {}, {"residue_id": len(self.residues) - 1, "message": "stored"})


@contextmanager
def fake_coordinator():
    """Yield a FakeCoordinator that serves at its `address`."""
    coordinator = FakeCoordinator()
    with serving(coordinator.answer) as coordinator.address:
        yield coordinator
