"""Factor families in the database: load their trees, divide them by divisors, and write the changes back.

A family is a number (the root) and the composites that were split from it and lease work of their own. A factor that is
found on one member is used on all members of the family, and on all families that share a target with it, in the same
unit of work, under the locks that `registry.lock_group` takes.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from gmpy2 import mpz
from sqlalchemy import Connection, func, insert, or_, select, update
from sqlalchemy.orm import aliased

from config.settings import settings
from coordinator.base import jobs
from coordinator.composites import group_orders, lease_lifecycle, ledger, registry, target_changes, targets
from coordinator.composites.values import sha256
from coordinator.numbers.arithmetic import (
    PRIMALITY_AT_ONCE_DIGITS,
    SPLIT_AS_JOB_DIGITS,
    SPLIT_AT_ONCE_DIGITS,
    digit_count,
)
from coordinator.numbers.budget import Budget
from coordinator.numbers.expressions import decimal, evaluate_stored
from coordinator.numbers.factor_tree import (
    KNOWN,
    SPLIT,
    SUBMITTED,
    FactorNode,
    Tree,
    cofactor_is_prime,
    refine,
    resolve,
)
from models.tables import Composite, CompositeAlias, Factor
from models.types import AnyRow

_INSERT_NODES = insert(Factor).returning(Factor.id, sort_by_parameter_order=True)
# The nodes of a tree may have so many times the digits of its number: each factor found on a large part adds what is
# left of that part, so without a limit the tree of one number could grow to its square.
MOST_DIGITS_OF_A_TREE = 100
# So many parts get composites of their own in one unit of work, which takes half a second; a job does the next ones.
MOST_NEW_COMPOSITES = 20


class TreeTooLargeError(Exception):
    """A number has too many recorded factors for another one; the message says so to people."""


@dataclass(frozen=True)
class Divisor:
    """A number that may divide members of a family, and its source (all None: the server itself)."""

    value: mpz
    origin: str = SPLIT
    attempt_id: int | None = None
    client_id: str | None = None
    method: str | None = None
    sigma: str | None = None
    parametrization: int | None = None
    # For a factor known from elsewhere: the operator's source, and the time of the find.
    source: str | None = None
    found_at: datetime | None = None

    def credited(self, attempt_id: int, client_id: str, method: str) -> "Divisor":
        """Return the same divisor with this attempt as its source."""
        return replace(self, attempt_id=attempt_id, client_id=client_id, method=method)


@dataclass
class FamilyMember:
    """One composite of a family with its tree, and its stored state (only changes are written)."""

    id: int
    parent_id: int | None
    tree: Tree
    target_id: int | None
    stored: tuple[mpz, bool | None, bool]  # cofactor, is_prime, is_fully_factored
    stored_nodes: dict[int, tuple[int, bool | None, int | None]] = field(default_factory=dict)
    # The sources of the nodes that have no row yet; also of stored parts that are still to be split.
    credits: dict[FactorNode, Divisor] = field(default_factory=dict)
    # The last divisor that changed the tree: a prime cofactor follows from it.
    last_divisor: Divisor | None = None


@dataclass
class Change:
    """The effect of divisors on a family: those that split something (`new`), and the jobs to publish."""

    new: list[mpz] = field(default_factory=list)
    to_publish: list[jobs.JobRef] = field(default_factory=list)


def load_family(connection: Connection, ids: Sequence[int], max_digits: int) -> list[FamilyMember]:
    """Load the locked composites `ids` with their trees, in the same order."""
    columns: tuple[Any, ...] = (
        Composite.id,
        Composite.parent_id,
        Composite.number,
        Composite.current_composite,
        Composite.is_prime,
        Composite.is_fully_factored,
        Composite.target_id,
    )
    rows: dict[int, AnyRow] = {row.id: row for row in connection.execute(select(*columns).where(Composite.id.in_(ids)))}
    members = []
    for row in (rows[composite_id] for composite_id in ids):
        cofactor = mpz(row.current_composite)
        tree = Tree(evaluate_stored(row.number, max_digits), cofactor, row.is_prime)
        stored = (cofactor, row.is_prime, row.is_fully_factored)
        members.append(FamilyMember(row.id, row.parent_id, tree, row.target_id, stored))
    by_id = {member.id: member for member in members}
    nodes: dict[int, FactorNode] = {}
    # The id of a row is always smaller than the ids of the rows beneath it.
    for row in connection.execute(select(Factor).where(Factor.composite_id.in_(ids)).order_by(Factor.id)):
        node = FactorNode(
            mpz(row.factor), row.multiplicity, row.is_prime, row.origin, row.id, row.child_composite_id, tested=True
        )
        member = by_id[row.composite_id]
        above = member.tree.children if row.split_from_id is None else nodes[row.split_from_id].children
        above.append(node)
        nodes[row.id] = node
        member.stored_nodes[row.id] = (node.multiplicity, node.is_prime, node.child_id)
        if node.is_prime is not True:
            member.credits[node] = Divisor(node.value, attempt_id=row.attempt_id, client_id=row.client_id)
    for member in members:
        for leaf in member.tree.leaves():
            # The budget of an earlier unit of work may have ended before this part.
            leaf.tested = leaf.is_prime is True or not _is_small(leaf)
    return members


def _is_small(leaf: FactorNode) -> bool:
    """Return whether `resolve` tests or splits an unfinished leaf of this size."""
    most = PRIMALITY_AT_ONCE_DIGITS if leaf.is_prime is None else SPLIT_AT_ONCE_DIGITS
    return digit_count(leaf.value) <= most


def default_budget() -> Budget:
    """Return the budget of one unit of work: ARITHMETIC_SECONDS."""
    return Budget(settings().arithmetic_seconds)


def use_divisors(
    connection: Connection,
    members: list[FamilyMember],
    divisors: Iterable[Divisor],
    *,
    found_on: int | None = None,
    budget: Budget | None = None,
) -> Change:
    """Divide every member by every divisor, finish small parts within the budget, and write the changes back.

    A number that divides no member changes nothing and is no error. `Change.new` has the divisors that split something,
    which were new; parts that need long computations become jobs. Only the family of `found_on`, by default that of the
    first member, credits the client with the find: elsewhere the server has split the number.
    """
    budget = budget or default_budget()
    first = next((member for member in members if member.id == found_on), members[0])
    credited_root = first.parent_id or first.id
    change = Change()
    with budget.pays():
        change.new = [divisor.value for divisor in divisors if _divide(members, divisor, credited_root)]
    # Only now: a part that another divisor splits needs no test.
    while parts := _resolve_all(members, budget):
        with budget.pays():
            for part in parts:
                _divide(members, Divisor(part), credited_root)
    write_back(connection, members, change)
    return change


def _divide(members: list[FamilyMember], divisor: Divisor, credited_root: int) -> bool:
    """Divide every member by a divisor and by what follows from it; returns whether the divisor itself split a part."""
    is_new = False
    pending: deque[tuple[mpz, str, FamilyMember | None]] = deque([(divisor.value, divisor.origin, None)])
    while pending:
        value, origin, came_from = pending.popleft()
        for member in members:
            if member is came_from:
                continue
            is_credited = (member.parent_id or member.id) == credited_root
            found = refine(member.tree, value, origin if is_credited else SPLIT)
            if found:
                is_new |= came_from is None
                member.last_divisor = divisor if is_credited else Divisor(divisor.value)
                _credit(member, member.last_divisor)
                # The new factors of one member may divide others: the root's tree has the child's factors, too.
                pending += [(new, SPLIT, member) for new in found]
    return is_new


def _resolve_all(members: list[FamilyMember], budget: Budget) -> list[mpz]:
    """Test and split the small parts of every member; returns the new factors."""
    new: list[mpz] = []
    for member in members:
        new += resolve(member.tree, budget)
        _credit(member, None)
    return list(dict.fromkeys(new))


def resolve_new(connection: Connection, members: list[FamilyMember], budget: Budget | None = None) -> Change:
    """Finish the small parts of new composites; a job tests a large cofactor for primality."""
    budget = budget or default_budget()
    change = Change()
    for member in members:
        member.tree.cofactor_tested = False
        resolve(member.tree, budget)
        if member.tree.cofactor_is_prime is None:
            change.to_publish += jobs.request(connection, jobs.TEST_COFACTOR, member.id)
    write_back(connection, members, change)
    return change


def record_cofactor_primality(
    connection: Connection, members: list[FamilyMember], member: FamilyMember, prime: bool
) -> Change:
    """Record the result of a primality test of one member's cofactor on every equal value in the family."""
    return _record_primality(connection, members, member.tree.cofactor, prime)


