"""The ledger of curves: exact integer sums for each value, from which the effort vectors of targets are rebuilt.

A run is added to one sum, that of the value it was run on, and to the vector of every target for which curves on this
value count (`target_sources`). So each attempt counts once for a target, however many numbers lead to it. Curves that
are taken back are never subtracted from a vector, because floating-point sums would not return to their earlier values:
the integer sums change, and the vectors are rebuilt from them. Callers have locked the targets.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, cast

import numpy as np
from sqlalchemy import ColumnElement, Connection, Table, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from coordinator import effort
from coordinator.base.many_rows import batches, is_in_list, is_one_of, update_rows
from coordinator.composites import lease_lifecycle, statistics, superseding, targets
from models.limits import STAGE1_ONLY
from models.tables import Composite, EcmAttempt, Factor, Submission, Target, TargetSource, ValueEffort
from models.types import AnyRow

# Two vectors that add the same terms in different orders differ by less than this.
RELATIVE_ERROR, MAX_T_LEVEL_ERROR = 1e-9, 1e-6
# So many targets are computed at once: their vectors are in memory.
REBUILD_BATCH = 2000
# The reason of a submission whose attempt an operator deleted; the same submission is rejected again.
ATTEMPT_DELETED = "attempt_deleted"

_sums = insert(ValueEffort)
_ADD = _sums.on_conflict_do_update(
    index_elements=["value_id", "b1", "b2", "parametrization"],
    set_={"curves": ValueEffort.curves + _sums.excluded.curves},
)
_targets = cast(Table, Target.__table__)


class Account(NamedTuple):
    """The key of a sum of curves; `b2` is -1 for the default B2, 0 for stage 1 only."""

    value_id: int
    b1: int
    b2: int
    parametrization: int


class TargetEffort(NamedTuple):
    """What the curves that count for a target and its prior work give; the names are those of its columns."""

    effort: np.ndarray
    current_t_level: float
    attempt_count: int
    last_attempt_at: datetime | None
    pm1_b1: int
    pp1_b1: int

    def difference_from(self, row: AnyRow) -> str:
        """Return the names of what differs in a target's row, "" if nothing does."""
        is_same_vector = bool(np.allclose(row.effort, self.effort, rtol=RELATIVE_ERROR, atol=1e-300))
        is_same_level = abs(row.current_t_level - self.current_t_level) <= MAX_T_LEVEL_ERROR
        counts = (row.attempt_count, row.pm1_b1, row.pp1_b1)
        is_same_count = counts == (self.attempt_count, self.pm1_b1, self.pp1_b1)
        named = (("vector", is_same_vector), ("t-level", is_same_level), ("attempt-derived columns", is_same_count))
        return " and ".join(name for name, is_same in named if not is_same)


class Difference(NamedTuple):
    """A correction: the stored effort of a target differed from that of its attempts and prior work."""

    composite_id: int
    what: str
    stored_t_level: float
    correct_t_level: float


def add(connection: Connection, curves: Mapping[Account, int]) -> None:
    """Add curves to their sums, in the order of the keys so that no two units of work deadlock."""
    connection.execute(_ADD, [{**account._asdict(), "curves": count} for account, count in sorted(curves.items())])


# Targets --------------------------------------------------------------------------------------------------------------


def compute(
    connection: Connection, target_ids: Iterable[int], known_vectors: Mapping[int, np.ndarray] | None = None
) -> dict[int, TargetEffort]:
    """Compute what the sums, the attempts and the prior work of the sources of these targets give.

    `known_vectors` has the vectors of targets that have not changed since these were computed.
    """
    ids = list(target_ids)
    vectors = dict(known_vectors or {})
    vectors |= compute_vectors(connection, [target for target in ids if target not in vectors])
    reached: dict[int, AnyRow] = {row.target_id: row for row in connection.execute(_FROM_ATTEMPTS, {"ids": ids})}
    computed = {}
    for target_id in ids:
        vector = vectors[target_id]
        own_attempts = reached.get(target_id)
        counts: tuple[Any, ...] = (0, None, 0, 0)
        if own_attempts is not None:
            counts = (own_attempts.attempts, own_attempts.last, own_attempts.pm1_b1, own_attempts.pp1_b1)
        computed[target_id] = TargetEffort(vector, effort.t_level(vector), *counts)
    return computed


