"""Deleting numbers, attempts and factors, voiding attempts: what goes with them, and what must be put right.

Each is one unit of work with its audit row in it. Submissions never go: those whose effect is deleted are settled as
refused, for that reason, and can be sent again.
"""

from collections.abc import Sequence
from datetime import datetime

import gmpy2
from sqlalchemy import Connection, Engine, and_, delete, func, or_, select, update

from coordinator.administration.edits import MAX_AUDITED, lock_members
from coordinator.base import audit, jobs
from coordinator.base.audit import Actor
from coordinator.base.errors import ConflictError, NotFoundError, composite_not_found
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import families, lease_lifecycle, ledger, registry, statistics
from coordinator.composites.families import Change, Divisor, FamilyMember
from coordinator.numbers.expressions import shorten
from coordinator.numbers.factor_tree import FactorNode, resolve
from models.tables import (
    Composite,
    CompositeAlias,
    CompositeEffort,
    EcmAttempt,
    Factor,
    Job,
    ProjectComposite,
    RecalculatedEffort,
    Residue,
    Submission,
    WorkAssignment,
)

# A submission whose number an operator deleted: sent again, it is refused again, until an operator retries it.
COMPOSITE_DELETED = "composite_deleted"
# What a job's target is; of every other kind it is a factor.
OF_COMPOSITES = (jobs.TEST_COFACTOR, jobs.SHARE_FACTORS)
OF_NEITHER = (jobs.RECALCULATE, jobs.DROP_RESIDUE)
# What hangs on a composite, in an order in which nothing refers to a row that is gone.
DEPENDENT_TABLES = (
    Factor,
    Residue,
    EcmAttempt,
    WorkAssignment,
    CompositeEffort,
    CompositeAlias,
    ProjectComposite,
    RecalculatedEffort,
)


def delete_composite(
    engine: Engine, actor: Actor, composite_id: int, max_digits: int
) -> tuple[dict[str, int], list[jobs.JobRef]]:
    """Delete a number with all that hangs on it; how many rows went from each table, and what to ring for.

    Numbers that were split off it go too, but for those that another number needs: they stand by themselves then.
    Raises Unknown, and Conflict for a number that another one's factor needs.
    """
    with unit_of_work(engine, "delete_composite", composite=composite_id) as connection:
        roots = registry.roots_of(connection, [composite_id])
        if not roots:
            raise composite_not_found(composite_id)
        family = [row.id for row in registry.lock_family(connection, roots[0])]
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
        staying = [one for one in ids if one in needed]
        going = [one for one in ids if one not in needed]
        numbers = connection.execute(select(Composite.id, Composite.number).where(Composite.id.in_(going))).all()
        gone = _delete_all(connection, going, staying)
        change = Change()
        for one in staying:
            # A root now, which sees to the work on its own parts.
            families.write_back(connection, families.load_family(connection, [one], max_digits), change)
        for row in numbers:
            number = shorten(row.number, MAX_AUDITED)
            what = gone if row.id == composite_id else {"went_with": composite_id}
            audit.record(connection, actor, "delete", f"composite {row.id}", before={"number": number}, after=what)
    return gone, change.to_publish


def delete_attempt(engine: Engine, actor: Actor, attempt_id: int, reason: str | None) -> tuple[int, float]:
    """Delete one attempt with its effort; factors that it found stay. Its composite, and the t-level of that then.

    Raises Unknown.
    """
    with unit_of_work(engine, "delete_attempt", attempt=attempt_id) as connection:
        unknown = NotFoundError("unknown_attempt", f"There is no attempt {attempt_id}")
        attempt = connection.execute(select(EcmAttempt).where(EcmAttempt.id == attempt_id)).one_or_none()
        if attempt is None:
            raise unknown
        lease_lifecycle.lock_composites(connection, [attempt.composite_id])
        try:
            why = f"Its attempt was deleted by an operator{f': {reason}' if reason else ''}"
            t_level = ledger.delete_attempt(connection, attempt_id, why)
        except ValueError as error:  # somebody else has just deleted it
            raise unknown from error
        kept = ("composite_id", "client_id", "method", "b1", "b2", "parametrization", "curves", "sigma")
        before = {name: getattr(attempt, name) for name in kept} | {"submission_id": attempt.submission_id}
        after = {"current_t_level": t_level}
        audit.record(connection, actor, "delete", f"attempt {attempt_id}", before=before, after=after)
    return attempt.composite_id, t_level


