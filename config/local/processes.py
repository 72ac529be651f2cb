"""Stray processes of programs and servers: how they are recognized, and how they are ended.

A program that is killed leaves its children behind, and gunicorn's and Celery's children hold ports and connections.
So whatever starts a program kills the strays of its last run first. The kernel gives process ids and groups to other
processes later; a tag in the environment, which children inherit, stays. PostgreSQL and Valkey write their process
titles over their environment: the program file that they run and their working directory identify them instead. The
name of a process identifies nothing, since a copy of a program has another name.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil

# This variable is in the environment of every process that we start, with the home and name of its program.
TAG = "ECM_PROGRAM"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class ProcessSignature(NamedTuple):
    """What identifies the processes of an embedded server: they run this file in this directory."""

    program: Path
    directory: Path


def program_tag(home: Path, name: str) -> str:
    """Return the value of `TAG` for the program `name` of `home`."""
    return f"{home}/{name}"


def die_with_parent(signum: int = signal.SIGTERM) -> None:
    """Ask the kernel to send this process `signum` when its parent ends. Only Linux can do that.

    Call it after a change of user, which clears the request, and before exec, which keeps it.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)


def find_strays(home: Path, name: str, signature: ProcessSignature | None = None) -> list[psutil.Process]:
    """Return the live processes of the program `name` of `home`, whatever their parents are now."""
    tag = program_tag(home, name)
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if (signature and _matches(process, signature)) or process.environ().get(TAG) == tag:
                found.append(process)
    return found


def _matches(process: psutil.Process, signature: ProcessSignature) -> bool:
    """Return whether `process` runs the signature's program in its directory."""
    expected = [str(signature.directory), str(signature.program)]
    try:
        return process.cwd() == expected[0] and process.exe() == expected[1]
    except psutil.AccessDenied:
        return _read_links_as_owner(process, signature) == expected
    except (psutil.Error, OSError):
        return False


def _read_links_as_owner(process: psutil.Process, signature: ProcessSignature) -> list[str]:
    """Return the working directory and program of `process` if it belongs to the owner of the signature's directory.

    Root of a container often lacks CAP_SYS_PTRACE, and may not look at a server that runs as another account. It may
    become that account, which may look.
    """
    with contextlib.suppress(psutil.Error, OSError):
        about = signature.directory.stat()
        if os.geteuid() == 0 and process.uids().real == about.st_uid != 0:
            done = subprocess.run(
                ["/bin/sh", "-c", 'readlink "/proc/$1/cwd" "/proc/$1/exe"', "sh", str(process.pid)],
                cwd="/",
                user=about.st_uid,
                group=process.gids().real,
                extra_groups=[],
                capture_output=True,
                text=True,
                errors="surrogateescape",
                check=False,
            )
            return [line.removesuffix(" (deleted)") for line in done.stdout.splitlines()]
    return []


def terminate(processes: list[psutil.Process], signum: int = signal.SIGKILL, timeout: float = 5.0) -> None:
    """Send `signum` to each process, wait up to `timeout` seconds, and kill the processes that still run."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signum)
            if signum != signal.SIGKILL:
                process.send_signal(signal.SIGCONT)  # a stopped process handles no signal but this and SIGKILL
    for process in _wait_for_end(processes, timeout):
        with contextlib.suppress(psutil.Error):
            process.kill()
    _wait_for_end(processes, 5.0)


def _wait_for_end(processes: list[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Wait up to `timeout` seconds until all `processes` have ended; return those that still run.

    Some containers have an init that never collects orphans, which stay zombies: a zombie counts as ended.
    """
    deadline = time.monotonic() + timeout
    while (alive := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_strays(home: Path, name: str, signature: ProcessSignature | None = None) -> int:
    """Kill the stray processes of the program `name`; return how many were killed.

    It looks again until it finds none, for up to 10 s: a process that is about to die may still fork.
    """
    count, deadline = 0, time.monotonic() + 10
    while (strays := find_strays(home, name, signature)) and time.monotonic() < deadline:
        count += len(strays)
        terminate(strays)
    return count
