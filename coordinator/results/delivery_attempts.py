"""Counting the delivery attempts of a submission, and settling a submission that cannot be applied as failed.

An attempt is counted before its unit of work starts, and the count survives the death of the process: a result that
kills the process that applies it must not come back for ever.
"""

from time import sleep
from typing import Any

import structlog
from sqlalchemy import Engine, case, func, update

from coordinator.base.unit_of_work import is_poison, public_message, unit_of_work
from models.tables import Submission

log = structlog.get_logger("delivery_attempts")

# Reasons of failed submissions: at every attempt its worker died or ran out of time, or an error was raised.
WORKER_DIED, ERROR_EVERY_TIME = "worker_died", "error_every_time"
# The most seconds from counting an attempt to holding its submission's lock.
SETTLE_SECONDS = 1.0


def count_attempt(engine: Engine, submission_id: int) -> int | None:
    """Count a delivery attempt of a waiting submission, and return how many there were; None if it is settled.

    The commit does not wait for the disk: the count has to survive this process, but not PostgreSQL.
    """
    with unit_of_work(engine, "count_attempt", submission=submission_id) as connection:
        return connection.execute(
            update(Submission)
            .where(Submission.id == submission_id, Submission.state == "received")
            .values(tries=Submission.tries + 1)
            .returning(Submission.tries, func.set_config("synchronous_commit", "off", True))
        ).scalar_one_or_none()


def dead_letter(engine: Engine, submission_id: int, max_deliveries: int) -> None:
    """Settle a submission as failed after too many delivery attempts, unless an attempt under way settles it first.

    A task that is delivered many times at once counts many attempts at once. Each process that has counted one locks
    the submission a moment later, so this function sleeps SETTLE_SECONDS, then waits for their locks.
    """
    sleep(SETTLE_SECONDS)
    reason = case((Submission.detail.is_(None), WORKER_DIED), else_=ERROR_EVERY_TIME)
    why = func.coalesce(Submission.detail, f"its worker died or ran out of time at each of {max_deliveries} tries")
    with unit_of_work(engine, "dead_letter", submission=submission_id) as connection:
        failed = connection.execute(
            update(Submission)
            .where(Submission.id == submission_id, Submission.state == "received", Submission.tries > max_deliveries)
            .values(state="failed", reason=reason, detail=why, tries=max_deliveries, settled_at=func.clock_timestamp())
            .returning(Submission.detail)
        ).scalar_one_or_none()
    if failed is not None:
        log.error("Submission failed", submission=submission_id, why=failed)


def record_fault(engine: Engine, submission_id: int, error: Exception) -> None:
    """Uncount the attempt that met a transient fault; store the message of any other fault for its client to read."""
    change: dict[str, Any] = {"detail": public_message(error)}
    if not is_poison(error):
        change = {"tries": func.greatest(Submission.tries - 1, 0)}
    try:
        with unit_of_work(engine, "record_fault", submission=submission_id) as connection:
            connection.execute(
                update(Submission).where(Submission.id == submission_id, Submission.state == "received").values(change)
            )
    except Exception as second:
        # The database is away. The caller raises the first fault, and this second one adds nothing to it.
        log.warning("Could not record a fault", submission=submission_id, error=str(second)[:200])
