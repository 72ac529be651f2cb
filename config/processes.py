"""Processes that must not outlive, or be mistaken for, one another: their records, and how they are cleared away.

A program that is killed leaves its children behind (gunicorn's and Celery's hold ports and connections), so every
program leads a process group of its own, and what starts it next first ends what is left of that group. Process
ids are used again, so a group is known by more than its number.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

# In every program's environment: which home and program a process belongs to. Its children inherit it.
MARK = "ECM_PROGRAM"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(signum: int = signal.SIGTERM) -> None:
    """Have the kernel send this process `signum` when its parent ends (Linux only; elsewhere the record must do).

    Call it after changing user, which clears it, and before exec, which does not.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)


def mark(home: Path, name: str) -> str:
    """What `MARK` holds for the program `name` of `home`."""
    return f"{home}/{name}"


def record(home: Path, name: str) -> None:
    """Write down that this process is (or is about to become) the leader of the program `name`."""
    facts = {"pid": os.getpid(), "started": psutil.Process().create_time()}
    path = home / "run" / f"{name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(facts))
    part.replace(path)


def remains(home: Path, name: str, executables: Iterable[Path] = ()) -> list[psutil.Process]:
    """The live processes of the last incarnation of `name`: its leader, its group, and whatever bears its mark.

    Servers that write over their own environment are known by `executables` instead, within the recorded group.
    """
    try:
        facts = json.loads((home / "run" / f"{name}.json").read_text())
        leader, started = int(facts["pid"]), float(facts["started"])
    except (OSError, ValueError, KeyError):
        leader, started = 0, 0.0
    wanted, known = mark(home, name), {str(path) for path in executables}
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.pid == leader:
                ours = abs(process.create_time() - started) < 1
            else:
                ours = leader != 0 and os.getpgid(process.pid) == leader and process.exe() in known
            if ours or process.environ().get(MARK) == wanted:
                found.append(process)
    return found


def end(processes: list[psutil.Process], signum: int = signal.SIGKILL, patience: float = 5.0) -> None:
    """Send `signum` to each, wait up to `patience` seconds, and kill those that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signum)
            if signum != signal.SIGKILL:
                process.send_signal(signal.SIGCONT)  # a stopped process acts on nothing but this and SIGKILL
    _, alive = psutil.wait_procs(processes, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def clear(home: Path, name: str, executables: Iterable[Path] = ()) -> int:
    """Kill what is left of the program `name`, until nothing is; returns how many processes that were.

    Again and again, because a process that is about to die may still fork.
    """
    count, deadline = 0, time.monotonic() + 10
    while (left := remains(home, name, executables)) and time.monotonic() < deadline:
        count += len(left)
        end(left)
    return count
