"""One id from a request to its task and to their transactions: each line of a task's log says for which request it is.

The id travels in the message's headers, so that Flower shows the same arguments as ever; upkeep takes it from the row
that it rings for. What applies many results at once names all their requests (coordinator/results/batches.py).
"""

from time import perf_counter
from typing import Any

import structlog
from celery import Task
from celery.signals import task_postrun, task_prerun

from tasks import metrics

log = structlog.get_logger("tasks")

HEADER = "ecm_request"

_began: dict[str, float] = {}


def headers() -> dict[str, str]:
    """What a message's headers say of the request that it is sent for, if it is sent for one."""
    request = structlog.contextvars.get_contextvars().get("request")
    return {} if request is None else {HEADER: request}


def follow() -> None:
    """From now on every task of this process says in its log whose it is, and how it ended."""
    task_prerun.connect(_begin)
    task_postrun.connect(_end)


def _begin(task_id: str, task: Task, **_: Any) -> None:
    structlog.contextvars.clear_contextvars()
    request = task.request.get(HEADER)
    structlog.contextvars.bind_contextvars(task=task_id, **({} if request is None else {"request": request}))
    _began[task_id] = perf_counter()


def _end(task_id: str, task: Task, state: str, retval: Any = None, **_: Any) -> None:
    seconds = perf_counter() - _began.pop(task_id, perf_counter())
    metrics.observe_task(task.name, state, retval, seconds)
    log.info("Task ended", name=task.name, state=state, ms=round(seconds * 1000, 2))
