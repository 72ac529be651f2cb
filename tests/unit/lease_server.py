"""What a coordinator answers an agent that lives on leases, as far as api.md tells it, without a database."""

import threading
import uuid
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

from scripted_server import HALF, RESET, problem, scripted_server

NUMBER = str((2**61 - 1) * (2**89 - 1))
OPEN = ("assigned", "claimed", "running")


class Coordinator:
    """Leases on offer and given out, results by their key, and every call in order as (method, path).

    `away` resets every connection; `faults` are answers that the next calls get instead of their own, by a part of
    the path; `lost` are parts of paths whose next answer breaks off after the call has had its effect.
    """

    def __init__(self):
        self.lock = threading.RLock()
        self.offers, self.leases, self.results, self.calls = [], {}, {}, []
        self.away = False
        self.faults, self.lost = [], []
        self.retry_after = 0.05

    def offer(self, curves, composite=NUMBER, **changes):
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

    def counted(self, work_id):
        """The curves that results have brought for a lease."""
        sent = [result for result in self.results.values() if result["work_id"] == work_id]
        return sum(result["results"]["curves_completed"] for result in sent)

    def closings(self):
        return [(method, path) for method, path in self.calls if method == "DELETE" or "/complete" in path]

    def called(self, part):
        return [path for _, path in self.calls if part in path]

    def answer(self, method, path, headers, body):
        with self.lock:
            if self.away:
                return RESET
            self.calls.append((method, unquote(path)))
            for fault in self.faults:
                if fault[0] in path:
                    self.faults.remove(fault)
                    return fault[1]
            answer = self.act(method, path, headers, body)
            for part in self.lost:
                if part in path:
                    self.lost.remove(part)
                    return HALF
            return answer

    def act(self, method, path, headers, body):
        url = urlsplit(path)
        asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
        steps = url.path.removeprefix("/api/v1/").split("/")
        if steps[0] == "submit_result":
            self.results.setdefault(headers["Idempotency-Key"], body)
            self.close_if_done(body["work_id"])
            return (200, {}, {"status": "success", "submission_id": 1, "current_t_level": 4.25})
        if steps[0] == "ecm-work":
            return self.give(asked)
        if steps[:2] == ["work", "status"]:
            mine = [lease for lease in self.leases.values() if lease["client_id"] == unquote(steps[2])]
            listed = [lease | {"curves_submitted": self.counted(lease["work_id"])} for lease in mine]
            return (200, {}, {"client_id": steps[2], "assignments": listed})
        lease = self.leases.get(steps[1])
        if lease is None or lease["client_id"] != asked["client_id"]:
            return problem(404, "unknown_work")
        if method == "PUT":
            lease["curves_completed"] = int(asked["curves_completed"])
        elif method == "DELETE":
            self.close(lease, "failed", asked["reason"])
        elif steps[2] == "complete":
            self.close(lease, "completed", "as asked")
        elif lease["status"] not in OPEN[:2]:
            return problem(404, "unknown_work")
        else:
            lease["status"] = "running"
        return (200, {}, lease)

    def give(self, asked):
        nothing = {"work_id": None, "message": "nothing that fits", "retry_after": self.retry_after}
        if not self.offers:
            return (200, {}, nothing)
        lease = self.offers.pop(0) | {"client_id": asked["client_id"], "status": "assigned", "curves_completed": 0}
        self.leases[lease["work_id"]] = lease | {"message": "leased"}
        return (200, {}, lease | {"message": "leased", "retry_after": None})

    def close_if_done(self, work_id):
        lease = self.leases.get(work_id)
        if lease and self.counted(work_id) >= lease["curves"]:
            self.close(lease, "completed", "all curves are done")

    def close(self, lease, status, message):
        if lease["status"] in OPEN:
            lease |= {"status": status, "message": message}


@contextmanager
def lease_server():
    """Yield (address, coordinator)."""
    coordinator = Coordinator()
    with scripted_server(coordinator.answer) as (address, _):
        yield address, coordinator
