"""A lease of this agent: its file in the spool, and how many of its curves are done.

`leases/ID.jsonl` begins with the lease. Each run of curves adds a line before the run's journal is deleted:

    {"server": ..., "client_id": ..., "lease": {...}}
    {"key": KEY, "curves": 12, "factors": 0}
    {"closing": "abandon", "reason": ...}

So whenever an agent dies, every curve is in a journal or in this file, and is run once. The agent that works on a lease
holds the lock on its file; a line about the run of a killed agent may be added without the lock.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from agent import spool
from agent.lease_api import Lease

Closing = Literal["complete", "abandon"]


@dataclass
class LocalLease:
    """A lease, the lock on its file, and its progress.

    `runs` has the completed curves of each run by its key. `curves_elsewhere` are curves that the server
    counted and that no run in this spool has. `curves_running` are curves that the current run has completed.
    `closed_by_server` is the server's message if it has closed the lease. `closing` is how the agent wants to close it,
    and why.
    """

    lease: Lease
    path: Path
    lock: IO[bytes]
    resumed: bool = False
    runs: dict[str, int] = field(default_factory=dict)
    curves_elsewhere: int = 0
    curves_running: int = 0
    closed_by_server: str = ""
    closing: tuple[Closing, str] | None = None

    @property
    def curves_done(self) -> int:
        """The curves that need not be run any more."""
        return sum(self.runs.values()) + self.curves_elsewhere + self.curves_running

    @property
    def curves_left(self) -> int:
        return max(0, self.lease.curves - self.curves_done)

    def add_run(self, entry: spool.SpoolEntry) -> None:
        """Record the curves of a run whose result is in the spool."""
        self._apply(append_line(self.path, run_line(entry)))

    def request_closing(self, how: Closing, reason: str) -> None:
        """Record that the lease is to be closed, by this agent or the next one."""
        self._apply(append_line(self.path, {"closing": how, "reason": reason}))

    def read_runs(self) -> None:
        """Read the lines of a lease that another agent has worked on."""
        for line in self.path.read_bytes().splitlines()[1:]:
            # A full disk may have left half a line; the journal of its run is still there.
            with contextlib.suppress(ValueError):
                self._apply(json.loads(line))

    def _apply(self, line: dict[str, Any]) -> None:
        if "key" in line:
            self.runs[line["key"]] = line["curves"]
            if line["factors"] and self.closing is None:
                self.closing = ("complete", "a factor was found")
        elif "closing" in line:
            self.closing = (line["closing"], line["reason"])

    def release(self) -> None:
        """Release the lock; the lease stays in the spool and can be resumed."""
        self.lock.close()

    def remove_when_counted(self) -> None:
        """Delete a lease whose curves are all done, unless a result of it is still pending.

        Until the server has counted that result it lists the lease as open, and only the file shows that no curve is
        left to run.
        """
        if any((self.path.parent.parent / spool.PENDING / f"{key}.json").exists() for key in self.runs):
            self.release()
        else:
            self.remove()

    def remove(self) -> None:
        """Delete a lease that is closed, or for which the agent has nothing left to do."""
        spool.remove_durably(self.path)
        self.release()


def store_lease(root: Path, server: str, client_id: str, lease: Lease) -> LocalLease | None:
    """Write a new lease to the spool and lock it; return None if the spool has it already."""
    path = root / spool.LEASES / f"{lease.work_id}.jsonl"
    head = {"server": server, "client_id": client_id, "lease": asdict(lease)}
    # The link to the final name fails if another agent was first.
    written = path.with_name(f".{path.name}.{os.getpid()}.taken.new")
    lock = spool.write_durably(written, spool.json_line(head))
    try:
        path.hardlink_to(written)
        spool.sync_directory(path.parent)
    except FileExistsError:
        lock.close()
        return None
    finally:
        written.unlink(missing_ok=True)
    return LocalLease(lease, path, lock)


def lock_stored_leases(root: Path, server: str, client_id: str) -> Iterator[LocalLease]:
    """Lock and yield the leases in the spool that no agent works on, oldest first.

    The caller must recover the journals of killed agents *after* it has the lock, and then call read_runs().
    """
    for path in sorted((root / spool.LEASES).glob("*.jsonl"), key=spool.modification_time):
        lock = spool.open_locked(path)
        if lock is None:
            continue
        try:
            head = json.loads(lock.readline())
            lease = Lease(**head["lease"])
        except (ValueError, KeyError, TypeError):
            # Another version wrote it; if the lease is open, the server's list has it.
            spool.remove_durably(path)
            lock.close()
            continue
        if (head["server"], head["client_id"]) != (server, client_id):
            lock.close()
            continue
        yield LocalLease(lease, path, lock, resumed=True)


def record_recovered_run(root: Path, work_id: str, entry: spool.SpoolEntry) -> None:
    """Add a killed agent's run to its lease, if this spool has the lease. A run that is added twice counts once."""
    path = root / spool.LEASES / f"{work_id}.jsonl"
    with contextlib.suppress(FileNotFoundError):
        append_line(path, run_line(entry))


def run_line(entry: spool.SpoolEntry) -> dict[str, Any]:
    """Return the line that records a run."""
    results = entry.payload["results"]
    return {"key": entry.key, "curves": results["curves_completed"], "factors": len(results["factors_found"])}


def append_line(path: Path, line: dict[str, Any]) -> dict[str, Any]:
    """Append a line to a lease's file, sync it, and return it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "ab") as file:
        # It begins with a line break, because a full disk may have left half a line before it.
        file.write(b"\n" + spool.json_line(line))
        file.flush()
        os.fsync(file.fileno())
    return line
