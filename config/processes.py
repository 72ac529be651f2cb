"""Processes that must not outlive, or be mistaken for, one another: their marks, and how they are cleared away.

A program that is killed leaves its children behind (gunicorn's and Celery's hold ports and connections), so whatever
starts a program first ends what is left of its last incarnation. Process ids and groups are used again by others;
a mark in the environment, which children inherit, is not. Servers that write over their environment are known by
their name and working directory instead.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil

# In the environment of every process of a program: the home and the program it belongs to.
MARK = "ECM_PROGRAM"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Lair(NamedTuple):
    """How a server is known that hides its mark: what its processes are called, and the directory they work in."""

    names: tuple[str, ...]
    directory: Path


def mark(home: Path, name: str) -> str:
    """What `MARK` holds for the program `name` of `home`."""
    return f"{home}/{name}"


def die_with_parent(signum: int = signal.SIGTERM) -> None:
    """Have the kernel send this process `signum` when its parent ends (Linux only; elsewhere the mark must do).

    Call it after changing user, which clears it, and before exec, which does not.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)


def remains(home: Path, name: str, lair: Lair | None = None) -> list[psutil.Process]:
    """The live processes of the program `name` of `home`, however they came to lose their parents."""
    wanted = mark(home, name)
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            serves = lair and process.name() in lair.names and process.cwd() == str(lair.directory)
            if serves or process.environ().get(MARK) == wanted:
                found.append(process)
    return found


def end(processes: list[psutil.Process], signum: int = signal.SIGKILL, patience: float = 5.0) -> None:
    """Send `signum` to each, wait up to `patience` seconds, and kill those that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signum)
            if signum != signal.SIGKILL:
                process.send_signal(signal.SIGCONT)  # a stopped process acts on nothing but this and SIGKILL
    for process in _outlasting(processes, patience):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _outlasting(processes, 5.0)


def _outlasting(processes: list[psutil.Process], patience: float) -> list[psutil.Process]:
    """Those of `processes` that still run after `patience` seconds, or none as soon as none does.

    An orphan stays a zombie until some init collects it, and some containers' never does: it counts as gone.
    """
    deadline = time.monotonic() + patience
    while (alive := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def clear(home: Path, name: str, lair: Lair | None = None) -> int:
    """Kill what is left of the program `name`, until nothing is; returns how many processes that were.

    Again and again, because a process that is about to die may still fork.
    """
    count, deadline = 0, time.monotonic() + 10
    while (left := remains(home, name, lair)) and time.monotonic() < deadline:
        count += len(left)
        end(left)
    return count


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on `port` of `host` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
