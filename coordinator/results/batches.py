"""Applying the submissions that wait: the plain ones together in one unit of work, the others one by one.

A result is plain if it has only curves, on a number that is known in this spelling, and names no project and no
residue; it may name a lease of its client on that number. Nearly all results are plain, and the statements and the
commit of one cost more than its arithmetic. The steps are those of coordinator/results/applying.py, each done for a
whole batch by one or two statements:

 1. take the submissions that are due;
 2. find the composites, leases and values of those that can be plain, and lock the composites and targets;
 3. (a plain result claims no factor;)
 4. record the attempts, and leave out results whose curves are recorded already;
 5. add the curves to their values and targets;
 6. (no factor to use;)
 7. count the curves on their leases, and compute the eligibility of the targets;
 8. settle the submissions.

A batch is one transaction: all its results are applied together, or none is, and then each is applied by itself. What
another transaction has locked is left out; its results are a second batch, which waits for these locks for a moment.

Every other result (factors, unknown numbers, projects, residues, repeated curves, second attempts) is applied by itself
by coordinator/results/applying.py, after the batch.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple
from typing import cast as typed
from uuid import UUID

import structlog
from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Select,
    Table,
    bindparam,
    func,
    not_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from config.settings import Settings
from coordinator import effort
from coordinator.base.jobs import JobRef
from coordinator.base.json_rows import json_rows
from coordinator.base.many_rows import arrays, is_in_list, rows_of_arrays
from coordinator.base.unit_of_work import is_conflict, is_poison, public_message, unit_of_work
from coordinator.composites import lease_lifecycle, registry, target_changes, targets, values
from coordinator.composites.eligibility import Eligibility, EligibilityInputs
from coordinator.composites.ledger import Account
from coordinator.composites.values import sha256
from coordinator.results import applying, delivery_attempts
from coordinator.results.applying import LOCK_TIMEOUT_MS, Applied
from models.tables import (
    Composite,
    EcmAttempt,
    Submission,
    Target,
    TargetSource,
    ValueEffort,
    WorkAssignment,
    WorkedValue,
)
from models.types import AnyRow, effort_bytes
from models.wire.results import SubmitResult

log = structlog.get_logger("batches")

# Large enough to make the fixed costs of a batch small, small enough to take a few hundredths of a second.
MAX_BATCH = 100
# Results that are applied one by one begin within so many seconds after they were taken. The rest is taken again.
RUN_SECONDS = 5.0
# How long the results of a run that are applied one by one wait for locks: after the first one has waited in vain, the
# next ones wait less.
LOCK_TIMEOUTS_MS = (LOCK_TIMEOUT_MS, 100, 100, 100, 100, 10)
# How long a batch waits for the locks of claims and of other batches.
BATCH_PATIENCE_MS = 200
LOOK_AGAIN_SECONDS = 1.0
# So many submissions at most get their ids before one that was taken, and are stored after it.
OVERTAKEN = 2000
# Fields of a payload that a plain result has not.
NOT_PLAIN = frozenset(("project", "residue_id", "residue_checksum"))

# Plain tables: building a statement with the ORM takes longer than running one of these.
COMPOSITES, TARGETS, ATTEMPTS, LEASES, WORKED_VALUES, SOURCES, VALUE_EFFORT, SUBMISSIONS = (
    typed(Table, table.__table__)
    for table in (Composite, Target, EcmAttempt, WorkAssignment, WorkedValue, TargetSource, ValueEffort, Submission)
)
_LEASE_TERMS = ("method", "b1", "b2", "parametrization", "curves", "curves_submitted")
composites, target_columns = COMPOSITES.c, TARGETS.c

# The composites that have had a value, each with the row of the value that such curves are run on and what shares it.
_FIND = text("""
SELECT set_config('lock_timeout', :lock_timeout, true), a.value_sha256, a.kind, a.composite_id, c.target_id,
       c.value_sha256 AS number_sha256, CASE WHEN NOT t.is_finished THEN t.value_sha256 END AS unfinished_sha256,
       w.id AS value_id,
       ARRAY(SELECT s.target_id FROM target_sources s WHERE s.value_id = w.id) AS counting,
       ARRAY(
           SELECT o.id FROM target_sources s JOIN composites o ON o.target_id = s.target_id WHERE s.value_id = w.id
           UNION SELECT o.id FROM composites o WHERE o.target_id = c.target_id
       ) AS sharers
