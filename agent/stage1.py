"""Stage 1: run curves with -save, send their result, and upload the residue (see agent.stage_session)."""

from agent import gmp_ecm, lease_api, parallel_ecm, residue_transfer, spool, stage_session
from agent.gmp_ecm import EcmFailedError
from agent.lease_api import Lease
from agent.lease_heartbeat import StageHeartbeat
from agent.parallel_ecm import CombinedOutput, ProcessSpec
from agent.residue_transfer import TransferResult
from agent.stage_session import StageSession
from agent.stage_task import StageTask, create_task
from agent.terminal import count_of

DEFAULT_PARAMETRIZATION = 1
# Limits of one residue: the result lists so many sigmas, and the file should stay below the server's 50 MB. A record of
# a save file has X, which is as long as the number, the number itself, and about 400 bytes of tags, names and times.
MAX_RESIDUE_CURVES, MAX_RESIDUE_BYTES, RECORD_OVERHEAD_BYTES = 10_000, 40_000_000, 400


def create_stage1_task(
    session: StageSession,
    *,
    composite: str,
    b1: int,
    curves: int,
    parametrization: int | None,
    work_id: str | None = None,
) -> StageTask:
    """Create a task that runs stage 1 of `curves` curves. `parametrization` None means DEFAULT_PARAMETRIZATION."""
    # GMP-ECM 7.0.7 must not choose it: its save file then lacks the parametrization, which stands for 0, and stage 2
    # would run on other curves.
    own = DEFAULT_PARAMETRIZATION if parametrization is None else parametrization
    places = range(len(parallel_ecm.split_curves(curves, session.threads)))
    return create_task(
        session.root,
        kind=stage_session.STAGE1,
        server=session.server,
        client_id=session.client_id,
        composite=composite,
        b1=b1,
        curves=curves,
        parametrization=own,
        work_id=work_id,
        outputs=[f"{place}.out" for place in places],
        saves=[f"{place}.save" for place in places],
    )


def create_lease_task(session: StageSession, lease: Lease, max_curves: int | None) -> StageTask:
    """Create a task for the curves of a lease that fit into one residue, at most `max_curves` of them."""
    fitting = MAX_RESIDUE_BYTES // (RECORD_OVERHEAD_BYTES + 2 * len(lease.composite))
    return create_stage1_task(
        session,
        composite=lease.composite,
        b1=lease.b1,
        curves=max(1, min(lease.curves, MAX_RESIDUE_CURVES, fitting, max_curves or MAX_RESIDUE_CURVES)),
        parametrization=lease.parametrization,
        work_id=lease.work_id,
    )


def run_stage1(session: StageSession, task: StageTask) -> None:
    """Run a new task's curves, send their result and upload the residue."""
    fields = task.fields
    specs = [
        ProcessSpec(
            gmp_ecm.curves_command(
                session.ecm,
                b1=fields["b1"],
                b2=0,
                curves=curves,
                parametrization=fields["parametrization"],
                save=task.path / save,
            ),
            fields["composite"],
            task.path / output,
        )
        for curves, save, output in zip(
            parallel_ecm.split_curves(fields["curves"], len(fields["saves"])),
            fields["saves"],
            fields["outputs"],
            strict=True,
        )
    ]
    heartbeat = StageHeartbeat(session.server, session.client_id, fields["work_id"], session.report)

    def on_poll(output: CombinedOutput) -> None:
        heartbeat.send_if_due(output.curves_completed)
        session.on_poll(output)

    try:
        parallel_ecm.run_processes(task, specs, lambda: heartbeat.is_over or session.stop_requested, on_poll)
    except EcmFailedError as error:
        session.failure = str(error)
        session.report(session.failure)
    send_stage1(session, task)


def send_stage1(session: StageSession, task: StageTask) -> None:
    """Send a task's result, then upload its residue. A killed agent's task is resumed here."""
    if "payload" not in task.fields and not _save_payload(session, task):
        return
    attempt_id = stage_session.deliver_result(session, task)
    if attempt_id is None:
        return
    _close_lease(session, task)
    if task.fields["residue_curves"]:
        saved = task.path / stage_session.SAVE_FILE

        def upload() -> TransferResult:
            return residue_transfer.upload_residue(session.http, session.server, session.client_id, saved, attempt_id)

        result = stage_session.call_server(session, upload)
        if result.state == "unclear":
            stage_session.leave_for_next_start(session, task, f"The residue is not uploaded yet: {result.message}")
            return
        if result.state == "refused":
            kept = session.root / spool.REJECTED / f"{task.key}.save"
            spool.write_durably(kept, saved.read_bytes()).close()
            session.refused += 1
            session.report(f"The server rejected the residue; it is kept in {kept}: {result.message}")
        else:
            session.report(f"Residue of {count_of(task.fields['residue_curves'], 'curve')}: {result.message}")
    session.done += 1
    task.remove()


def _save_payload(session: StageSession, task: StageTask) -> bool:
    """Join the save files and record the result; remove the task and return False if no curve was completed."""
    fields = task.fields
    output = parallel_ecm.read_outputs([task.path / name for name in fields["outputs"]])
    records = [record for name in fields["saves"] for record in stage_session.read_save_records(task.path / name)]
    spool.write_durably(task.path / stage_session.SAVE_FILE, "".join(records).encode()).close()
    # Of a curve that ended when GMP-ECM was killed, either the record or the line of output may be missing.
    curves = max(output.curves_completed, len(records))
    if not curves and not output.factors:
        _close_lease(session, task)
        task.remove()
        return False
    session.curves += curves
    session.factors += len(output.factors)
    if output.factors:
        session.on_factors(fields["composite"], output)
    payload = parallel_ecm.build_stage_payload(task, output, b2=0, curves=curves, work_id=fields["work_id"])
    task.save(payload=payload, residue_curves=len(records))
    return True


def _close_lease(session: StageSession, task: StageTask) -> None:
    """Close the task's lease with one request; if the server does not answer, the lease times out."""
    work_id = task.fields["work_id"]
    if work_id is None:
        return
    if session.stop_requested or session.failure:
        reason = session.failure or "the agent was stopped"
        lease_api.abandon_lease(session.http, session.server, session.client_id, work_id, reason)
    else:
        lease_api.complete_lease(session.http, session.server, session.client_id, work_id)
