"""Applying a batch of plain results in one unit of work.

A result is plain if it has only curves, on a number that is known in this spelling, and names no lease, project or
residue. The round trips and the commit of such a result cost more than the result itself. So a worker that applies one
also applies others that wait, and their own tasks find them settled. Every other result (factors, unknown numbers,
leases, projects, repeated curves, second attempts) is applied by itself by coordinator/results/applying.py.

A batch is one transaction: all its results are applied together, or none is, and then each is applied by itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import structlog
from sqlalchemy import Connection, Engine, Row, Table, and_, bindparam, func, literal, not_, select, update
from sqlalchemy.dialects.postgresql import JSONB, array, insert

from config.settings import Settings
from coordinator import effort
from coordinator.base.unit_of_work import is_poison, unit_of_work
from coordinator.composites import lease_lifecycle, ledger, registry
from coordinator.composites.ledger import Account
from coordinator.results import applying
from coordinator.results.applying import Applied
from models.tables import Composite, CompositeAlias, EcmAttempt, Submission
from models.wire.results import SubmitResult

log = structlog.get_logger("batches")

# Large enough to make the fixed costs of a batch small, small enough to take a few hundredths of a second.
MAX_BATCH = 50

# Plain tables: building a statement with the ORM takes longer than running one of these.
SUBMISSIONS, COMPOSITES, ATTEMPTS = (cast(Table, table.__table__) for table in (Submission, Composite, EcmAttempt))
submissions, composites, aliases = SUBMISSIONS.c, COMPOSITES.c, CompositeAlias.__table__.c

# A plain payload has curves only, on a number known in this spelling. Payloads leave out fields with their defaults.
_no_claims = and_(
    func.coalesce(submissions.payload["results", "factors_found"], literal([], JSONB)) == literal([], JSONB),
    submissions.payload["results", "factor_found"].is_(None),
)
_nothing_special = not_(submissions.payload.has_any(array(["project", "work_id", "residue_id", "residue_checksum"])))
# A scalar subquery is looked up for each submission; an EXISTS could become a join with all aliases.
_number_known = (
    select(aliases.composite_id)
    .where(aliases.value_sha256 == func.sha256(func.convert_to(submissions.payload["composite"].astext, "UTF8")))
    .limit(1)
    .scalar_subquery()
    .is_not(None)
)
_PLAIN = and_(_no_claims, _nothing_special, _number_known)
_STATE = select(submissions.state, and_(submissions.tries == 0, _PLAIN).label("plain")).where(
    submissions.id == bindparam("submission_id")
)
_waiting = (
    select(submissions.id)
    .where(submissions.state == "received", submissions.tries == 0, submissions.id >= bindparam("first_id"), _PLAIN)
    .order_by(submissions.id)
    .limit(MAX_BATCH)
    .with_for_update(skip_locked=True, of=SUBMISSIONS)
    .cte("waiting")  # computed once, whatever the plan: as a subquery it could run again and take more than its limit
)
# The attempt is counted first, and the count survives this process: a submission whose batch died with its process is
# in no other batch. After an exception the attempts are uncounted, because each submission is then applied by itself.
# The commit does not wait for the disk: nothing is lost if PostgreSQL forgets these counts.
_TAKE = (
    update(SUBMISSIONS)
    .where(submissions.id.in_(select(_waiting.c.id)))
    .values(tries=submissions.tries + 1)
    .returning(submissions.id, submissions.request_id, func.set_config("synchronous_commit", "off", True))
)
_UNCOUNT = (
    update(SUBMISSIONS)
    .where(submissions.id.in_(bindparam("ids", expanding=True)), submissions.state == "received")
    .values(tries=func.greatest(submissions.tries - 1, 0))
)
_SUBMISSION_COLUMNS: tuple[Any, ...] = (submissions.id, submissions.payload, submissions.attempt_id)
_LOCK_SUBMISSIONS = (
    select(*_SUBMISSION_COLUMNS)
    .where(submissions.id.in_(bindparam("ids", expanding=True)), submissions.state == "received")
    .order_by(submissions.id)
    .with_for_update(skip_locked=True)
)
_FIND = select(aliases.value_sha256, aliases.composite_id).where(
    aliases.value_sha256.in_(bindparam("hashes", expanding=True))
)
_COMPOSITE_COLUMNS: tuple[Any, ...] = (
    composites.id,
    composites.is_prime,
    composites.effort,
    composites.target_t_level,
)
_LOCK_COMPOSITES = (
    select(*_COMPOSITE_COLUMNS)
    .where(composites.id.in_(bindparam("ids", expanding=True)))
    .order_by(composites.parent_id.is_not(None), composites.id)
    .with_for_update(key_share=True)
)
_RECORD = insert(ATTEMPTS).on_conflict_do_nothing(index_elements=[EcmAttempt.curves_sha256]).returning(ATTEMPTS.c.id)
_ADD_EFFORT = (
    update(COMPOSITES)
    .where(composites.id == bindparam("composite"))
    .values(
        effort=bindparam("vector"),
        current_t_level=bindparam("t_level"),
        attempt_count=composites.attempt_count + bindparam("attempts"),
        last_attempt_at=func.now(),
        pm1_b1=func.greatest(composites.pm1_b1, bindparam("pm1")),
        pp1_b1=func.greatest(composites.pp1_b1, bindparam("pp1")),
    )
)
_SETTLE = (
    update(SUBMISSIONS)
    .where(submissions.id == bindparam("submission_id"))
    .values(
        state="applied",
        composite_id=bindparam("composite"),
        outcome=bindparam("answer"),
        detail=None,
        settled_at=func.clock_timestamp(),
    )
)


@dataclass
class _PlainResult:
    """A plain result that found its composite."""

    submission_id: int
    attempt_id: int
    result: SubmitResult
    composite_id: int


def apply_result(engine: Engine, submission_id: int, settings: Settings) -> Applied | None:
    """Apply a submission: in a batch with others if it is plain, else as `applying.apply_result` does."""
    with engine.connect() as connection:
        found = connection.execute(_STATE, {"submission_id": submission_id}).one_or_none()
    if found is None:
        return None
    if found.state != "received":
        return Applied(found.state)
    if found.plain and submission_id in _apply_batch(engine, submission_id):
        return Applied("applied", "no_factor")
    return applying.apply_result(engine, submission_id, settings)


def _apply_batch(engine: Engine, first_id: int) -> set[int]:
    """Apply the plain submissions from `first_id` on that had no attempt yet; returns the ids of those it applied."""
    with unit_of_work(engine, "take_batch", first=first_id) as connection:
        rows = connection.execute(_TAKE, {"first_id": first_id}).all()
    if not rows:
        return set()
    taken = [row.id for row in rows]
    # The log line names all requests, so that each leads to its transaction, though another request's task ran it.
    requests = sorted({row.request_id for row in rows if row.request_id})
    applied: set[int] = set()
    try:
        with unit_of_work(engine, "apply_batch", first=first_id, taken=len(taken), requests=requests) as connection:
            applied = _apply(connection, taken)
    except Exception as error:
        if not is_poison(error):
            _uncount(engine, taken)
            raise
        # Whichever result caused it, each is now applied by itself, and counts its own attempts.
        log.exception("A batch failed; its results are applied one by one", first=first_id)
    _uncount(engine, [submission_id for submission_id in taken if submission_id not in applied])
    return applied


def _uncount(engine: Engine, ids: list[int]) -> None:
    """Uncount the attempt of submissions that their batch did not apply."""
    if not ids:
        return
    try:
        with unit_of_work(engine, "uncount_attempts", count=len(ids)) as connection:
            connection.execute(_UNCOUNT, {"ids": sorted(ids)})
    except Exception as error:
        log.warning("Could not uncount an attempt", error=str(error)[:200])


def _apply(connection: Connection, taken: list[int]) -> set[int]:
    rows = connection.execute(_LOCK_SUBMISSIONS, {"ids": taken}).all()
    plain = _find_composites(connection, rows)
    if not plain:
        return set()
    ids = sorted({item.composite_id for item in plain})
    locked = {row.id: row for row in connection.execute(_LOCK_COMPOSITES, {"ids": ids})}
    # Results for a prime are rejected, and a number may just have been deleted: applying.py does that, one by one.
    plain = [item for item in plain if item.composite_id in locked and not locked[item.composite_id].is_prime]
    if not plain:
        return set()
    recorded = set(
        connection.execute(
            _RECORD,
            [
                applying.attempt_values(item.submission_id, item.attempt_id, item.composite_id, item.result)
                for item in plain
            ],
        ).scalars()
    )
    # A result that was not recorded repeats recorded curves: applying.py finds out which.
    plain = [item for item in plain if item.attempt_id in recorded]
    if not plain:
        return set()
    _add_effort(connection, plain, locked)
    return {item.submission_id for item in plain}


def _find_composites(connection: Connection, rows: Iterable[Row[Any]]) -> list[_PlainResult]:
    """Return the results whose number belongs to exactly one composite; applying.py chooses among several."""
    read = [(row, SubmitResult.model_validate(row.payload)) for row in rows]
    hashes = {registry.sha256(result.composite) for _, result in read}
    found: dict[bytes, list[int]] = {}
    for alias in connection.execute(_FIND, {"hashes": sorted(hashes)}):
        found.setdefault(bytes(alias.value_sha256), []).append(alias.composite_id)
    plain = []
    for row, result in read:
        match found.get(registry.sha256(result.composite)):
            case [composite_id]:
                plain.append(_PlainResult(row.id, row.attempt_id, result, composite_id))
    return plain


def _add_effort(connection: Connection, plain: list[_PlainResult], locked: dict[int, Row[Any]]) -> None:
    """Add the runs to the sums and vectors of their composites, in the order of their arrival, and settle them."""
    vectors: dict[int, np.ndarray] = {}
    reached_b1: dict[tuple[int, str], int] = {}
    attempts: dict[int, int] = {}
    sums: dict[Account, int] = {}
    settled = []
    for item in plain:
        composite, result = locked[item.composite_id], item.result
        vector = vectors.get(composite.id, composite.effort)
        if result.method == "ecm" and result.curves > 0:
            run = (result.parameters.b1 or 0, result.b2, result.parametrization)
            vector = effort.add_curves(vector, result.curves, *run)
            account = Account(composite.id, *run)
            sums[account] = sums.get(account, 0) + result.curves
        vectors[composite.id] = vector
        key = (composite.id, result.method)
        reached_b1[key] = max(reached_b1.get(key, 0), applying.reached_p1_bound(result))
        attempts[composite.id] = attempts.get(composite.id, 0) + 1
        outcome = applying.Outcome(
            "applied",
            item.attempt_id,
            composite.id,
            "no_factor",
            applying.summary("no_factor", result, []),
            effort.t_level(vector),
            composite.target_t_level,
        )
        settled.append({"submission_id": item.submission_id, "composite": composite.id, "answer": outcome.answer()})
    if sums:
        ledger.add(connection, sums)
    connection.execute(
        _ADD_EFFORT,
        [
            {
                "composite": composite_id,
                "vector": vector,
                "t_level": effort.t_level(vector),
                "attempts": attempts[composite_id],
                "pm1": reached_b1.get((composite_id, "pm1"), 0),
                "pp1": reached_b1.get((composite_id, "pp1"), 0),
            }
            for composite_id, vector in vectors.items()
        ],
    )
    lease_lifecycle.refresh_eligibility(connection, vectors)
    connection.execute(_SETTLE, settled)