def compute_vectors(connection: Connection, target_ids: Collection[int]) -> dict[int, np.ndarray]:
    """Compute the effort vectors that the sums and the prior work of the sources of these targets give."""
    runs: dict[int, list[tuple[int, int, int, int]]] = {target: [] for target in target_ids}
    for row in connection.execute(_SUMS, {"ids": list(runs)}):
        if row.curves > 0:
            runs[row.target_id].append((row.b1, row.b2, row.parametrization, int(row.curves)))
    return {target_id: effort.effort_of(own) for target_id, own in runs.items()}


# In this order, as everywhere: the last bits of a vector depend on the order of its terms.
_SUMS = (
    select(
        TargetSource.target_id,
        ValueEffort.b1,
        ValueEffort.b2,
        ValueEffort.parametrization,
        func.sum(ValueEffort.curves + ValueEffort.prior_curves).label("curves"),
    )
    .join(ValueEffort, ValueEffort.value_id == TargetSource.value_id)
    .where(is_in_list(TargetSource.target_id))
    .group_by(TargetSource.target_id, ValueEffort.b1, ValueEffort.b2, ValueEffort.parametrization)
    .order_by(TargetSource.target_id, ValueEffort.b1, ValueEffort.b2, ValueEffort.parametrization)
)


def _largest_b1(method: str) -> Any:
    is_complete = (EcmAttempt.method == method, EcmAttempt.b2 != STAGE1_ONLY, EcmAttempt.curves > 0)
    return func.coalesce(func.max(EcmAttempt.b1).filter(*is_complete), 0).label(f"{method}_b1")


_FROM_ATTEMPTS = (
    select(
        TargetSource.target_id,
        func.count().label("attempts"),
        func.max(EcmAttempt.created_at).label("last"),
        _largest_b1("pm1"),
        _largest_b1("pp1"),
    )
    .join(EcmAttempt, EcmAttempt.value_id == TargetSource.value_id)
    .where(is_in_list(TargetSource.target_id), EcmAttempt.voided_at.is_(None))
    .group_by(TargetSource.target_id)
)


def rebuild(connection: Connection, target_ids: Iterable[int]) -> None:
    """Rebuild the effort of locked targets from the sums of their sources, and what follows from it."""
    for ids in batches(sorted(target_ids), REBUILD_BATCH):
        store(connection, compute(connection, ids))


def _rebuild_vectors(connection: Connection, target_ids: list[int]) -> None:
    """Rebuild the vectors and t-levels of locked targets whose attempts are the same as before.

    Superseding changes sums only, and counting all attempts would take longer the more there are.
    """
    vectors = compute_vectors(connection, target_ids)
    update_rows(
        connection,
        _targets,
        "id",
        [
            {"id": target_id, "effort": vector, "current_t_level": effort.t_level(vector)}
            for target_id, vector in vectors.items()
        ],
    )
    targets.copy_to_composites(connection, target_ids)
    lease_lifecycle.refresh_eligibility(connection, target_ids)


def store(connection: Connection, computed: Mapping[int, TargetEffort]) -> None:
    """Store the computed effort of locked targets, in their composites too, and recompute their eligibility."""
    if computed:
        update_rows(connection, _targets, "id", [{"id": one, **new._asdict()} for one, new in sorted(computed.items())])
        targets.copy_to_composites(connection, computed)
        lease_lifecycle.refresh_eligibility(connection, computed)


