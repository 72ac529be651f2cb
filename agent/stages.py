"""The two stages apart: stage 1 here and its residue to the server, or a residue from the server and its stage 2 here.

Each step is noted in the task before the next one begins (agent.tasks), so that an agent that is killed goes on where
it was: what had been run is read from GMP-ECM's files, a result is sent under the task's own key, a residue that the
server has already is known by its checksum, and completing one twice changes nothing.

    stage 1:  run with -save  ->  payload  ->  attempt  ->  residue uploaded
    stage 2:  claimed  ->  downloaded  ->  run with -resume  ->  payload  ->  attempt  ->  completed
"""

import random
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import requests

from agent import client, gmp_ecm, leases, parallel, residues, spool, tasks
from agent.gmp_ecm import EcmFailed
from agent.leases import Lease
from agent.parallel import Part, Stop, Together
from agent.residues import Said
from agent.tasks import Task

STAGE1, STAGE2 = "stage1", "stage2"
SAVED = "residue.save"
HEARTBEAT_SECONDS = 60.0
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
# So much of a residue must have had its stage 2 for the server to take it as done.
ENOUGH = 0.75
DEFAULT_PARAMETRIZATION = 1
# Of a residue: so many sigmas go into its result, and it should stay below the server's 50 MB. A line of a save file
# has X, as long as the number, the number itself, and tags, names and times.
MOST_CURVES, MOST_BYTES, BYTES_BESIDES = 10_000, 40_000_000, 400


@dataclass
class Shift:
    """Who runs what, where; and what came of it."""

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
    stop: Stop = field(default_factory=Stop)
    curves: int = 0
    factors: int = 0
    done: int = 0
    refused: int = 0
    waiting: int = 0
    failure: str = ""

    def request(self) -> None:
        self.stop.request()


# Stage 1 --------------------------------------------------------------------------------------------------------------


def begin_stage1(
    shift: Shift, *, composite: str, b1: int, curves: int, parametrization: int | None, work_id: str | None = None
) -> Task:
    """A task to run stage 1 of some curves."""
    # Never left to GMP-ECM: its save files say nothing of a parametrization that it chose itself, and stage 2 would run
    # on other curves (7.0.7; seen in the files, which then stand for parametrization 0).
    own = DEFAULT_PARAMETRIZATION if parametrization is None else parametrization
    places = range(len(parallel.shares(curves, shift.threads)))
    return tasks.begin(
        shift.root,
        kind=STAGE1,
        server=shift.server,
        client_id=shift.client_id,
        composite=composite,
        b1=b1,
        curves=curves,
        parametrization=own,
        work_id=work_id,
        outputs=[f"{place}.out" for place in places],
        saves=[f"{place}.save" for place in places],
    )


def of_lease(shift: Shift, lease: Lease, most: int | None) -> Task:
    """A task for a lease of stage 1, or for so much of it as goes into one residue; at most `most` curves."""
    in_one_file = MOST_BYTES // (BYTES_BESIDES + 2 * len(lease.composite))
    return begin_stage1(
        shift,
        composite=lease.composite,
        b1=lease.b1,
        curves=max(1, min(lease.curves, MOST_CURVES, in_one_file, most or MOST_CURVES)),
        parametrization=lease.parametrization,
        work_id=lease.work_id,
    )


def run_stage1(shift: Shift, task: Task) -> None:
    """Run a new task's curves, and send what came of them."""
    said = task.said
    parts = [
        Part(
            gmp_ecm.command(
                shift.ecm,
                b1=said["b1"],
                b2=0,
                curves=curves,
                parametrization=said["parametrization"],
                save=task.path / save,
            ),
            said["composite"],
            task.path / output,
        )
        for curves, save, output in zip(
            parallel.shares(said["curves"], len(said["saves"])), said["saves"], said["outputs"], strict=True
        )
    ]
    beat = _Heartbeat(shift, task)
    try:
        parallel.run_parts(task, parts, beat, lambda together: _look(shift, task, together, beat))
    except EcmFailed as error:
        shift.failure = str(error)
        shift.say(shift.failure)
    send_stage1(shift, task)