FROM composite_aliases a
JOIN composites c ON c.id = a.composite_id
LEFT JOIN targets t ON t.id = c.target_id
LEFT JOIN worked_values w
    ON w.value_sha256 = CASE WHEN a.kind = :number THEN c.value_sha256 ELSE a.value_sha256 END
WHERE a.value_sha256 = ANY(CAST(:hashes AS bytea[]))
""")
_FIND_LEASES = select(
    LEASES.c.id, LEASES.c.client_id, LEASES.c.composite_id, LEASES.c.b1, LEASES.c.b2, LEASES.c.curves
).where(LEASES.c.id.in_(bindparam("ids", expanding=True)))
_TARGET_COLUMNS: tuple[Any, ...] = tuple(
    target_columns[name] for name in ("id", *EligibilityInputs._fields, *Eligibility._fields, "attempt_count")
)


class _LockStatements(NamedTuple):
    """The statements that lock what a batch changes, in the order of locks."""

    composites: Select[Any]
    targets: Select[Any]
    leases: Select[Any]


def _lock_statements(*, skip_locked: bool) -> _LockStatements:
    """Return statements that leave out what others have locked, or that wait for it."""
    of_composites = select(composites.id, composites.target_id, composites.is_prime)
    of_composites = of_composites.where(is_in_list(composites.id))
    of_targets = select(*_TARGET_COLUMNS).where(is_in_list(target_columns.id))
    of_leases = select(LEASES.c.id).where(LEASES.c.id.in_(bindparam("leases", expanding=True)))
    ordered = (
        of_composites.order_by(composites.parent_id.is_not(None), composites.id),
        of_targets.order_by(target_columns.id),
        of_leases.order_by(LEASES.c.id),
    )
    return _LockStatements(*(one.with_for_update(key_share=True, skip_locked=skip_locked) for one in ordered))


_AT_ONCE, _WAITING = _lock_statements(skip_locked=True), _lock_statements(skip_locked=False)
_FIND_RECORDED = text("SELECT curves_sha256 FROM ecm_attempts WHERE curves_sha256 = ANY(CAST(:hashes AS bytea[]))")


_ATTEMPT_COLUMNS = (*applying.ATTEMPT_COLUMNS, "work_id")
_RECORD = (
    insert(ATTEMPTS)
    .from_select(_ATTEMPT_COLUMNS, select(rows_of_arrays(ATTEMPTS, _ATTEMPT_COLUMNS)), include_defaults=False)
    .on_conflict_do_nothing(index_elements=[ATTEMPTS.c.curves_sha256])
    .returning(ATTEMPTS.c.id)
)
# What may have changed before the targets were locked: for which targets the values count, and the open leases.
_READ_LOCKED = select(
    json_rows(
        select(func.encode(WORKED_VALUES.c.value_sha256, "hex"), SOURCES.c.target_id)
        .join_from(WORKED_VALUES, SOURCES, SOURCES.c.value_id == WORKED_VALUES.c.id)
        .where(is_in_list(WORKED_VALUES.c.value_sha256, "hashes")),
        "sources",
    ),
    json_rows(
        select(*(LEASES.c[name] for name in ("target_id", "id", *_LEASE_TERMS)))
        .where(is_in_list(LEASES.c.target_id, "targets"), LEASES.c.closed_at.is_(None))
        .order_by(LEASES.c.created_at, LEASES.c.id),
        "leases",
    ),
    json_rows(
        select(composites.target_id).where(
            is_in_list(composites.target_id, "targets"), not_(is_in_list(composites.id, "composites"))
        ),
        "late",
    ),
)
# Everything that a batch changes, in one statement: all its rows are locked, or belong to a locked row.
_SUMS = ("value_id", "b1", "b2", "parametrization", "curves")
_new_sums = select(rows_of_arrays(VALUE_EFFORT, _SUMS, "sums"))
_sums = insert(VALUE_EFFORT).from_select(_SUMS, _new_sums, include_defaults=False)
_add_sums = _sums.on_conflict_do_update(
    index_elements=["value_id", "b1", "b2", "parametrization"],
    set_={"curves": VALUE_EFFORT.c.curves + _sums.excluded.curves},
).cte("added_sums")
_CHANGED = ("effort", "current_t_level", "attempt_count", "pm1_b1", "pp1_b1", *Eligibility._fields)
_changes = rows_of_arrays(TARGETS, ("id", *_CHANGED), "changed")
_changed_targets = (
    update(TARGETS)
    .where(target_columns.id == _changes.c.id)
    .values(last_attempt_at=func.clock_timestamp(), **{name: _changes.c[name] for name in _CHANGED})
    .returning(target_columns.id, *(target_columns[name] for name in targets.REPEATED))
    .cte("changed_targets")
)
_repeat_in_composites = (
    update(COMPOSITES)
    .where(composites.target_id == _changed_targets.c.id)
    .values({name: _changed_targets.c[name] for name in targets.REPEATED})
    .cte("changed_composites")
)
_SETTLED = ("id", "composite_id", "outcome")
_settled = rows_of_arrays(SUBMISSIONS, _SETTLED, "settled")
_STORE = (
    update(SUBMISSIONS)
    .where(SUBMISSIONS.c.id == _settled.c.id, SUBMISSIONS.c.state == "received")
    .values(
        state="applied",
        composite_id=_settled.c.composite_id,
        outcome=_settled.c.outcome,
        detail=None,
        settled_at=func.clock_timestamp(),
    )
    .add_cte(_add_sums, _changed_targets, _repeat_in_composites, lease_lifecycle.COUNT_CURVES.cte("counted_curves"))
)


@dataclass(frozen=True)
class Attempted:
    """What a delivery attempt made of a submission: its state now, and why it was rejected, failed or has to wait.

    `state` is "received" if the submission has to wait for another attempt.
    """

    submission_id: int
    client_id: str
    composite: str
    state: str
    factor_status: str | None = None
    detail: str | None = None


@dataclass
class Report:
    """What a run did: an entry for each submission that it attempted, and the seconds until the next one is due.

    `next_due` is 0 if some are due now, and None if none waits. `last_taken` is the largest id that was taken.
    """

    attempted: list[Attempted] = field(default_factory=list)
    next_due: float | None = None
    last_taken: int = 0


# Called with submissions that have just been settled, and the jobs that follow from them.
OnSettled = Callable[[list[int], list[JobRef]], None]


def apply_waiting(
    engine: Engine, settings: Settings, batch: UUID, on_settled: OnSettled, *, after: int | None = None
) -> Report:
    """Apply the oldest submissions that are due: the plain ones together, then the others one by one.

    At most MAX_BATCH, and none begins after RUN_SECONDS. `batch` names this run, so that its submissions can be taken
    again at once if its process dies (`delivery_attempts.release_lost`). With `after`, the `last_taken` of the run
    before, only what came in since then is looked for, and `next_due` is LOOK_AGAIN_SECONDS at most: a worker looks for
    the others now and then. Raises the error if the database is away.
    """
    until = monotonic() + RUN_SECONDS
    report = Report()
    taken = delivery_attempts.take(engine, batch, MAX_BATCH, from_id=0 if after is None else after - OVERTAKEN)
    report.last_taken = max((row.id for row in taken), default=after or 0)
    first_attempts = [row for row in taken if row.tries_before == 0]
    together, due = _apply_plain(engine, batch, first_attempts, on_settled)
    report.attempted += [_attempted(row, together[row.id]) for row in taken if row.id in together]
    rest = {row.id: row for row in taken if row.id not in together}
    delivery_attempts.uncount(engine, [row.id for row in first_attempts if row.id in rest])
    _apply_one_by_one(engine, settings, rest, report, until=until, on_settled=on_settled)
    delivery_attempts.make_due(engine, rest)
    if rest or len(taken) == MAX_BATCH:
        report.next_due = 0.0
    elif after is None:
        # What is due now and was not taken is locked: it is being applied.
        next_due = delivery_attempts.seconds_until_due(engine)
        report.next_due = next_due or (None if next_due is None else LOOK_AGAIN_SECONDS)
    else:
        report.next_due = LOOK_AGAIN_SECONDS if due is None else min(LOOK_AGAIN_SECONDS, due)
    return report


def _apply_plain(
    engine: Engine, batch: UUID, rows: Sequence[Row[Any]], on_settled: OnSettled
) -> tuple[dict[int, Applied], float | None]:
    """Apply the plain ones of these submissions.

    Returns the new states by submission, of those that were applied and of those that have to wait, because another
    transaction has locked what they change; and the seconds until the first of the latter is due (None: nothing waits).
    """
    applied, locked = _apply_together(engine, batch, rows)
    if applied:
        on_settled(sorted(applied), [])
    if locked:
        # Mostly by a claim or another batch, for some hundredths of a second.
        later, locked = _apply_together(engine, batch, [row for row in rows if row.id in locked], waits=True)
        if later:
            on_settled(sorted(later), [])
        applied |= later
    due = delivery_attempts.postpone(engine, locked, uncount=True)
    return dict.fromkeys(applied, _APPLIED) | dict.fromkeys(locked, _LOCKED_BY_OTHERS), due


def _apply_one_by_one(
    engine: Engine,
    settings: Settings,
    rest: dict[int, Row[Any]],
    report: Report,
    on_settled: OnSettled,
    *,
    until: float,
) -> None:
    """Apply these submissions, the oldest first, each by itself, and report them; `rest` keeps what has not begun."""
    conflicts = 0
    while rest and monotonic() < until:
        row = rest.pop(min(rest))
        try:
            with structlog.contextvars.bound_contextvars(request=row.request_id):
                timeout = LOCK_TIMEOUTS_MS[min(conflicts, len(LOCK_TIMEOUTS_MS) - 1)]
                alone = applying.apply_result(engine, row.id, settings, lock_timeout_ms=timeout)
        except Exception as error:
            if is_conflict(error):
                conflicts += 1
                # The others on this number need the same locks: each would wait for them in turn.
                same = [one.id for one in rest.values() if one.composite == row.composite]
                delivery_attempts.postpone(engine, same, uncount=False)
                for one in same:
                    report.attempted.append(_attempted(rest.pop(one), _LOCKED_BY_OTHERS))
            elif is_poison(error):
                log.exception("A result could not be applied", submission=row.id)
            else:
                delivery_attempts.make_due(engine, rest)
                raise
            alone = Applied("received", detail=public_message(error))
        if alone is not None:
            report.attempted.append(_attempted(row, alone))
            if alone.state != "received":
                on_settled([row.id], alone.to_publish)


_APPLIED = Applied("applied", "no_factor")
_LOCKED_BY_OTHERS = Applied("received", detail="another transaction has locked its number")


def _attempted(row: Row[Any], applied: Applied) -> Attempted:
    return Attempted(row.id, row.client_id, row.composite or "", applied.state, applied.factor_status, applied.detail)


def _apply_together(
    engine: Engine, batch: UUID, rows: Sequence[Row[Any]], *, waits: bool = False
) -> tuple[set[int], set[int]]:
    """Apply the plain ones of these submissions in one unit of work.

    Returns the ids of those that were applied, and of those that wait because another transaction has locked what they
    change. With `waits`, all wait for these locks for BATCH_PATIENCE_MS.
    """
    read = [(row, result) for row in rows if row.payload and (result := _read_plain(row.payload)) is not None]
    if not read:
        return set(), set()
    ids = [row.id for row, _ in read]
    # The log line names all requests, so that each leads to its transaction.
    requests = sorted({row.request_id for row, _ in read if row.request_id})
    try:
        with unit_of_work(engine, "apply_batch", batch=str(batch), count=len(ids), requests=requests) as connection:
            return _apply(connection, read, waits=waits)
    except Exception as error:
        if is_poison(error):
            # Whichever result caused it, each is now applied by itself, and counts its own attempts.
            log.exception("A batch failed; its results are applied one by one", batch=str(batch))
            return set(), set()
        if not is_conflict(error):
            raise
        log.info("A batch met a lock", batch=str(batch), error=public_message(error))
        return set(), set(ids) if waits else set()


def _read_plain(payload: dict[str, Any]) -> SubmitResult | None:
    """Return the result of a payload if it can be plain: curves only. Payloads leave out fields with their defaults."""
    results = payload.get("results", {})
    if results.get("factors_found") or results.get("factor_found") is not None or not NOT_PLAIN.isdisjoint(payload):
        return None
    return SubmitResult.model_validate(payload)


@dataclass
class _PlainResult:
    """A plain result with its composite and lease, the value it was run on, and the targets it counts for.

    `sharers` are all composites that point to its own target (`target_id`) or to one that it counts for.
    """

    submission_id: int
    attempt_id: int
    result: SubmitResult
    composite_id: int
    target_id: int
    value_sha256: bytes
    value_id: int | None
    counting: frozenset[int]
    sharers: frozenset[int]
    lease: AnyRow | None


class _OpenLease(NamedTuple):
    """An open lease of a locked target; the fields are those of _LEASE_TERMS after its id."""

    id: UUID
    method: str
    b1: int | None
    b2: int | None
    parametrization: int | None
    curves: int | None
    curves_submitted: int


class _Locked(NamedTuple):
    """The rows that a batch has locked: targets and composites by id, and the open leases of the targets by target."""

    targets: dict[int, AnyRow]
    composites: dict[int, AnyRow]
    leases: dict[int, list[_OpenLease]]


def _apply(
    connection: Connection, read: list[tuple[Row[Any], SubmitResult]], *, waits: bool
) -> tuple[set[int], set[int]]:
    """Return (the ids of the submissions that were applied, those that wait for locks of others)."""
    plain = _find(connection, read, BATCH_PATIENCE_MS if waits else LOCK_TIMEOUT_MS)
    if not plain:
        return set(), set()
    plain, waiting, locked = _lock(connection, plain, _WAITING if waits else _AT_ONCE)
    plain = _without_repeats(connection, plain, locked)
    plain = _record(connection, plain) if plain else []
    if plain:
        _add_effort(connection, plain, locked)
    return {item.submission_id for item in plain}, waiting


def _find(
    connection: Connection, read: list[tuple[Row[Any], SubmitResult]], lock_timeout_ms: int
) -> list[_PlainResult]:
    """Return the results that are plain, each with its composite and its value.

    applying.py evaluates other spellings, and links a value that no curve was run on before to all its targets; here it
    is plain only in the usual case that the value is the target's own.
    """
    hashes = {row.id: sha256(result.composite) for row, result in read}
    parameters = {
        "hashes": sorted(set(hashes.values())),
        "lock_timeout": str(lock_timeout_ms),
        "number": registry.NUMBER,
    }
    found: dict[bytes, list[AnyRow]] = {}
    rows: Iterable[AnyRow] = connection.execute(_FIND, parameters)
    for one in rows:
        found.setdefault(bytes(one.value_sha256), []).append(one)
    leases = _find_leases(connection, [result for _, result in read])
    plain = []
    for row, result in read:
        written = hashes[row.id]
        lease = leases.get(result.work_id) if result.work_id else None
        alias = _choose(found.get(written, []), written, result, lease)
        if alias is None or alias.target_id is None:
            continue
        value = bytes(alias.number_sha256) if alias.kind == registry.NUMBER else written
        counting = frozenset(alias.counting)
        if alias.value_id is None:
            is_own = alias.unfinished_sha256 is not None and value == bytes(alias.unfinished_sha256)
            if not is_own or not _is_decimal(result.composite):
                continue
            counting = frozenset((alias.target_id,))
        sharers = frozenset((*alias.sharers, alias.composite_id))
        plain.append(
            _PlainResult(
                row.id,
                row.attempt_id,
                result,
                alias.composite_id,
                alias.target_id,
                value,
                alias.value_id,
                counting,
                sharers,
                lease,
            )
        )
    return plain


def _find_leases(connection: Connection, results: Iterable[SubmitResult]) -> dict[str, AnyRow]:
    """Return the leases that these results name, by the name."""
    named: dict[UUID, str] = {}
    for result in results:
        if result.work_id:
            with suppress(ValueError):
                named[UUID(result.work_id)] = result.work_id
    if not named:
        return {}
    rows: Iterable[AnyRow] = connection.execute(_FIND_LEASES, {"ids": list(named)})
    return {named[row.id]: row for row in rows}


def _choose(found: list[AnyRow], written: bytes, result: SubmitResult, lease: AnyRow | None) -> AnyRow | None:
    """Return the alias of the composite that a result belongs to; None if applying.py has to find out.

    That is the leased number if the value is one that it has had; without a lease the number that `registry.find`
    returns.
    """
    if not result.work_id:

        def rank(alias: AnyRow) -> tuple[bool, bool, int]:
            return alias.kind != registry.NUMBER, alias.unfinished_sha256 != written, alias.composite_id

        return min(found, key=rank, default=None)
    if lease is None or lease.client_id != result.client_id:
        return None
    return next((alias for alias in found if alias.composite_id == lease.composite_id), None)


def _is_decimal(written: str) -> bool:
    return written.isascii() and written.isdigit() and not written.startswith("0")


def _lock(
    connection: Connection, plain: list[_PlainResult], lock: _LockStatements
) -> tuple[list[_PlainResult], set[int], _Locked]:
    """Lock what the results change.

    Returns (the results that can be applied, the ids of the submissions that wait because another transaction has
    locked one of these rows, the locked rows). A result whose numbers have moved meanwhile is in neither.
    """
    composite_ids = {one for item in plain for one in item.sharers}
    locked_composites = {row.id: row for row in connection.execute(lock.composites, {"ids": sorted(composite_ids)})}
    free = [item for item in plain if item.sharers <= locked_composites.keys()]
    target_ids = {one for item in free for one in (item.target_id, *item.counting)}
    locked_targets = {row.id: row for row in connection.execute(lock.targets, {"ids": sorted(target_ids)})}
    free = [item for item in free if {item.target_id, *item.counting} <= locked_targets.keys()]
    lease_ids = sorted({item.lease.id for item in free if item.lease is not None})
    locked_leases = set(connection.execute(lock.leases, {"leases": lease_ids}).scalars()) if lease_ids else set()
    free = [item for item in free if item.lease is None or item.lease.id in locked_leases]
    waiting = {item.submission_id for item in plain} - {item.submission_id for item in free}
    # A part may have been split off before the targets were locked: then the curves count for it, too.
    counting, leases, new = _read_locked(connection, free, sorted(locked_targets), list(locked_composites))

    def is_unmoved(item: _PlainResult) -> bool:
        composite = locked_composites[item.composite_id]
        # Results for a prime are rejected by applying.py.
        return (
            new.isdisjoint((item.target_id, *item.counting))
            and composite.target_id == item.target_id
            and not composite.is_prime
            and item.counting.issuperset(counting.get(item.value_sha256.hex(), ()))
        )

    return [item for item in free if is_unmoved(item)], waiting, _Locked(locked_targets, locked_composites, leases)


def _read_locked(
    connection: Connection, plain: list[_PlainResult], target_ids: list[int], composite_ids: list[int]
) -> tuple[dict[str, list[int]], dict[int, list[_OpenLease]], set[int]]:
    """Read what belongs to locked targets and composites.

    Returns (the targets for which the curves on each value count, by its hash in hex; the open leases by target; the
    targets to which a composite came that is not locked).
    """
    if not plain:
        return {}, {}, set()
    hashes = sorted({item.value_sha256 for item in plain})
    values_of = {"hashes": hashes, "targets": target_ids, "composites": composite_ids}
    row = connection.execute(_READ_LOCKED, values_of).one()
    counting: dict[str, list[int]] = {}
    for value, target in row.sources:
        counting.setdefault(value, []).append(target)
    leases: dict[int, list[_OpenLease]] = {}
    for target, lease_id, *terms in row.leases:
        leases.setdefault(target, []).append(_OpenLease(UUID(lease_id), *terms))
    return counting, leases, {target for (target,) in row.late}


def _without_repeats(connection: Connection, plain: list[_PlainResult], locked: _Locked) -> list[_PlainResult]:
    """Leave out results whose curves were sent for another number with the same target: applying.py finds out which."""
    hashes: dict[int, list[bytes]] = {}
    for item in plain:
        others = [
            one
            for one in item.sharers
            if one != item.composite_id and locked.composites[one].target_id == item.target_id
        ]
        if item.result.sigmas and others:
            hashes[item.submission_id] = [applying.curves_sha256(one, item.result) or b"" for one in others]
    if not hashes:
        return plain
    wanted = sorted({one for of_item in hashes.values() for one in of_item})
    recorded = {bytes(found) for found in connection.execute(_FIND_RECORDED, {"hashes": wanted}).scalars()}
    kept = []
    for item in plain:
        if recorded.isdisjoint(hashes.get(item.submission_id, [])):
            kept.append(item)
            recorded.add(applying.curves_sha256(item.composite_id, item.result) or b"")
    return kept


def _record(connection: Connection, plain: list[_PlainResult]) -> list[_PlainResult]:
    """Insert the attempts, and the rows of new values; returns the results whose curves were not recorded before."""
    new = {item.value_sha256: item.result.composite for item in plain if item.value_id is None}
    if new:
        ids = values.find_or_add_worked(connection, new)
        links = set()
        for item in plain:
            if item.value_id is None:
                item.value_id = ids[item.value_sha256]
                links.add((item.target_id, item.value_id))
        target_changes.link(connection, [{"target_id": target, "value_id": value} for target, value in sorted(links)])
    attempts = [
        applying.attempt_values(
            item.submission_id, item.attempt_id, item.composite_id, typed(int, item.value_id), item.result
        )
        | {"work_id": None if item.lease is None else item.lease.id}
        for item in plain
    ]
    recorded = set(connection.execute(_RECORD, arrays(attempts, _ATTEMPT_COLUMNS)).scalars())
    # A result that was not recorded repeats recorded curves: applying.py finds out which.
    return [item for item in plain if item.attempt_id in recorded]


def _add_effort(connection: Connection, plain: list[_PlainResult], locked: _Locked) -> None:
    """Add the runs to their values, targets and leases, in order, and settle the submissions."""
    changed = {one: _ChangedTarget(locked.targets[one]) for item in plain for one in item.counting}
    sums: dict[Account, int] = {}
    on_leases: dict[UUID, tuple[AnyRow, list[SubmitResult]]] = {}
    outcomes = []
    for item in plain:
        result = item.result
        if result.method == "ecm" and result.curves > 0:
            account = Account(typed(int, item.value_id), *applying.run_of(result))
            sums[account] = sums.get(account, 0) + result.curves
        for one in item.counting:
            changed[one].add(result)
        if item.lease is not None:
            on_leases.setdefault(item.lease.id, (item.lease, []))[1].append(result)
        shown = changed.get(item.target_id) or _ChangedTarget(locked.targets[item.target_id])
        outcome = applying.Outcome(
            "applied",
            item.attempt_id,
            item.composite_id,
            "no_factor",
            applying.summary("no_factor", result, []),
            shown.t_level(),
            shown.inputs.target_t_level,
        )
        outcomes.append(outcome.answer())
    counted = lease_lifecycle.curves_of_leases(on_leases.values())
    sums_stored = [{**account._asdict(), "curves": count} for account, count in sorted(sums.items())]
    targets_stored = [
        {"id": one, **_columns(connection, target, _still_open(locked.leases.get(one, []), counted))}
        for one, target in sorted(changed.items())
    ]
    settled = [
        {"id": item.submission_id, "composite_id": item.composite_id, "outcome": outcome}
        for item, outcome in zip(plain, outcomes, strict=True)
    ]
    stored = connection.execute(
        _STORE,
        arrays(sums_stored, _SUMS, "sums")
        | arrays(targets_stored, ("id", *_CHANGED), "changed")
        | lease_lifecycle.counted_curves(counted)
        | arrays(settled, _SETTLED, "settled"),
    )
    if stored.rowcount != len(plain):
        raise RuntimeError("submissions of this batch have been settled meanwhile")


def _still_open(leases: list[_OpenLease], counted: dict[UUID, int]) -> list[_OpenLease]:
    """Return the leases with the curves of this batch, without those that are complete now."""
    now = [lease._replace(curves_submitted=lease.curves_submitted + counted.get(lease.id, 0)) for lease in leases]
    is_complete = {lease.id for lease in now if lease.curves is not None and lease.curves_submitted >= lease.curves}
    return [lease for lease in now if lease.id not in is_complete & counted.keys()]


def _columns(connection: Connection, target: "_ChangedTarget", leases: list[_OpenLease]) -> dict[str, Any]:
    """Return the columns of _CHANGED of a target with these open leases."""
    return {
        "effort": effort_bytes(target.inputs.effort),
        "current_t_level": target.t_level(),
        "attempt_count": target.attempts,
        "pm1_b1": target.inputs.pm1_b1,
        "pp1_b1": target.inputs.pp1_b1,
        **lease_lifecycle.needed_eligibility(connection, target.inputs, leases),
    }


class _ChangedTarget:
    """A locked target and what the results of a batch add to it."""

    def __init__(self, row: AnyRow) -> None:
        self.inputs = EligibilityInputs(**{name: getattr(row, name) for name in EligibilityInputs._fields})
        self.attempts = row.attempt_count

    def add(self, result: SubmitResult) -> None:
        """Add a result to the vector, the count and the bounds."""
        self.attempts += 1
        if result.method == "ecm" and result.curves > 0:
            vector = effort.add_curves(self.inputs.effort, result.curves, *applying.run_of(result))
            self.inputs = self.inputs._replace(effort=vector)
        elif result.method in ("pm1", "pp1"):
            name = f"{result.method}_b1"
            reached = max(getattr(self.inputs, name), applying.reached_p1_bound(result))
            self.inputs = self.inputs._replace(**{name: reached})

    def t_level(self) -> float:
        """Return the t-level with these results."""
        return effort.t_level(self.inputs.effort)
