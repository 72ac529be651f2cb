"""The two stages apart: stage 1 here and its residue to the server, or a residue from the server and its stage 2 here.

Each step is noted in the task before the next one begins (agent.tasks), so that an agent that is killed goes on where
it was: what had been run is read from GMP-ECM's files, a result is sent under the task's own key, a residue that the
server has already is known by its checksum, and completing one twice changes nothing.

    stage 1:  run with -save  ->  payload  ->  attempt  ->  residue uploaded
    stage 2:  claimed  ->  downloaded  ->  run with -resume  ->  payload  ->  attempt  ->  completed
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import requests

from agent import asking, client, spool
from agent.parallel import Together
from agent.residues import Said
from agent.tasks import Task

STAGE1, STAGE2 = "stage1", "stage2"
SAVED = "residue.save"


@dataclass
class Shift:
    """Who runs what, where; and what came of it. request() ends it and may be called from a signal handler."""

    server: str
    client_id: str
    ecm: Path
    root: Path
    threads: int
    patience: float
    say: Callable[[str], None]
    on_look: Callable[[Task, Together], None]
    on_factors: Callable[[str, Together], None]
    session: requests.Session = field(default_factory=requests.Session)
    requested: bool = False
    curves: int = 0
    factors: int = 0
    done: int = 0
    refused: int = 0
    waiting: int = 0
    failure: str = ""

    def request(self) -> None:
        self.requested = True


def deliver(shift: Shift, task: Task) -> int | None:
    """The attempt that a task's result became; None if it waits or was refused."""
    if "attempt_id" in task.said:
        # Of a death between the two steps below; whoever sends it meanwhile is told the same.
        spool.remove_durably(shift.root / spool.PENDING / f"{task.key}.json")
        return int(task.said["attempt_id"])
    entry = spool.put(shift.root, task.key, shift.server, task.said["payload"])
    answer = client.deliver(entry, patience=shift.patience, session=shift.session)
    attempt_id = answer.body.get("attempt_id")
    if answer.verdict == "settled" and isinstance(attempt_id, int):
        task.save(attempt_id=attempt_id)
        spool.settle(entry)
        shift.say(f"result settled: {answer.message}")
        return attempt_id
    if answer.verdict == "refused":
        shift.refused += 1
        shift.say(f"the result was refused and is kept in {spool.reject(entry, answer.status, answer.body)}")
        task.end()
        return None
    entry.release()
    leave(shift, task, f"the result is not settled yet: {answer.message}")
    return None


def leave(shift: Shift, task: Task, why: str) -> None:
    shift.waiting += 1
    shift.say(f"{why}; the next start goes on with it")
    task.release()


def insist(shift: Shift, call: Callable[[], Said]) -> Said:
    """Call until the server answers, or the patience is over."""
    until = time.monotonic() + shift.patience
    return asking.insist(call, lambda: until)


def records(file: Path) -> list[str]:
    """The whole records of a save file, each as a line or several; a killed GMP-ECM may have left half of one."""
    records: list[str] = []
    try:
        content = file.read_text("ascii", "replace")
    except FileNotFoundError:
        return records
    for line in content[: content.rfind("\n") + 1].splitlines(keepends=True):
        if not line.strip() or line.startswith("#"):
            continue
        if "METHOD=" in line or "QX=" in line or not records:
            records.append(line)
        else:
            records[-1] += line
    return records
