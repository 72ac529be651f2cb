"""What stage 1 and stage 2 share: one run of `agent stage1` or `agent stage2`, and the steps that both end with.

Stage 1 runs here and its residue goes to the server, or a residue comes from the server and its stage 2 runs here. The
task records each step before the next one begins (agent.stage_task), so a killed agent continues at the step where it
was: its curves are read from GMP-ECM's files, a result is sent under the task's own key, the server knows an uploaded
residue by its checksum, and completing a residue twice changes nothing.

    stage 1:  run with -save  ->  payload  ->  attempt  ->  residue uploaded
    stage 2:  claimed  ->  downloaded  ->  run with -resume  ->  payload  ->  attempt  ->  completed
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import requests

from agent import result_delivery, retrying, spool
from agent.parallel_ecm import CombinedOutput
from agent.residue_transfer import TransferResult
from agent.stage_task import StageTask

STAGE1, STAGE2 = "stage1", "stage2"
SAVE_FILE = "residue.save"


@dataclass
class StageSession:
    """The settings and the counts of one command. request_stop() may be called from a signal handler."""

    server: str
    client_id: str
    ecm: Path
    root: Path
    threads: int
    timeout: float
    report: Callable[[str], None]
    on_poll: Callable[[CombinedOutput], None]
    on_factors: Callable[[str, CombinedOutput], None]
    http: requests.Session = field(default_factory=requests.Session)
    stop_requested: bool = False
    curves: int = 0
    factors: int = 0
    done: int = 0
    refused: int = 0
    waiting: int = 0
    failure: str = ""

    def request_stop(self) -> None:
        self.stop_requested = True


def deliver_result(session: StageSession, task: StageTask) -> int | None:
    """Send a task's result and return its attempt id; return None if the result waits or was refused."""
    if "attempt_id" in task.fields:
        # The agent died between the two steps below; another agent that sends the entry gets the same answer.
        spool.remove_durably(session.root / spool.PENDING / f"{task.key}.json")
        return int(task.fields["attempt_id"])
    entry = spool.add_entry(session.root, task.key, session.server, task.fields["payload"])
    answer = result_delivery.deliver(entry, timeout=session.timeout, session=session.http)
    attempt_id = answer.body.get("attempt_id")
    if answer.verdict == "settled" and isinstance(attempt_id, int):
        task.save(attempt_id=attempt_id)
        spool.remove_entry(entry)
        session.report(f"Result confirmed: {answer.message}")
        return attempt_id
    if answer.verdict == "refused":
        session.refused += 1
        path = spool.reject_entry(entry, answer.status, answer.body)
        session.report(f"The server rejected the result; it is kept in {path}: {answer.message}")
        task.remove()
        return None
    entry.release()
    leave_for_next_start(session, task, f"The result is not confirmed yet: {answer.message}")
    return None


def leave_for_next_start(session: StageSession, task: StageTask, reason: str) -> None:
    """Release a task that cannot be finished now, and report why."""
    session.waiting += 1
    session.report(f"{reason}; the next start continues")
    task.release()


def call_server(session: StageSession, call: Callable[[], TransferResult]) -> TransferResult:
    """Repeat a call until the server answers or the session's timeout is over."""
    deadline = time.monotonic() + session.timeout
    return retrying.call_until_answered(call, lambda: deadline)


def read_save_records(file: Path) -> list[str]:
    """Return the complete records of a save file, each of one or several lines.

    A killed GMP-ECM may have left half a line at the end; a missing file has no records.
    """
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
