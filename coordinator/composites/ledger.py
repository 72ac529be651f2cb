"""The ledger of curves: exact integer sums for each composite, from which its effort vector can be rebuilt.

A new run is added to the vector and to one sum. Curves that are taken back are never subtracted from a vector, because
floating-point sums would not return to their earlier values: the integer sums change, and the vector is rebuilt from
them.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, cast

import numpy as np
from sqlalchemy import ColumnElement, Connection, Table, and_, bindparam, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import aliased

from coordinator import effort
from coordinator.composites import lease_lifecycle, statistics, superseding
from models.limits import STAGE1_ONLY
from models.tables import Composite, CompositeEffort, EcmAttempt, Factor, Submission
from models.types import AnyRow

# Two vectors that add the same terms in different orders differ by less than this.
RELATIVE_ERROR, MAX_T_LEVEL_ERROR = 1e-9, 1e-6
# The number of composites or attempts in one statement.
VOID_BATCH = 500
# The reason of a submission whose attempt an operator deleted; the same submission is rejected again.
ATTEMPT_DELETED = "attempt_deleted"

_sums = insert(CompositeEffort)
_ADD = _sums.on_conflict_do_update(
    index_elements=["composite_id", "b1", "b2", "parametrization"],
    set_={"curves": CompositeEffort.curves + _sums.excluded.curves},
)
_composites = cast(Table, Composite.__table__)
_STORE_VECTOR = (
    update(_composites)
    .where(_composites.c.id == bindparam("composite"))
    .values(effort=bindparam("vector"), current_t_level=bindparam("t_level"))
)


class Account(NamedTuple):
    """The key of a sum of curves; `b2` is -1 for the default B2, 0 for stage 1 only."""

    composite_id: int
    b1: int
    b2: int
    parametrization: int


class Difference(NamedTuple):
    """A correction: the stored effort of a composite differed from that of its attempts and prior work."""

    composite_id: int
    what: str
    stored_t_level: float
    correct_t_level: float


class AttemptSums(NamedTuple):
    """Effort computed from attempts and prior work; `reached` is (attempts that count, B1 of P-1, B1 of P+1)."""

    vector: np.ndarray
    t_level: float
    are_sums_right: bool
    reached: tuple[int, int, int]

    def agrees_with(self, row: AnyRow) -> bool:
        """Return whether the composite's row and its stored sums have the same effort."""
        is_same_vector = bool(np.allclose(row.effort, self.vector, rtol=RELATIVE_ERROR, atol=1e-300))
        is_same_t_level = abs(row.current_t_level - self.t_level) <= MAX_T_LEVEL_ERROR
        return (
            is_same_vector
            and is_same_t_level
            and self.are_sums_right
            and self.reached == (row.attempt_count, row.pm1_b1, row.pp1_b1)
        )


def _inherited() -> ColumnElement[bool]:
    """Return the SQL condition "the attempt is older than the part": the part inherits its curves."""
    split_by, part = aliased(EcmAttempt), aliased(Factor)
    split_at = (
        select(func.max(split_by.created_at))
        .join(part, part.attempt_id == split_by.id)
        .where(part.child_composite_id == Composite.id)
        .correlate(Composite)
        .scalar_subquery()
    )
    return and_(
        EcmAttempt.composite_id == Composite.parent_id,
        EcmAttempt.created_at <= func.greatest(Composite.created_at, split_at),
    )


_INHERITED = _inherited()


def _from_attempts() -> list[tuple[Any, Any]]:
    """Return the columns of a composite that attempts determine, each with the expression that computes it."""
    counts = (EcmAttempt.composite_id == Composite.id, EcmAttempt.voided_at.is_(None))
    attempts = select(func.count()).where(*counts).correlate(Composite).scalar_subquery()
    columns: list[tuple[Any, Any]] = [(Composite.attempt_count, attempts)]
    for method, column in (("pm1", Composite.pm1_b1), ("pp1", Composite.pp1_b1)):
        largest_b1 = select(func.max(EcmAttempt.b1)).where(
            or_(EcmAttempt.composite_id == Composite.id, _INHERITED),
            EcmAttempt.voided_at.is_(None),
            EcmAttempt.method == method,
            EcmAttempt.b2 != STAGE1_ONLY,
            EcmAttempt.curves > 0,
        )
        columns.append((column, func.coalesce(largest_b1.correlate(Composite).scalar_subquery(), 0)))
    return columns


_FROM_ATTEMPTS = _from_attempts()


def add(connection: Connection, curves: Mapping[Account, int]) -> None:
    """Add curves to their sums, in the order of the keys so that no two units of work deadlock."""
    connection.execute(_ADD, [{**account._asdict(), "curves": count} for account, count in sorted(curves.items())])


