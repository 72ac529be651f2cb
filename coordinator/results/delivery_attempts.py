"""How often a submission has been tried, and what becomes of one that cannot be applied however often.

A try is counted, durably against the death of its process, before the unit of work starts: a result that kills whoever
applies it must not come back for ever.
"""

from time import sleep
from typing import Any

import structlog
from sqlalchemy import Engine, case, func, update

from coordinator.base.unit_of_work import is_poison, public_message, unit_of_work
from models.tables import Submission

log = structlog.get_logger("delivery_attempts")

# Why a submission failed for good: its worker died or ran out of time every time, or an error was raised every time.
WORKER_DIED, ERROR_EVERY_TIME = "worker_died", "error_every_time"
# Seconds from counting a try to holding its submission's lock, at the very most.
SETTLE_SECONDS = 1.0


def count_attempt(engine: Engine, submission_id: int) -> int | None:
    """Count a try of a submission that waits, and say which it is; None if it is settled.

    This commit need not survive PostgreSQL, only this process: it does not wait for the disk.
    """
    with unit_of_work(engine, "count_try", submission=submission_id) as connection:
        return connection.execute(
            update(Submission)
            .where(Submission.id == submission_id, Submission.state == "received")
            .values(tries=Submission.tries + 1)
            .returning(Submission.tries, func.set_config("synchronous_commit", "off", True))
        ).scalar_one_or_none()


def dead_letter(engine: Engine, submission_id: int, max_deliveries: int) -> None:
    """Settle a submission as failed after too many tries, unless one of them is still under way and settles it.

    The same task delivered many times at once counts as many tries at once. Whoever counted one has the submission's
    lock a moment later, and this waits its turn behind them.
    """
    sleep(SETTLE_SECONDS)
    reason = case((Submission.detail.is_(None), WORKER_DIED), else_=ERROR_EVERY_TIME)
    why = func.coalesce(Submission.detail, f"its worker died or ran out of time at each of {max_deliveries} tries")
    with unit_of_work(engine, "give_up", submission=submission_id) as connection:
        failed = connection.execute(
            update(Submission)
            .where(Submission.id == submission_id, Submission.state == "received", Submission.tries > max_deliveries)
            .values(state="failed", reason=reason, detail=why, tries=max_deliveries, settled_at=func.clock_timestamp())
            .returning(Submission.detail)
        ).scalar_one_or_none()
    if failed is not None:
        log.error("Submission failed", submission=submission_id, why=failed)


def record_fault(engine: Engine, submission_id: int, error: Exception) -> None:
    """A transient fault is not the submission's and does not count; any other is noted, and anyone may read it."""
    change: dict[str, Any] = {"detail": public_message(error)}
    if not is_poison(error):
        change = {"tries": func.greatest(Submission.tries - 1, 0)}
    try:
        with unit_of_work(engine, "note_fault", submission=submission_id) as connection:
            connection.execute(
                update(Submission).where(Submission.id == submission_id, Submission.state == "received").values(change)
            )
    except Exception as second:
        # The database is away: the fault itself is on its way up, and this one says nothing more.
        log.warning("Could not note a fault", submission=submission_id, error=str(second)[:200])
