"""The stray processes of a home: whatever an earlier `up` left running there."""

import contextlib
import os
import signal
from pathlib import Path

import psutil

from config.local.processes import ProcessSignature, find_strays, kill_strays, terminate
from config.local.server_records import read_server_records

SERVERS = ("postgres", "valkey")


def server_signatures(home: Path) -> dict[str, ProcessSignature]:
    """Return what identifies the processes of the embedded servers that `home` has started, by server."""
    real = Path(os.path.realpath(home))
    directories = {"postgres": real / "postgres" / "data", "valkey": real / "valkey"}
    records = read_server_records(home)
    return {
        name: ProcessSignature(Path(records[name]["program"]), directory)
        for name, directory in directories.items()
        if "program" in records.get(name, {})
    }


def find_processes(home: Path, name: str) -> list[psutil.Process]:
    """Return the live processes of a program, an embedded server or supervisord of `home`."""
    return find_strays(home, name, server_signatures(home).get(name))


def stop_strays(home: Path, programs: list[str]) -> int:
    """Stop what an earlier `up` of `home` left running; return the number of processes.

    Only the process that holds the home's lock may call this. supervisord ends first, or it would start the others
    again. Every process gets the time to end properly before it is killed.
    """
    count = 0
    if strays := find_processes(home, "supervisord"):
        count += len(strays)
        terminate(strays, signal.SIGTERM, timeout=10)
    for name in (*programs, *SERVERS):
        if strays := find_processes(home, name):
            count += len(strays)
            # PostgreSQL's child processes end with their parent. A signal to each of them would only disturb that.
            terminate(_leaders(strays), signal.SIGINT if name == "postgres" else signal.SIGTERM, timeout=5)
            count += kill_strays(home, name, server_signatures(home).get(name))
    return count


def _leaders(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return the live `processes` whose parent is not one of them."""
    pids = {process.pid for process in processes}
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if process.ppid() not in pids:
                found.append(process)
    return found