def delete_factor(engine: Engine, actor: Actor, factor_id: int, max_digits: int) -> tuple[int, str, list[jobs.JobRef]]:
    """Take a factor back: its composite, what is left of that then, and what to ring for.

    Its value goes back into the cofactor and what it was split into goes with it; a factor of a factor goes with its
    siblings, and the one above is whole again. What follows from the factors that stay is found again at once, and so
    is what is small: a record is deleted, and no mathematics. Raises Unknown, and Conflict where somebody has worked on
    a composite of its own that this factor has.
    """
    with unit_of_work(engine, "delete_factor", factor=factor_id) as connection:
        unknown = NotFoundError("unknown_factor", f"There is no factor {factor_id}")
        of = connection.execute(select(Factor.composite_id).where(Factor.id == factor_id)).scalar_one_or_none()
        if of is None:
            raise unknown
        members = lock_members(connection, of, max_digits)
        factor = connection.execute(select(Factor).where(Factor.id == factor_id)).one_or_none()
        if factor is None:
            raise unknown
        root = members[0]
        if factor.composite_id != root.id:
            raise ConflictError(
                "is_part", f"Composite {factor.composite_id} is a part of composite {root.id}; delete the factor there"
            )
        node, above = next(found for found in root.tree.all_nodes() if found[0].row_id == factor_id)
        workers = _children_of(members, above or node)
        _refuse_if_touched(connection, factor_id, workers, root.id)
        removed = _remove_node(root, node, above)
        _delete_nodes(connection, removed, above, workers)
        stays = [member for member in members if member.id not in workers]
        resolve(root.tree)
        known = [Divisor(leaf.value) for leaf in root.tree.leaves()]
        change = families.use_divisors(connection, stays, known)
        left = select(Composite.current_composite).where(Composite.id == root.id)
        now: str = connection.execute(left).scalar_one()
        kept = ("composite_id", "multiplicity", "origin", "attempt_id", "client_id", "method", "sigma")
        before = {name: getattr(factor, name) for name in kept} | {"factor": shorten(factor.factor, MAX_AUDITED)}
        after = {"current_composite": shorten(now, MAX_AUDITED), "composites_deleted": sorted(workers)}
        audit.record(connection, actor, "delete", f"factor {factor_id}", before=before, after=after)
    return root.id, now, change.to_publish


def void_attempts(
    engine: Engine, actor: Actor, client_id: str, *, since: datetime, until: datetime, program: str | None, reason: str
) -> ledger.VoidReport:
    """Take back what a client sent from `since` to before `until`, as ledger.void; factors stay."""
    with unit_of_work(engine, "void_attempts", client=client_id) as connection:
        done = ledger.void(connection, client_id, since=since, until=until, program=program)
        asked = {"from": since.isoformat(), "to": until.isoformat(), "program": program, "reason": reason}
        audit.record(connection, actor, "void attempts", f"client {client_id}", after=done._asdict() | asked)
    return done


# A composite and all that hangs on it ---------------------------------------------------------------------------------


