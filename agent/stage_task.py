"""A stage task: one stage of some curves, from its start until the server has its result, as a directory in the spool.

    residues/KEY/task.json    what to run and its progress; saved before and after every step that cannot be repeated
    residues/KEY/...          GMP-ECM's save files and outputs

KEY is the Idempotency-Key of the result. The agent that works on a task holds its lock. The next agent of the same name
resumes the task of a killed agent, after it has killed the processes that are left of it.
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
from agent.ecm_run import kill_orphan

RESIDUES = "residues"


@dataclass
class StageTask:
    """A locked task; `fields` is the content of its task.json."""

    path: Path
    fields: dict[str, Any]
    lock: IO[bytes]

    @property
    def key(self) -> str:
        return self.path.name

    def save(self, **changes: Any) -> None:
        """Change fields and write task.json; it is on the disk when this returns."""
        self.fields |= changes
        spool.write_durably(self.path / "task.json", spool.json_line(self.fields)).close()

    def remove(self) -> None:
        """Delete a task whose result the server has processed or refused."""
        # Without its task.json a directory is no task, so a death in rmtree() leaves nothing to resume.
        spool.remove_durably(self.path / "task.json")
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()

    def release(self) -> None:
        """Release the lock; the next start resumes the task."""
        self.lock.close()


def create_task(root: Path, **fields: Any) -> StageTask:
    """Create a task with these fields, lock it and return it."""
    path = root / RESIDUES / str(uuid.uuid4())
    path.mkdir(parents=True, mode=0o700)
    lock = (path / "lock").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    task = StageTask(path, {"started": time.time(), **fields}, lock)
    task.save()
    return task


def lock_abandoned_tasks(root: Path, kind: str, server: str, client_id: str) -> Iterator[StageTask]:
    """Lock and yield the tasks of this kind that no agent works on, oldest first; kill what still runs of them."""
    _delete_stale_directories(root)
    for path in sorted((root / RESIDUES).glob("*/task.json"), key=spool.modification_time):
        lock = _lock(path.parent)
        if lock is None:
            continue
        try:
            fields = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):  # another agent has just removed it
            lock.close()
            continue
        if (fields["kind"], fields["server"], fields["client_id"]) != (kind, server, client_id):
            lock.close()
            continue
        for process in fields.get("processes", []):
            kill_orphan(*process)
        yield StageTask(path.parent, fields, lock)


def _delete_stale_directories(root: Path) -> None:
    """Delete directories without a task.json, which a death in remove() or create_task() left."""
    for path in (root / RESIDUES).glob("*"):
        age = time.time() - spool.modification_time(path)
        if not (path / "task.json").exists() and age > spool.STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _lock(path: Path) -> IO[bytes] | None:
    lock = None
    with suppress(OSError):
        lock = (path / "lock").open("r+b")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    if lock is not None:
        lock.close()
    return None
