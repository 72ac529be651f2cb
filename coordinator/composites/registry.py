"""The registry: it finds composites by any value that they have ever had, registers new ones, and locks them.

A value is looked up by its SHA-256 in `composite_aliases`. An alias has the kind `number` (a spelling, or the value in
decimal) or the kind `cofactor` (a cofactor at some time). Two composites may share a cofactor, but never a number.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from gmpy2 import mpz
from sqlalchemy import Connection, bindparam, func, or_, select, union
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import aliased

from coordinator import effort
from coordinator.composites import target_changes, targets
from coordinator.composites.values import sha256
from coordinator.numbers.arithmetic import digit_count
from coordinator.numbers.expressions import ExpressionError, decimal, evaluate_number
from models.tables import Composite, CompositeAlias, Factor, Project, ProjectComposite
from models.types import AnyRow

NUMBER, COFACTOR = "number", "cofactor"
# Clients use few spellings of a number, but there are infinitely many, and each takes a row.
MAX_SPELLINGS = 20


class RegisteredComposite(NamedTuple):
    """A composite and the root of its family; `is_new_spelling`: the looked-up spelling is not stored yet."""

    id: int
    root_id: int
    is_new_spelling: bool = False


def find(connection: Connection, written: str, max_digits: int) -> RegisteredComposite | None:
    """Return the composite with the value or the spelling `written`, or None.

    A composite with this number is preferred to one with this current cofactor, and that one to the oldest composite
    with this value. An expression is evaluated only if its spelling is not known. Raises ExpressionError.
    """
    found = _find_hash(connection, sha256(written))
    if found is not None:
        return RegisteredComposite(found.id, found.root_id)
    if written.isascii() and written.isdigit():
        return None
    value = _evaluate(written, max_digits)
    if isinstance(value, ExpressionError):
        raise ExpressionError(value.reason, value.detail)
    found = _find_hash(connection, value)
    # Spellings of a cofactor do not become aliases: another composite can be registered with that number later.
    return None if found is None else RegisteredComposite(found.id, found.root_id, is_new_spelling=found.kind == NUMBER)


def evaluate_ahead(written: str, max_digits: int) -> None:
    """Compute an expression that `find` is to look up, before a connection is taken; does nothing for a decimal number.

    A large expression takes some hundredths of a second, and a web process has few connections.
    """
    if not (written.isascii() and written.isdigit()):
        _evaluate(written, max_digits)


@lru_cache(1000)
def _evaluate(written: str, max_digits: int) -> bytes | ExpressionError:
    """Return the hash of the value of an expression, or why it has none."""
    try:
        return sha256(decimal(evaluate_number(written, max_digits)))
    except ExpressionError as error:
        return error.with_traceback(None)


def _find_hash(connection: Connection, value_sha256: bytes) -> AnyRow | None:
    is_current = func.sha256(func.convert_to(Composite.current_composite, "UTF8")) == value_sha256
    return connection.execute(
        select(Composite.id, func.coalesce(Composite.parent_id, Composite.id).label("root_id"), CompositeAlias.kind)
        .join(CompositeAlias, CompositeAlias.composite_id == Composite.id)
        .where(CompositeAlias.value_sha256 == value_sha256)
        .order_by((CompositeAlias.kind == NUMBER).desc(), is_current.desc(), Composite.id)
        .limit(1)
    ).one_or_none()


def learn_spelling(connection: Connection, composite_id: int, written: str) -> None:
    """Add a spelling of a locked composite's number as an alias, unless it has MAX_SPELLINGS aliases already."""
    known = select(func.count()).where(CompositeAlias.composite_id == composite_id, CompositeAlias.kind == NUMBER)
    if connection.execute(known).scalar_one() < MAX_SPELLINGS:
        add_aliases(connection, composite_id, [sha256(written)], NUMBER)


def register(
    connection: Connection, written: str, value: mpz, *, is_prime: bool | None, registered_by: str | None = None
) -> int:
    """Register `value` like `register_new`, and return its id, also if another transaction has just registered it."""
    new_id = register_new(connection, written, value, is_prime=is_prime, registered_by=registered_by)
    if new_id is not None:
        return new_id
    # Another unit of work has registered it and has committed by now.
    winner = select(Composite.id).where(Composite.value_sha256 == sha256(decimal(value)))
    return connection.execute(winner).scalar_one()


def register_new(
    connection: Connection,
    written: str,
    value: mpz,
    *,
    is_prime: bool | None,
    parent_id: int | None = None,
    split_from: Iterable[int] = (),
    registered_by: str | None = None,
) -> int | None:
    """Register `value` with the spelling `written`. Returns the new id, or None if the number is registered already.

    `is_prime` None: not known. The number is its own cofactor until factors of it are recorded. `split_from` are the
    ids of the targets that it was split from. `registered_by` is the client whose result registers it; a part was
    registered by whoever registered its parent.
    """
    text = decimal(value)
    digits = digit_count(value)
    new_id = connection.execute(
        insert(Composite)
        .values(
            number=written,
            value_sha256=sha256(text),
            current_composite=text,
            digit_length=digits,
            is_prime=is_prime,
            is_fully_factored=is_prime is True,
            parent_id=parent_id,
            registered_by=registered_by if parent_id is None else _registered_by(parent_id),
            target_t_level=effort.target_t_level(digits),
        )
        .on_conflict_do_nothing(index_elements=[Composite.value_sha256])
        .returning(Composite.id)
    ).scalar_one_or_none()
    if new_id is not None:
        add_aliases(connection, new_id, {sha256(written), sha256(text)}, NUMBER)
        if not is_prime:
            target_changes.point(connection, new_id, value, is_prime, split_from=split_from)
    return new_id


