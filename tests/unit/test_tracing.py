"""Every log line of a task has its id and never that of another task, and its end is one line."""

import logging

import pytest
import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from tasks import tracing
from tasks.housekeeping import prune


@pytest.fixture(autouse=True)
def _empty_context(monkeypatch):
    monkeypatch.setattr(tracing, "_started", {})
    clear_contextvars()
    yield
    clear_contextvars()


def test_a_task_has_its_own_context():
    bind_contextvars(request="trace-1")
    tracing._begin(task_id="task-1")
    assert get_contextvars() == {"task": "task-1"}
    tracing._begin(task_id="task-2")
    assert get_contextvars() == {"task": "task-2"}


def test_the_end_of_a_task_is_one_line(monkeypatch):
    captured = structlog.testing.LogCapture()
    # A logger of its own, because other tests may have configured the common one.
    wrapper = structlog.make_filtering_bound_logger(logging.INFO)
    processors = [structlog.contextvars.merge_contextvars, captured]
    monkeypatch.setattr(tracing, "log", structlog.wrap_logger(None, processors=processors, wrapper_class=wrapper))
    tracing._begin(task_id="task-1")
    tracing._end(task_id="task-1", task=prune, state="SUCCESS", retval=None)
    (line,) = captured.entries
    assert line.pop("ms") >= 0
    assert line == {
        **{"event": "Task ended", "log_level": "info", "name": "tasks.housekeeping.prune", "state": "SUCCESS"},
        "task": "task-1",
    }
    assert tracing._started == {}
