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
from sqlalchemy import Connection, Engine, Row, Table, and_, bindparam, case, func, literal, not_, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB, array, insert

from config.settings import Settings
from coordinator import effort
from coordinator.base.unit_of_work import is_poison, unit_of_work
from coordinator.composites import lease_lifecycle, ledger, registry, target_changes, targets, values
from coordinator.composites.ledger import Account
from coordinator.composites.values import sha256
from coordinator.results import applying
from coordinator.results.applying import Applied
from models.tables import Composite, CompositeAlias, EcmAttempt, Submission, Target, TargetSource, WorkedValue
from models.wire.results import SubmitResult

log = structlog.get_logger("batches")

# Large enough to make the fixed costs of a batch small, small enough to take a few hundredths of a second.
MAX_BATCH = 50

# Plain tables: building a statement with the ORM takes longer than running one of these.
SUBMISSIONS, COMPOSITES, ALIASES, TARGETS, ATTEMPTS = (
    cast(Table, table.__table__) for table in (Submission, Composite, CompositeAlias, Target, EcmAttempt)
)
submissions, composites, aliases, target_columns = SUBMISSIONS.c, COMPOSITES.c, ALIASES.c, TARGETS.c
WORKED_VALUES, SOURCES = (cast(Table, table.__table__) for table in (WorkedValue, TargetSource))

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
_FOUND_COLUMNS: tuple[Any, ...] = (
    aliases.value_sha256,
    aliases.kind,
    aliases.composite_id,
    composites.value_sha256.label("number_sha256"),
    case((~target_columns.is_finished, target_columns.value_sha256)).label("unfinished_sha256"),
    composites.target_id,
)
_FIND = (
    select(*_FOUND_COLUMNS)
    .select_from(ALIASES.join(COMPOSITES, composites.id == aliases.composite_id))
    .outerjoin(TARGETS, target_columns.id == composites.target_id)
    .where(aliases.value_sha256.in_(bindparam("hashes", expanding=True)))
)
_FIND_SOURCES = (
    select(WORKED_VALUES.c.value_sha256, WORKED_VALUES.c.id, SOURCES.c.target_id)
    .select_from(WORKED_VALUES.join(SOURCES, SOURCES.c.value_id == WORKED_VALUES.c.id))
    .where(WORKED_VALUES.c.value_sha256.in_(bindparam("hashes", expanding=True)))
)
_COMPOSITE_COLUMNS: tuple[Any, ...] = (composites.id, composites.target_id, composites.is_prime)
# The composites of the results, and all others that point to their targets.
_LOCK_COMPOSITES = (
    select(*_COMPOSITE_COLUMNS)
    .where(
        or_(
            composites.id.in_(bindparam("ids", expanding=True)),
            composites.target_id.in_(bindparam("targets", expanding=True)),
        )
    )
    .order_by(composites.parent_id.is_not(None), composites.id)
    .with_for_update(key_share=True)
)
_RECORD = insert(ATTEMPTS).on_conflict_do_nothing(index_elements=[EcmAttempt.curves_sha256]).returning(ATTEMPTS.c.id)
_ADD_EFFORT = (
    update(TARGETS)
    .where(target_columns.id == bindparam("target"))
    .values(
        effort=bindparam("vector"),
        current_t_level=bindparam("t_level"),
        attempt_count=target_columns.attempt_count + bindparam("attempts"),
        last_attempt_at=func.clock_timestamp(),
        pm1_b1=func.greatest(target_columns.pm1_b1, bindparam("pm1")),
        pp1_b1=func.greatest(target_columns.pp1_b1, bindparam("pp1")),
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
    """A plain result with its composite, the value that its curves were run on, and the targets that they count for."""

    submission_id: int
    attempt_id: int
    result: SubmitResult
    composite_id: int
    target_id: int
    value_sha256: bytes
    value_id: int = 0
    target_ids: tuple[int, ...] = ()


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
    plain, new_values = _find_values(connection, rows)
    if not plain:
        return set()
    target_ids = sorted({target for item in plain for target in item.target_ids})
    ids = sorted({item.composite_id for item in plain})
    composites_now = {row.id: row for row in connection.execute(_LOCK_COMPOSITES, {"ids": ids, "targets": target_ids})}
    locked = {row.id: row for row in targets.lock(connection, target_ids)}
    # A part may have been split off before the targets were locked: then the curves count for it, too.
    sources = _find_sources(connection, plain)
    plain = [item for item in plain if set(item.target_ids) >= set(sources.get(item.value_sha256, (0, []))[1])]
    # A number may just have been deleted or divided, and results for a prime are rejected: applying.py does all that.
    plain = [item for item in plain if _is_unmoved(item, composites_now, locked)]
    if not plain:
        return set()
    _add_values(connection, [item for item in plain if not item.value_id], new_values)
    recorded = set(
        connection.execute(
            _RECORD,
            [
                applying.attempt_values(
                    item.submission_id, item.attempt_id, item.composite_id, item.value_id, item.result
                )
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


def _is_unmoved(item: _PlainResult, composites_now: dict[int, Row[Any]], locked: dict[int, Row[Any]]) -> bool:
    """Return whether a result's composite still points to its target, and has that target to itself."""
    composite = composites_now.get(item.composite_id)
    if composite is None or composite.is_prime or composite.target_id != item.target_id:
        return False
    # Curves that repeat those for another number of the target are recognized by applying.py.
    sharing = sum(row.target_id == item.target_id for row in composites_now.values())
    return all(target in locked for target in item.target_ids) and (sharing == 1 or not item.result.sigmas)


def _find_values(connection: Connection, rows: Iterable[Row[Any]]) -> tuple[list[_PlainResult], dict[bytes, str]]:
    """Return (the results whose number belongs to exactly one composite, the decimal texts of values without a row).

    applying.py chooses among several composites, and links a new value to all its targets but in the usual case: the
    value is the target's own.
    """
    read = [(row, SubmitResult.model_validate(row.payload)) for row in rows]
    hashes = {sha256(result.composite) for _, result in read}
    found: dict[bytes, list[Row[Any]]] = {}
    aliases_found: Iterable[Row[Any]] = connection.execute(_FIND, {"hashes": sorted(hashes)})
    for alias in aliases_found:
        found.setdefault(bytes(alias.value_sha256), []).append(alias)
    plain, own_values = [], {}
    for row, result in read:
        written = sha256(result.composite)
        match found.get(written):
            case [alias] if alias.target_id is not None:
                value = bytes(alias.number_sha256) if alias.kind == registry.NUMBER else written
                item = _PlainResult(row.id, row.attempt_id, result, alias.composite_id, alias.target_id, value)
                plain.append(item)
                if alias.unfinished_sha256 is not None and value == bytes(alias.unfinished_sha256):
                    own_values[value] = alias.target_id
    sources = _find_sources(connection, plain)
    new_values: dict[bytes, str] = {}
    for item in plain:
        if item.value_sha256 in sources:
            item.value_id, target_ids = sources[item.value_sha256]
            item.target_ids = tuple(target_ids)
        elif item.value_sha256 in own_values:
            item.target_ids = (own_values[item.value_sha256],)
            new_values[item.value_sha256] = item.result.composite
    # A spelling that is not decimal is evaluated by applying.py, once: then the value has a row.
    plain = [item for item in plain if item.value_id or _is_decimal(new_values.get(item.value_sha256, ""))]
    return plain, new_values


def _find_sources(connection: Connection, plain: Iterable[_PlainResult]) -> dict[bytes, tuple[int, list[int]]]:
    """Return (id, the targets for which its curves count) of each value of these results that has a row."""
    sources: dict[bytes, tuple[int, list[int]]] = {}
    for source in connection.execute(_FIND_SOURCES, {"hashes": sorted({item.value_sha256 for item in plain})}):
        sources.setdefault(bytes(source.value_sha256), (source.id, []))[1].append(source.target_id)
    return sources


def _is_decimal(text: str) -> bool:
    return text.isascii() and text.isdigit() and not text.startswith("0")


def _add_values(connection: Connection, plain: list[_PlainResult], texts: dict[bytes, str]) -> None:
    """Insert the rows of values that no curve was run on before, each linked to the target whose value it is."""
    if not plain:
        return
    ids = values.find_or_add_worked(connection, {item.value_sha256: texts[item.value_sha256] for item in plain})
    for item in plain:
        item.value_id = ids[item.value_sha256]
    links = sorted({(target, item.value_id) for item in plain for target in item.target_ids})
    target_changes.link(connection, [{"target_id": target, "value_id": value} for target, value in links])


def _add_effort(connection: Connection, plain: list[_PlainResult], locked: dict[int, Row[Any]]) -> None:
    """Add the runs to the sums of their values and the vectors of their targets, in order, and settle the results."""
    vectors: dict[int, np.ndarray] = {}
    reached_b1: dict[tuple[int, str], int] = {}
    attempts: dict[int, int] = {}
    sums: dict[Account, int] = {}
    settled = []
    for item in plain:
        result = item.result
        run = (result.parameters.b1 or 0, result.b2, result.parametrization)
        has_curves = result.method == "ecm" and result.curves > 0
        if has_curves:
            account = Account(item.value_id, *run)
            sums[account] = sums.get(account, 0) + result.curves
        for target in item.target_ids:
            vector = vectors.get(target, locked[target].effort)
            vectors[target] = effort.add_curves(vector, result.curves, *run) if has_curves else vector
            key = (target, result.method)
            reached_b1[key] = max(reached_b1.get(key, 0), applying.reached_p1_bound(result))
            attempts[target] = attempts.get(target, 0) + 1
        shown = locked[item.target_id]
        outcome = applying.Outcome(
            "applied",
            item.attempt_id,
            item.composite_id,
            "no_factor",
            applying.summary("no_factor", result, []),
            effort.t_level(vectors.get(item.target_id, shown.effort)),
            shown.target_t_level,
        )
        settled.append(
            {"submission_id": item.submission_id, "composite": item.composite_id, "answer": outcome.answer()}
        )
    if sums:
        ledger.add(connection, sums)
    connection.execute(
        _ADD_EFFORT,
        [
            {
                "target": target,
                "vector": vector,
                "t_level": effort.t_level(vector),
                "attempts": attempts[target],
                "pm1": reached_b1.get((target, "pm1"), 0),
                "pp1": reached_b1.get((target, "pp1"), 0),
            }
            for target, vector in sorted(vectors.items())
        ],
    )
    targets.copy_to_composites(connection, vectors)
    lease_lifecycle.refresh_eligibility(connection, vectors)
    connection.execute(_SETTLE, settled)