def send_stage1(shift: Shift, task: Task) -> None:
    """Send a task's result, then its residue; what a killed agent has left is taken up here."""
    if "payload" not in task.said and not _conclude_stage1(shift, task):
        return
    attempt_id = _deliver(shift, task)
    if attempt_id is None:
        return
    _close_lease(shift, task)
    if task.said["residue_curves"]:
        saved = task.path / SAVED

        def upload() -> Said:
            return residues.upload(shift.session, shift.server, shift.client_id, saved, attempt_id)

        said = _insist(shift, upload)
        if said.state == "unclear":
            _leave(shift, task, f"the residue waits to be uploaded: {said.message}")
            return
        if said.state == "refused":
            kept = shift.root / spool.REJECTED / f"{task.key}.save"
            shutil.copyfile(saved, kept)
            shift.refused += 1
            shift.say(f"the residue was refused and is kept in {kept}: {said.message}")
        else:
            shift.say(f"residue of {task.said['residue_curves']} curves: {said.message}")
    shift.done += 1
    task.end()


def _conclude_stage1(shift: Shift, task: Task) -> bool:
    """Join the residues and note the result; False if nothing was done."""
    said = task.said
    together = parallel.read_outputs([task.path / name for name in said["outputs"]])
    records = [record for name in said["saves"] for record in _records(task.path / name)]
    (task.path / SAVED).write_text("".join(records))
    # A line of the save file outlives the line of output that says so, and the other way round.
    curves = max(together.curves_completed, len(records))
    if not curves and not together.factors:
        _close_lease(shift, task)
        task.end()
        return False
    shift.curves += curves
    shift.factors += len(together.factors)
    if together.factors:
        shift.on_factors(said["composite"], together)
    payload = parallel.result_payload(task, together, b2=0, curves=curves, work_id=said["work_id"])
    task.save(payload=payload, residue_curves=len(records))
    return True


def _close_lease(shift: Shift, task: Task) -> None:
    """Say that no more curves of the lease will come; if this is not heard, it runs out."""
    work_id = task.said["work_id"]
    if work_id is None:
        return
    if shift.stop.requested or shift.failure:
        why = shift.failure or "the agent was stopped"
        leases.abandon(shift.session, shift.server, shift.client_id, work_id, why)
    else:
        leases.complete(shift.session, shift.server, shift.client_id, work_id)


def _records(file: Path) -> list[str]:
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


# Stage 2 --------------------------------------------------------------------------------------------------------------


def begin_stage2(shift: Shift, residue: dict[str, object], b2: int | None) -> Task:
    """A task to run stage 2 of a residue that has just been claimed. `b2` None: GMP-ECM's default."""
    return tasks.begin(
        shift.root,
        kind=STAGE2,
        server=shift.server,
        client_id=shift.client_id,
        b2=b2,
        parts=[],
        outputs=[],
        downloaded=False,
        **residue,
    )


def run_stage2(shift: Shift, task: Task) -> None:
    """Do what is left of a task: download, run, send, complete."""
    said = task.said
    if "payload" not in said:
        if not _download(shift, task):
            return
        try:
            _resume_curves(shift, task)
        except EcmFailed as error:
            shift.failure = str(error)
            shift.say(shift.failure)
        if not _conclude_stage2(shift, task):
            return
    attempt_id = _deliver(shift, task)
    if attempt_id is None:
        return

    def complete() -> Said:
        return residues.complete(shift.session, shift.server, shift.client_id, said["residue_id"], attempt_id)

    confirmed = _insist(shift, complete)
    if confirmed.state == "unclear":
        _leave(shift, task, f"the residue waits to be completed: {confirmed.message}")
        return
    shift.say(confirmed.message)
    shift.done += confirmed.state == "done"
    task.end()


def _download(shift: Shift, task: Task) -> bool:
    if task.said["downloaded"]:
        return True

    def download() -> Said:
        return residues.download(shift.session, shift.server, shift.client_id, task.said, task.path / SAVED)

    got = _insist(shift, download)
    if got.state == "done":
        task.save(downloaded=True)
        return True
    if got.state == "unclear":
        _leave(shift, task, got.message)
    else:
        shift.say(f"residue {task.said['residue_id']} cannot be had: {got.message}")
        _release(shift, task)
    return False