# Taking curves back ---------------------------------------------------------------------------------------------------


def supersede(connection: Connection, attempt_id: int, curves: int) -> None:
    """Supersede `curves` more of an ECM attempt by a later run of both stages.

    Raises ValueError if the attempt does not exist or has fewer curves left.
    """
    attempt = connection.execute(select(EcmAttempt).where(EcmAttempt.id == attempt_id).with_for_update()).one_or_none()
    if attempt is None or attempt.method != "ecm" or attempt.voided_at is not None:
        raise ValueError(f"attempt {attempt_id} is no ECM attempt; there is nothing to supersede")
    left = attempt.curves - attempt.superseded_curves
    if not 0 <= curves <= left:
        raise ValueError(f"attempt {attempt_id} has {left} curves left; {curves} cannot be superseded")
    connection.execute(
        update(EcmAttempt)
        .where(EcmAttempt.id == attempt_id)
        .values(superseded_curves=EcmAttempt.superseded_curves + curves)
    )
    add(connection, {_account(attempt): -curves})
    _rebuild_vectors(connection, targets.lock_of_values(connection, [attempt.value_id]))


def delete_attempt(connection: Connection, attempt_id: int, detail: str) -> None:
    """Delete an attempt and its effort, but not the factors that it found.

    The caller has called `lock_attempted`. The submission becomes rejected, with `detail`. Raises ValueError if the
    attempt does not exist.
    """
    attempt = connection.execute(select(EcmAttempt).where(EcmAttempt.id == attempt_id)).one_or_none()
    if attempt is None:
        raise ValueError(f"there is no attempt {attempt_id}")
    changed_values = {attempt.value_id}
    for restored in superseding.revoke_superseding(connection, [attempt_id]):
        add(connection, {_account(restored): int(restored.curves)})
        changed_values.add(restored.value_id)
    if attempt.voided_at is None:
        statistics.subtract_attempts(connection, [attempt_id])
    connection.execute(update(Factor).where(Factor.attempt_id == attempt_id).values(attempt_id=None))
    reject = update(Submission).values(state="rejected", reason=ATTEMPT_DELETED, detail=detail, outcome=None)
    connection.execute(reject.where(Submission.id == attempt.submission_id))
    # The outcomes of duplicates, which sent the same curves, name this attempt; they are rejected with it.
    names_attempt = Submission.outcome["attempt_id"].as_integer() == attempt_id
    changed = targets.of_values(connection, [attempt.value_id])
    sharing = {attempt.composite_id, *targets.composites_of(connection, changed)}
    is_duplicate = (Submission.composite_id.in_(sharing), Submission.state == "duplicate")
    connection.execute(reject.where(*is_duplicate, names_attempt))
    connection.execute(delete(EcmAttempt).where(EcmAttempt.id == attempt_id))
    if attempt.method == "ecm" and attempt.voided_at is None:
        add(connection, {_account(attempt): attempt.superseded_curves - attempt.curves})
    rebuild(connection, targets.lock_of_values(connection, changed_values))


def lock_attempted(connection: Connection, composite_ids: Iterable[int], value_ids: Iterable[int]) -> list[int]:
    """Lock what attempts on these composites and values change; returns the ids of the locked composites.

    That is all composites of the targets for which the values count, and these targets.
    """
    chosen = set(composite_ids)
    changed = targets.of_values(connection, value_ids)
    chosen.update(targets.composites_of(connection, changed))
    locked = lease_lifecycle.lock_composites(connection, sorted(chosen))
    targets.lock_ids(connection, {*changed, *targets.ids_of(connection, locked)})
    return locked


class VoidReport(NamedTuple):
    """The number of voided attempts, of their curves and composites, and of the client's `waiting` submissions.

    Waiting submissions were sent in the given time and are not applied yet.
    """

    attempts: int
    curves: int
    composites: int
    waiting: int


