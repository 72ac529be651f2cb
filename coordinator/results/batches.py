"""Applying many plain results in one database round.

Nearly every result is plain: some curves on a known number, no factor. Worker and database spend more on the round
trips and the commit of such a result than on the result, so a worker that is asked to apply one applies others that
wait with it, and when their own tasks come they find them settled. Everything else (factors, unknown numbers, leases,
projects, repeated curves, second tries) takes the way of coordinator/results/applying.py, one by one.

A round is one transaction: all its results become true together, or none does and each is tried by itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

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

log = structlog.get_logger("rounds")

# Large enough to make a round's fixed costs small, small enough to be over in a few hundredths of a second.
MAX_BATCH = 50

# Plain tables: the ORM's own way of building statements costs more than these statements do.
SUBMISSIONS, COMPOSITES, ATTEMPTS = (cast(Table, table.__table__) for table in (Submission, Composite, EcmAttempt))
submissions, composites, aliases = SUBMISSIONS.c, COMPOSITES.c, CompositeAlias.__table__.c

# Nothing but curves, on a number known in these very words. Payloads leave out what has its default.
_no_claims = and_(
    func.coalesce(submissions.payload["results", "factors_found"], literal([], JSONB)) == literal([], JSONB),
    submissions.payload["results", "factor_found"].is_(None),
)
_nothing_special = not_(submissions.payload.has_any(array(["project", "work_id", "residue_id", "residue_checksum"])))
# Looked up for each submission; as EXISTS it could become a join over all aliases there are.
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
# Counted before anything else, and durable against this process's death, as for every submission: one whose round died
# with its process is never in another. After an exception the tries are given back, for each is tried by itself then.
# Nothing is lost if PostgreSQL forgets it, so the disk is not waited for.
_TAKE = (
    update(SUBMISSIONS)
    .where(submissions.id.in_(select(_waiting.c.id)))
    .values(tries=submissions.tries + 1)
    .returning(submissions.id, submissions.request_id, func.set_config("synchronous_commit", "off", True))
)
_GIVE_BACK = (
    update(SUBMISSIONS)
    .where(submissions.id.in_(bindparam("ids", expanding=True)), submissions.state == "received")
    .values(tries=func.greatest(submissions.tries - 1, 0))
)
_LOCK_SUBMISSIONS = (
    select(submissions.id, submissions.payload, submissions.attempt_id)
    .where(submissions.id.in_(bindparam("ids", expanding=True)), submissions.state == "received")
    .order_by(submissions.id)
    .with_for_update(skip_locked=True)
)
_FIND = select(aliases.value_sha256, aliases.composite_id).where(
    aliases.value_sha256.in_(bindparam("hashes", expanding=True))
)
_LOCK_COMPOSITES = (
    select(
        composites.id,
        composites.is_prime,
        composites.effort,
        composites.target_t_level,
    )
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
    """Apply a submission, in a round with others if it is plain; the rest as `results.apply_result`."""
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
    """Apply the plain ones among the untried submissions from `first_id` on; the ids of those it applied."""
    with unit_of_work(engine, "take_round", first=first_id) as connection:
        rows = connection.execute(_TAKE, {"first_id": first_id}).all()
    if not rows:
        return set()
    taken = [row.id for row in rows]
    # Whoever follows a request in the log finds the transaction that applied it, though another's task did it.
    requests = sorted({row.request_id for row in rows if row.request_id})
    applied: set[int] = set()
    try:
        with unit_of_work(engine, "apply_round", first=first_id, taken=len(taken), requests=requests) as connection:
            applied = _apply(connection, taken)
    except Exception as error:
        if not is_poison(error):
            _give_back(engine, taken)
            raise
        # Whichever it was, each is tried by itself now, and counts its own tries.
        log.exception("A round failed; its results are applied one by one", first=first_id)
    _give_back(engine, [one for one in taken if one not in applied])
    return applied


def _give_back(engine: Engine, ids: list[int]) -> None:
    """Uncount a try that said nothing about these submissions."""
    if not ids:
        return
    try:
        with unit_of_work(engine, "give_back", count=len(ids)) as connection:
            connection.execute(_GIVE_BACK, {"ids": sorted(ids)})
    except Exception as error:
        log.warning("Could not uncount a try", error=str(error)[:200])


def _apply(connection: Connection, taken: list[int]) -> set[int]:
    rows = connection.execute(_LOCK_SUBMISSIONS, {"ids": taken}).all()
    plain = _find_composites(connection, rows)
    if not plain:
        return set()
    ids = sorted({one.composite_id for one in plain})
    locked = {row.id: row for row in connection.execute(_LOCK_COMPOSITES, {"ids": ids})}
    # A prime takes no more work: its results are refused, one by one; a number may just have been deleted.
    plain = [one for one in plain if one.composite_id in locked and not locked[one.composite_id].is_prime]
    if not plain:
        return set()
    recorded = set(
        connection.execute(
            _RECORD,
            [applying.attempt_values(one.submission_id, one.attempt_id, one.composite_id, one.result) for one in plain],
        ).scalars()
    )
    # What was not recorded repeats curves that were: that is for the single way to find out.
    plain = [one for one in plain if one.attempt_id in recorded]
    if not plain:
        return set()
    _add_effort(connection, plain, locked)
    return {one.submission_id for one in plain}


def _find_composites(connection: Connection, rows: Iterable[Row]) -> list[_PlainResult]:
    """The results among the rows whose number is exactly one composite's; which of several, the single way decides."""
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


def _add_effort(connection: Connection, plain: list[_PlainResult], locked: dict[int, Row]) -> None:
    """Add the runs, in the order they came in, to their composites' sums and vectors, and settle them."""
    vectors: dict[int, np.ndarray] = {}
    reach: dict[tuple[int, str], int] = {}
    attempts: dict[int, int] = {}
    sums: dict[Account, int] = {}
    settled = []
    for one in plain:
        composite, result = locked[one.composite_id], one.result
        vector = vectors.get(composite.id, composite.effort)
        if result.method == "ecm" and result.curves > 0:
            run = (result.parameters.b1 or 0, result.b2, result.parametrization)
            vector = effort.add_curves(vector, result.curves, *run)
            account = Account(composite.id, *run)
            sums[account] = sums.get(account, 0) + result.curves
        vectors[composite.id] = vector
        which = (composite.id, result.method)
        reach[which] = max(reach.get(which, 0), applying.p1_reach(result))
        attempts[composite.id] = attempts.get(composite.id, 0) + 1
        outcome = applying.Outcome(
            "applied",
            one.attempt_id,
            composite.id,
            "no_factor",
            applying.summary("no_factor", result, []),
            effort.t_level(vector),
            composite.target_t_level,
        )
        settled.append({"submission_id": one.submission_id, "composite": composite.id, "answer": outcome.answer()})
    if sums:
        ledger.add(connection, sums)
    connection.execute(
        _ADD_EFFORT,
        [
            {
                "composite": key,
                "vector": vector,
                "t_level": effort.t_level(vector),
                "attempts": attempts[key],
                "pm1": reach.get((key, "pm1"), 0),
                "pp1": reach.get((key, "pp1"), 0),
            }
            for key, vector in vectors.items()
        ],
    )
    lease_lifecycle.refresh_eligibility(connection, vectors)
    connection.execute(_SETTLE, settled)
