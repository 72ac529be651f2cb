"""Waiting for outcomes: requests that wait hold no database connection; one poller a process asks for all of them."""

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
    """Lets at most `most` threads of this process wait for submissions to be settled."""

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine = engine
        self._most = most
        self._waiters: dict[int, list[_Waiter]] = {}
        self._count = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def wait(self, submission_id: int, seconds: float) -> Row[Any] | None:
        """The settled row of a submission, or None after `seconds`, or at once when too many wait already."""
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
        except RuntimeError as error:  # the system has no thread to give; the results are stored all the same
            log.warning("Cannot wait for outcomes", error=str(error))
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
                wanted = list(self._waiters)
            began = monotonic()
            try:
                found = self._hand_out(wanted)
            except Exception as error:
                # Without this thread every request would wait in vain, so nothing may end it.
                log.warning("Cannot look for outcomes", error=f"{type(error).__name__}: {error}"[:200])
                pause = LONGEST_PAUSE
            else:
                # Quick while results come out; slower when nothing does.
                pause = SHORTEST_PAUSE if found else min(LONGEST_PAUSE, pause * 1.3)
            # Never more than a third of the time asking.
            sleep(max(pause, 2 * (monotonic() - began)))

    def _hand_out(self, wanted: list[int]) -> bool:
        """Give those who wait their rows; whether there were any."""
        rows = inbox.settled_rows(self._engine, wanted)
        with self._changed:
            for row in rows:
                for waiter in self._waiters.get(row.id, []):
                    waiter.row = row
                    waiter.done.set()
        return bool(rows)
