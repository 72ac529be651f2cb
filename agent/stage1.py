"""Stage 1 here: curves run with -save, their result sent, and the residue uploaded (agent.stages says how it lasts)."""

import threading
import time

import requests

from agent import gmp_ecm, leases, parallel, residues, spool, stages, tasks
from agent.gmp_ecm import EcmFailed
from agent.leases import Lease
from agent.parallel import Part, Together
from agent.residues import Said
from agent.stages import Shift
from agent.tasks import Task

HEARTBEAT_SECONDS = 60.0
DEFAULT_PARAMETRIZATION = 1
# Of a residue: so many sigmas go into its result, and it should stay below the server's 50 MB. A line of a save file
# has X, as long as the number, the number itself, and tags, names and times.
MOST_CURVES, MOST_BYTES, BYTES_BESIDES = 10_000, 40_000_000, 400


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
        kind=stages.STAGE1,
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
        parallel.run_parts(task, parts, beat.stopped, lambda together: _look(shift, task, together, beat))
    except EcmFailed as error:
        shift.failure = str(error)
        shift.say(shift.failure)
    send_stage1(shift, task)


def send_stage1(shift: Shift, task: Task) -> None:
    """Send a task's result, then its residue; what a killed agent has left is taken up here."""
    if "payload" not in task.said and not _conclude_stage1(shift, task):
        return
    attempt_id = stages.deliver(shift, task)
    if attempt_id is None:
        return
    _close_lease(shift, task)
    if task.said["residue_curves"]:
        saved = task.path / stages.SAVED

        def upload() -> Said:
            return residues.upload(shift.session, shift.server, shift.client_id, saved, attempt_id)

        said = stages.insist(shift, upload)
        if said.state == "unclear":
            stages.leave(shift, task, f"the residue waits to be uploaded: {said.message}")
            return
        if said.state == "refused":
            kept = shift.root / spool.REJECTED / f"{task.key}.save"
            spool.write_durably(kept, saved.read_bytes()).close()
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
    records = [record for name in said["saves"] for record in stages.records(task.path / name)]
    spool.write_durably(task.path / stages.SAVED, "".join(records).encode()).close()
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
    if shift.requested or shift.failure:
        why = shift.failure or "the agent was stopped"
        leases.abandon(shift.session, shift.server, shift.client_id, work_id, why)
    else:
        leases.complete(shift.session, shift.server, shift.client_id, work_id)


class _Heartbeat:
    """Tells the server now and then how far a run of stage 1 is, by a thread that nobody waits for.

    What it hears may end the run: that the lease is over.
    """

    def __init__(self, shift: Shift, task: Task) -> None:
        self._over = False
        self._shift, self._work_id = shift, task.said["work_id"]
        self._thread: threading.Thread | None = None
        self._next = time.monotonic() + HEARTBEAT_SECONDS

    def stopped(self) -> bool:
        return self._over or self._shift.requested

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
            self._over = True


def _look(shift: Shift, task: Task, together: Together, beat: _Heartbeat) -> None:
    beat.beat(together.curves_completed)
    shift.on_look(task, together)
