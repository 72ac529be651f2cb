"""Delivery attempts: taking the submissions that are due, counting attempts, and settling hopeless ones as failed.

A worker takes submissions that are due, and thereby makes them due again a little later. A process that dies between
taking and settling thus loses nothing: its submissions are taken again. Rows that are locked are not taken, and an
attempt has the submission's own id, so two processes that have taken one submission cannot both apply it.

An attempt is counted before its unit of work starts, and the count survives the death of the process: a result that
kills the process that applies it must not come back for ever.
"""

import uuid
from collections.abc import Iterable
from typing import Any, cast

import structlog
from sqlalchemy import Engine, Row, Table, case, func, literal, select, update
from sqlalchemy import bindparam as bind

from coordinator.base import clock
from coordinator.base.unit_of_work import is_poison, public_message, run_statement
from models.tables import Submission

log = structlog.get_logger("delivery_attempts")

# Reasons of failed submissions: at every attempt its worker died or ran out of time, or an error was raised.
WORKER_DIED, ERROR_EVERY_TIME = "worker_died", "error_every_time"
# A submission that was taken is due again after so many seconds, unless it is settled or locked by then. Longer than a
# worker takes from taking it to locking it (see `batches.RUN_SECONDS`).
TAKEN_SECONDS = 15
# After a fault a submission waits for half of its age again, within these limits: so the waits grow exponentially.
SHORTEST_WAIT, LONGEST_WAIT = 0.2, 15.0

# The payload of a submission that takes more bytes (compressed) is not read with those of others.
LARGE = 20_000
SHOWN = 200  # characters of its number

# On the plain table: building a statement with the ORM takes longer than running it.
SUBMISSIONS = cast(Table, Submission.__table__)
submissions = SUBMISSIONS.c
_due_later = clock.after(float(TAKEN_SECONDS))
_due = (
    select(submissions.id, submissions.tries)
    .where(submissions.state == "received", submissions.id >= bind("from_id"), submissions.due_at <= func.now())
    .order_by(submissions.id)
    .limit(bind("limit"))
    .with_for_update(skip_locked=True, of=SUBMISSIONS)
    .cte("due")  # computed once, whatever the plan: as a subquery it could run again and take more than its limit
)
# The commits of counts do not wait for the disk: a count has to survive this process, but not PostgreSQL.
_no_flush = func.set_config("synchronous_commit", "off", True)
_TAKE = (
    update(SUBMISSIONS)
    .where(submissions.id == _due.c.id)
    .values(
        tries=case((submissions.tries == 0, 1), else_=submissions.tries),
        due_at=_due_later,
        taken_by=bind("batch", type_=SUBMISSIONS.c.taken_by.type),
    )
    .returning(
        submissions.id,
        submissions.client_id,
        # A hundred large ones would fill the memory: these are read one by one.
        case((func.pg_column_size(submissions.payload) < LARGE, submissions.payload)).label("payload"),
        func.left(submissions.payload["composite"].astext, SHOWN).label("composite"),
        submissions.attempt_id,
        submissions.request_id,
        _due.c.tries.label("tries_before"),
        _no_flush,
    )
)
_COUNT = (
    update(SUBMISSIONS)
    .where(submissions.id == bind("submission"), submissions.state == "received")
    .values(tries=submissions.tries + 1, due_at=_due_later)
    .returning(submissions.tries, _no_flush)
)
_age = func.extract("epoch", func.clock_timestamp() - submissions.created_at)
_wait = func.least(func.greatest(_age / 2, literal(SHORTEST_WAIT)), literal(LONGEST_WAIT))
_after_wait = clock.after(_wait)
_chosen = (submissions.id.in_(bind("ids", expanding=True)), submissions.state == "received")
_one_less = func.greatest(submissions.tries - 1, 0)
_UNCOUNT = update(SUBMISSIONS).where(*_chosen).values(tries=_one_less).returning(_no_flush)
_seconds = func.extract("epoch", submissions.due_at - func.clock_timestamp()).label("seconds")
_POSTPONE = update(SUBMISSIONS).where(*_chosen).values(due_at=_after_wait).returning(_seconds)
_UNCOUNT_AND_POSTPONE = (
    update(SUBMISSIONS).where(*_chosen).values(tries=_one_less, due_at=_after_wait).returning(_seconds)
)
_MAKE_DUE = update(SUBMISSIONS).where(*_chosen).values(due_at=func.clock_timestamp())
_KEEP_DETAIL = update(SUBMISSIONS).where(*_chosen).values(detail=bind("message"), due_at=_after_wait)
# A submission that was applied by itself when its worker died may be the cause, or workers die one after another: in
# both cases it is tried again later, so that the others come first, and the next deaths do not hit it again.
_RELEASE_LOST = (
    update(SUBMISSIONS)
    .where(submissions.state == "received", submissions.taken_by.in_(bind("batches", expanding=True)))
    .values(due_at=case((submissions.tries > 1, _after_wait), else_=func.clock_timestamp()), taken_by=None)
)
_NEXT_DUE = select(func.extract("epoch", func.min(submissions.due_at) - func.clock_timestamp()).label("seconds")).where(
    submissions.state == "received"
)


