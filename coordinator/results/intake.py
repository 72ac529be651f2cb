"""The intake of one process: results that come in at the same time are stored by one statement and one commit.

The first of them stores all that wait, and meanwhile the next ones gather. A result that is alone waits for nobody.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import structlog
from sqlalchemy import Engine

from coordinator.base.unit_of_work import is_conflict, is_poison, is_transient, public_message
from coordinator.results import inbox
from coordinator.results.inbox import Receipt
from models.wire.results import SubmitResult

log = structlog.get_logger("intake")

MOST_TOGETHER = 100
# A result with a larger payload (bytes) is stored by itself.
LARGE = 100_000
# If those before need longer, such as for a row that another transaction has locked, nobody waits for them.
PATIENCE_SECONDS = 0.05

# Called with (id, client, composite) of submissions that were stored; returns whether their workers were told.
Publish = Callable[[list[tuple[int, str, str]]], bool]


@dataclass(eq=False)
class _Entry:
    """A result on its way into the database."""

    row: dict[str, Any]
    composite: str
    is_done: threading.Event = field(default_factory=threading.Event)
    leads: bool = False  # is to store those that wait
    receipt: Receipt | None = None
    error: Exception | None = None


def _size(row: dict[str, Any], result: SubmitResult) -> int:
    """Return about how many bytes a result has."""
    factors = sum(len(claim.factor) for claim in result.claims)
    sigmas = sum(len(value) for _, value in result.sigmas)
    return len(row["raw_output"] or "") + len(result.composite) + factors + sigmas


class Intake:
    """Stores results for the threads of this process, and publishes them."""

    def __init__(self, engine: Engine, publish: Publish) -> None:
        self._engine = engine
        self._publish = publish
        self._lock = threading.Lock()
        self._waiting: list[_Entry] = []
        self._storing_since: float | None = None

    def receive(
        self,
        result: SubmitResult,
        *,
        key: str | None,
        max_raw_output: int,
        implicit_key_window: float,
        request_id: str | None = None,
    ) -> Receipt:
        """Store and publish one result, as `inbox.receive` does; it is durable when this returns.

        Raises inbox.IdempotencyKeyReusedError.
        """
        row = inbox.submission_values(result, key=key, max_raw_output=max_raw_output, request_id=request_id)
        entry = _Entry(row, result.composite)
        if _size(row, result) <= LARGE:
            self._store_with_others(entry)
            if entry.error is not None:
                raise entry.error
            if entry.receipt is not None:
                return entry.receipt
        # Its key was used before, it is large, or one of those with it cannot be stored.
        keeps_key = key is not None or bool(result.sigmas)
        receipt = inbox.receive_row(self._engine, row, keeps_key=keeps_key, window=implicit_key_window)
        if receipt.settled is not None:
            return receipt
        told = self._publish([(receipt.submission_id, result.client_id, result.composite)])
        return replace(receipt, is_published=told)

    def _store_with_others(self, entry: _Entry) -> None:
        with self._lock:
            self._waiting.append(entry)
            if self._storing_since is None or self._is_slow():
                self._storing_since = monotonic()
                entry.leads = True
        while not entry.leads:
            if entry.is_done.wait(PATIENCE_SECONDS):
                if not entry.leads:
                    return
                break
            with self._lock:
                # Those before need long, and nobody has begun to store this one.
                if entry in self._waiting and self._is_slow():
                    self._storing_since = monotonic()
                    entry.leads = True
        with self._lock:
            # Not those that are to store others in a moment.
            others = [one for one in self._waiting if not one.leads]
            together = [entry, *others[: MOST_TOGETHER - 1]]
            self._waiting = [one for one in self._waiting if one not in together]
        try:
            try:
                self._store(together)
            finally:
                self._hand_over()
            self._tell(together)
        finally:
            for one in together:
                one.is_done.set()

    def _is_slow(self) -> bool:
        return self._storing_since is not None and monotonic() - self._storing_since > PATIENCE_SECONDS

    def _hand_over(self) -> None:
        """Have the next of those that wait store them."""
        with self._lock:
            following = next((one for one in self._waiting if not one.leads), None)
            self._storing_since = None if following is None else monotonic()
            if following is not None:
                following.leads = True
                following.is_done.set()

    def _store(self, together: list[_Entry]) -> None:
        try:
            receipts = inbox.receive_new(self._engine, [one.row for one in together])
        except Exception as error:
            if is_transient(error) and not (is_conflict(error) or is_poison(error)):
                for one in together:
                    one.error = error
            else:
                # Whichever result caused it, or needs a row that is locked: each is stored by itself now.
                log.warning("Results could not be stored together", count=len(together), error=public_message(error))
            return
        for one, receipt in zip(together, receipts, strict=True):
            one.receipt = receipt

    def _tell(self, together: list[_Entry]) -> None:
        stored = [one for one in together if one.receipt is not None]
        if not stored:
            return
        told = self._publish(
            [(one.receipt.submission_id, one.row["client_id"], one.composite) for one in stored if one.receipt]
        )
        for one in stored:
            if one.receipt is not None:
                one.receipt = replace(one.receipt, is_published=told)
