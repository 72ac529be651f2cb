"""A whole coordinator for tests: `ecm-coordinator up` with its database, its broker and its processes."""

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

# Housekeeping runs every second, so that a test sees its repairs within seconds.
QUICK = {"HOUSEKEEPING_EVERY": "1", "REPUBLISH_AFTER": "2"}
RECORDS = (
    "submissions",
    "composites",
    "composite_aliases",
    "targets",
    "worked_values",
    "target_sources",
    "value_effort",
    "factors",
    "ecm_attempts",
    "jobs",
    "projects",
    "work_assignments",
)

Value = TypeVar("Value")


def wait_until(condition: Callable[[], Value], timeout: float = 20.0, pause: float = 0.05) -> Value:
    """Return the value of `condition` as soon as it is true; fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s, and the condition is still false"
        time.sleep(pause)
    return value


class Stack:
    """One `up` and its processes. `arguments` go to `up`, `settings` into its environment."""

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

    def begin_stop(self) -> None:
        """Let frozen processes continue and make `up` stop, without waiting for the end."""
        for name in self.names():
            for process in self.processes(name):
                with contextlib.suppress(psutil.Error):
                    process.resume()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def stop(self) -> None:
        """Stop all processes and remove their sockets outside of the home."""
        self.begin_stop()
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
        """Return the parent of a program's other processes, as soon as it runs."""

        def find() -> psutil.Process | None:
            found = self.processes(name)
            pids = {process.pid for process in found}
            with contextlib.suppress(psutil.Error):
                return next((process for process in found if process.ppid() not in pids), None)
            return None

        return wait_until(find, 30)

    def children(self, name: str) -> list[psutil.Process]:
        """The child processes of a program's leader: a worker's pool, gunicorn's workers."""
        with contextlib.suppress(psutil.Error):
            return self.leader(name).children()
        return []

    def kill(self, name: str) -> None:
        """SIGKILL a program's leader and wait until another has taken its place."""
        old = self.leader(name)
        old.send_signal(signal.SIGKILL)
        wait_until(lambda: self.leader(name).pid != old.pid, 30)

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
        """Return the body of /status, whatever its HTTP status is."""
        answer: dict[str, Any] = self.http.get(f"{self.url}/status", timeout=10).json()
        return answer

    # The database ------------------------------------------------------------------------------------------------

    def rows(self, statement: str, **parameters: Any) -> list[Any]:
        """Return the rows that an SQL text selects."""
        with self.database.connect() as connection:
            return list(connection.execute(text(statement), parameters))

    def scalar(self, statement: str, **parameters: Any) -> Any:
        """Return the one value that an SQL text selects."""
        ((value,),) = self.rows(statement, **parameters)
        return value

    def run_sql(self, statement: str, **parameters: Any) -> None:
        """Run statements that change the database directly, without the application."""
        with self.database.begin() as connection:
            connection.execute(text(statement), parameters)

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each table that a result can write to."""
        parts = [f"SELECT '{name}' AS name, count(*) AS n FROM {name}" for name in RECORDS]
        return {row.name: row.n for row in self.rows(" UNION ALL ".join(parts))}

    def unsettled(self) -> int:
        """Return how many submissions and jobs wait."""
        waiting = "SELECT (SELECT count(*) FROM submissions WHERE state = 'received')"
        count: int = self.scalar(f"{waiting} + (SELECT count(*) FROM jobs WHERE state = 'waiting')")
        return count

    def assert_sound(self) -> None:
        """Check that every invariant of the database holds."""
        found = invariants.violations(self.database, max_digits=50_000)
        assert found == [], found
