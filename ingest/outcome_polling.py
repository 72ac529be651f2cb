"""Waiting for outcomes: one poller per process asks the database for all waiting requests."""

import threading
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

import structlog
from sqlalchemy import Engine, Row

from coordinator.results import inbox

log = structlog.get_logger("waiting")

SHORTEST_PAUSE = 0.004
LONGEST_PAUSE = 0.1


@dataclass
class _Waiter:
    done: threading.Event = field(default_factory=threading.Event)
    row: Row[Any] | None = None


class OutcomePoller:
    """Lets at most `most` threads of this process wait until their submissions are settled."""

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine = engine
        self._most = most
        self._waiters: dict[int, list[_Waiter]] = {}
        self._count = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def wait(self, submission_id: int, seconds: float) -> Row[Any] | None:
        """Return the settled row of a submission; None after `seconds`, or at once if `most` threads wait already."""
        waiter = _Waiter()
        with self._changed:
            if self._count >= self._most or seconds <= 0:
                return None
            if self._thread is None and not self._start():
                return None
            self._count += 1
            self._waiters.setdefault(submission_id, []).append(waiter)
            self._changed.notify()
        try:
            waiter.done.wait(seconds)
            return waiter.row
        finally:
            with self._changed:
                self._count -= 1
                others = [other for other in self._waiters.pop(submission_id, []) if other is not waiter]
                if others:
                    self._waiters[submission_id] = others

    def _start(self) -> bool:
        thread = threading.Thread(target=self._poll, name="outcomes", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more threads; the result is stored nevertheless
            log.warning("Cannot start the thread that polls outcomes", error=str(error))
            return False
        self._thread = thread
        return True

    def _poll(self) -> None:
        pause = SHORTEST_PAUSE
        while True:
            with self._changed:
                while not self._waiters:
                    self._changed.wait()
                    pause = SHORTEST_PAUSE
                submission_ids = list(self._waiters)
            began = monotonic()
            try:
                found = self._hand_out(submission_ids)
            except Exception as error:
                # Without this thread every request would wait for nothing, so no error may end it.
                log.warning("Polling outcomes failed", error=f"{type(error).__name__}: {error}"[:200])
                pause = LONGEST_PAUSE
            else:
                # Poll quickly while outcomes come, slowly while none do.
                pause = SHORTEST_PAUSE if found else min(LONGEST_PAUSE, pause * 1.3)
            # Spend at most a third of the time on queries.
            sleep(max(pause, 2 * (monotonic() - began)))

    def _hand_out(self, submission_ids: list[int]) -> bool:
        """Hand the settled rows to the waiting threads; returns whether there were any."""
        rows = inbox.settled_rows(self._engine, submission_ids)
        with self._changed:
            for row in rows:
                for waiter in self._waiters.get(row.id, []):
                    waiter.row = row
                    waiter.done.set()
        return bool(rows)