def record_factor_primality(connection: Connection, members: list[FamilyMember], factor_id: int, prime: bool) -> Change:
    """Record the result of a primality test of a factor on every equal value in the family."""
    nodes = (node for member in members for node, _ in member.tree.all_nodes())
    value = next((node.value for node in nodes if node.row_id == factor_id), None)
    return Change() if value is None else _record_primality(connection, members, value, prime)


def _record_primality(connection: Connection, members: list[FamilyMember], value: mpz, prime: bool) -> Change:
    new: list[mpz] = []
    budget = default_budget()
    for member in members:
        tree = member.tree
        for leaf in tree.leaves():
            if leaf.value == value and leaf.is_prime is None:
                leaf.is_prime, leaf.tested = prime, False
        if tree.cofactor == value and tree.cofactor_is_prime is None:
            new += cofactor_is_prime(tree, prime, budget)
    new += _resolve_all(members, budget)
    # New factors (the base of a power, the last prime) may divide the cofactors of other members.
    return use_divisors(connection, members, [Divisor(factor) for factor in new], budget=budget)


def _credit(member: FamilyMember, divisor: Divisor | None) -> None:
    """Set the source of the nodes that were added: this divisor, or (None) that of the part from which they follow."""
    for node, above in member.tree.added:
        if divisor is not None:
            source: Divisor | None = divisor
        else:
            source = member.last_divisor if above is None else member.credits.get(above)
        member.credits.setdefault(node, source or Divisor(node.value))
    member.tree.added.clear()


