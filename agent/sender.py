"""Sending in the background: results go to the server while the next curves run.

One thread sends what is pending, each entry by itself until the server has settled or refused it. What one entry runs
into holds the others up only where it concerns the server as a whole: no answer, too many requests, a gateway's error.
"""

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import requests

from agent import client, spool
from agent.client import FIRST_DELAY, LONGEST_DELAY, Answer

OF_THE_SERVER = (0, 429, 502, 503, 504)  # status codes; 0 is no answer at all
DISK_DELAY = 10.0  # seconds, when the spool cannot be written


@dataclass
class Parcel:
    """An entry on its way; `accepted` is the answer that says the server has it on its disk."""

    entry: spool.Entry
    due: float = 0.0
    delay: float = FIRST_DELAY
    accepted: Answer | None = None


class Sender:
    """Sends the entries for one server until close() is called.

    `on_settled` and `on_refused` are told of each entry's end, `on_trouble` when the server stops and resumes
    answering. They are called in the sender's thread.
    """

    def __init__(
        self,
        root: Path,
        server: str,
        *,
        on_settled: Callable[[spool.Entry, Answer], None],
        on_refused: Callable[[spool.Entry, Answer], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self.root, self.server = root, server
        self.refused: dict[str, str] = {}
        self._on_settled, self._on_refused, self._on_trouble = on_settled, on_refused, on_trouble
        self._parcels: dict[str, Parcel] = {}
        self._changed = threading.Condition()
        self._deadline: float | None = None  # of the last tries, once closing
        self._not_before, self._delay = 0.0, FIRST_DELAY  # for the server as a whole
        self._trouble = ""
        self._ended = False

    def add(self, entry: spool.Entry) -> None:
        """Take over an entry that is locked for us."""
        with self._changed:
            self._parcels[entry.key] = Parcel(entry)
            self._changed.notify_all()

    def collect(self) -> int:
        """Take over what is pending for this server and nobody sends. Returns how many entries that is."""
        entries = list(spool.pending(self.root, self.server))
        for entry in entries:
            self.add(entry)
        return len(entries)

    def waiting(self) -> int:
        """How many entries are not settled yet."""
        with self._changed:
            return len(self._parcels)

    def hurry(self) -> None:
        """Try everything at once, whatever pauses were due."""
        with self._changed:
            self._not_before, self._delay = 0.0, FIRST_DELAY
            for parcel in self._parcels.values():
                parcel.due, parcel.delay = 0.0, FIRST_DELAY
            self._changed.notify_all()

    def delivered(self, keys: Iterable[str], deadline: Callable[[], float]) -> bool:
        """Wait until the server has all of these on its disk or has refused them; False after `deadline()`."""
        wanted = set(keys)
        with self._changed:
            while any(key in wanted and not parcel.accepted for key, parcel in self._parcels.items()):
                left = deadline() - time.monotonic()
                if left <= 0 or self._ended:
                    return False
                self._changed.wait(min(left, 0.5))
        return True

    def close(self, patience: float) -> None:
        """Let run() end when nothing is left, or when the next try would come later than `patience` seconds from now.

        Everything gets one more try at least.
        """
        self.hurry()
        with self._changed:
            self._deadline = time.monotonic() + patience
            self._changed.notify_all()

    def run(self) -> None:
        """The thread's work. What is left at its end stays in the spool."""
        session = requests.Session()
        try:
            while parcel := self._next():
                try:
                    self._send(session, parcel)
                except OSError as error:
                    # The spool could not be written; the server knows the key, so sending again is harmless.
                    self._postpone(parcel, DISK_DELAY, f"the spool cannot be written: {error}", everything=True)
        finally:
            with self._changed:
                self._ended = True
                for left in self._parcels.values():
                    left.entry.release()

    def _next(self) -> Parcel | None:
        """The next entry, when it is due; None when the sender is to end."""
        with self._changed:
            while True:
                now = time.monotonic()
                parcel = min(self._parcels.values(), key=lambda each: each.due, default=None)
                due = max(parcel.due, self._not_before) if parcel else float("inf")
                if due <= now:
                    return parcel
                if self._deadline is not None and due > self._deadline:
                    return None
                self._changed.wait(None if parcel is None else due - now)

    def _send(self, session: requests.Session, parcel: Parcel) -> None:
        entry = parcel.entry
        answer = (
            client.ask(session, parcel.accepted.location)
            if parcel.accepted
            else client.post(session, entry.server, entry.key, entry.payload)
        )
        if answer.verdict == "settled":
            spool.settle(entry)
            self._done(entry)
            self._on_settled(entry, answer)
        elif answer.verdict == "refused":
            spool.reject(entry, answer.status, answer.body)
            self._done(entry, answer.message)
            self._on_refused(entry, answer)
        else:
            if answer.verdict == "accepted" and parcel.accepted is None:
                parcel.accepted, parcel.delay = answer, FIRST_DELAY
            elif answer.status == 404:
                parcel.accepted = None  # the address leads nowhere: the replay will tell
            later = answer.verdict == "later"
            everything = later and answer.status in OF_THE_SERVER
            delay = self._delay if everything else parcel.delay
            pause = max(answer.retry_after, delay * random.uniform(0.5, 1.0))
            self._postpone(parcel, pause, answer.message if later else "", everything)

    def _done(self, entry: spool.Entry, refusal: str = "") -> None:
        with self._changed:
            del self._parcels[entry.key]
            self._delay = FIRST_DELAY
            if refusal:
                self.refused[entry.key] = refusal
            self._changed.notify_all()
        self._tell("")

    def _postpone(self, parcel: Parcel, pause: float, trouble: str, everything: bool) -> None:
        with self._changed:
            parcel.due = time.monotonic() + pause
            if everything:
                self._not_before = parcel.due
                self._delay = min(self._delay * 2, LONGEST_DELAY)
            else:
                self._delay = FIRST_DELAY
                parcel.delay = min(parcel.delay * 2, LONGEST_DELAY)
            self._changed.notify_all()
        self._tell(trouble)

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._on_trouble(trouble)