def rebuild(connection: Connection, composite_id: int) -> float:
    """Rebuild the vector of a locked composite from its sums, and return its new t-level."""
    vector = effort.effort_of(_all_sums(connection, [composite_id]).get(composite_id, []))
    t_level = _store_vector(connection, composite_id, vector)
    lease_lifecycle.refresh_eligibility(connection, [composite_id])
    return t_level


def supersede(connection: Connection, attempt_id: int, curves: int) -> float:
    """Supersede `curves` more of an ECM attempt by a later run of both stages; returns its composite's new t-level.

    The composite must be locked. Raises ValueError if the attempt does not exist or has fewer curves left.
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
    return rebuild(connection, attempt.composite_id)


def delete_attempt(connection: Connection, attempt_id: int, detail: str) -> float:
    """Delete an attempt and its effort, but not the factors that it found; returns its composite's new t-level.

    The composite must be locked. The submission becomes rejected, with `detail`. Raises ValueError if the attempt does
    not exist.
    """
    attempt = connection.execute(select(EcmAttempt).where(EcmAttempt.id == attempt_id)).one_or_none()
    if attempt is None:
        raise ValueError(f"there is no attempt {attempt_id}")
    lease_lifecycle.lock_composites(connection, _parts_of(connection, [attempt.composite_id]))
    for restored in superseding.revoke_superseding(connection, [attempt_id]):
        add(connection, {_account(restored): int(restored.curves)})
    inheriting_ids: list[int] = []
    if attempt.voided_at is None:
        inheriting_ids = _revoke_inherited(connection, [attempt_id])
        statistics.subtract_attempts(connection, [attempt_id])
    connection.execute(update(Factor).where(Factor.attempt_id == attempt_id).values(attempt_id=None))
    reject = update(Submission).values(state="rejected", reason=ATTEMPT_DELETED, detail=detail, outcome=None)
    connection.execute(reject.where(Submission.id == attempt.submission_id))
    # The outcomes of duplicates, which sent the same curves, name this attempt; they are rejected with it.
    names_attempt = Submission.outcome["attempt_id"].as_integer() == attempt_id
    is_duplicate = (Submission.composite_id == attempt.composite_id, Submission.state == "duplicate")
    connection.execute(reject.where(*is_duplicate, names_attempt))
    connection.execute(delete(EcmAttempt).where(EcmAttempt.id == attempt_id))
    if attempt.method == "ecm" and attempt.voided_at is None:
        add(connection, {_account(attempt): attempt.superseded_curves - attempt.curves})
    store_from_attempts(connection, [attempt.composite_id, *inheriting_ids])
    for composite_id in inheriting_ids:
        rebuild(connection, composite_id)
    return rebuild(connection, attempt.composite_id)


class VoidReport(NamedTuple):
    """The number of voided attempts, of their curves and composites, and of the client's `waiting` submissions.

    Waiting submissions were sent in the given time and are not applied yet.
    """

    attempts: int
    curves: int
    composites: int
    waiting: int


def void(
    connection: Connection, client_id: str, *, since: datetime, until: datetime, program: str | None
) -> VoidReport:
    """Void the attempts that a client sent from `since` to before `until` (only those of `program`, if given).

    Voided attempts stay as rows, add no effort, and their curves may be sent again; factors stay. Locks the composites
    of the attempts and the parts that were split off these.
    """
    sent = (Submission.client_id == client_id, Submission.created_at >= since, Submission.created_at < until)
    chosen = [EcmAttempt.client_id == client_id, EcmAttempt.voided_at.is_(None)]
    if program is not None:
        chosen.append(EcmAttempt.program == program)
    affected = select(EcmAttempt.composite_id).join(Submission, Submission.id == EcmAttempt.submission_id)
    ids = sorted(set(connection.execute(affected.where(*chosen, *sent)).scalars()))
    locked = lease_lifecycle.lock_composites(connection, ids + _parts_of(connection, ids))
    voided = connection.execute(
        update(EcmAttempt)
        .where(Submission.id == EcmAttempt.submission_id, EcmAttempt.composite_id.in_(locked), *chosen, *sent)
        .values(voided_at=func.clock_timestamp(), curves_sha256=None)
        .returning(EcmAttempt.id, EcmAttempt.composite_id, EcmAttempt.curves)
    ).all()
    superseding.revoke_superseding(connection, [row.id for row in voided])
    attempted_ids = {row.composite_id for row in voided}
    inheriting_ids = _revoke_inherited(connection, [row.id for row in voided])
    changed_ids = sorted({*attempted_ids, *inheriting_ids})
    for start in range(0, len(changed_ids), VOID_BATCH):
        recalculate(connection, changed_ids[start : start + VOID_BATCH])
    statistics.subtract_attempts(connection, [row.id for row in voided])
    waiting = select(func.count()).where(*sent, Submission.state == "received")
    return VoidReport(
        len(voided), sum(row.curves for row in voided), len(attempted_ids), connection.execute(waiting).scalar_one()
    )


def _parts_of(connection: Connection, ids: list[int]) -> list[int]:
    """Return the ids of the composites that were split off these."""
    return list(connection.execute(select(Composite.id).where(Composite.parent_id.in_(ids))).scalars())


def _revoke_inherited(connection: Connection, attempt_ids: list[int]) -> list[int]:
    """Subtract the curves of these attempts from the prior work of the locked parts that inherited them.

    Returns the ids of these parts. A part inherits the curves that its number had when it was split off. (It may also
    have curves from another part of that number; the ledger does not record their attempts, so they stay.)
    """
    inheriting_ids: set[int] = set()
    for start in range(0, len(attempt_ids), VOID_BATCH):
        key = (Composite.id, EcmAttempt.b1, EcmAttempt.b2, EcmAttempt.parametrization)
        inherited = connection.execute(
            select(*key, func.sum(EcmAttempt.curves - EcmAttempt.superseded_curves).label("curves"))
            .join(Composite, _INHERITED)
            .where(EcmAttempt.id.in_(attempt_ids[start : start + VOID_BATCH]), EcmAttempt.method == "ecm")
            .group_by(*key)
        )
        for row in inherited.all():
            inheriting_ids.add(row.id)
            connection.execute(
                update(CompositeEffort)
                .where(
                    CompositeEffort.composite_id == row.id,
                    CompositeEffort.b1 == row.b1,
                    CompositeEffort.b2 == row.b2,
                    CompositeEffort.parametrization == row.parametrization,
                )
                .values(prior_curves=func.greatest(CompositeEffort.prior_curves - int(row.curves), 0))
            )
    return sorted(inheriting_ids)


def recalculate(connection: Connection, composite_ids: Iterable[int]) -> list[Difference]:
    """Lock these composites, compute their effort from their attempts and prior work, and correct what differs."""
    chosen = list(composite_ids)
    ids = lease_lifecycle.lock_composites(connection, chosen) if chosen else []
    if not ids:
        return []
    counted, stored = _counted_sums(connection, ids), _stored_sums(connection, ids)
    return _correct(connection, _vectors(ids, counted, stored), counted, stored)


def store_vectors(connection: Connection, vectors: Mapping[int, np.ndarray]) -> list[Difference]:
    """Store vectors that `compute_from_attempts` gave for composites that are locked now and have not moved since.

    Corrects their sums, t-levels and attempt-derived columns as well; returns what differed.
    """
    ids = list(vectors)
    return _correct(connection, vectors, _counted_sums(connection, ids), _stored_sums(connection, ids))


def compute_from_attempts(connection: Connection, ids: list[int]) -> dict[int, AttemptSums]:
    """Compute, without locks, what the attempts and the prior work of these composites give."""
    counted, stored = _counted_sums(connection, ids), _stored_sums(connection, ids)
    wrong = {account.composite_id for account in _corrections(counted, stored)}
    vectors = _vectors(ids, counted, stored)
    columns = (value.label(column.key) for column, value in _FROM_ATTEMPTS)
    rows = connection.execute(select(Composite.id, *columns).where(Composite.id.in_(ids)))
    return {
        row.id: AttemptSums(
            vectors[row.id],
            effort.t_level(vectors[row.id]),
            row.id not in wrong,
            (row.attempt_count, row.pm1_b1, row.pp1_b1),
        )
        for row in rows
    }


def store_from_attempts(connection: Connection, ids: list[int]) -> set[int]:
    """Set attempt_count, pm1_b1 and pp1_b1 of locked composites from their attempts; returns the ids that differed."""
    wrong: set[int] = set()
    for column, value in _FROM_ATTEMPTS:
        change = update(Composite).where(Composite.id.in_(ids), column != value).values({column.key: value})
        wrong.update(connection.execute(change.returning(Composite.id)).scalars())
    return wrong


def _correct(
    connection: Connection,
    vectors: Mapping[int, np.ndarray],
    counted: Mapping[Account, int],
    stored: Mapping[Account, tuple[int, int]],
) -> list[Difference]:
    """Set the sums, t-levels and derived columns of locked composites from `vectors` and `counted`."""
    corrections = _corrections(counted, stored)
    if corrections:
        add(connection, corrections)
    wrong_sums = {account.composite_id for account in corrections}
    ids = list(vectors)
    wrong_columns = store_from_attempts(connection, ids)
    columns = (Composite.id, Composite.effort, Composite.current_t_level)
    differences, changes = [], []
    for row in connection.execute(select(*columns).where(Composite.id.in_(ids)).order_by(Composite.id)).all():
        vector = vectors[row.id]
        t_level = effort.t_level(vector)
        is_right = np.allclose(row.effort, vector, rtol=RELATIVE_ERROR, atol=1e-300)
        wrong = [name for name, differs in (("sums", row.id in wrong_sums), ("vector", not is_right)) if differs]
        if not wrong and abs(t_level - row.current_t_level) > MAX_T_LEVEL_ERROR:
            wrong = ["t-level"]
        if wrong:
            changes.append({"composite": row.id, "vector": vector, "t_level": t_level})
        if row.id in wrong_columns:
            wrong.append("attempt-derived columns")
        if wrong:
            differences.append(Difference(row.id, " and ".join(wrong), row.current_t_level, t_level))
    if changes:
        connection.execute(_STORE_VECTOR, changes)
    lease_lifecycle.refresh_eligibility(connection, ids)
    return differences


def _corrections(counted: Mapping[Account, int], stored: Mapping[Account, tuple[int, int]]) -> dict[Account, int]:
    """Return, by account, the attempts' curves minus the stored curves, where they differ."""
    lacking = {
        account: counted.get(account, 0) - stored.get(account, (0, 0))[0] for account in counted.keys() | stored.keys()
    }
    return {account: curves for account, curves in lacking.items() if curves}


