"""A task logs the id of its request: from the message's headers, also after retries, and never that of another task."""

import logging
from types import SimpleNamespace

import pytest
import structlog
from celery.app.task import Context
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from coordinator.base.jobs import JobRef
from tasks import broker_circuit, housekeeping, publishing, tracing
from tasks.analysis import run_job
from tasks.results import apply_result


@pytest.fixture(autouse=True)
def _empty_context(monkeypatch):
    monkeypatch.setattr(tracing, "_started", {})
    clear_contextvars()
    yield
    clear_contextvars()


@pytest.fixture
def sent(monkeypatch):
    messages = []
    monkeypatch.setattr(broker_circuit, "_open_until", 0.0)
    monkeypatch.setattr(publishing.app, "send_task", lambda name, **options: messages.append(options))
    return messages


def begin(task_id: str, headers: dict[str, str]) -> None:
    """Begin a task as a worker's child does: the message's headers, also our own, become the task's request."""
    tracing._begin(task_id=task_id, task=SimpleNamespace(request=Context({"id": task_id, "task": "some", **headers})))


def test_housekeeping_publishes_with_the_id_of_the_request_that_sent_the_result(sent):
    for request_id in ("trace-1", None):
        housekeeping._republish_submission(
            SimpleNamespace(id=1, client_id="alice", composite="15", request_id=request_id)
        )
    assert [message["headers"] for message in sent] == [{tracing.HEADER: "trace-1"}, {}]
    assert "request" not in get_contextvars()


def test_a_message_has_the_id_of_its_request_if_there_is_one(sent):
    publishing.publish_submission(1, "alice", "15")
    bind_contextvars(request="trace-1")
    publishing.publish_submission(2, "alice", "21")
    assert [message["headers"] for message in sent] == [{}, {tracing.HEADER: "trace-1"}]
    assert "trace-1" not in sent[1]["kwargsrepr"]


def test_a_task_and_the_jobs_that_it_publishes_have_its_requests_id(sent):
    begin("task-1", {tracing.HEADER: "trace-1"})
    assert get_contextvars() == {"task": "task-1", "request": "trace-1"}
    publishing.publish_jobs([JobRef(7, "split")])
    assert sent[0]["headers"] == {tracing.HEADER: "trace-1"}
    begin("task-2", {})
    assert get_contextvars() == {"task": "task-2"}


@pytest.mark.parametrize("task", [apply_result, run_job])
def test_a_retry_keeps_the_id(task):
    task.request_stack.push(Context({"id": "task-1", "task": task.name, tracing.HEADER: "trace-1", "retries": 1}))
    try:
        again = task.signature_from_request(retries=2)
    finally:
        task.request_stack.pop()
    assert again.options["headers"][tracing.HEADER] == "trace-1"


def test_the_end_of_a_task_is_one_line(monkeypatch):
    captured = structlog.testing.LogCapture()
    # A logger of its own, because other tests may have configured the common one.
    wrapper = structlog.make_filtering_bound_logger(logging.INFO)
    processors = [structlog.contextvars.merge_contextvars, captured]
    monkeypatch.setattr(tracing, "log", structlog.wrap_logger(None, processors=processors, wrapper_class=wrapper))
    begin("task-1", {tracing.HEADER: "trace-1"})
    tracing._end(task_id="task-1", task=apply_result, state="SUCCESS", retval="applied")
    (line,) = captured.entries
    assert line.pop("ms") >= 0
    assert line == {
        **{"event": "Task ended", "log_level": "info", "name": "tasks.results.apply_result", "state": "SUCCESS"},
        **{"task": "task-1", "request": "trace-1"},
    }
    assert tracing._started == {}
