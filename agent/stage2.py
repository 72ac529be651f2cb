"""Stage 2 here: a residue claimed, downloaded, run with -resume, and completed (agent.stages says how it lasts)."""

from agent import gmp_ecm, parallel, residues, stages, tasks
from agent.gmp_ecm import EcmFailed
from agent.parallel import Part, Together
from agent.residues import Said
from agent.stages import Shift
from agent.tasks import Task

# So much of a residue must have had its stage 2 for the server to take it as done.
ENOUGH = 0.75


def begin_stage2(shift: Shift, residue: dict[str, object], b2: int | None) -> Task:
    """A task to run stage 2 of a residue that has just been claimed. `b2` None: GMP-ECM's default."""
    return tasks.begin(
        shift.root,
        kind=stages.STAGE2,
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
    attempt_id = stages.deliver(shift, task)
    if attempt_id is None:
        return

    def complete() -> Said:
        return residues.complete(shift.session, shift.server, shift.client_id, said["residue_id"], attempt_id)

    confirmed = stages.insist(shift, complete)
    if confirmed.state == "unclear":
        stages.leave(shift, task, f"the residue waits to be completed: {confirmed.message}")
        return
    shift.say(confirmed.message)
    shift.done += confirmed.state == "done"
    task.end()


def _download(shift: Shift, task: Task) -> bool:
    if task.said["downloaded"]:
        return True

    def download() -> Said:
        return residues.download(shift.session, shift.server, shift.client_id, task.said, task.path / stages.SAVED)

    got = stages.insist(shift, download)
    if got.state == "done":
        if len(stages.records(task.path / stages.SAVED)) == task.said["curves"]:
            task.save(downloaded=True)
            return True
        got = Said("refused", f"its file has not the {task.said['curves']} curves that were offered")
    if got.state == "unclear":
        stages.leave(shift, task, got.message)
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
            left += stages.records(task.path / name)[parallel.read_outputs([task.path / output]).curves_completed :]
    else:
        left = stages.records(task.path / stages.SAVED)
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
        task,
        [part for _, part in parts],
        lambda: shift.requested,
        lambda together: shift.on_look(task, _sum(before, together)),
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
    said = stages.insist(shift, lambda: residues.release(shift.session, shift.server, shift.client_id, residue_id))
    if said.state == "unclear":
        shift.say(f"the claim could not be given back ({said.message}); it runs out by itself")
    task.end()