def write_back(connection: Connection, members: list[FamilyMember], change: Change) -> None:
    """Store the changes of the members' trees, and create the jobs and the children that follow from them."""
    changed = False
    for member in members:
        written = _write_nodes(connection, member)
        changed |= bool(written)
        change.to_publish += group_orders.request(connection, written)
        if member.parent_id is None:  # the root's tree has a child's unsplit parts, too
            _schedule_leaves(connection, members, member, change)
        changed |= _write_composite(connection, member, change)
    # Also without a split: a cofactor becomes eligible once it is known to be composite.
    lease_lifecycle.refresh_eligibility(connection, targets.ids_of(connection, [member.id for member in members]))
    if changed:
        # One job for all composites outside of the group that share a value with the same ones in it.
        seen = {member.id for member in members}
        for root_id in sorted({member.parent_id or member.id for member in members}):
            family = registry.family_ids(connection, root_id)
            others = set(sharing_composites(connection, family)) - {*seen, *family}
            if others:
                change.to_publish += jobs.request(connection, jobs.SHARE_FACTORS, root_id)
                seen |= others


def _write_nodes(connection: Connection, member: FamilyMember) -> list[int]:
    """Store new and changed nodes, and return the ids of their rows."""
    written = []
    new: list[tuple[FactorNode, FactorNode | None]] = []
    digits = 0
    for node, above in member.tree.all_nodes():
        digits += digit_count(node.value)
        if node.row_id is None:
            new.append((node, above))
            continue
        if member.stored_nodes[node.row_id] != (node.multiplicity, node.is_prime, node.child_id):
            connection.execute(
                update(Factor)
                .where(Factor.id == node.row_id)
                .values(multiplicity=node.multiplicity, is_prime=node.is_prime)
            )
        else:
            continue
        member.stored_nodes[node.row_id] = (node.multiplicity, node.is_prime, node.child_id)
        written.append(node.row_id)
    most = MOST_DIGITS_OF_A_TREE * digit_count(member.tree.number)
    if new and digits > most:
        raise TreeTooLargeError(
            f"the factors of this number would have {digits:,} digits together, and {most:,} are kept; send its prime "
            "factors, the smallest first"
        )
    # Level by level: a row needs the id of the row above it, and has a larger one.
    while new:
        level = [(node, above) for node, above in new if above is None or above.row_id is not None]
        new = [(node, above) for node, above in new if above is not None and above.row_id is None]
        ids = connection.execute(_INSERT_NODES, [_node_values(member, node, above) for node, above in level])
        for (node, _), row_id in zip(level, ids.scalars(), strict=True):
            node.row_id = row_id
            member.stored_nodes[row_id] = (node.multiplicity, node.is_prime, node.child_id)
            written.append(row_id)
    return written


