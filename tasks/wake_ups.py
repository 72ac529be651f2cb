"""Tasks that messages only wake up: what is to be done is in the database, and a run takes the oldest that waits.

A worker's main process counts the runs that its children do. A message starts a run, unless one has begun a moment ago:
then the next run begins as soon as that one ends, or after RUN_ALONE_SECONDS in another child. So the rows that come in
meanwhile are done together, and no message is a hop through the pool of its own. As messages are acknowledged by
nobody, the main process also starts a run

- when the worker starts, or has connected to the broker again: the messages of its past are lost;
- when a child has died or ran out of time, with the ids of the runs that were lost;
- when rows become due, for as long as more rows wait than one run takes, and every IDLE_SECONDS otherwise;
- after an error, such as a database that is away, a little later.

Flower shows each row as a task of its own: the main process sends the events for them.
"""

import uuid
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any, NamedTuple

import structlog
from celery import Task
from celery.worker import state as worker_state

from tasks.retries import backoff

log = structlog.get_logger("wake_ups")

RUN_ALONE_SECONDS = 0.05
# Rows that are due in a moment are taken together with those that follow.
SHORTEST_PAUSE = 0.1
# A worker that has nothing to do looks again after this time: it needs no message, and so no broker.
IDLE_SECONDS = 5.0
SHOWN_AS_WAITING = 10_000


class Event(NamedTuple):
    """An event for Flower: its type, such as task-succeeded, and its fields."""

    type: str
    fields: dict[str, Any]


class Run(NamedTuple):
    """What a run in a child did: events for Flower, and the seconds until more is due (0: now; None: nothing waits).

    `error` says why the run could not do its work; the main process then starts another one later.
    """

    events: list[Event]
    next_due: float | None = None
    error: str | None = None


