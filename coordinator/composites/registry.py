"""Finding, registering and locking composites by any value they have ever had.

A value is looked up by its SHA-256 in `composite_aliases`. Kinds of alias: `number` (as written, in several spellings,
and evaluated) and `cofactor` (what was left at some time). Two composites may share a cofactor, never a number.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from gmpy2 import mpz
from sqlalchemy import Connection, Row, func, or_, select
from sqlalchemy.dialects.postgresql import insert

from coordinator import effort
from coordinator.composites import eligibility
from coordinator.numbers.arithmetic import digit_count
from coordinator.numbers.expressions import decimal, evaluate_number
from models.tables import Composite, CompositeAlias, Project, ProjectComposite

NUMBER, COFACTOR = "number", "cofactor"
# A program writes a number in one way, and there are few programs; but there is no end of ways.
MOST_SPELLINGS = 20


def sha256(text: str) -> bytes:
    """What a value is looked up by: the SHA-256 of its text."""
    return hashlib.sha256(text.encode()).digest()


class Found(NamedTuple):
    """A composite, and the number that it is or was split from; whether its number is new in the spelling looked up."""

    id: int
    root_id: int
    is_new_spelling: bool = False


def find(connection: Connection, written: str, max_digits: int) -> Found | None:
    """The composite that `written` names, or None.

    The exact number wins over a current cofactor, that over the composite known longest. An expression is evaluated
    only if it is not known in that spelling. Raises ExpressionError.
    """
    found = _find_hash(connection, sha256(written))
    if found is not None:
        return Found(found.id, found.root_id)
    if written.isascii() and written.isdigit():
        return None
    found = _find_hash(connection, sha256(decimal(evaluate_number(written, max_digits))))
    # A cofactor can become the number of another composite, which is then the better one: its spellings are no aliases.
    return None if found is None else Found(found.id, found.root_id, is_new_spelling=found.kind == NUMBER)


def _find_hash(connection: Connection, value_sha256: bytes) -> Row | None:
    is_current = func.sha256(func.convert_to(Composite.current_composite, "UTF8")) == value_sha256
    return connection.execute(
        select(Composite.id, func.coalesce(Composite.parent_id, Composite.id).label("root_id"), CompositeAlias.kind)
        .join(CompositeAlias, CompositeAlias.composite_id == Composite.id)
        .where(CompositeAlias.value_sha256 == value_sha256)
        .order_by((CompositeAlias.kind == NUMBER).desc(), is_current.desc(), Composite.id)
        .limit(1)
    ).one_or_none()


def learn_spelling(connection: Connection, composite_id: int, written: str) -> None:
    """Let a locked composite's number be found in this spelling too, without evaluating it, if it has few as yet."""
    known = select(func.count()).where(CompositeAlias.composite_id == composite_id, CompositeAlias.kind == NUMBER)
    if connection.execute(known).scalar_one() < MOST_SPELLINGS:
        add_aliases(connection, composite_id, [sha256(written)], NUMBER)


class Fresh(NamedTuple):
    """A composite about to be registered, as demand sees it."""

    effort: np.ndarray
    digit_length: int
    is_prime: bool | None
    is_fully_factored: bool
    target_t_level: float
    hold: str | None = None
    pm1_b1: int = 0
    pp1_b1: int = 0
    open_residues: int = 0


def register(
    connection: Connection,
    written: str,
    value: mpz,
    *,
    is_prime: bool | None,
    parent_id: int | None = None,
    vector: np.ndarray | None = None,
) -> int:
    """Make `value` known as written, or find it if somebody else just did; returns its id. As `register_new`."""
    new_id = register_new(connection, written, value, is_prime=is_prime, parent_id=parent_id, vector=vector)
    if new_id is not None:
        return new_id
    # The race was won by another unit of work that has committed by now.
    winner = select(Composite.id).where(Composite.value_sha256 == sha256(decimal(value)))
    return connection.execute(winner).scalar_one()


def register_new(
    connection: Connection,
    written: str,
    value: mpz,
    *,
    is_prime: bool | None,
    parent_id: int | None = None,
    vector: np.ndarray | None = None,
    p1_reached: tuple[int, int] = (0, 0),
) -> int | None:
    """Make `value` known as written; its id, or None if there is a composite of that number already.

    `is_prime` is None while unknown; `p1_reached` are the B1 of its P-1 and P+1 so far. The new row is its own cofactor
    until factors are recorded.
    """
    text = decimal(value)
    digits = digit_count(value)
    effort_so_far = effort.no_effort() if vector is None else vector
    pm1_b1, pp1_b1 = p1_reached
    fresh = Fresh(
        effort_so_far, digits, is_prime, is_prime is True, effort.target_t_level(digits), pm1_b1=pm1_b1, pp1_b1=pp1_b1
    )
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
            target_t_level=fresh.target_t_level,
            current_t_level=effort.t_level(effort_so_far),
            effort=effort_so_far,
            pm1_b1=pm1_b1,
            pp1_b1=pp1_b1,
            **eligibility.compute_eligibility(fresh, []),
        )
        .on_conflict_do_nothing(index_elements=[Composite.value_sha256])
        .returning(Composite.id)
    ).scalar_one_or_none()
    if new_id is not None:
        add_aliases(connection, new_id, {sha256(written), sha256(text)}, NUMBER)
    return new_id


def add_aliases(connection: Connection, composite_id: int, hashes: Iterable[bytes], kind: str) -> None:
    """Let the composite be found by these values too. In hash order, as everywhere, so that no two can deadlock."""
    rows = [{"value_sha256": value, "composite_id": composite_id, "kind": kind} for value in sorted(hashes)]
    connection.execute(insert(CompositeAlias).values(rows).on_conflict_do_nothing())


# What a result without factors needs of its composite; the numbers themselves can have 50,000 digits.
STATE_COLUMNS = (
    Composite.id,
    Composite.parent_id,
    Composite.is_prime,
    Composite.is_fully_factored,
    Composite.effort,
    Composite.current_t_level,
    Composite.target_t_level,
    Composite.attempt_count,
)


def lock_family(connection: Connection, root_id: int) -> list[Row]:
    """Lock a composite and those split from it, root first, then by id; their STATE_COLUMNS.

    `FOR NO KEY UPDATE` leaves inserts that refer to a composite free. The root has a statement of its own: one
    statement for all would not see a child that was committed while it waited for the root.
    """
    members: list[Row] = []
    for chosen in (Composite.id == root_id, Composite.parent_id == root_id):
        lock = select(*STATE_COLUMNS).where(chosen).order_by(Composite.id).with_for_update(key_share=True)
        members += connection.execute(lock).all()
    return members


def family_ids(connection: Connection, root_id: int) -> list[int]:
    """The ids of a composite and of those split from it, unlocked."""
    chosen = select(Composite.id).where(or_(Composite.id == root_id, Composite.parent_id == root_id))
    return list(connection.execute(chosen.order_by(Composite.id)).scalars())


def roots_of(connection: Connection, ids: Iterable[int]) -> list[int]:
    """The numbers that these composites are, or were split from, each once."""
    root = func.coalesce(Composite.parent_id, Composite.id)
    return sorted(set(connection.execute(select(root).where(Composite.id.in_(list(ids)))).scalars()))


def join_project(connection: Connection, composite_id: int, name: str) -> None:
    """Put the composite into the project of that name, which is created if need be."""
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
