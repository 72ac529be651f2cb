"""Jobs that may take long, such as splits and recalculation, on a queue of their own."""

from celery import Task

from config.settings import settings
from coordinator.base.unit_of_work import is_transient
from coordinator.housekeeping import job_runner
from tasks.app import app, engine
from tasks.publishing import publish_jobs
from tasks.retries import backoff

_limit = settings().analysis_time_limit
_soft_limit = max(1, _limit - 5)


@app.task(bind=True, max_retries=8, time_limit=_limit, soft_time_limit=_soft_limit)
def run_job(self: Task, job_id: int, kind: str = "") -> None:
    """Run one job; `kind` is only shown by Flower."""
    current = settings()
    try:
        to_publish = job_runner.run_job(
            engine(_soft_limit), job_id, max_deliveries=current.max_deliveries, max_digits=current.max_digits
        )
    except Exception as error:
        if is_transient(error):
            raise self.retry(exc=error, countdown=backoff(self.request.retries)) from error
        raise
    publish_jobs(to_publish)