class WokenTask(Task):
    """The base of these tasks. A subclass says what a run does, and which rows a message tells of."""

    abstract = True
    ignore_result = True

    # Only the workers that take messages from this queue run the task.
    queue_name: str
    # Called in a child with the id of the run and the ids of lost runs; must be importable by its name.
    run_in_child: Callable[[uuid.UUID, list[uuid.UUID]], Run]
    # Whether a run takes all that waits. Otherwise it takes what one message tells of, and others run beside it.
    takes_all = True

    def rows_of_message(self, arguments: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
        """Return (id of the task in Flower, its arguments to show) of each row that a message tells of."""
        raise NotImplementedError

    def Strategy(self, task: Task, app: Any, consumer: Any) -> Callable[..., None]:  # noqa: N802 - Celery's name
        """Return the function that Celery calls with every message; made again after each connection to the broker."""
        wake_ups: WakeUps | None = getattr(self, "_wake_ups", None)
        if wake_ups is None:
            wake_ups = self._wake_ups = WakeUps(self)
        # Celery asks for the strategies of all tasks in every worker.
        if self.queue_name in app.amqp.queues.consume_from:
            wake_ups.connect(consumer)
        return wake_ups.on_message


class WakeUps:
    """The runs of one task in a worker, in its main process; everything is called by its event loop."""

    def __init__(self, task: WokenTask) -> None:
        self._task = task
        self._consumer: Any = None
        self._running: dict[uuid.UUID, float] = {}
        self._results: dict[uuid.UUID, Any] = {}  # of the pool, by run
        self._awaited = 0  # how many runs are to follow
        self._lost: list[uuid.UUID] = []
        self._failures = 0
        self._timer: tuple[float, Any] | None = None  # when it fires, and the entry of the event loop
        # The rows that Flower shows as waiting, in the order in which they came.
        self._waiting: dict[str, None] = {}

    def connect(self, consumer: Any) -> None:
        """Use this consumer from now on, and start a run, because messages may have been lost."""
        self._consumer = consumer
        # Celery discards the runs that no child has accepted when it loses its connection, and calls nobody back.
        for run in [run for run, result in self._results.items() if not result.accepted()]:
            self._forget(run)
            self._lost.append(run)
        self._cancel_timer()
        self._wake_after(0.0)

    def on_message(self, message: Any, body: Any, *_: Any, **__: Any) -> None:
        """Start a run for a message, or have the next run follow at once; nothing is acknowledged."""
        arguments = message.payload[1] if body is None else body[1]
        for task_id, shown in self._task.rows_of_message(arguments):
            self._send(self._received(task_id, shown))
        self._awaited += 1
        self.wake()

    def wake(self) -> None:
        """Start a run now, or after the one that has just begun."""
        self._awaited = min(max(self._awaited, 1), self._consumer.pool.num_processes)
        if len(self._running) >= self._consumer.pool.num_processes:
            return
        alone_until = max(self._running.values(), default=0.0) + RUN_ALONE_SECONDS
        if self._running and monotonic() < alone_until:
            self._wake_after(alone_until - monotonic())
        else:
            self._start()

    def _wake_after(self, seconds: float) -> None:
        """Wake after so many seconds, unless that happens earlier anyway."""
        at = monotonic() + seconds
        if self._timer is not None:
            if self._timer[0] <= at:
                return
            self._cancel_timer()
        self._timer = at, self._consumer.timer.call_after(seconds, self._on_timer)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer[1].cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        self.wake()

    def _start(self) -> None:
        run, lost = uuid.uuid4(), self._lost
        self._awaited, self._lost = 0 if self._task.takes_all else self._awaited - 1, []
        self._running[run] = monotonic()
        self._cancel_timer()
        conf = self._consumer.app.conf
        started = self._consumer.pool.apply_async(
            type(self._task).run_in_child,
            (run, lost),
            callback=lambda done: self._on_end(run, done),
            error_callback=lambda error: self._on_lost(run, lost, error),
            soft_timeout=self._task.soft_time_limit or conf.task_soft_time_limit,
            timeout=self._task.time_limit or conf.task_time_limit,
        )
        if started is None:  # the pool is stopping
            del self._running[run]
            return
        self._results[run] = started
        if self._awaited:
            self._wake_after(RUN_ALONE_SECONDS)

    def _forget(self, run: uuid.UUID) -> None:
        self._running.pop(run, None)
        self._results.pop(run, None)

    def _on_end(self, run: uuid.UUID, done: Run) -> None:
        self._forget(run)
        for event in done.events:
            self._send(event)
        if done.error is not None:
            self._failures += 1
            seconds = backoff(self._failures, longest=5.0)
            log.warning(
                "A run could not do its work; the next one follows", error=done.error, seconds=round(seconds, 1)
            )
            self._wake_after(seconds)
            return
        self._failures = 0
        if self._awaited or done.next_due == 0:
            self.wake()
        else:
            seconds = IDLE_SECONDS if done.next_due is None else min(IDLE_SECONDS, max(SHORTEST_PAUSE, done.next_due))
            self._wake_after(seconds)

    def _on_lost(self, run: uuid.UUID, lost: list[uuid.UUID], error: Any) -> None:
        """Run again after a child has died or ran out of time: what it had taken is then due at once."""
        self._forget(run)
        self._lost += [run, *lost]
        log.error("A child of this worker was lost; what it had taken is taken again", error=str(error)[:200])
        self.wake()

    # Events for Flower

    def _received(self, task_id: str, shown: dict[str, Any]) -> Event:
        self._waiting[task_id] = None
        while len(self._waiting) > SHOWN_AS_WAITING:
            del self._waiting[next(iter(self._waiting))]
        fields = {"uuid": task_id, "name": self._task.name, "args": "()", "kwargs": repr(shown), "retries": 0}
        return Event("task-received", fields | {"root_id": task_id, "parent_id": None, "eta": None, "expires": None})

    def _send(self, event: Event) -> None:
        dispatcher = self._consumer.event_dispatcher
        task_id = event.fields["uuid"]
        if event.type in ENDS:
            # Flower's count of what this worker has processed; the check that it still consumes looks at it as well.
            worker_state.total_count[self._task.name] += 1
            worker_state.all_total_count[0] += 1
            # A row that no message told of.
            if task_id not in self._waiting and dispatcher:
                self._dispatch(dispatcher, self._received(task_id, event.fields["shown"]))
            if event.type != "task-retried":
                self._waiting.pop(task_id, None)
        if dispatcher:
            self._dispatch(dispatcher, event)

    def _dispatch(self, dispatcher: Any, event: Event) -> None:
        fields = {name: value for name, value in event.fields.items() if name not in ("shown", "began")}
        if event.type in ENDS:
            dispatcher.send("task-started", uuid=fields["uuid"], timestamp=event.fields["began"])
        dispatcher.send(event.type, **fields)


ENDS = ("task-succeeded", "task-failed", "task-retried")


def ended(task_id: str, shown: dict[str, Any], *, began: float, outcome: str, kind: str = "succeeded") -> Event:
    """Return the event of a row's attempt that ended: `kind` is succeeded, failed or retried.

    `began` is in seconds since the epoch; `shown` are the arguments to show; `outcome` is the result, or the reason.
    """
    fields: dict[str, Any] = {"uuid": task_id, "shown": shown, "began": began}
    if kind == "succeeded":
        return Event("task-succeeded", fields | {"result": outcome})
    return Event(f"task-{kind}", fields | {"exception": outcome, "traceback": ""})
