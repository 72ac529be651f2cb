"""Applying results: one task for each submission, so that Flower shows every one."""

from celery import Task

from config.settings import settings
from coordinator.base.unit_of_work import is_transient
from coordinator.results.batches import apply_result as apply_submission
from tasks.app import app, engine
from tasks.publishing import publish_jobs
from tasks.retries import backoff


@app.task(bind=True, max_retries=8)
def apply_result(self: Task, submission_id: int, client: str = "", composite: str = "") -> str:
    """Apply one submission and return its state; `client` and `composite` (shortened) are only shown by Flower."""
    try:
        applied = apply_submission(engine(), submission_id, settings())
    except Exception as error:
        if is_transient(error):
            raise self.retry(exc=error, countdown=backoff(self.request.retries)) from error
        raise
    if applied is None:
        return "unknown"
    publish_jobs(applied.to_publish)
    return applied.state
