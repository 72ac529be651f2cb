"""One id for a request, its task and their transactions: every log line of a task has the id of its request.

The id is in the message's headers, where Flower does not show it; housekeeping takes it from the row that it publishes
again. The unit of work of a batch logs the ids of all its requests (coordinator/results/batches.py).
"""

from time import perf_counter
from typing import Any

import structlog
from celery import Task
from celery.signals import task_postrun, task_prerun

from tasks import metrics

log = structlog.get_logger("tasks")

HEADER = "ecm_request"

_started: dict[str, float] = {}


def headers() -> dict[str, str]:
    """The headers of a message: the id of the current request, if there is one."""
    request = structlog.contextvars.get_contextvars().get("request")
    return {} if request is None else {HEADER: request}


def connect_signals() -> None:
    """Make every task of this process log the id of its request, and how the task ended."""
    task_prerun.connect(_begin)
    task_postrun.connect(_end)


def _begin(task_id: str, task: Task, **_: Any) -> None:
    structlog.contextvars.clear_contextvars()
    request = task.request.get(HEADER)
    structlog.contextvars.bind_contextvars(task=task_id, **({} if request is None else {"request": request}))
    _started[task_id] = perf_counter()


def _end(task_id: str, task: Task, state: str, retval: Any = None, **_: Any) -> None:
    seconds = perf_counter() - _started.pop(task_id, perf_counter())
    metrics.observe_task(task.name, state, retval, seconds)
    log.info("Task ended", name=task.name, state=state, ms=round(seconds * 1000, 2))