def void(
    connection: Connection,
    client_id: str,
    *,
    since: datetime,
    until: datetime,
    program: str | None,
    rebuild: Callable[[Connection, Iterable[int]], None] = rebuild,
) -> VoidReport:
    """Void the attempts that a client sent from `since` to before `until` (only those of `program`, if given).

    Voided attempts stay as rows, add no effort, and their curves may be sent again; factors stay. Locks the composites
    and targets for which the attempts count. `rebuild` rebuilds the effort of the targets.
    """
    chosen = attempts_of(client_id, since=since, until=until, program=program)
    affected = (
        select(EcmAttempt.id, EcmAttempt.composite_id, EcmAttempt.value_id)
        .join(Submission, Submission.id == EcmAttempt.submission_id)
        .where(*chosen)
    )
    places = connection.execute(affected).all()
    value_ids = {row.value_id for row in places}
    value_ids.update(superseding.stage1_values(connection, [row.id for row in places]))
    locked = lock_attempted(connection, {row.composite_id for row in places}, value_ids)
    voided = connection.execute(
        update(EcmAttempt)
        .where(
            Submission.id == EcmAttempt.submission_id,
            is_one_of(EcmAttempt.composite_id, locked),
            is_one_of(EcmAttempt.value_id, value_ids),
            *chosen,
        )
        .values(voided_at=func.clock_timestamp(), curves_sha256=None)
        .returning(EcmAttempt.id, EcmAttempt.composite_id, EcmAttempt.value_id, EcmAttempt.curves)
    ).all()
    restored = superseding.revoke_superseding(connection, [row.id for row in voided])
    changed_values = {row.value_id for row in voided} | {row.value_id for row in restored}
    correct_sums(connection, changed_values)
    rebuild(connection, targets.lock_of_values(connection, changed_values))
    statistics.subtract_attempts(connection, [row.id for row in voided])
    waiting = select(func.count()).where(*_sent(client_id, since, until), Submission.state == "received")
    return VoidReport(
        len(voided),
        sum(row.curves for row in voided),
        len({row.composite_id for row in voided}),
        connection.execute(waiting).scalar_one(),
    )