def _resume_curves(shift: Shift, task: Task) -> None:
    """Run stage 2 of the curves that have not had it, as the outputs so far say."""
    said = task.said
    if said["parts"]:
        left: list[str] = []
        for name, output in zip(said["parts"], said["outputs"], strict=True):
            # The curves of a part are run in the order of its file.
            left += _records(task.path / name)[parallel.read_outputs([task.path / output]).curves_completed :]
    else:
        left = _records(task.path / SAVED)
    before = parallel.read_outputs([task.path / name for name in said["outputs"]])
    if not left or before.factors:
        return
    parts = []
    first = len(said["parts"])
    for place, share in enumerate(parallel.shares(len(left), shift.threads), first):
        name = f"{place}.save"
        (task.path / name).write_text("".join(left[:share]))
        left = left[share:]
        command = gmp_ecm.resume_command(shift.ecm, saved=task.path / name, b1=said["b1"], b2=said["b2"])
        parts.append((name, Part(command, said["composite"], task.path / f"{place}.out")))
    task.save(
        parts=said["parts"] + [name for name, _ in parts],
        outputs=said["outputs"] + [part.output.name for _, part in parts],
    )
    parallel.run_parts(
        task, [part for _, part in parts], shift.stop, lambda together: shift.on_look(task, _sum(before, together))
    )


def _sum(before: Together, now: Together) -> Together:
    return Together(before.curves_completed + now.curves_completed, [*before.sigmas, *now.sigmas])


def _conclude_stage2(shift: Shift, task: Task) -> bool:
    """Note the result, or give the residue back if there is too little of one."""
    said = task.said
    together = parallel.read_outputs([task.path / name for name in said["outputs"]])
    if not together.factors and together.curves_completed < ENOUGH * said["curves"]:
        shift.say(f"residue {said['residue_id']} is given back: {together.curves_completed} of {said['curves']} curves")
        _release(shift, task)
        return False
    shift.curves += together.curves_completed
    shift.factors += len(together.factors)
    if together.factors:
        shift.on_factors(said["composite"], together)
    payload = parallel.result_payload(
        task,
        together,
        b2=said["b2"],
        curves=together.curves_completed,
        residue_id=said["residue_id"],
        residue_checksum=said["checksum"],
    )
    payload["parameters"]["parametrization"] = said["parametrization"]
    task.save(payload=payload)
    return True


def _release(shift: Shift, task: Task) -> None:
    residue_id = task.said["residue_id"]
    said = _insist(shift, lambda: residues.release(shift.session, shift.server, shift.client_id, residue_id))
    if said.state == "unclear":
        shift.say(f"the claim could not be given back ({said.message}); it runs out by itself")
    task.end()


# Both -----------------------------------------------------------------------------------------------------------------


class _Heartbeat(Stop):
    """What ends a run of stage 1: the shift's end, or the server's word that its lease is over.

    The server is told now and then how far it is, by a thread that nobody waits for.
    """

    def __init__(self, shift: Shift, task: Task) -> None:
        super().__init__()
        self._shift, self._work_id = shift, task.said["work_id"]
        self._thread: threading.Thread | None = None
        self._next = time.monotonic() + HEARTBEAT_SECONDS

    @property
    def requested(self) -> bool:  # type: ignore[override]
        return self._over or self._shift.stop.requested

    @requested.setter
    def requested(self, value: bool) -> None:
        self._over = value

    def beat(self, curves: int) -> None:
        busy = self._thread is not None and self._thread.is_alive()
        if self._work_id is None or busy or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + HEARTBEAT_SECONDS
        self._thread = threading.Thread(target=self._tell, args=(curves,), daemon=True)
        self._thread.start()

    def _tell(self, curves: int) -> None:
        shift = self._shift
        standing = leases.progress(requests.Session(), shift.server, shift.client_id, self._work_id, curves)
        if standing.state == "over":
            shift.say(f"the server closed the lease: {standing.message}")
            self.request()


def _look(shift: Shift, task: Task, together: Together, beat: _Heartbeat) -> None:
    beat.beat(together.curves_completed)
    shift.on_look(task, together)


def _deliver(shift: Shift, task: Task) -> int | None:
    """The attempt that a task's result became; None if it waits or was refused."""
    if "attempt_id" in task.said:
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
    _leave(shift, task, f"the result is not settled yet: {answer.message}")
    return None


def _leave(shift: Shift, task: Task, why: str) -> None:
    shift.waiting += 1
    shift.say(f"{why}; the next start goes on with it")
    task.release()


def _insist(shift: Shift, call: Callable[[], Said]) -> Said:
    """Call until the server answers, or the patience is over."""
    until, delay = time.monotonic() + shift.patience, FIRST_DELAY
    while True:
        said = call()
        pause = max(said.retry_after, delay * random.uniform(0.5, 1.0))
        if said.state != "unclear" or time.monotonic() + pause > until:
            return said
        time.sleep(pause)
        delay = min(2 * delay, LONGEST_DELAY)
