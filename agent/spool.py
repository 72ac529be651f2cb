"""The spool: a directory that keeps results from their first curve until the server has processed them.

    running/KEY.jsonl    a run in progress: its order, then GMP-ECM's lines as they come
    pending/KEY.json     the payload of a finished run that the server has not processed yet
    rejected/KEY.json    a payload that the server will never accept, with the server's answer
    leases/ID.jsonl      a lease of this agent, and the curves that each of its runs completed (agent.local_lease)
    residues/KEY/        one stage of some curves: its files, and task.json with its progress (agent.stage_task)

KEY is the run's Idempotency-Key, so a result that is sent twice after a crash counts once. A file appears under its
name only when it is complete and on the disk, and is removed only after its successor is. A process that works on a
file holds its lock (flock), which the kernel releases when the process ends: several agents can share a spool.
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
SYNC_SECONDS = 1.0  # at most so much output is lost in a power failure; a killed process loses none
STALE_SECONDS = 86400.0  # the writer of an unfinished temporary file of this age is gone


@dataclass
class SpoolEntry:
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
        """Release the lock; the entry stays in the spool."""
        self.lock.close()


class Journal:
    """The file of a run in progress. A line of GMP-ECM is in the file before its curve is counted.

    `process` is GMP-ECM's (process id, start time), by which the next agent finds a process that outlived this one.
    """

    def __init__(self, root: Path, key: str, order: dict[str, Any], process: tuple[int, float] | None = None) -> None:
        self.path = root / RUNNING / f"{key}.jsonl"
        self.records: list[dict[str, Any]] = []
        self._file = write_durably(self.path, json_line({"order": order, "process": process}))
        self._synced = time.monotonic()

    def append(self, seconds: float, line: str) -> None:
        """Append a line of output that came `seconds` after the start of the run."""
        record = {"seconds": round(seconds, 3), "line": line}
        self._file.write(json_line(record))
        self._file.flush()  # from here on the kernel has the line, and this process may die
        self.records.append(record)
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def remove(self) -> None:
        """Delete the journal of a run whose payload is pending, or that completed nothing."""
        remove_durably(self.path)
        self._file.close()


def prepare_spool(root: Path) -> None:
    """Create the spool's directories, and delete stale temporary files of crashed agents."""
    for name in (RUNNING, PENDING, REJECTED, LEASES):
        (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in (root / name).glob(".*.new"):
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink(missing_ok=True)


def add_entry(root: Path, key: str, server: str, payload: dict[str, Any]) -> SpoolEntry:
    """Write a payload to `pending/` and return its entry, locked; the payload is on the disk then."""
    path = root / PENDING / f"{key}.json"
    lock = write_durably(path, json_line({"key": key, "server": server, "payload": payload}))
    return SpoolEntry(key, server, payload, path, lock)


def lock_pending_entries(root: Path, server: str) -> Iterator[SpoolEntry]:
    """Lock and yield the entries for `server` that no other process sends, oldest first."""
    for path in sorted((root / PENDING).glob("*.json"), key=modification_time):
        lock = open_locked(path)
        if lock is None:
            continue
        content = json.loads(lock.read())
        if content["server"] != server:
            lock.close()
            continue
        yield SpoolEntry(content["key"], content["server"], content["payload"], path, lock)


def count_entries_of_other_servers(root: Path, server: str) -> dict[str, int]:
    """Return the number of pending entries by server, for every server but this one."""
    counts: dict[str, int] = {}
    for path in (root / PENDING).glob("*.json"):
        try:
            destination = json.loads(path.read_bytes())["server"]
        except FileNotFoundError:
            continue
        if destination != server:
            counts[destination] = counts.get(destination, 0) + 1
    return counts


def lock_abandoned_runs(root: Path) -> Iterator[tuple[Path, dict[str, Any], list[dict[str, Any]]]]:
    """Yield (path, head, records) of each journal whose agent is gone, locked until the next one is taken.

    The head has the run's `order` and `process`.
    """
    for path in sorted((root / RUNNING).glob("*.jsonl"), key=modification_time):
        lock = open_locked(path)
        if lock is None:
            continue
        with lock:
            head, *records = read_journal_lines(lock.read())
            yield path, head, records


def remove_entry(entry: SpoolEntry) -> None:
    """Delete an entry that the server has processed."""
    remove_durably(entry.path)
    entry.release()


def reject_entry(entry: SpoolEntry, status: int, answer: dict[str, Any]) -> Path:
    """Move an entry that the server will never accept to `rejected/`, with the server's answer; return its new path."""
    path = entry.root / REJECTED / entry.path.name
    refused = {"key": entry.key, "server": entry.server, "status": status, "answer": answer, "payload": entry.payload}
    write_durably(path, json_line(refused)).close()
    remove_entry(entry)
    return path


def modification_time(path: Path) -> float:
    """Return when a file was changed (seconds since 1970), or 0 if it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def json_line(value: dict[str, Any]) -> bytes:
    """Return `value` as one line of JSON."""
    return json.dumps(value).encode() + b"\n"


def read_journal_lines(content: bytes) -> list[dict[str, Any]]:
    """Return the complete lines of a journal; a killed agent may have left half a line at its end."""
    complete = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in complete.splitlines()]


def open_locked(path: Path) -> IO[bytes] | None:
    """Open and lock a file; return None if another agent has locked or removed it."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between our open and our lock its owner may have removed it, or a recovery replaced it.
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None


def write_durably(path: Path, content: bytes) -> IO[bytes]:
    """Replace the content of `path` at once, whatever dies meanwhile, and return the file open and locked."""
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
    """Delete a file if it exists; after a power failure it is still deleted."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Write a directory's own changes (new, renamed and deleted files) to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