def _registered_by(composite_id: int) -> Any:
    return select(Composite.registered_by).where(Composite.id == composite_id).scalar_subquery()


def add_aliases(connection: Connection, composite_id: int, hashes: Iterable[bytes], kind: str) -> None:
    """Insert aliases of a composite, in the order of their hashes so that no two units of work deadlock."""
    rows = [{"value_sha256": value, "composite_id": composite_id, "kind": kind} for value in sorted(hashes)]
    connection.execute(insert(CompositeAlias).values(rows).on_conflict_do_nothing())


# The columns that a result without factors needs; the numbers are not among them, for they can have 50,000 digits.
LOCKED_COLUMNS = (
    Composite.id,
    Composite.parent_id,
    Composite.target_id,
    Composite.value_sha256,
    Composite.is_prime,
    Composite.is_fully_factored,
)


def lock_family(connection: Connection, root_id: int) -> list[AnyRow]:
    """Lock a family, the root first and then by id, and return the LOCKED_COLUMNS of its members.

    `FOR NO KEY UPDATE` does not block inserts that refer to a composite. The root has a statement of its own: one
    statement for all would not see a child that was committed while it waited for the root.
    """
    return _lock_families(connection, [root_id])


def _lock_families(connection: Connection, root_ids: list[int]) -> list[AnyRow]:
    members: list[AnyRow] = []
    for chosen in (Composite.id.in_(root_ids), Composite.parent_id.in_(root_ids)):
        lock = select(*LOCKED_COLUMNS).where(chosen).order_by(Composite.id).with_for_update(key_share=True)
        members += connection.execute(lock).all()
    return members


def lock_group(connection: Connection, root_id: int) -> list[AnyRow]:
    """Lock a family and at most MAX_SHARING_FAMILIES that share work with it, then all their targets.

    Two families share work if they have a target in common, or if one has a composite that works on a factor of the
    other. Returns the LOCKED_COLUMNS of all members, the family of `root_id` first; [] if the root is gone.
    """
    wanted = {root_id, *_sharing_roots(connection, root_id)}
    locked = _lock_families(connection, sorted(wanted))
    # A family that began to share meanwhile is locked out of order. That is rare, and a deadlock ends in a retry.
    late = set(_sharing_roots(connection, root_id)) - wanted
    if late:
        locked += _lock_families(connection, sorted(late))
    if not any(row.id == root_id for row in locked):
        return []
    targets.lock_ids(connection, {row.target_id for row in locked if row.target_id is not None})
    return sorted(locked, key=lambda row: ((row.parent_id or row.id) != root_id, row.parent_id is not None, row.id))


# A factor is used on so many further families in one unit of work; jobs use it on the others.
MAX_SHARING_FAMILIES = 20
_family = union(
    select(Composite.id, Composite.target_id).where(Composite.id == bindparam("root")),
    select(Composite.id, Composite.target_id).where(Composite.parent_id == bindparam("root")),
).cte("family")
_other = aliased(Composite)
_SHARING_IDS = union(
    select(_other.id).join(_family, _family.c.target_id == _other.target_id),
    select(Factor.composite_id).join(_family, _family.c.id == Factor.child_composite_id),
    select(Factor.child_composite_id)
    .join(_family, _family.c.id == Factor.composite_id)
    .where(Factor.child_composite_id.is_not(None)),
).subquery("sharing")
_SHARING_ROOTS = (
    select(func.coalesce(_other.parent_id, _other.id).label("root_id"))
    .join(_SHARING_IDS, _SHARING_IDS.c.id == _other.id)
    .where(func.coalesce(_other.parent_id, _other.id) != bindparam("root"))
    .distinct()
    .order_by("root_id")
    .limit(MAX_SHARING_FAMILIES)
)


def _sharing_roots(connection: Connection, root_id: int) -> list[int]:
    return list(connection.execute(_SHARING_ROOTS, {"root": root_id}).scalars())


def family_ids(connection: Connection, root_id: int) -> list[int]:
    """Return the ids of the members of a family without locks."""
    chosen = select(Composite.id).where(or_(Composite.id == root_id, Composite.parent_id == root_id))
    return list(connection.execute(chosen.order_by(Composite.id)).scalars())


def roots_of(connection: Connection, ids: Iterable[int]) -> list[int]:
    """Return the ids of the roots of these composites' families, in order and each once."""
    root = func.coalesce(Composite.parent_id, Composite.id)
    return sorted(set(connection.execute(select(root).where(Composite.id.in_(list(ids)))).scalars()))


def join_project(connection: Connection, composite_id: int, name: str) -> None:
    """Add the composite to the project of that name; the project is created if it does not exist."""
    known = select(Project.id).where(Project.name == name)
    project_id = connection.execute(known).scalar_one_or_none()
    if project_id is None:
        connection.execute(insert(Project).values(name=name).on_conflict_do_nothing())
        project_id = connection.execute(known).scalar_one()
    member = select(ProjectComposite.composite_id).where(
        ProjectComposite.project_id == project_id, ProjectComposite.composite_id == composite_id
    )
    if connection.execute(member).first() is None:
        connection.execute(
            insert(ProjectComposite).values(project_id=project_id, composite_id=composite_id).on_conflict_do_nothing()
        )
