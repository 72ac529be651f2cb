"""Applying results: messages wake up a worker, which applies what waits; Flower shows every result."""

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from time import perf_counter, time
from typing import Any

import structlog

from config.settings import settings
from coordinator.base.jobs import JobRef
from coordinator.base.unit_of_work import public_message
from coordinator.results import batches, delivery_attempts
from coordinator.results.batches import LOOK_AGAIN_SECONDS, Attempted
from tasks import metrics
from tasks.app import app, engine
from tasks.publishing import publish_jobs, publish_settled, shorten
from tasks.wake_ups import Event, Run, WokenTask, ended

log = structlog.get_logger("tasks")

# When this child last looked for all submissions that wait, by the clock of `perf_counter`; the last one that it took.
# While results come in, messages tell of nearly all of them, so it looks for the others once a second.
_looked_for_all = 0.0
_last_taken = 0


def apply_waiting(batch: uuid.UUID, lost: list[uuid.UUID]) -> Run:
    """Apply what waits, in a child of the worker; `lost` are the batches of children that have died."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(batch=str(batch))
    global _looked_for_all, _last_taken
    began, started = time(), perf_counter()
    looks_for_all = bool(lost) or started - _looked_for_all >= LOOK_AGAIN_SECONDS
    if looks_for_all:
        _looked_for_all = started

    def on_settled(submission_ids: list[int], to_publish: list[JobRef]) -> None:
        publish_settled(submission_ids)
        publish_jobs(to_publish)

    try:
        if lost:
            delivery_attempts.release_lost(engine(), lost)
        after = None if looks_for_all else _last_taken
        report = batches.apply_waiting(engine(), settings(), batch, on_settled, after=after)
        _last_taken = report.last_taken
    except Exception as error:
        log.exception("Results could not be applied")
        return Run([], error=public_message(error))
    seconds = perf_counter() - started
    if report.attempted:
        counted = Counter(one.state for one in report.attempted)
        metrics.observe_results(counted, seconds)
        log.info("Results applied", ms=round(seconds * 1000, 2), **counted)
    events = [_event(one, began, seconds) for one in report.attempted]
    return Run(events, report.next_due)


def _event(one: Attempted, began: float, seconds: float) -> Event:
    kind = {"applied": "succeeded", "duplicate": "succeeded", "received": "retried"}.get(one.state, "failed")
    outcome = (
        ", ".join(filter(None, (one.state, one.factor_status))) if kind == "succeeded" else one.detail or one.state
    )
    if kind == "failed":
        outcome = f"{one.state}: {outcome}"
    shown = _shown(one.submission_id, one.client_id, one.composite)
    event = ended(_task_id(one.submission_id), shown, began=began, outcome=outcome[:300], kind=kind)
    if kind == "succeeded":
        event.fields["runtime"] = seconds
    return event


def _task_id(submission_id: int) -> str:
    return f"submission-{submission_id}"


def _shown(submission_id: int, client: str, composite: str) -> dict[str, Any]:
    return {"submission_id": submission_id, "client": client[:40], "composite": shorten(composite)}


class _ResultTask(WokenTask):
    abstract = True
    queue_name = "results"
    run_in_child = staticmethod(apply_waiting)

    def rows_of_message(self, arguments: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
        return ((_task_id(row[0]), _shown(*row)) for row in arguments.get("submissions", ()))


@app.task(base=_ResultTask)
def apply_result(submissions: list[tuple[int, str, str]] | None = None) -> int:
    """Apply what waits; `submissions` (id, client, composite) is shown by Flower. Returns how many were attempted."""
    return len(apply_waiting(uuid.uuid4(), []).events)
