"""The spool: results on disk, from the first curve until the server has settled them.

    running/KEY.jsonl    a run under way: first the order, then GMP-ECM's lines as they come
    pending/KEY.json     a finished run's payload, not settled yet
    rejected/KEY.json    a payload that the server refused for good, with its words
    leases/ID.jsonl      a lease in our hands, and which runs did how many of its curves (agent.held)
    residues/KEY/        one stage of some curves: its files, and task.json, which says how far it is (agent.tasks)

KEY is the run's Idempotency-Key, so whatever is sent twice after a crash counts once. A file is visible under its
name only when it is whole and on the disk, and it is removed only after the next one is. Whoever works on a file holds
its lock (flock), which the kernel drops with the process: several agents can share a spool.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

RUNNING, PENDING, REJECTED, LEASES = "running", "pending", "rejected", "leases"
SYNC_EVERY = 1.0  # seconds: what a power failure may cost; a killed process costs nothing
STALE = 86400.0  # seconds: an unfinished temporary file this old has no writer any more


@dataclass
class Entry:
    """A payload in `pending/` and the lock on it."""

    key: str
    server: str
    payload: dict[str, Any]
    path: Path
    lock: IO[bytes]

    @property
    def root(self) -> Path:
        return self.path.parent.parent

    def release(self) -> None:
        """Give the lock back; the entry stays for the next attempt."""
        self.lock.close()


class Journal:
    """A run under way: what GMP-ECM says is on file before anybody counts it.

    `process` is GMP-ECM's (process id, time of its start), by which a killed agent's successor finds what still runs.
    """

    def __init__(self, root: Path, key: str, order: dict[str, Any], process: tuple[int, float] | None = None) -> None:
        self.path = root / RUNNING / f"{key}.jsonl"
        self.records: list[dict[str, Any]] = []
        self._file = write_durably(self.path, json_line({"order": order, "process": process}))
        self._synced = time.monotonic()

    def append(self, seconds: float, line: str) -> None:
        """Add a line of output, `seconds` after the start of the run."""
        record = {"seconds": round(seconds, 3), "line": line}
        self._file.write(json_line(record))
        self._file.flush()  # from here the line is the kernel's, and outlives this process
        self.records.append(record)
        if time.monotonic() - self._synced >= SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def remove(self) -> None:
        """Forget the run; its payload is pending by now, or it did nothing."""
        remove_durably(self.path)
        self._file.close()


def prepare(root: Path) -> None:
    """Make the spool's directories, and sweep up what a crash left half-written long ago."""
    for name in (RUNNING, PENDING, REJECTED, LEASES):
        (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in (root / name).glob(".*.new"):
            if time.time() - leftover.stat().st_mtime > STALE:
                leftover.unlink(missing_ok=True)


def put(root: Path, key: str, server: str, payload: dict[str, Any]) -> Entry:
    """Write a payload to `pending/`; it is on the disk when this returns, and locked for the caller."""
    path = root / PENDING / f"{key}.json"
    lock = write_durably(path, json_line({"key": key, "server": server, "payload": payload}))
    return Entry(key, server, payload, path, lock)


def pending(root: Path, server: str) -> Iterator[Entry]:
    """The entries for `server` that nobody else is sending, oldest first, each locked for the caller."""
    for path in sorted((root / PENDING).glob("*.json"), key=modified):
        lock = open_locked(path)
        if lock is None:
            continue
        content = json.loads(lock.read())
        if content["server"] != server:
            lock.close()
            continue
        yield Entry(content["key"], content["server"], content["payload"], path, lock)


def others(root: Path, server: str) -> dict[str, int]:
    """How many entries wait for servers other than this one."""
    counts: dict[str, int] = {}
    for path in (root / PENDING).glob("*.json"):
        try:
            meant_for = json.loads(path.read_bytes())["server"]
        except FileNotFoundError:
            continue
        if meant_for != server:
            counts[meant_for] = counts.get(meant_for, 0) + 1
    return counts


def abandoned(root: Path) -> Iterator[tuple[Path, dict[str, Any], list[dict[str, Any]]]]:
    """Runs whose agent is gone: (journal's path, its head, its records); locked while the caller looks at one.

    The head has the run's `order` and `process`.
    """
    for path in sorted((root / RUNNING).glob("*.jsonl"), key=modified):
        lock = open_locked(path)
        if lock is None:
            continue
        with lock:
            head, *records = read_lines(lock.read())
            yield path, head, records


def settle(entry: Entry) -> None:
    """The server has the result for good: forget it."""
    remove_durably(entry.path)
    entry.release()


def reject(entry: Entry, status: int, answer: dict[str, Any]) -> Path:
    """The server will never take the result: keep it aside, with the server's words. Returns where."""
    path = entry.root / REJECTED / entry.path.name
    refused = {"key": entry.key, "server": entry.server, "status": status, "answer": answer, "payload": entry.payload}
    write_durably(path, json_line(refused)).close()
    settle(entry)
    return path


def modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def json_line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def read_lines(content: bytes) -> list[dict[str, Any]]:
    """The whole lines of a journal: a killed agent may have left half a line at its end."""
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def open_locked(path: Path) -> IO[bytes] | None:
    """The file, locked; None if another agent has it or has just finished with it."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its owner may have removed it, or a recovery replaced it, between our open and our lock.
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None


def write_durably(path: Path, content: bytes) -> IO[bytes]:
    """Make `path` hold `content`, entirely or not at all whatever dies, and return it open and locked."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    file = new.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        new.rename(path)
        sync_directory(path.parent)
    except BaseException:
        file.close()
        new.unlink(missing_ok=True)
        raise
    return file


def remove_durably(path: Path) -> None:
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