def _vectors(
    ids: list[int], counted: Mapping[Account, int], stored: Mapping[Account, tuple[int, int]]
) -> dict[int, np.ndarray]:
    """Return the effort vectors that the counted curves and the prior work give."""
    runs: dict[int, list[tuple[int, int, int, int]]] = {composite_id: [] for composite_id in ids}
    # In this order, as everywhere: the last bits of a sum depend on it.
    for account in sorted(counted.keys() | stored.keys()):
        curves = counted.get(account, 0) + stored.get(account, (0, 0))[1]
        if curves > 0:
            runs[account.composite_id].append((account.b1, account.b2, account.parametrization, curves))
    return {composite_id: effort.effort_of(own) for composite_id, own in runs.items()}


def _counted_sums(connection: Connection, ids: list[int]) -> dict[Account, int]:
    """Return the curves of the attempts that count, by account."""
    key = (EcmAttempt.composite_id, EcmAttempt.b1, EcmAttempt.b2, EcmAttempt.parametrization)
    columns: tuple[Any, ...] = (*key, func.sum(EcmAttempt.curves - EcmAttempt.superseded_curves).label("curves"))
    counted = connection.execute(
        select(*columns)
        .where(EcmAttempt.composite_id.in_(ids), EcmAttempt.method == "ecm", EcmAttempt.voided_at.is_(None))
        .group_by(*key)
    )
    return {_account(row): int(row.curves) for row in counted}