def _node_values(member: FamilyMember, node: FactorNode, above: FactorNode | None) -> dict[str, Any]:
    credit = member.credits.get(node, Divisor(node.value))
    is_submitted, is_known = node.origin == SUBMITTED, node.origin == KNOWN
    text = decimal(node.value)
    return {
        "composite_id": member.id,
        "factor": text,
        "factor_sha256": sha256(text),
        "digit_length": digit_count(node.value),
        "multiplicity": node.multiplicity,
        "is_prime": node.is_prime,
        "split_from_id": above.row_id if above else None,
        "origin": node.origin,
        "attempt_id": credit.attempt_id,
        "client_id": credit.client_id,
        "method": credit.method if is_submitted else None,
        "sigma": credit.sigma if is_submitted else None,
        "parametrization": credit.parametrization if is_submitted else None,
        "source": credit.source if is_known else None,
        "found_at": credit.found_at if is_known else None,
    }


def _schedule_leaves(connection: Connection, members: list[FamilyMember], root: FamilyMember, change: Change) -> None:
    """Request a primality test, a split or a composite of its own for the unfinished leaves of the root's tree.

    Only some jobs of one number wait at a time; each that ends comes here again for the next ones.
    """
    wanted: list[tuple[str, int]] = []
    registered = 0
    for leaf in root.tree.leaves():
        if leaf.is_prime is True or leaf.row_id is None:
            continue
        digits = digit_count(leaf.value)
        if leaf.is_prime is None:
            wanted.append((jobs.TEST_FACTOR, leaf.row_id))
        elif digits <= SPLIT_AS_JOB_DIGITS:
            wanted.append((jobs.SPLIT_FACTOR, leaf.row_id))
        elif leaf.child_id is None and registered == MOST_NEW_COMPOSITES:
            change.to_publish += jobs.request(connection, jobs.REGISTER_PARTS, root.id)
            break
        elif leaf.child_id is None:
            registered += 1
            leaf.child_id = _find_or_register_child(connection, members, root, leaf)
            connection.execute(update(Factor).where(Factor.id == leaf.row_id).values(child_composite_id=leaf.child_id))
    change.to_publish += jobs.request_parts(connection, wanted)


def _find_or_register_child(
    connection: Connection, members: list[FamilyMember], root: FamilyMember, leaf: FactorNode
) -> int:
    """Return the id of the composite that leases work for a leaf: one that has this value already, or a new one.

    The curves that count for the members count for it, too, if their values are multiples of its own: they would have
    found its factors.
    """
    for member in members:
        # The cofactor of a child that was just divided has no alias yet.
        if member is not root and member.tree.cofactor == leaf.value:
            return member.id
    text = decimal(leaf.value)
    split_from = [member.target_id for member in members if member.target_id is not None]
    known = registry.find(connection, text, digit_count(leaf.value))
    if known is None:
        child_id = registry.register_new(
            connection, text, leaf.value, is_prime=False, parent_id=root.id, split_from=split_from
        )
        if child_id is not None:
            return child_id
        # Another family has just registered the number.
        known_id = registry.register(connection, text, leaf.value, is_prime=False)
    else:
        known_id = known.id
    _add_sources_of(connection, known_id, split_from)
    return known_id


