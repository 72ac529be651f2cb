"""The worker's consumer: Celery's own, which acknowledges nothing and sends its events to Flower less often.

And the base of periodic tasks, which do not pile up in a worker.
"""

from collections.abc import Callable
from typing import Any

from celery import Task
from celery.app import amqp
from celery.worker import consumer, state
from celery.worker.strategy import default

# Flower redraws every few seconds. Sending every event by itself took 37 % of a busy worker's main process (py-spy).
EVENT_SECONDS = 0.25


class Consumer(consumer.Consumer):
    """Sends task events every EVENT_SECONDS, or when Celery's buffer of 24 is full."""

    _flush_is_due = False

    def on_send_event_buffered(self) -> None:
        """Schedule a flush of the event buffer; Celery itself would flush in the same iteration of the event loop."""
        if self.hub and not self._flush_is_due:
            self._flush_is_due = True
            self.hub.call_later(EVENT_SECONDS, self._flush_later)

    def _flush_later(self) -> None:
        self._flush_is_due = False
        if self.event_dispatcher:
            self._flush_events()


class AMQP(amqp.AMQP):
    """Celery's messages, which are received without acknowledgments.

    A message only wakes a worker up; what is to be done is a row in the database, and housekeeping publishes rows again
    that wait too long. An acknowledgment costs a round trip to the broker for each message.
    """

    def TaskConsumer(self, channel: Any, queues: Any = None, accept: Any = None, **kw: Any) -> Any:  # noqa: N802
        """Return a consumer of the queues; the broker forgets a message when it sends it."""
        return super().TaskConsumer(channel, queues=queues, accept=accept, no_ack=True, **kw)


class PeriodicTask(Task):
    """A task that beat publishes again and again: a worker that has not done the last one yet forgets further ones.

    Without acknowledgments nothing else would bound what a worker takes from its queue while its children are busy.
    """

    abstract = True

    def Strategy(self, task: Task, app: Any, consumer: Any) -> Callable[..., None]:  # noqa: N802 - Celery's name
        """Return the function that Celery calls with every message."""
        handle = default(task, app, consumer)

        def on_message(*arguments: Any, **options: Any) -> None:
            if all(request.name != task.name for request in state.reserved_requests):
                handle(*arguments, **options)

        return on_message
