"""One stage of some curves on disk, from its beginning until the server has all of it: a directory in the spool.

    residues/KEY/task.json    what it is, and how far: saved whole before and after every step that cannot be repeated
    residues/KEY/...          GMP-ECM's save files and outputs

KEY is the Idempotency-Key of its result. Whoever works on a task holds its lock; a killed agent's is taken up by the
next one of the same name, which ends what still runs of it first.
"""

import fcntl
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from agent import spool
from agent.run import end_orphan

RESIDUES = "residues"


@dataclass
class Task:
    """A task in our hands. `said` is what task.json says."""

    path: Path
    said: dict[str, Any]
    lock: IO[bytes]

    @property
    def key(self) -> str:
        return self.path.name

    def save(self, **changes: Any) -> None:
        """Note how far it is; on the disk when this returns."""
        self.said |= changes
        spool.write_durably(self.path / "task.json", spool.json_line(self.said)).close()

    def end(self) -> None:
        """Forget it: the server has all of it, or wants none."""
        # Without its task.json a directory is nobody's, whatever else is still in it.
        spool.remove_durably(self.path / "task.json")
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()

    def release(self) -> None:
        """Leave it to the next start."""
        self.lock.close()


def begin(root: Path, **said: Any) -> Task:
    """A new task."""
    path = root / RESIDUES / str(uuid.uuid4())
    path.mkdir(parents=True, mode=0o700)
    lock = (path / "lock").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    task = Task(path, {"started": time.time(), **said}, lock)
    task.save()
    return task


def left_behind(root: Path, kind: str, server: str, client_id: str) -> Iterator[Task]:
    """Tasks of that kind that an agent of this name has left, oldest first; what still runs of them is ended."""
    _sweep(root)
    for path in sorted((root / RESIDUES).glob("*/task.json"), key=spool.modified):
        lock = _locked(path.parent)
        if lock is None:
            continue
        try:
            said = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):  # it has just been ended
            lock.close()
            continue
        if (said["kind"], said["server"], said["client_id"]) != (kind, server, client_id):
            lock.close()
            continue
        for process in said.get("processes", []):
            end_orphan(*process)
        yield Task(path.parent, said, lock)


def _sweep(root: Path) -> None:
    """Remove what was left of a task by a death in end(), or in begin() before it could be one."""
    for path in (root / RESIDUES).glob("*"):
        if not (path / "task.json").exists() and time.time() - spool.modified(path) > spool.STALE:
            shutil.rmtree(path, ignore_errors=True)


def _locked(path: Path) -> IO[bytes] | None:
    lock = None
    with suppress(OSError):
        lock = (path / "lock").open("r+b")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    if lock is not None:
        lock.close()
    return None
