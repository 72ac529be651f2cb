"""A lease in our hands: the file in the spool that says so, and how many of its curves are done.

`leases/ID.jsonl` has the lease first, and then a line for each of its runs, written before the run's journal goes away:

    {"server": ..., "client_id": ..., "lease": {...}}
    {"key": KEY, "curves": 12, "factors": 0}
    {"closing": "abandon", "reason": ...}

So whenever an agent dies, every curve is in a journal or in here, and is run once. Who works on the lease holds the
lock on the file; a line may be added without it, for a run whose agent is gone.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from agent import spool
from agent.leases import Lease

Closing = Literal["complete", "abandon"]


@dataclass
class Held:
    """A lease, the lock on its file, and what has become of it.

    `runs` has the curves of each run by its key, `elsewhere` those that the server has counted and this spool knows
    nothing of (it was lost, or is another one), `running` the curves of the run under way, `over` the server's words
    when it has closed the lease, and `closing` how we want it closed, and why.
    """

    lease: Lease
    path: Path
    lock: IO[bytes]
    resumed: bool = False
    runs: dict[str, int] = field(default_factory=dict)
    elsewhere: int = 0
    running: int = 0
    over: str = ""
    closing: tuple[Closing, str] | None = None

    @property
    def curves_run(self) -> int:
        """Curves that need not be run again."""
        return sum(self.runs.values()) + self.elsewhere + self.running

    @property
    def left(self) -> int:
        return max(0, self.lease.curves - self.curves_run)

    def count(self, entry: spool.Entry) -> None:
        """A run's result is in the spool: its curves are done."""
        self._take(add_line(self.path, run_line(entry)))

    def close(self, how: Closing, reason: str) -> None:
        """Want the lease closed, now or by whoever takes it up."""
        self._take(add_line(self.path, {"closing": how, "reason": reason}))

    def _take(self, line: dict[str, Any]) -> None:
        if "key" in line:
            self.runs[line["key"]] = line["curves"]
            if line["factors"] and self.closing is None:
                self.closing = ("complete", "a factor was found")
        elif "closing" in line:
            self.closing = (line["closing"], line["reason"])

    def release(self) -> None:
        """Give the lock back; the lease stays, to be taken up again."""
        self.lock.close()

    def settle(self) -> None:
        """All curves are done: forget the lease as soon as the server has counted them.

        Until then its list of our leases shows it as open, and only the file says that there is nothing left to run.
        """
        if any((self.path.parent.parent / spool.PENDING / f"{key}.json").exists() for key in self.runs):
            self.release()
        else:
            self.forget()

    def forget(self) -> None:
        """The lease is closed, or needs nothing more of us."""
        spool.remove_durably(self.path)
        self.release()


def take(root: Path, server: str, client_id: str, lease: Lease) -> Held | None:
    """Put a lease that the server gave us into the spool; None if it is there already."""
    path = root / spool.LEASES / f"{lease.work_id}.jsonl"
    head = {"server": server, "client_id": client_id, "lease": asdict(lease)}
    # Written whole and linked to its name, which fails if another agent was first.
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
    return Held(lease, path, lock)


def take_up(root: Path, server: str, client_id: str) -> Iterator[Held]:
    """The leases in the spool that nobody works on, oldest first, each locked for the caller.

    The journals of killed agents must have been recovered *after* this gives the lock, so the caller reads the lines
    with read(), which does it in that order.
    """
    for path in sorted((root / spool.LEASES).glob("*.jsonl"), key=spool.modified):
        lock = spool.open_locked(path)
        if lock is None:
            continue
        try:
            head = json.loads(lock.readline())
            lease = Lease(**head["lease"])
        except (ValueError, KeyError, TypeError):
            # Not one of ours, or of another version; the server's status has the lease if it is open.
            spool.remove_durably(path)
            lock.close()
            continue
        if (head["server"], head["client_id"]) != (server, client_id):
            lock.close()
            continue
        yield Held(lease, path, lock, resumed=True)


def read(held: Held) -> None:
    """Read what has been done of a lease that was taken up."""
    for line in held.path.read_bytes().splitlines()[1:]:
        # A full disk leaves half a line, which says nothing; its run's journal is still there.
        with contextlib.suppress(ValueError):
            held._take(json.loads(line))


def note(root: Path, work_id: str, entry: spool.Entry) -> None:
    """Count a killed agent's run on its lease, if the lease is in this spool. Counting twice counts once."""
    path = root / spool.LEASES / f"{work_id}.jsonl"
    with contextlib.suppress(FileNotFoundError):
        add_line(path, run_line(entry))


def run_line(entry: spool.Entry) -> dict[str, Any]:
    results = entry.payload["results"]
    return {"key": entry.key, "curves": results["curves_completed"], "factors": len(results["factors_found"])}


def add_line(path: Path, line: dict[str, Any]) -> dict[str, Any]:
    """Add a line, on the disk when this returns; what a full disk left of the one before does not touch it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "ab") as file:
        file.write(b"\n" + spool.json_line(line))
        file.flush()
        os.fsync(file.fileno())
    return line
