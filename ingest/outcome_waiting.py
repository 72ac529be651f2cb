"""Waiting for outcomes: a thread of each web process hears which submissions are settled, and wakes the requests up.

Workers publish the ids of what they have settled (tasks/publishing.py). A message may be lost, and the broker may be
away, so the thread also polls: every second while it hears the broker, and more often while it does not.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import redis
import structlog
from sqlalchemy import Engine, Row

from coordinator.results import inbox
from tasks.publishing import SETTLED_CHANNEL

if TYPE_CHECKING:
    from redis.client import PubSub

log = structlog.get_logger("waiting")

# Seconds between two polls: while the broker is heard, and while it is away.
POLL_SECONDS, POLL_SECONDS_ALONE = 1.0, 0.1
# While the broker is away, it is tried again every so many seconds.
RECONNECT_SECONDS = 1.0
# A submission may be settled before its request begins to wait.
REMEMBERED = 10_000


@dataclass
class _Waiter:
    done: threading.Event = field(default_factory=threading.Event)
    row: Row[Any] | None = None


class OutcomeWaiter:
    """Lets at most `most` threads of this process wait until their submissions are settled."""

    def __init__(self, engine: Engine, most: int, connect: Callable[[], "redis.Redis"]) -> None:
        self._engine = engine
        self._most = most
        self._connect = connect
        self._waiters: dict[int, list[_Waiter]] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._settled: set[int] = set()
        self._settled_in_order: deque[int] = deque()
        self._thread: threading.Thread | None = None

    def wait(self, submission_id: int, seconds: float) -> Row[Any] | None:
        """Return the settled row of a submission; None after `seconds`, or at once if `most` threads wait already."""
        waiter = _Waiter()
        with self._lock:
            if self._count >= self._most or seconds <= 0:
                return None
            if self._thread is None and not self._start():
                return None
            self._count += 1
            self._waiters.setdefault(submission_id, []).append(waiter)
            is_settled = submission_id in self._settled
        try:
            if is_settled:
                self._hand_out_or_log([submission_id])
            waiter.done.wait(seconds)
            return waiter.row
        finally:
            with self._lock:
                self._count -= 1
                others = [other for other in self._waiters.pop(submission_id, []) if other is not waiter]
                if others:
                    self._waiters[submission_id] = others

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name="outcomes", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more threads; the result is stored nevertheless
            log.warning("Cannot start the thread that hears outcomes", error=str(error))
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        heard: PubSub | None = None
        connect_at = poll_at = 0.0
        while True:
            # Without this thread every request would wait for nothing, so no error may end it.
            try:
                if heard is None and monotonic() >= connect_at:
                    connect_at = monotonic() + RECONNECT_SECONDS
                    heard = self._subscribe()
                    poll_at = 0.0  # what was settled before
                if heard is None:
                    sleep(POLL_SECONDS_ALONE)
                else:
                    self._hear(heard, max(0.0, poll_at - monotonic()))
            except (redis.RedisError, OSError) as error:
                log.warning("The broker does not answer; waiting requests poll", error=str(error)[:200])
                if heard is not None:
                    heard.close()
                heard = None
            except Exception as error:
                log.warning("Handing out outcomes failed", error=f"{type(error).__name__}: {error}"[:200])
                sleep(POLL_SECONDS_ALONE)
            if monotonic() >= poll_at:
                poll_at = monotonic() + (POLL_SECONDS_ALONE if heard is None else POLL_SECONDS)
                self._poll()

    def _subscribe(self) -> "PubSub":
        heard: PubSub = self._connect().pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        heard.subscribe(SETTLED_CHANNEL)
        return heard

    def _hear(self, heard: "PubSub", seconds: float) -> None:
        """Hand out the outcomes of which a message tells, if one comes within so many seconds."""
        message = heard.get_message(timeout=seconds)
        if message is None or message["type"] != "message":
            return
        ids = json.loads(message["data"])
        with self._lock:
            self._settled.update(ids)
            self._settled_in_order.extend(ids)
            while len(self._settled_in_order) > REMEMBERED:
                self._settled.discard(self._settled_in_order.popleft())
            awaited = [submission_id for submission_id in ids if submission_id in self._waiters]
        self._hand_out(awaited)

    def _poll(self) -> None:
        with self._lock:
            awaited = list(self._waiters)
        self._hand_out_or_log(awaited)

    def _hand_out_or_log(self, submission_ids: list[int]) -> None:
        """Hand out outcomes; after an error the next poll does. A result that is stored must not get an error."""
        try:
            self._hand_out(submission_ids)
        except Exception as error:
            log.warning("Reading outcomes failed", error=f"{type(error).__name__}: {error}"[:200])

    def _hand_out(self, submission_ids: Iterable[int]) -> None:
        """Hand the rows of those of these submissions that are settled to the threads that wait for them."""
        wanted = list(submission_ids)
        rows = inbox.settled_rows(self._engine, wanted) if wanted else []
        with self._lock:
            for row in rows:
                for waiter in self._waiters.get(row.id, []):
                    waiter.row = row
                    waiter.done.set()
