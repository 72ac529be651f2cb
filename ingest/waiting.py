"""Waiting for outcomes: requests that wait hold no database connection; one poller a process asks for all of them."""

import threading
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import structlog
from sqlalchemy import Engine, Row
from sqlalchemy.exc import SQLAlchemyError

from coordinator import inbox

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
            self._count += 1
            self._waiters.setdefault(submission_id, []).append(waiter)
            if self._thread is None:
                self._thread = threading.Thread(target=self._poll, name="outcomes", daemon=True)
                self._thread.start()
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
                rows = inbox.settled(self._engine, wanted)
            except SQLAlchemyError as error:
                log.warning("Cannot look for outcomes", error=str(error)[:200])
                rows, pause = [], LONGEST_PAUSE
            with self._changed:
                for row in rows:
                    for waiter in self._waiters.get(row.id, []):
                        waiter.row = row
                        waiter.done.set()
            # Quick while results come out; slower when nothing does, and never more than a tenth of the time asking.
            pause = SHORTEST_PAUSE if rows else min(LONGEST_PAUSE, pause * 1.3)
            threading.Event().wait(max(pause, 2 * (monotonic() - began)))
