"""Jobs that may take long, such as splits and recalculation, on a queue of their own.

A message only wakes the worker up: it runs the job that is best among all that wait, so the jobs of one client do not
hold up those of the others.
"""

import uuid
from collections.abc import Iterable, Mapping
from time import time
from typing import Any

import structlog
from celery.exceptions import SoftTimeLimitExceeded

from config.settings import settings
from coordinator.base.unit_of_work import is_transient, public_message
from coordinator.housekeeping import job_runner
from tasks import metrics
from tasks.app import app, engine
from tasks.publishing import publish_jobs
from tasks.wake_ups import Run, WokenTask, ended

log = structlog.get_logger("tasks")

_limit = settings().analysis_time_limit
_soft_limit = max(1, _limit - 5)
# This module is imported before the worker's processes are forked, so they have it in common until it is restarted.
_WORKER = uuid.uuid4().hex
# After a fault of a job, seconds until it, or another one, is tried.
AFTER_FAULT = 1.0


def run_best_job(run: uuid.UUID, lost: list[uuid.UUID]) -> Run:
    """Run the best waiting job, in a child of the worker. A job whose child was lost waits again by itself."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(run=str(run))
    began, current = time(), settings()
    try:
        ran = job_runner.run_best(
            engine(_soft_limit),
            worker=_WORKER,
            max_deliveries=current.max_deliveries,
            max_digits=current.max_digits,
            time_limit_error=SoftTimeLimitExceeded,
        )
    except Exception as error:
        log.exception("No job could be run")
        return Run([], error=public_message(error))
    if ran is None:
        return Run([])
    publish_jobs(ran.to_publish)
    seconds = time() - began
    task_id, shown = f"job-{ran.job_id}", {"job_id": ran.job_id, "kind": ran.kind}
    if ran.fault is None:
        log.info("Job ended", **shown, ms=round(seconds * 1000, 2))
        metrics.observe_task(run_job.name, "SUCCESS", None, seconds)
        return Run([ended(task_id, shown, began=began, outcome="done", kind="succeeded")], next_due=0.0)
    message = public_message(ran.fault)
    if is_transient(ran.fault):
        return Run([ended(task_id, shown, began=began, outcome=message, kind="retried")], error=message)
    log.error("A job failed", **shown, exc_info=ran.fault)
    metrics.observe_task(run_job.name, "FAILURE", ran.fault, seconds)
    return Run([ended(task_id, shown, began=began, outcome=message, kind="failed")], next_due=AFTER_FAULT)


class _JobTask(WokenTask):
    abstract = True
    queue_name = "analysis"
    run_in_child = staticmethod(run_best_job)
    takes_all = False

    def rows_of_message(self, arguments: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
        return [(f"job-{arguments['job_id']}", dict(arguments))] if "job_id" in arguments else []


@app.task(base=_JobTask, time_limit=_limit, soft_time_limit=_soft_limit)
def run_job(job_id: int | None = None, kind: str = "") -> int:
    """Run the best waiting job; `job_id` and `kind`, of the job that was published, are shown by Flower."""
    return len(run_best_job(uuid.uuid4(), []).events)
