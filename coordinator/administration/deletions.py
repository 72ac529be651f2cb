"""Deleting numbers, attempts and factors, and voiding attempts, together with all that depends on them.

Each is one unit of work with its audit row in it. Submissions are never deleted: a submission whose effect is deleted
is settled as rejected for that reason, and an operator can retry it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

import gmpy2
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    and_,
    bindparam,
    column,
    delete,
    func,
    insert,
    or_,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import distinct_on

from coordinator.administration.edits import MAX_AUDITED, lock_members
from coordinator.base import audit, jobs
from coordinator.base.audit import Actor
from coordinator.base.errors import ConflictError, NotFoundError, composite_not_found
from coordinator.base.unit_of_work import session, step, unit_of_work
from coordinator.composites import (
    families,
    lease_lifecycle,
    ledger,
    planned_effort,
    registry,
    statistics,
    superseding,
    target_changes,
    targets,
)
from coordinator.composites.families import Change, Divisor, FamilyMember
from coordinator.numbers.expressions import shorten
from coordinator.numbers.factor_tree import FactorNode, resolve
from coordinator.results import applying
from models.tables import (
    Composite,
    CompositeAlias,
    EcmAttempt,
    Factor,
    Job,
    ProjectComposite,
    Residue,
    Submission,
    TargetSource,
    WorkAssignment,
    WorkedValue,
)
from models.wire.results import SubmitResult

# The reason of submissions whose number an operator deleted: a client that sends one again gets the same answer.
COMPOSITE_DELETED = "composite_deleted"
RESIDUE_WITHOUT_NUMBER = "its number was deleted by an operator"
# The number of attempts that are moved to another number in one statement.
MOVED_BATCH = 500
# Kinds of jobs whose target is neither a composite nor a factor.
OF_NEITHER = (jobs.RECALCULATE, jobs.DROP_RESIDUE)
# The tables that refer to a composite, in an order in which no row refers to a deleted one.
DEPENDENT_TABLES = (
    Factor,
    Residue,
    EcmAttempt,
    WorkAssignment,
    CompositeAlias,
    ProjectComposite,
)


def delete_composite(
    engine: Engine, actor: Actor, composite_id: int, max_digits: int
) -> tuple[dict[str, int], list[jobs.JobRef]]:
    """Delete a composite with all rows that refer to it; returns the deleted rows by table, and jobs to publish.

    Composites that were split off it are deleted too, unless another composite needs them: such a one becomes a root.
    Attempts, leases and residues that count for the target of a composite that stays are moved to that composite.
    Raises NotFoundError, and ConflictError for a composite that works on a factor of another one.
    """
    with unit_of_work(engine, "delete_composite", composite=composite_id) as connection:
        roots = registry.roots_of(connection, [composite_id])
        if not roots:
            raise composite_not_found(composite_id)
        group = registry.lock_group(connection, roots[0])
        family = [row.id for row in group if (row.parent_id or row.id) == roots[0]]
        if composite_id not in family:
            raise composite_not_found(composite_id)
        ids = family if composite_id == roots[0] else [composite_id]
        needed = _children_of_others(connection, ids)
        if composite_id in needed:
            raise ConflictError(
                "is_part",
                f"Composite {composite_id} works on a factor of composite {needed[composite_id]};"
                " delete that one, or that factor of it, first",
            )
        kept_ids = [member_id for member_id in ids if member_id in needed]
        deleted_ids = [member_id for member_id in ids if member_id not in needed]
        numbers = connection.execute(select(Composite.id, Composite.number).where(Composite.id.in_(deleted_ids))).all()
        deleted, to_publish = _delete_composites(connection, deleted_ids, kept_ids)
        change = Change(to_publish=to_publish)
        for kept_id in kept_ids:
            # It is a root now, so the jobs of its own parts are requested for it.
            families.write_back(connection, families.load_family(connection, [kept_id], max_digits), change)
        for row in numbers:
            number = shorten(row.number, MAX_AUDITED)
            after = deleted if row.id == composite_id else {"went_with": composite_id}
            audit.record(connection, actor, "delete", f"composite {row.id}", before={"number": number}, after=after)
    return deleted, change.to_publish


def delete_attempt(engine: Engine, actor: Actor, attempt_id: int, reason: str | None) -> tuple[int, float]:
    """Delete one attempt with its effort; the factors that it found stay.

    Returns its composite's id and new t-level. Raises NotFoundError.
    """
    with unit_of_work(engine, "delete_attempt", attempt=attempt_id) as connection:
        unknown = NotFoundError("unknown_attempt", f"There is no attempt {attempt_id}")
        attempt = connection.execute(select(EcmAttempt).where(EcmAttempt.id == attempt_id)).one_or_none()
        if attempt is None:
            raise unknown
        superseded = superseding.stage1_values(connection, [attempt_id])
        ledger.lock_attempted(connection, [attempt.composite_id], [attempt.value_id, *superseded])
        try:
            why = f"Its attempt was deleted by an operator{f': {reason}' if reason else ''}"
            ledger.delete_attempt(connection, attempt_id, why)
        except ValueError as error:  # another operator has just deleted it
            raise unknown from error
        level = select(Composite.current_t_level).where(Composite.id == attempt.composite_id)
        t_level: float = connection.execute(level).scalar_one()
        kept = ("composite_id", "client_id", "method", "b1", "b2", "parametrization", "curves", "sigma")
        before = {name: getattr(attempt, name) for name in kept} | {"submission_id": attempt.submission_id}
        after = {"current_t_level": t_level}
        audit.record(connection, actor, "delete", f"attempt {attempt_id}", before=before, after=after)
    return attempt.composite_id, t_level


def delete_factor(engine: Engine, actor: Actor, factor_id: int, max_digits: int) -> tuple[int, str, list[jobs.JobRef]]:
    """Delete a factor; returns its composite's id, the cofactor of that composite, and jobs to publish.

    The factor's value is multiplied back into the cofactor, and the factors that it was split into are deleted with it.
    A factor of a factor is deleted with its siblings, and the factor above it is whole again. Small factors, and
    factors that follow from the remaining ones, are found again at once. Raises NotFoundError, and ConflictError if
    there was work on a composite of its own that this factor has.
    """
    with unit_of_work(engine, "delete_factor", factor=factor_id) as connection:
        unknown = NotFoundError("unknown_factor", f"There is no factor {factor_id}")
        own = select(Factor.composite_id).where(Factor.id == factor_id)
        composite_id = connection.execute(own).scalar_one_or_none()
        if composite_id is None:
            raise unknown
        members = lock_members(connection, composite_id, max_digits)
        factor = connection.execute(select(Factor).where(Factor.id == factor_id)).one_or_none()
        if factor is None:
            raise unknown
        root = members[0]
        family = [member for member in members if (member.parent_id or member.id) == root.id]
        if factor.composite_id != root.id:
            raise ConflictError(
                "is_part", f"Composite {factor.composite_id} is a part of composite {root.id}; delete the factor there"
            )
        node, above = next(found for found in root.tree.all_nodes() if found[0].row_id == factor_id)
        children = _children_of(family, above or node)
        _raise_if_worked_on(connection, factor_id, children, root.id)
        removed = _remove_node(root, node, above)
        to_publish = _delete_nodes(connection, removed, above, children)
        remaining = [member for member in members if member.id not in children]
        resolve(root.tree)
        known = [Divisor(leaf.value) for leaf in root.tree.leaves()]
        change = families.use_divisors(connection, remaining, known, found_on=root.id)
        statement = select(Composite.current_composite).where(Composite.id == root.id)
        cofactor: str = connection.execute(statement).scalar_one()
        kept = ("composite_id", "multiplicity", "origin", "attempt_id", "client_id", "method", "sigma")
        before = {name: getattr(factor, name) for name in kept} | {"factor": shorten(factor.factor, MAX_AUDITED)}
        after = {"current_composite": shorten(cofactor, MAX_AUDITED), "composites_deleted": sorted(children)}
        audit.record(connection, actor, "delete", f"factor {factor_id}", before=before, after=after)
    return root.id, cofactor, to_publish + change.to_publish


def void_attempts(
    engine: Engine, actor: Actor, client_id: str, *, since: datetime, until: datetime, program: str | None, reason: str
) -> ledger.VoidReport:
    """Void the attempts that a client sent from `since` to before `until`, as ledger.void does; factors stay.

    What the effort will be without them is computed first, without locks.
    """
    own: Any = {"since": since, "until": until, "program": program}
    with session(engine) as connection:
        _plan_voiding(connection, ledger.attempts_of(client_id, **own))
        with unit_of_work(connection, "void_attempts", client=client_id):
            report = ledger.void(connection, client_id, **own, rebuild=planned_effort.rebuild)
            request = {"from": since.isoformat(), "to": until.isoformat(), "program": program, "reason": reason}
            audit.record(connection, actor, "void attempts", f"client {client_id}", after=report._asdict() | request)
    return report


# The stage-1 attempts that these attempts superseded, with the curves that count again.
_PLAN_RESTORED = """
INSERT INTO planned_restored
SELECT r.stage1_attempt_id, sum(stage2.superseding_curves)
FROM planned_voids p JOIN ecm_attempts stage2 ON stage2.id = p.attempt_id
JOIN ecm_residues r ON r.id = stage2.residue_id
WHERE stage2.superseding_curves > 0 AND r.stage1_attempt_id IS NOT NULL GROUP BY r.stage1_attempt_id
"""
_CHANGED_VALUES = """
SELECT value_id FROM ecm_attempts
WHERE id IN (SELECT attempt_id FROM planned_voids UNION SELECT attempt_id FROM planned_restored)
"""


def _plan_voiding(connection: Connection, chosen: tuple[ColumnElement[bool], ...]) -> None:
    """Compute the effort of all targets as it will be without the chosen attempts."""
    planned_effort.start(connection)
    with step(connection):
        planned_effort.use_one_snapshot(connection)
        attempts = select(EcmAttempt.id).join(Submission, Submission.id == EcmAttempt.submission_id).where(*chosen)
        connection.execute(insert(table("planned_voids", column("attempt_id"))).from_select(["attempt_id"], attempts))
        connection.execute(text(_PLAN_RESTORED))
        planned_effort.correct_sums(connection, _CHANGED_VALUES)
        planned_effort.watch_targets_of(connection, _CHANGED_VALUES)
    planned_effort.compute(connection)


# A composite and what depends on it -----------------------------------------------------------------------------------


def _children_of_others(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """For each of `ids` that is a child of a composite outside `ids`: {child id: that composite's id}."""
    needed = select(Factor.child_composite_id, func.min(Factor.composite_id).label("by")).where(
        Factor.child_composite_id.in_(ids), Factor.composite_id.not_in(ids)
    )
    return {row.child_composite_id: row.by for row in connection.execute(needed.group_by(Factor.child_composite_id))}


def _delete_composites(
    connection: Connection, ids: list[int], kept_children: list[int]
) -> tuple[dict[str, int], list[jobs.JobRef]]:
    """Delete these locked composites, and make `kept_children` roots.

    Returns the number of deleted rows by table, and jobs to publish.
    """
    deleted: dict[str, int] = {}
    if kept_children:
        connection.execute(update(Composite).where(Composite.id.in_(kept_children)).values(parent_id=None))
    target_ids = targets.ids_of(connection, ids)
    left_values = _values_of(connection, ids, target_ids)
    to_publish = _move_to_heirs(connection, ids)
    attempts = select(EcmAttempt.id).where(EcmAttempt.composite_id.in_(ids))
    values = select(EcmAttempt.value_id).where(EcmAttempt.composite_id.in_(ids)).distinct()
    changed_values = set(connection.execute(values).scalars()) | _restore_superseded(connection, ids)
    deleted["submissions_refused"] = _reject_submissions(connection, ids)
    factors = select(Factor.id).where(Factor.composite_id.in_(ids))
    of_composites = and_(Job.kind.in_(jobs.OF_COMPOSITES), Job.target_id.in_(ids))
    of_factors = and_(Job.kind.not_in(jobs.OF_COMPOSITES + OF_NEITHER), Job.target_id.in_(factors))
    deleted["jobs"] = connection.execute(delete(Job).where(or_(of_composites, of_factors))).rowcount
    # Factors of other composites may be credited to an attempt that is deleted.
    credited = update(Factor).where(Factor.attempt_id.in_(attempts), Factor.composite_id.not_in(ids))
    connection.execute(credited.values(attempt_id=None))
    statistics.subtract_attempts(
        connection, list(connection.execute(attempts.where(EcmAttempt.voided_at.is_(None))).scalars())
    )
    for dependent in DEPENDENT_TABLES:
        gone = connection.execute(delete(dependent).where(dependent.composite_id.in_(ids)))
        deleted[dependent.__tablename__] = gone.rowcount
    # Children first, because they refer to their parent.
    children = connection.execute(delete(Composite).where(Composite.id.in_(ids), Composite.parent_id.in_(ids)))
    own = connection.execute(delete(Composite).where(Composite.id.in_(ids)))
    deleted["composites"] = children.rowcount + own.rowcount
    target_changes.leave(connection, target_ids)
    changed = targets.lock_of_values(connection, changed_values)
    ledger.correct_sums(connection, changed_values)
    ledger.rebuild(connection, changed)
    _delete_unused_values(connection, left_values | changed_values)
    return deleted, to_publish


def _values_of(connection: Connection, ids: list[int], target_ids: list[int]) -> set[int]:
    """Return the worked values that these composites have had, or that count for these targets.

    Prior work is on a value without any attempt, so the attempts do not lead to all of them.
    """
    had = (
        select(WorkedValue.id)
        .join(CompositeAlias, CompositeAlias.value_sha256 == WorkedValue.value_sha256)
        .where(CompositeAlias.composite_id.in_(ids))
    )
    counting = select(TargetSource.value_id).where(TargetSource.target_id.in_(target_ids))
    return set(connection.execute(had.union(counting)).scalars())


def _reject_submissions(connection: Connection, ids: list[int]) -> int:
    """Settle the submissions of attempts that are deleted with these composites as rejected; returns their number."""
    attempts = select(EcmAttempt.id, EcmAttempt.submission_id).where(EcmAttempt.composite_id.in_(ids)).subquery()
    named = Submission.outcome["attempt_id"].as_integer().in_(select(attempts.c.id))
    # A number that shared a cofactor at that time may have sent the same curves.
    sharing = families.sharing_composites(connection, ids)
    reject = update(Submission).values(
        state="rejected",
        reason=COMPOSITE_DELETED,
        detail="Its number was deleted by an operator",
        outcome=None,
        composite_id=None,
    )
    # Three statements, each of which has an index.
    conditions = (
        Submission.id.in_(select(attempts.c.submission_id)),
        and_(Submission.composite_id.in_(ids), Submission.state == "duplicate"),
        and_(Submission.composite_id.in_(sharing), Submission.state == "duplicate", named),
    )
    return sum(connection.execute(reject.where(condition)).rowcount for condition in conditions)


# What stays with others when a composite is deleted -------------------------------------------------------------------


def _move_to_heirs(connection: Connection, ids: list[int]) -> list[jobs.JobRef]:
    """Move what counts for the targets of other composites to one of these: work on a value outlives a number.

    Attempts follow the targets for which their values count, that of their own composite first: only composites with
    the same target recognize curves that are sent again. Leases stay with their target, residues with their stages.
    Returns jobs to publish.
    """
    own = select(Composite.id, Composite.target_id).where(Composite.id.in_(ids), Composite.target_id.is_not(None))
    own_targets = {row.id: row.target_id for row in connection.execute(own.order_by(Composite.id))}
    values = select(EcmAttempt.value_id).where(EcmAttempt.composite_id.in_(ids)).distinct()
    counting = targets.of_values(connection, connection.execute(values).scalars().all())
    heirs = _heirs(connection, {*own_targets.values(), *counting}, ids)
    # An heir outside the locked group must not record the same curves meanwhile.
    lease_lifecycle.lock_composites(connection, sorted(set(heirs.values())))
    own_heirs = {own_id: heirs[target_id] for own_id, target_id in own_targets.items() if target_id in heirs}
    moved: list[int] = []
    for own_id, heir in own_heirs.items():
        moved += _move_attempts(connection, [own_id], own_targets[own_id], heir)
    for target_id, heir in sorted(heirs.items(), key=lambda item: item[1]):
        moved += _move_attempts(connection, ids, target_id, heir)
    for start in range(0, len(moved), MOVED_BATCH):
        _update_moved(connection, moved[start : start + MOVED_BATCH])
    recorded = (Submission.state == "duplicate", Submission.outcome["attempt_id"].as_integer() == EcmAttempt.id)
    follow = update(Submission).where(Submission.composite_id.in_(ids), *recorded, EcmAttempt.composite_id.not_in(ids))
    connection.execute(follow.values(composite_id=EcmAttempt.composite_id))
    for own_id, heir in own_heirs.items():
        for open_work in (WorkAssignment, Residue):
            is_open = (open_work.composite_id == own_id, open_work.closed_at.is_(None))
            connection.execute(update(open_work).where(*is_open).values(composite_id=heir))
    return _move_residues(connection, ids)


def _heirs(connection: Connection, target_ids: set[int], ids: list[int]) -> dict[int, int]:
    """Return, for each of these targets, its oldest composite beside `ids`: an unfinished one if there is any."""
    others = (
        select(Composite.target_id, Composite.id)
        .where(Composite.target_id.in_(target_ids), Composite.id.not_in(ids))
        .ext(distinct_on(Composite.target_id))
        .order_by(Composite.target_id, Composite.is_fully_factored, Composite.id)
    )
    return {row.target_id: row.id for row in connection.execute(others)}


def _move_attempts(connection: Connection, ids: list[int], target_id: int, heir: int) -> list[int]:
    """Move the attempts of `ids` that count for a target to a composite; returns the ids of the attempts."""
    counts = (TargetSource.value_id == EcmAttempt.value_id, TargetSource.target_id == target_id)
    moved = update(EcmAttempt).where(EcmAttempt.composite_id.in_(ids), *counts).values(composite_id=heir)
    return list(connection.execute(moved.returning(EcmAttempt.id)).scalars())


def _update_moved(connection: Connection, attempt_ids: list[int]) -> None:
    """Let the submissions of moved attempts name the new composites, and hash their curves for these."""
    follow = update(Submission).where(Submission.id == EcmAttempt.submission_id, EcmAttempt.id.in_(attempt_ids))
    connection.execute(follow.values(composite_id=EcmAttempt.composite_id))
    hashed = (
        select(
            EcmAttempt.id, EcmAttempt.composite_id, EcmAttempt.value_id, EcmAttempt.submission_id, Submission.payload
        )
        .join(Submission, Submission.id == EcmAttempt.submission_id)
        .where(EcmAttempt.id.in_(attempt_ids), EcmAttempt.curves_sha256.is_not(None))
        .order_by(EcmAttempt.id)
    )
    new: dict[int, bytes | None] = {}
    for row in connection.execute(hashed).all():
        result = SubmitResult.model_validate(row.payload)
        values = applying.attempt_values(row.submission_id, row.id, row.composite_id, row.value_id, result)
        # The same curves may have been run for both numbers before they shared a cofactor: one hash recognizes them.
        new[row.id] = None if values["curves_sha256"] in new.values() else values["curves_sha256"]
    owners = select(EcmAttempt.id, EcmAttempt.curves_sha256).where(EcmAttempt.curves_sha256.in_(new.values()))
    owner_of = {row.curves_sha256: row.id for row in connection.execute(owners)}
    rows = [
        {"attempt": attempt_id, "new_hash": own if owner_of.get(own, attempt_id) == attempt_id else None}
        for attempt_id, own in new.items()
    ]
    if rows:
        connection.execute(_STORE_HASH, rows)


_attempts = cast(Table, EcmAttempt.__table__)
_STORE_HASH = (
    update(_attempts).where(_attempts.c.id == bindparam("attempt")).values(curves_sha256=bindparam("new_hash"))
)


def _move_residues(connection: Connection, ids: list[int]) -> list[jobs.JobRef]:
    """Move the residues of `ids` to the composite of their stage 1, or else of a stage 2, that is not deleted.

    They link the two stages, so that the curves of stage 1 count again when a stage 2 is taken back. Those that are
    still open are closed, because no other number has their N. Returns the jobs that delete their files.
    """
    moved: list[int] = []
    for is_stage in (EcmAttempt.id == Residue.stage1_attempt_id, EcmAttempt.residue_id == Residue.id):
        follow = update(Residue).where(Residue.composite_id.in_(ids), is_stage, EcmAttempt.composite_id.not_in(ids))
        follow = follow.values(composite_id=EcmAttempt.composite_id)
        moved += connection.execute(follow.returning(Residue.id)).scalars()
    if not moved:
        return []
    return superseding.close_residues(connection, Residue.id.in_(moved), superseding.CLOSED, RESIDUE_WITHOUT_NUMBER)


def _restore_superseded(connection: Connection, ids: list[int]) -> set[int]:
    """Undo what the attempts of `ids` have superseded; returns the values of the stage-1 attempts that count again."""
    own = select(EcmAttempt.id).where(EcmAttempt.composite_id.in_(ids))
    is_stage1 = (Residue.stage1_attempt_id == EcmAttempt.id) & Residue.composite_id.not_in(ids)
    chosen = own.where(EcmAttempt.superseding_curves > 0).union(own.join(Residue, is_stage1))
    attempt_ids = connection.execute(chosen).scalars().all()
    return {row.value_id for row in superseding.revoke_superseding(connection, attempt_ids)} if attempt_ids else set()


def _delete_unused_values(connection: Connection, value_ids: set[int]) -> None:
    """Delete the values among these that have no attempt, count for no target, and belong to no number."""
    unused = [
        ~relation.exists()
        for relation in (
            select(EcmAttempt.id).where(EcmAttempt.value_id == WorkedValue.id),
            select(TargetSource.value_id).where(TargetSource.value_id == WorkedValue.id),
            # The prior work on a former cofactor counts again when the number has this cofactor again.
            select(CompositeAlias.composite_id).where(CompositeAlias.value_sha256 == WorkedValue.value_sha256),
        )
    ]
    connection.execute(delete(WorkedValue).where(WorkedValue.id.in_(value_ids), *unused))


# A factor and what is below it ----------------------------------------------------------------------------------------


def _children_of(members: list[FamilyMember], whole: FactorNode) -> list[int]:
    """Return the ids of the composites split off the root that work on a part of this factor."""
    return [member.id for member in members[1:] if gmpy2.gcd(member.tree.number, whole.value) > 1]


def _raise_if_worked_on(connection: Connection, factor_id: int, children: list[int], root_id: int) -> None:
    """Raise ConflictError if a child has attempts, leases or projects, or another composite needs it."""
    needed = {
        row.child_composite_id: row.composite_id
        for row in connection.execute(
            select(Factor.child_composite_id, Factor.composite_id).where(
                Factor.child_composite_id.in_(children), Factor.composite_id != root_id
            )
        )
    }
    for child_id in children:
        why = None
        attempts = select(func.count()).where(EcmAttempt.composite_id == child_id)
        leases = select(func.count()).where(WorkAssignment.composite_id == child_id)
        projects = select(func.count()).where(ProjectComposite.composite_id == child_id)
        if count := connection.execute(attempts).scalar_one():
            why = f"has had {count} attempts"
        elif count := connection.execute(leases).scalar_one():
            why = f"has been leased {count} times"
        elif count := connection.execute(projects).scalar_one():
            why = f"is in {count} projects"
        elif child_id in needed:
            why = f"works on a factor of composite {needed[child_id]} too"
        if why is not None:
            raise ConflictError(
                "has_been_worked_on",
                f"Composite {child_id}, which works on a part of factor {factor_id}, {why}; that work would be lost",
            )


def _remove_node(root: FamilyMember, node: FactorNode, above: FactorNode | None) -> list[FactorNode]:
    """Multiply the factor's value back into what it was split off; returns the nodes that this removes."""
    if above is None:
        tree = root.tree
        removed = [node]
        tree.children.remove(node)
        is_composite = tree.cofactor > 1 or node.multiplicity > 1 or node.is_prime is False
        tree.cofactor *= node.value**node.multiplicity
        tree.cofactor_is_prime = False if is_composite else node.is_prime
        tree.cofactor_tested = False
    else:
        removed = list(above.children)
        above.children = []
        above.tested = False
    todo, all_removed = removed, []
    while todo:
        removed_node = todo.pop()
        all_removed.append(removed_node)
        todo += removed_node.children
    return all_removed


def _delete_nodes(
    connection: Connection, removed: list[FactorNode], above: FactorNode | None, children: list[int]
) -> list[jobs.JobRef]:
    """Delete the rows of removed nodes, their jobs, and the composites that worked on them; returns jobs to publish."""
    ids = [node.row_id for node in removed]
    # The factor above must be tested and split again, so its finished jobs are deleted too.
    touched = [*ids, above.row_id] if above is not None else ids
    connection.execute(delete(Job).where(Job.kind.not_in(jobs.OF_COMPOSITES + OF_NEITHER), Job.target_id.in_(touched)))
    connection.execute(update(Factor).where(Factor.child_composite_id.in_(children)).values(child_composite_id=None))
    if above is not None and above.child_id in children:
        above.child_id = None
    connection.execute(delete(Factor).where(Factor.id.in_(ids)))
    return _delete_composites(connection, children, [])[1]