def _children_of_others(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """Those of these composites that work on a factor of a composite that is not one of them, and of which."""
    needed = select(Factor.child_composite_id, func.min(Factor.composite_id).label("by")).where(
        Factor.child_composite_id.in_(ids), Factor.composite_id.not_in(ids)
    )
    return {row.child_composite_id: row.by for row in connection.execute(needed.group_by(Factor.child_composite_id))}


def _delete_all(connection: Connection, going: list[int], staying: list[int]) -> dict[str, int]:
    """Delete these locked composites; those of their children that are `staying` become roots."""
    gone: dict[str, int] = {}
    if staying:
        connection.execute(update(Composite).where(Composite.id.in_(staying)).values(parent_id=None))
    applied = Submission.id.in_(select(EcmAttempt.submission_id).where(EcmAttempt.composite_id.in_(going)))
    repeated = and_(Submission.composite_id.in_(going), Submission.state == "duplicate")
    refuse = update(Submission).values(
        state="rejected",
        reason=COMPOSITE_DELETED,
        detail="Its number was deleted by an operator",
        outcome=None,
        composite_id=None,
    )
    # Two statements, each of which has an index.
    gone["submissions_refused"] = sum(connection.execute(refuse.where(one)).rowcount for one in (applied, repeated))
    factors = select(Factor.id).where(Factor.composite_id.in_(going))
    of_composites = and_(Job.kind.in_(OF_COMPOSITES), Job.target_id.in_(going))
    of_factors = and_(Job.kind.not_in(OF_COMPOSITES + OF_NEITHER), Job.target_id.in_(factors))
    gone["jobs"] = connection.execute(delete(Job).where(or_(of_composites, of_factors))).rowcount
    # What stays may owe a factor to an attempt that goes.
    attempts = select(EcmAttempt.id).where(EcmAttempt.composite_id.in_(going))
    credited = update(Factor).where(Factor.attempt_id.in_(attempts), Factor.composite_id.not_in(going))
    connection.execute(credited.values(attempt_id=None))
    statistics.subtract_attempts(
        connection, list(connection.execute(attempts.where(EcmAttempt.voided_at.is_(None))).scalars())
    )
    for table in DEPENDENT_TABLES:
        gone[table.__tablename__] = connection.execute(delete(table).where(table.composite_id.in_(going))).rowcount
    # Children first, for their parent is referred to by them.
    below = connection.execute(delete(Composite).where(Composite.id.in_(going), Composite.parent_id.in_(going)))
    own = connection.execute(delete(Composite).where(Composite.id.in_(going)))
    gone["composites"] = below.rowcount + own.rowcount
    return gone


# A factor and what is beneath it --------------------------------------------------------------------------------------


def _children_of(members: list[FamilyMember], whole: FactorNode) -> list[int]:
    """The composites split off the root that work on a part of this factor."""
    return [member.id for member in members[1:] if gmpy2.gcd(member.tree.number, whole.value) > 1]


def _refuse_if_touched(connection: Connection, factor_id: int, workers: list[int], root_id: int) -> None:
    """Raise Conflict if somebody has worked on one of these composites, leased it, or needs it elsewhere."""
    needed = {
        row.child_composite_id: row.composite_id
        for row in connection.execute(
            select(Factor.child_composite_id, Factor.composite_id).where(
                Factor.child_composite_id.in_(workers), Factor.composite_id != root_id
            )
        )
    }
    for one in workers:
        why = None
        attempts = select(func.count()).where(EcmAttempt.composite_id == one)
        leases = select(func.count()).where(WorkAssignment.composite_id == one)
        projects = select(func.count()).where(ProjectComposite.composite_id == one)
        if count := connection.execute(attempts).scalar_one():
            why = f"has had {count} attempts"
        elif count := connection.execute(leases).scalar_one():
            why = f"has been leased {count} times"
        elif count := connection.execute(projects).scalar_one():
            why = f"is in {count} projects"
        elif one in needed:
            why = f"works on a factor of composite {needed[one]} too"
        if why is not None:
            raise ConflictError(
                "has_been_worked_on",
                f"Composite {one}, which works on a part of factor {factor_id}, {why}; that work would be lost",
            )


def _remove_node(root: FamilyMember, node: FactorNode, above: FactorNode | None) -> list[FactorNode]:
    """Put the factor's value back where it was split off; the nodes that are none any more."""
    if above is None:
        tree = root.tree
        removed = [node]
        tree.children.remove(node)
        composite = tree.cofactor > 1 or node.multiplicity > 1 or node.is_prime is False
        tree.cofactor *= node.value**node.multiplicity
        tree.cofactor_is_prime = False if composite else node.is_prime
        tree.cofactor_tested = False
    else:
        removed = list(above.children)
        above.children = []
        above.tested = False
    todo, all_removed = removed, []
    while todo:
        one = todo.pop()
        all_removed.append(one)
        todo += one.children
    return all_removed


def _delete_nodes(
    connection: Connection, removed: list[FactorNode], above: FactorNode | None, workers: list[int]
) -> None:
    ids = [node.row_id for node in removed]
    # The one above wants new work: what was once done for it does not count.
    touched = [*ids, above.row_id] if above is not None else ids
    connection.execute(delete(Job).where(Job.kind.not_in(OF_COMPOSITES + OF_NEITHER), Job.target_id.in_(touched)))
    connection.execute(update(Factor).where(Factor.child_composite_id.in_(workers)).values(child_composite_id=None))
    if above is not None and above.child_id in workers:
        above.child_id = None
    connection.execute(delete(Factor).where(Factor.id.in_(ids)))
    _delete_all(connection, workers, [])
