"""The worker's consumer: Celery's own, which sends its events to Flower less often."""

from celery.worker import consumer

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