def take(engine: Engine, batch: uuid.UUID, limit: int, from_id: int = 0) -> list[Row[Any]]:
    """Take the oldest submissions that are due, at most `limit`, for the batch of this id; returns their rows.

    Those with an id below `from_id` are not looked for: while a transaction is open for long, such as that of a backup,
    PostgreSQL keeps the index entries of all submissions that were settled meanwhile, and a search passes them all.
    The first attempt is counted by this; `count_attempt` counts further ones. Rows have id, client_id, payload (None if
    it is large), composite (its beginning), attempt_id, request_id and tries_before.
    """
    parameters = {"limit": limit, "batch": batch, "from_id": from_id}
    rows = run_statement(engine, "take_submissions", _TAKE, parameters, batch=str(batch))
    return sorted(rows, key=lambda row: cast(int, row.id))


def uncount(engine: Engine, ids: Iterable[int]) -> None:
    """Uncount an attempt of submissions that were taken: it has not begun. They stay taken."""
    _change(engine, "uncount_attempts", _UNCOUNT, ids)


def make_due(engine: Engine, ids: Iterable[int]) -> None:
    """Make submissions due at once: their worker has no time for them."""
    _change(engine, "make_due", _MAKE_DUE, ids)


def postpone(engine: Engine, ids: Iterable[int], *, uncount: bool) -> float | None:
    """Let submissions that need what others have locked wait in proportion to their age; `uncount` their attempt.

    Returns the seconds until the first of them is due; None if all are settled.
    """
    rows = _change(engine, "postpone_submissions", _UNCOUNT_AND_POSTPONE if uncount else _POSTPONE, ids)
    return min((max(0.0, float(row.seconds)) for row in rows), default=None)


def _change(engine: Engine, name: str, statement: Any, ids: Iterable[int]) -> list[Row[Any]]:
    chosen = sorted(ids)
    return run_statement(engine, name, statement, {"ids": chosen}, count=len(chosen)) if chosen else []


def release_lost(engine: Engine, batches: Iterable[uuid.UUID]) -> None:
    """Make the submissions due whose batch was lost with its process: at once, or a little later if tried alone before.

    Their attempts stay counted.
    """
    run_statement(engine, "release_lost_batches", _RELEASE_LOST, {"batches": list(batches)})


def seconds_until_due(engine: Engine) -> float | None:
    """Return after how many seconds the next submission is due (0: now); None if none waits."""
    with engine.connect() as connection:
        seconds = connection.execute(_NEXT_DUE).scalar_one()
    return None if seconds is None else max(0.0, float(seconds))


def count_attempt(engine: Engine, submission_id: int) -> int | None:
    """Count a delivery attempt of a waiting submission, and return how many there were; None if it is settled."""
    rows = run_statement(engine, "count_attempt", _COUNT, {"submission": submission_id}, submission=submission_id)
    return rows[0].tries if rows else None


def dead_letter(engine: Engine, submission_id: int, max_deliveries: int) -> None:
    """Settle a submission that had all its delivery attempts as failed, unless it is settled already."""
    reason = case((Submission.detail.is_(None), WORKER_DIED), else_=ERROR_EVERY_TIME)
    why = func.coalesce(Submission.detail, f"its worker died or ran out of time at each of {max_deliveries} tries")
    hopeless = (Submission.id == submission_id, Submission.state == "received", Submission.tries > max_deliveries)
    change = {"state": "failed", "reason": reason, "detail": why, "tries": max_deliveries}
    settle = update(Submission).where(*hopeless).values(**change, settled_at=func.clock_timestamp())
    failed = run_statement(engine, "dead_letter", settle.returning(Submission.detail), submission=submission_id)
    if failed:
        log.error("Submission failed", submission=submission_id, why=failed[0].detail)


def record_fault(engine: Engine, submission_id: int, error: Exception) -> None:
    """Let a submission wait after a fault. A transient fault uncounts the attempt; any other is kept as its detail."""
    try:
        if not is_poison(error):
            postpone(engine, [submission_id], uncount=True)
            return
        change = {"ids": [submission_id], "message": public_message(error)}
        run_statement(engine, "record_fault", _KEEP_DETAIL, change, submission=submission_id)
    except Exception as second:
        # The database is away. The caller raises the first fault, and this second one adds nothing to it.
        log.warning("Could not record a fault", submission=submission_id, error=str(second)[:200])
