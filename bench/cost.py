"""What a result costs: processor time by process, rates and waits, for this checkout and for an older one in turn.

`python -m bench.cost --against DIR` starts a coordinator of each checkout (DIR must be installed: DIR/.venv), and runs
each scenario on both, one after the other, for some rounds. Clients send requests over keep-alive connections from this
process, whose own processor time is not counted. Scenarios, on 400 numbers of 150 digits:

- plain: a client sends a result and waits for its outcome;
- lease: a client leases curves, sends ten results on the lease, each with its wait, and completes the lease;
- cycle: a client leases curves, sends one result, and completes the lease;
- async: clients send results without waiting (`Prefer: respond-async`): accepted a second, and applied a second from
  the first request to the last result that is applied.

Processor time is steadier than rates: it does not depend on what else the machine does.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import click
import psutil
from sqlalchemy import Engine

from bench import load
from bench.pipeline import composites, wait_applied
from config.local.ports import free_port
from config.local.postgres import postgres_url
from models.engine import make_engine

NUMBERS = 400
ROUNDS = 3
RESULTS_PER_LEASE = 10
START_SECONDS = 120.0
# By scenario and number of connections: the operations of a round. An operation is a result, or a whole cycle.
OPERATIONS = {
    ("plain", 1): 300,
    ("plain", 8): 1200,
    ("lease", 1): 100,
    ("lease", 8): 600,
    ("cycle", 1): 60,
    ("cycle", 8): 240,
    ("async", 8): 1600,
    ("async", 32): 1600,
}
# The first words of a command line, or a word in it, by the process's role.
ROLES = (
    ("postgres", "database"),
    ("valkey-server", "broker"),
    ("redis-server", "broker"),
    ("tasks.flower", "flower"),
    ("analysis@", "analysis"),
    ("worker@", "worker"),
    ("beat", "beat"),
    ("ingest.serve", "web"),
    ("supervisord", "supervisor"),
)


@dataclass
class Round:
    """One run of a scenario: operations, seconds, waits of single results in ms, and processor ms by role."""

    operations: int
    seconds: float
    waits: list[float]
    processor_ms: dict[str, float]
    accepted: float | None = None  # a second, if nobody waits


@dataclass
class Coordinator:
    """A coordinator of a checkout that runs, and what was measured on it."""

    name: str
    address: str
    engine: Engine
    process: psutil.Process
    rounds: dict[tuple[str, int], list[Round]] = field(default_factory=dict)

    def processor_ms(self) -> dict[str, float]:
        """Return the processor time of all its processes so far, by role; ended children count for their parents."""
        total: dict[str, float] = {}
        for process in [self.process, *self.process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                command = " ".join(process.cmdline())
                role = next((role for word, role in ROLES if word in command), "others")
                parent = process.parent()
                if role == "worker" and parent and "worker@" in " ".join(parent.cmdline()):
                    role = "worker's children"
                total[role] = total.get(role, 0) + 1000 * sum(process.cpu_times())
        return total

    def request(self, connection: load.KeepAliveConnection, data: bytes) -> dict[str, Any]:
        """Send a request and return the body of its answer; raises RuntimeError if the answer is no success."""
        status, body = connection.request(data)
        if status not in (200, 202):
            raise RuntimeError(f"{self.name} answered {status}: {body[:300]!r}")
        answer: dict[str, Any] = json.loads(body)
        return answer


@contextmanager
def running(checkout: Path, name: str) -> Iterator[Coordinator]:
    """Run a coordinator of the checkout in a temporary directory; yield it, and stop it at the end."""
    python = checkout / ".venv" / "bin" / "python"
    settings = {"PYTHONPATH": str(checkout), "LOG_LEVEL": "WARNING", "PATH": f"{python.parent}:{os.environ['PATH']}"}
    environment = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL", "ECM_HOME")} | settings
    with tempfile.TemporaryDirectory(prefix="ecm-cost-", ignore_cleanup_errors=True) as home:
        ports = ["--port", str(free_port()), "--flower-port", str(free_port())]
        command = [str(python), "-P", "-c", "from ingest.cli import main; main()", "up", "--home", f"{home}/home"]
        log = Path(home, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *ports], env=environment, cwd=checkout, stdout=output, stderr=output, start_new_session=True
            )
        try:
            address = _wait_until_ready(process, log)
            yield Coordinator(name, address, make_engine(postgres_url(Path(home, "home"))), psutil.Process(process.pid))
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("ready: "):
                return line.removeprefix("ready: ").strip()
        time.sleep(0.1)
    raise RuntimeError(f"the coordinator did not start:\n{log.read_text(errors='replace')[-2000:]}")


# Scenarios ------------------------------------------------------------------------------------------------------------

# Sends the operations of one connection, and returns the wait of each result in ms.
Client = Callable[[Coordinator, load.KeepAliveConnection, int, int], list[float]]
API = "/api/v1"


def _send(coordinator: Coordinator, connection: load.KeepAliveConnection, body: dict[str, Any], wait: bool) -> float:
    data = load.post(f"{API}/submit_result", body, "localhost", {} if wait else {"Prefer": "respond-async"})
    began = time.perf_counter()
    answer = coordinator.request(connection, data)
    if wait and answer["factor_status"] != "no_factor":
        raise RuntimeError(f"{coordinator.name} answered {answer}")
    return 1000 * (time.perf_counter() - began)


def _plain(
    coordinator: Coordinator, connection: load.KeepAliveConnection, index: int, operations: int, wait: bool = True
) -> list[float]:
    numbers = NUMBER_LIST[index::8] or NUMBER_LIST
    return [
        _send(coordinator, connection, load.result(numbers[place % len(numbers)], f"bench-{index}", 1), wait)
        for place in range(operations)
    ]


def _without_wait(
    coordinator: Coordinator, connection: load.KeepAliveConnection, index: int, operations: int
) -> list[float]:
    return _plain(coordinator, connection, index, operations, wait=False)


def _on_leases(per_lease: int) -> Client:
    """Return a client that sends `per_lease` results on each lease; an operation is a result."""

    def client(
        coordinator: Coordinator, connection: load.KeepAliveConnection, index: int, operations: int
    ) -> list[float]:
        waits = []
        name = f"bench-{index}"
        for _ in range(operations // per_lease):
            path = f"{API}/ecm-work?client_id={name}&shared=1"
            lease = coordinator.request(connection, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            run = {field: lease[field] for field in ("b1", "b2", "parametrization")}
            for _ in range(per_lease):
                body = load.result(lease["composite"], name, 1, work_id=lease["work_id"])
                body["parameters"] |= run
                waits.append(_send(coordinator, connection, body, wait=True))
            path = f"{API}/work/{lease['work_id']}/complete?client_id={name}"
            coordinator.request(connection, load.post(path, {}, "localhost"))
        return waits

    return client


SCENARIOS: dict[str, Client] = {
    "plain": _plain,
    "lease": _on_leases(RESULTS_PER_LEASE),
    "cycle": _on_leases(1),
    "async": _without_wait,
}
NUMBER_LIST = composites(NUMBERS)


def run(coordinator: Coordinator, scenario: str, connections: int) -> Round:
    """Run one round of a scenario."""
    operations = OPERATIONS[scenario, connections]
    address = urlsplit(coordinator.address)
    waits: list[float] = []
    errors: list[BaseException] = []
    opened = [load.KeepAliveConnection(address.hostname or "127.0.0.1", address.port or 80) for _ in range(connections)]

    def work(index: int) -> None:
        try:
            waits.extend(SCENARIOS[scenario](coordinator, opened[index], index, operations // connections))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(connections)]
    before = coordinator.processor_ms()
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = time.perf_counter() - began
    for connection in opened:
        connection.close()
    if errors:
        raise errors[0]
    wait_applied(coordinator.engine)
    seconds = time.perf_counter() - began
    after = coordinator.processor_ms()
    used = {role: milliseconds - before.get(role, 0) for role, milliseconds in after.items()}
    accepted = operations / sent if scenario == "async" else None
    return Round(operations, seconds if accepted else sent, waits, used, accepted)


def warm_up(coordinator: Coordinator) -> None:
    """Register the numbers, and let every process meet its first results."""
    address = urlsplit(coordinator.address)
    connection = load.KeepAliveConnection(address.hostname or "127.0.0.1", address.port or 80)
    for number in NUMBER_LIST:
        _send(coordinator, connection, load.result(number, "bench", 1), wait=False)
    connection.close()
    wait_applied(coordinator.engine)
    for number in NUMBER_LIST[:20]:
        connection = load.KeepAliveConnection(address.hostname or "127.0.0.1", address.port or 80)
        _send(coordinator, connection, load.result(number, "bench", 1), wait=True)
        connection.close()


def measure(checkouts: dict[str, Path], chosen: list[tuple[str, int]], rounds: int) -> list[Coordinator]:
    """Run every scenario on every checkout, in turn, and return the coordinators with their rounds."""
    with ExitStack() as stack:
        coordinators = [stack.enter_context(running(path, name)) for name, path in checkouts.items()]
        for coordinator in coordinators:
            warm_up(coordinator)
        for turn in range(rounds):
            for case in chosen:
                for coordinator in coordinators if turn % 2 == 0 else reversed(coordinators):
                    one = run(coordinator, *case)
                    coordinator.rounds.setdefault(case, []).append(one)
                    cost = sum(one.processor_ms.values()) / one.operations
                    click.echo(f"round {turn + 1}: {case[0]}, {case[1]} {coordinator.name} {cost:.2f} ms", err=True)
        for coordinator in coordinators:
            coordinator.engine.dispose()
    return coordinators


# The report -----------------------------------------------------------------------------------------------------------


def figures(coordinator: Coordinator, case: tuple[str, int]) -> dict[str, Any]:
    """Return the medians of the rounds of a case; the processor time is ms for each operation."""
    rounds = coordinator.rounds[case]
    roles = sorted({role for one in rounds for role in one.processor_ms})
    by_role = {role: median(one.processor_ms.get(role, 0) / one.operations for one in rounds) for role in roles}
    waits = sorted(wait for one in rounds for wait in one.waits)
    found = {
        "processor_ms": round(median(sum(one.processor_ms.values()) / one.operations for one in rounds), 2),
        "per_second": round(median(one.operations / one.seconds for one in rounds), 1),
        "p50_ms": round(median(waits), 1),
        "p99_ms": round(waits[int(0.99 * len(waits))], 1),
        "by_role": {role: round(value, 2) for role, value in by_role.items() if value >= 0.005},
    }
    accepted = [one.accepted for one in rounds if one.accepted is not None]
    return found | ({"accepted_per_second": round(median(accepted), 1)} if accepted else {})


@click.command()
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another checkout, measured in turn with this one.",
)
@click.option("--only", multiple=True, type=click.Choice(list(SCENARIOS)), help="Only these scenarios.")
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option("--json", "target", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here.")
def main(against: Path | None, only: tuple[str, ...], rounds: int, target: Path | None) -> None:
    """Measure what a result costs, here and in another checkout."""
    checkouts = ({"before": against.resolve()} if against else {}) | {"now": Path(__file__).resolve().parents[1]}
    chosen = [case for case in OPERATIONS if not only or case[0] in only]
    coordinators = measure(checkouts, chosen, rounds)
    found = {
        f"{scenario}, {connections}": {one.name: figures(one, (scenario, connections)) for one in coordinators}
        for scenario, connections in chosen
    }
    for case, by_checkout in found.items():
        for name, values in by_checkout.items():
            roles = ", ".join(f"{role} {value}" for role, value in values.pop("by_role").items())
            shown = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())
            click.echo(f"{case:10} {name:6} {shown} ({roles})")
    if target:
        target.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