def attempts_of(
    client_id: str, *, since: datetime, until: datetime, program: str | None
) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions, on attempts joined with their submissions, that `void` chooses attempts by."""
    of_program = () if program is None else (EcmAttempt.program == program,)
    is_valid = (EcmAttempt.client_id == client_id, EcmAttempt.voided_at.is_(None))
    return (*is_valid, *of_program, *_sent(client_id, since, until))


def _sent(client_id: str, since: datetime, until: datetime) -> tuple[ColumnElement[bool], ...]:
    return Submission.client_id == client_id, Submission.created_at >= since, Submission.created_at < until


# Sums and the attempts ------------------------------------------------------------------------------------------------


# The attempts' curves minus the stored ones, by account, where they differ.
LACKING_CURVES = """
SELECT value_id, b1, b2, parametrization, sum(curves)::bigint AS curves FROM (
    SELECT value_id, coalesce(b1, 0) AS b1, coalesce(b2, 0) AS b2, coalesce(parametrization, 0) AS parametrization,
           curves - superseded_curves AS curves
    FROM ecm_attempts WHERE value_id = ANY(:values) AND method = 'ecm' AND voided_at IS NULL
    UNION ALL
    SELECT value_id, b1, b2, parametrization, -curves FROM value_effort WHERE value_id = ANY(:values)
) counted
GROUP BY value_id, b1, b2, parametrization HAVING sum(curves) <> 0
"""
# In the order of the keys, so that no two units of work deadlock.
_CORRECT_SUMS = f"""
WITH lacking AS ({LACKING_CURVES}), corrected AS (
    INSERT INTO value_effort (value_id, b1, b2, parametrization, curves)
    SELECT * FROM lacking ORDER BY value_id, b1, b2, parametrization
    ON CONFLICT (value_id, b1, b2, parametrization) DO UPDATE SET curves = value_effort.curves + excluded.curves
)
SELECT DISTINCT value_id FROM lacking
"""


def correct_sums(connection: Connection, value_ids: Iterable[int]) -> set[int]:
    """Set the sums of these values to those of their attempts; returns the ids of the values whose sums differed."""
    return set(connection.execute(text(_CORRECT_SUMS), {"values": list(value_ids)}).scalars())


def targets_with_wrong_sums(connection: Connection, target_ids: list[int]) -> set[int]:
    """Return the ids of those of these targets that have a source whose sums differ from its attempts."""
    lacking = connection.execute(text(LACKING_CURVES), {"values": _source_ids(connection, target_ids)})
    return _with_source(connection, target_ids, {row.value_id for row in lacking})


def _source_ids(connection: Connection, target_ids: list[int]) -> list[int]:
    """Return the ids of the values whose curves count for these targets."""
    of_targets = select(TargetSource.value_id).where(is_one_of(TargetSource.target_id, target_ids)).distinct()
    return list(connection.execute(of_targets).scalars())


def _with_source(connection: Connection, target_ids: list[int], value_ids: Collection[int]) -> set[int]:
    """Return the ids of those of these targets for which curves on one of these values count."""
    if not value_ids:
        return set()
    chosen = select(TargetSource.target_id).where(
        is_one_of(TargetSource.target_id, target_ids), is_one_of(TargetSource.value_id, value_ids)
    )
    return set(connection.execute(chosen).scalars())


COMPARED_COLUMNS = (
    Target.id,
    Target.effort,
    Target.current_t_level,
    Target.attempt_count,
    Target.pm1_b1,
    Target.pp1_b1,
)


def recalculate(connection: Connection, target_ids: Iterable[int]) -> list[Difference]:
    """Compute the effort of locked targets from their attempts and prior work, and correct what differs."""
    ids = sorted(target_ids)
    if not ids:
        return []
    source_ids = _source_ids(connection, ids)
    wrong_sums = _with_source(connection, ids, correct_sums(connection, source_ids))
    # Wrong sums may be those of other targets as well.
    shared = targets.of_values(connection, source_ids) if wrong_sums else ids
    return store_differing(connection, compute(connection, {*ids, *shared}), wrong_sums)


def store_differing(
    connection: Connection, computed: Mapping[int, TargetEffort], wrong_sums: Collection[int] = ()
) -> list[Difference]:
    """Store the computed effort of locked targets where it differs from their rows; returns what differed."""
    rows = connection.execute(
        select(*COMPARED_COLUMNS).where(is_one_of(Target.id, list(computed))).order_by(Target.id)
    ).all()
    named = _named_composites(connection, list(computed))
    wrongly_repeated = targets.wrongly_repeated(connection, computed)
    changed, differences = {}, []
    for row in rows:
        new = computed[row.id]
        wrong = [name for name in ("sums" if row.id in wrong_sums else "", new.difference_from(row)) if name]
        if not wrong and row.id in wrongly_repeated:
            wrong = ["t-level"]
        if wrong:
            changed[row.id] = new
            differences.append(
                Difference(named.get(row.id, 0), " and ".join(wrong), row.current_t_level, new.current_t_level)
            )
    store(connection, changed)
    return differences


def _named_composites(connection: Connection, target_ids: list[int]) -> dict[int, int]:
    """Return the oldest composite of each of these targets."""
    oldest = select(Composite.target_id, func.min(Composite.id).label("id")).where(
        is_one_of(Composite.target_id, target_ids)
    )
    return {row.target_id: row.id for row in connection.execute(oldest.group_by(Composite.target_id))}


def _account(row: AnyRow) -> Account:
    # ECM attempts have all three values; they are null for other methods.
    return Account(row.value_id, row.b1 or 0, row.b2 or 0, row.parametrization or 0)