def _add_sources_of(connection: Connection, composite_id: int, target_ids: list[int]) -> None:
    """Let curves on the sources of these targets count for the target of a composite, if its value divides theirs."""
    chosen = select(Composite.target_id, Composite.current_composite).where(Composite.id == composite_id)
    row = connection.execute(chosen).one()
    if row.target_id is None or row.target_id in target_ids or row.current_composite == "1":
        return
    targets.lock_ids(connection, [row.target_id])
    if target_changes.add_sources(connection, row.target_id, mpz(row.current_composite), of_targets=target_ids):
        ledger.rebuild(connection, [row.target_id])


def _write_composite(connection: Connection, member: FamilyMember, change: Change) -> bool:
    """Store the state of a member's row if it changed, and return whether its cofactor was divided."""
    tree = member.tree
    state = (tree.cofactor, tree.cofactor_is_prime, tree.finished)
    if state == member.stored:
        return False
    is_divided: bool = tree.cofactor != member.stored[0]
    text = decimal(tree.cofactor)
    connection.execute(
        update(Composite)
        .where(Composite.id == member.id)
        .values(
            current_composite=text,
            digit_length=digit_count(tree.number if tree.finished else tree.cofactor),
            is_prime=tree.cofactor_is_prime,
            is_fully_factored=tree.finished,
        )
    )
    if is_divided and tree.cofactor > 1:
        registry.add_aliases(connection, member.id, [sha256(text)], registry.COFACTOR)
        if tree.cofactor_is_prime is None:
            change.to_publish += jobs.request(connection, jobs.TEST_COFACTOR, member.id)
    if not (tree.finished or tree.cofactor == 1 or tree.cofactor_is_prime):
        member.target_id = target_changes.point(connection, member.id, tree.cofactor, tree.cofactor_is_prime)
        target_changes.set_open(connection, member.target_id, tree.cofactor_is_prime)
    elif member.target_id is not None:
        target_changes.finish(connection, member.target_id)
    member.stored = state
    return is_divided


def sharing_composites(connection: Connection, ids: Sequence[int]) -> list[int]:
    """Return the ids of composites outside the family that share work with it.

    They had a value in common with it, they lease work for one of its parts, or it leases work for one of theirs.
    """
    ours, theirs = aliased(CompositeAlias), aliased(CompositeAlias)
    by_value = (
        select(theirs.composite_id)
        .join(ours, ours.value_sha256 == theirs.value_sha256)
        .where(ours.composite_id.in_(ids), theirs.composite_id.not_in(ids))
    )
    lease_our_parts = select(Factor.child_composite_id).where(
        Factor.composite_id.in_(ids), Factor.child_composite_id.is_not(None), Factor.child_composite_id.not_in(ids)
    )
    have_parts_leased_by_us = select(Factor.composite_id).where(
        Factor.child_composite_id.in_(ids), Factor.composite_id.not_in(ids)
    )
    return sorted(connection.execute(by_value.union(lease_our_parts, have_parts_leased_by_us)).scalars())


def leaf_values(connection: Connection, root_id: int) -> list[mpz]:
    """Return every factor of the family of `root_id`, read without locks: factors stay, and division proves them."""
    family = select(Composite.id).where(or_(Composite.id == root_id, Composite.parent_id == root_id))
    rows = connection.execute(select(func.distinct(Factor.factor)).where(Factor.composite_id.in_(family)))
    return [mpz(text) for text in rows.scalars()]
