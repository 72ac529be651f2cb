"""Sends results in the background while the next curves run.

One thread sends the pending entries, each until the server has processed or refused it. An entry that cannot be sent
delays the others only if the cause is the server as a whole: no answer, too many requests, or a gateway's error.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import requests

from agent import retrying, spool
from agent.result_delivery import Delivery, DeliveryAnswer
from agent.retrying import BackOff

SERVER_WIDE_STATUSES = (0, 429, 502, 503, 504)  # 0 stands for no answer
DISK_PAUSE = 10.0  # seconds until the next attempt when the spool cannot be written


@dataclass
class OutboxEntry:
    """An entry of the spool that waits for its next attempt, at `due` of time.monotonic()."""

    delivery: Delivery
    due: float = 0.0


class ResultSender:
    """Sends the entries for one server until close() is called.

    `on_settled` and `on_refused` get each entry with its final answer. `on_trouble` gets a message when sending stops
    to work, and "" when it works again. All of them are called in the sender's thread.
    """

    def __init__(
        self,
        root: Path,
        server: str,
        *,
        on_settled: Callable[[spool.SpoolEntry, DeliveryAnswer], None],
        on_refused: Callable[[spool.SpoolEntry, DeliveryAnswer], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self.root, self.server = root, server
        self.refused: dict[str, str] = {}
        self._on_settled, self._on_refused, self._on_trouble = on_settled, on_refused, on_trouble
        self._outbox: dict[str, OutboxEntry] = {}
        self._changed = threading.Condition()
        self._deadline: float | None = None  # of the last attempts; set by close()
        self._server_not_before = 0.0
        self._server_back_off = BackOff(retrying.RESULT_DELAYS)
        self._trouble = ""
        self._ended = False

    def add(self, entry: spool.SpoolEntry) -> None:
        """Take an entry that the caller has locked, and release it when it is sent."""
        with self._changed:
            self._outbox[entry.key] = OutboxEntry(Delivery(entry, BackOff(retrying.RESULT_DELAYS)))
            self._changed.notify_all()

    def add_pending(self) -> None:
        """Take all pending entries for this server that no other process sends."""
        for entry in list(spool.lock_pending_entries(self.root, self.server)):
            self.add(entry)

    def count_waiting(self) -> int:
        """Return the number of entries that have no final answer yet."""
        with self._changed:
            return len(self._outbox)

    def retry_now(self) -> None:
        """Try every entry at once, whatever pauses were due."""
        with self._changed:
            self._server_not_before = 0.0
            self._server_back_off.reset()
            for waiting in self._outbox.values():
                waiting.due = 0.0
                waiting.delivery.back_off.reset()
            self._changed.notify_all()

    def wait_until_stored(self, keys: Iterable[str], deadline: Callable[[], float]) -> bool:
        """Wait until the server has stored or refused all these results; return False if `deadline()` comes first."""
        awaited = set(keys)
        with self._changed:
            while any(key in awaited and not waiting.delivery.accepted for key, waiting in self._outbox.items()):
                left = deadline() - time.monotonic()
                if left <= 0 or self._ended:
                    return False
                self._changed.wait(min(left, 0.5))
        return True

    def close(self, timeout: float) -> None:
        """Let run() end when nothing is left to send, or the next attempt would come after `timeout` seconds.

        Every entry gets at least one more attempt.
        """
        self.retry_now()
        with self._changed:
            self._deadline = time.monotonic() + timeout
            self._changed.notify_all()

    def run(self) -> None:
        """Send entries until close(); this is the thread's function. Entries that are not sent stay in the spool."""
        session = requests.Session()
        try:
            while waiting := self._next_due():
                try:
                    self._attempt(session, waiting)
                except OSError as error:
                    # The spool could not be written. The server knows the key, so sending again is harmless.
                    self._postpone_all(waiting, DISK_PAUSE, f"the spool cannot be written: {error}")
        finally:
            with self._changed:
                self._ended = True
                for left in self._outbox.values():
                    left.delivery.entry.release()

    def _next_due(self) -> OutboxEntry | None:
        """Wait for the next entry that is due and return it; return None when the thread is to end."""
        with self._changed:
            while True:
                now = time.monotonic()
                first = min(self._outbox.values(), key=lambda waiting: waiting.due, default=None)
                due = max(first.due, self._server_not_before) if first else float("inf")
                if due <= now:
                    return first
                if self._deadline is not None and due > self._deadline:
                    return None
                self._changed.wait(None if first is None else due - now)

    def _attempt(self, session: requests.Session, waiting: OutboxEntry) -> None:
        entry = waiting.delivery.entry
        answer = waiting.delivery.attempt(session)
        if answer.verdict == "settled":
            spool.remove_entry(entry)
            self._remove(entry)
            self._on_settled(entry, answer)
        elif answer.verdict == "refused":
            spool.reject_entry(entry, answer.status, answer.body)
            self._remove(entry, answer.message)
            self._on_refused(entry, answer)
        elif answer.verdict == "later" and answer.status in SERVER_WIDE_STATUSES:
            self._postpone_all(waiting, self._server_back_off.next_pause(answer.retry_after), answer.message)
        else:
            pause = waiting.delivery.back_off.next_pause(answer.retry_after)
            self._postpone(waiting, pause, answer.message if answer.verdict == "later" else "")

    def _remove(self, entry: spool.SpoolEntry, refusal: str = "") -> None:
        with self._changed:
            del self._outbox[entry.key]
            self._server_back_off.reset()
            if refusal:
                self.refused[entry.key] = refusal
            self._changed.notify_all()
        self._set_trouble("")

    def _postpone(self, waiting: OutboxEntry, pause: float, trouble: str) -> None:
        with self._changed:
            waiting.due = time.monotonic() + pause
            self._server_back_off.reset()
            self._changed.notify_all()
        self._set_trouble(trouble)

    def _postpone_all(self, waiting: OutboxEntry, pause: float, trouble: str) -> None:
        with self._changed:
            waiting.due = self._server_not_before = time.monotonic() + pause
            self._changed.notify_all()
        self._set_trouble(trouble)

    def _set_trouble(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._on_trouble(trouble)
