"""Log lines of tasks: every line of a task has its id, and its end is a line of its own.

Results and jobs are not run by tasks of their own: their runs log the ids of the requests that sent them
(coordinator/results/batches.py).
"""

from time import perf_counter
from typing import Any

import structlog
from celery import Task
from celery.signals import task_postrun, task_prerun

from tasks import metrics

log = structlog.get_logger("tasks")

_started: dict[str, float] = {}


def connect_signals() -> None:
    """Make every task of this process log its id, and how it ended."""
    task_prerun.connect(_begin)
    task_postrun.connect(_end)


def _begin(task_id: str, **_: Any) -> None:
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(task=task_id)
    _started[task_id] = perf_counter()


def _end(task_id: str, task: Task, state: str, retval: Any = None, **_: Any) -> None:
    seconds = perf_counter() - _started.pop(task_id, perf_counter())
    metrics.observe_task(task.name, state, retval, seconds)
    log.info("Task ended", name=task.name, state=state, ms=round(seconds * 1000, 2))