def _stored_sums(connection: Connection, ids: list[int]) -> dict[Account, tuple[int, int]]:
    """Return the stored (curves, prior curves), by account."""
    rows = connection.execute(select(CompositeEffort).where(CompositeEffort.composite_id.in_(ids)))
    return {_account(row): (row.curves, row.prior_curves) for row in rows}


def _all_sums(connection: Connection, ids: Iterable[int]) -> dict[int, list[tuple[int, int, int, int]]]:
    """Return (B1, B2, parametrization, curves) of each composite with curves, its prior work included."""
    rows = connection.execute(
        select(CompositeEffort)
        .where(CompositeEffort.composite_id.in_(list(ids)))
        .order_by(CompositeEffort.composite_id, CompositeEffort.b1, CompositeEffort.b2, CompositeEffort.parametrization)
    )
    sums: dict[int, list[tuple[int, int, int, int]]] = {}
    for row in rows:
        if row.curves + row.prior_curves > 0:
            run = (row.b1, row.b2, row.parametrization, row.curves + row.prior_curves)
            sums.setdefault(row.composite_id, []).append(run)
    return sums


def _store_vector(connection: Connection, composite_id: int, vector: np.ndarray) -> float:
    t_level = effort.t_level(vector)
    connection.execute(
        update(Composite).where(Composite.id == composite_id).values(effort=vector, current_t_level=t_level)
    )
    return t_level


def _account(attempt: AnyRow) -> Account:
    # ECM attempts have all three values; they are null for other methods.
    return Account(attempt.composite_id, attempt.b1 or 0, attempt.b2 or 0, attempt.parametrization or 0)
