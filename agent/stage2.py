"""Stage 2: claim and download a residue, run it with -resume, and complete it (see agent.stage_session)."""

from agent import gmp_ecm, parallel_ecm, residue_transfer, stage_session
from agent.gmp_ecm import EcmFailedError
from agent.parallel_ecm import CombinedOutput, ProcessSpec
from agent.residue_transfer import TransferResult
from agent.stage_session import StageSession
from agent.stage_task import StageTask, create_task
from agent.terminal import count_of

# The server completes a residue only if at least this share of its curves had stage 2.
MIN_COMPLETED_SHARE = 0.75


def create_stage2_task(session: StageSession, residue: dict[str, object], b2: int | None) -> StageTask:
    """Create a task that runs stage 2 of a claimed residue. `b2` None means GMP-ECM's default."""
    return create_task(
        session.root,
        kind=stage_session.STAGE2,
        server=session.server,
        client_id=session.client_id,
        b2=b2,
        parts=[],
        outputs=[],
        downloaded=False,
        **residue,
    )


def run_stage2(session: StageSession, task: StageTask) -> None:
    """Run the steps of a task that are left: download, stage 2, result, completion."""
    fields = task.fields
    if "payload" not in fields:
        if not _download(session, task):
            return
        try:
            _run_remaining_curves(session, task)
        except EcmFailedError as error:
            session.failure = str(error)
            session.report(session.failure)
        if not _save_payload(session, task):
            return
    attempt_id = stage_session.deliver_result(session, task)
    if attempt_id is None:
        return

    def complete() -> TransferResult:
        return residue_transfer.complete_residue(
            session.http, session.server, session.client_id, fields["residue_id"], attempt_id
        )

    result = stage_session.call_server(session, complete)
    if result.state == "unclear":
        stage_session.leave_for_next_start(session, task, f"The residue is not completed yet: {result.message}")
        return
    outcome = "Completed" if result.state == "done" else "The server rejected the completion"
    session.report(f"{outcome}: {result.message}")
    session.done += result.state == "done"
    task.remove()


def _download(session: StageSession, task: StageTask) -> bool:
    """Download the residue unless that was done; return whether the task can go on."""
    fields = task.fields
    if fields["downloaded"]:
        return True
    target = task.path / stage_session.SAVE_FILE

    def download() -> TransferResult:
        return residue_transfer.download_residue(session.http, session.server, session.client_id, fields, target)

    result = stage_session.call_server(session, download)
    if result.state == "done":
        found = len(stage_session.read_save_records(target))
        if found == fields["curves"]:
            task.save(downloaded=True)
            return True
        message = f"its file has {count_of(found, 'curve')} and not the offered {fields['curves']}"
        result = TransferResult("refused", message)
    if result.state == "unclear":
        stage_session.leave_for_next_start(session, task, result.message)
    else:
        session.report(f"Residue {fields['residue_id']} cannot be downloaded: {result.message}")
        _release_residue(session, task)
    return False


def _run_remaining_curves(session: StageSession, task: StageTask) -> None:
    """Run stage 2 of the curves that have not completed it, according to the outputs so far."""
    fields = task.fields
    if fields["parts"]:
        left: list[str] = []
        for name, output in zip(fields["parts"], fields["outputs"], strict=True):
            # GMP-ECM runs the curves in the order of the file.
            completed = parallel_ecm.read_outputs([task.path / output]).curves_completed
            left += stage_session.read_save_records(task.path / name)[completed:]
    else:
        left = stage_session.read_save_records(task.path / stage_session.SAVE_FILE)
    before = parallel_ecm.read_outputs([task.path / name for name in fields["outputs"]])
    if not left or before.factors:
        return
    parts = []
    first = len(fields["parts"])
    for place, share in enumerate(parallel_ecm.split_curves(len(left), session.threads), first):
        name = f"{place}.save"
        (task.path / name).write_text("".join(left[:share]))
        left = left[share:]
        command = gmp_ecm.resume_command(session.ecm, saved=task.path / name, b1=fields["b1"], b2=fields["b2"])
        parts.append((name, ProcessSpec(command, fields["composite"], task.path / f"{place}.out")))
    task.save(
        parts=fields["parts"] + [name for name, _ in parts],
        outputs=fields["outputs"] + [spec.output.name for _, spec in parts],
    )
    parallel_ecm.run_processes(
        task,
        [spec for _, spec in parts],
        lambda: session.stop_requested,
        lambda output: session.on_poll(_add_curves(before, output)),
    )


def _add_curves(before: CombinedOutput, now: CombinedOutput) -> CombinedOutput:
    return CombinedOutput(before.curves_completed + now.curves_completed, [*before.sigmas, *now.sigmas])


def _save_payload(session: StageSession, task: StageTask) -> bool:
    """Record the result; release the residue and return False if too few curves were completed."""
    fields = task.fields
    output = parallel_ecm.read_outputs([task.path / name for name in fields["outputs"]])
    if not output.factors and output.curves_completed < MIN_COMPLETED_SHARE * fields["curves"]:
        completed = f"{output.curves_completed} of {count_of(fields['curves'], 'curve')}"
        session.report(f"Residue {fields['residue_id']} is returned after {completed}")
        _release_residue(session, task)
        return False
    session.curves += output.curves_completed
    session.factors += len(output.factors)
    if output.factors:
        session.on_factors(fields["composite"], output)
    payload = parallel_ecm.build_stage_payload(
        task,
        output,
        b2=fields["b2"],
        curves=output.curves_completed,
        residue_id=fields["residue_id"],
        residue_checksum=fields["checksum"],
    )
    payload["parameters"]["parametrization"] = fields["parametrization"]
    task.save(payload=payload)
    return True


def _release_residue(session: StageSession, task: StageTask) -> None:
    residue_id = task.fields["residue_id"]

    def release() -> TransferResult:
        return residue_transfer.release_residue(session.http, session.server, session.client_id, residue_id)

    result = stage_session.call_server(session, release)
    if result.state == "unclear":
        session.report(f"Residue {residue_id} could not be returned ({result.message}); its claim times out")
    task.remove()
