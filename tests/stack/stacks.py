"""A whole coordinator to test against: what `ecm-coordinator up` runs, its database, its broker and its processes."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import redis
import requests
import served_document
from sqlalchemy import NullPool, create_engine, text

from config.local.ports import free_port
from config.local.postgres import postgres_url
from config.local.procfile import find_procfile, read_procfile
from config.local.sockets import remove_outside_sockets
from config.local.strays import SERVERS, find_processes, stop_strays
from config.local.valkey import valkey_url
from coordinator.reading import invariants
from ingest.commands.private_stack import start_coordinator, wait_until_ready

# Upkeep in seconds rather than minutes, so that what it repairs is repaired while a test looks on.
QUICK = {"HOUSEKEEPING_EVERY": "1", "REPUBLISH_AFTER": "2"}
RECORDS = (
    "submissions",
    "composites",
    "composite_aliases",
    "composite_effort",
    "factors",
    "ecm_attempts",
    "jobs",
    "projects",
    "work_assignments",
)

Value = TypeVar("Value")


def until(condition: Callable[[], Value], patience: float = 20.0, pause: float = 0.05) -> Value:
    """What `condition` returns as soon as that is true; fails the test after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {patience:.0f} s in vain"
        time.sleep(pause)
    return value


class Stack:
    """One `up` and what it runs. `arguments` go to `up`, `settings` into its environment."""

    def __init__(self, home: Path, *arguments: str, **settings: str) -> None:
        self.home = home
        self.arguments, self.settings = arguments, settings
        self.port, self.flower_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.api = f"{self.url}/api/v1"
        self.http = requests.Session()
        self.process: subprocess.Popen[bytes] | None = None
        served_document.servers.add(self.url)

    # Starting and stopping ---------------------------------------------------------------------------------------

    def start(self) -> "Stack":
        """Run `up` and wait until it is ready."""
        self.home.mkdir(exist_ok=True)
        log = self.home / "up.log"
        ports = ("--port", str(self.port), "--flower-port", str(self.flower_port))
        self.process = start_coordinator(self.home, log, *ports, *self.arguments, **(QUICK | self.settings))
        assert wait_until_ready(self.process, log) == self.url
        self.database = create_engine(postgres_url(self.home), poolclass=NullPool)
        self.broker = redis.Redis.from_url(valkey_url(self.home), decode_responses=True)
        return self

    def end(self) -> None:
        """Have everything stop, whatever state a test has left it in; `stop` waits for it."""
        for name in self.names():
            for process in self.processes(name):
                with contextlib.suppress(psutil.Error):
                    process.resume()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def stop(self) -> None:
        """Stop everything, and leave nothing behind."""
        self.end()
        if self.process is not None:
            self.process.wait(30)
        stop_strays(self.home.resolve(), list(read_procfile(find_procfile())))
        remove_outside_sockets(self.home)

    # Processes ---------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return [*read_procfile(find_procfile()), *SERVERS]

    def processes(self, name: str) -> list[psutil.Process]:
        """All live processes of a program or server."""
        return find_processes(self.home.resolve(), name)

    def leader(self, name: str) -> psutil.Process:
        """The process of a program that its other processes descend from, as soon as there is one."""

        def find() -> psutil.Process | None:
            found = self.processes(name)
            pids = {process.pid for process in found}
            with contextlib.suppress(psutil.Error):
                return next((process for process in found if process.ppid() not in pids), None)
            return None

        return until(find, 30)

    def children(self, name: str) -> list[psutil.Process]:
        """The child processes of a program's leader: a worker's pool, gunicorn's workers."""
        with contextlib.suppress(psutil.Error):
            return self.leader(name).children()
        return []

    def kill(self, name: str) -> None:
        """SIGKILL a program's leader and wait until another has taken its place."""
        old = self.leader(name)
        old.send_signal(signal.SIGKILL)
        until(lambda: self.leader(name).pid != old.pid, 30)

    def freeze(self, *names: str) -> None:
        """SIGSTOP every process of these programs."""
        for name in names:
            for process in self.processes(name):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()

    def thaw(self, *names: str) -> None:
        for name in names:
            for process in self.processes(name):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    # HTTP --------------------------------------------------------------------------------------------------------

    def get(self, path: str, **options: Any) -> requests.Response:
        """GET a path of the API."""
        return self.http.get(self.api + path, timeout=40, **options)

    def submit(self, body: Any, **headers: str) -> requests.Response:
        """POST a result; header names are written with underscores."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(f"{self.api}/submit_result", json=body, headers=names, timeout=40)

    def submit_bytes(self, body: bytes, path: str = "/submit_result") -> requests.Response:
        """POST raw bytes."""
        return self.http.post(self.api + path, data=body, headers={"Content-Type": "application/json"}, timeout=60)

    def status(self) -> dict[str, Any]:
        """What /status says, whether well or not."""
        answer: dict[str, Any] = self.http.get(f"{self.url}/status", timeout=10).json()
        return answer

    # The database ------------------------------------------------------------------------------------------------

    def rows(self, statement: str, **parameters: Any) -> list[Any]:
        """What an SQL text selects."""
        with self.database.connect() as connection:
            return list(connection.execute(text(statement), parameters))

    def scalar(self, statement: str, **parameters: Any) -> Any:
        """The one value that an SQL text selects."""
        ((value,),) = self.rows(statement, **parameters)
        return value

    def run_sql(self, statement: str, **parameters: Any) -> None:
        """Run statements that change something: what tests arrange behind the pipeline's back."""
        with self.database.begin() as connection:
            connection.execute(text(statement), parameters)

    def counts(self) -> dict[str, int]:
        """How many rows each table holds that a result can write to."""
        parts = [f"SELECT '{name}' AS name, count(*) AS n FROM {name}" for name in RECORDS]
        return {row.name: row.n for row in self.rows(" UNION ALL ".join(parts))}

    def unsettled(self) -> int:
        """How many submissions and jobs wait."""
        waiting = "SELECT (SELECT count(*) FROM submissions WHERE state = 'received')"
        count: int = self.scalar(f"{waiting} + (SELECT count(*) FROM jobs WHERE state = 'waiting')")
        return count

    def assert_sound(self) -> None:
        """Every invariant holds."""
        assert invariants.violations(self.database, max_digits=50_000) == []
