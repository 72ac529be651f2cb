"""Many numbers at once: where each stands, and which are nearest to their targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Engine, LargeBinary, Row, cast, column, func, literal, or_, select, true
from sqlalchemy.dialects import postgresql

from coordinator.composites import registry
from coordinator.numbers.expressions import ExpressionError, decimal, evaluate_number
from coordinator.reading import search
from models.tables import Composite, CompositeAlias, Project, ProjectComposite

# Computing expressions takes some milliseconds each at worst, and a request has a thousand of them at most.
EVALUATION_SECONDS = 1.0


TOO_LONG = "was not computed: those before it took too long; send it in decimal, or fewer at a time"


@dataclass(frozen=True)
class LookupKeys:
    """Numbers as they were asked for: the hashes to look them up by, or why there are none of them."""

    written: list[bytes]
    evaluated: list[bytes | None]
    problems: list[str | None]


def compute_lookup_keys(numbers: Sequence[str], max_digits: int) -> LookupKeys:
    """What to look up for these numbers, in decimal or expressions; what cannot be read has its problem instead."""
    evaluated: list[bytes | None] = []
    problems: list[str | None] = []
    until = monotonic() + EVALUATION_SECONDS
    for number in numbers:
        value, problem = None, None
        if not (number.isascii() and number.isdigit()):
            if monotonic() > until:
                problem = TOO_LONG
            else:
                try:
                    value = registry.sha256(decimal(evaluate_number(number, max_digits)))
                except ExpressionError as error:
                    problem = error.detail
        evaluated.append(value)
        problems.append(problem)
    return LookupKeys([registry.sha256(number) for number in numbers], evaluated, problems)


class NumberStatus(NamedTuple):
    """How one of many numbers stands: listing.COLUMNS, or None, and why, if it could not be read."""

    asked: str
    row: Row | None
    problem: str | None


def read_batch_status(engine: Engine, numbers: Sequence[str], max_digits: int) -> list[NumberStatus]:
    """How each of these numbers stands, in their order, as `registry.find` finds them; one query for all."""
    asked = compute_lookup_keys(numbers, max_digits)
    wanted = _lookup_table(asked)
    is_current = func.sha256(func.convert_to(Composite.current_composite, "UTF8")) == CompositeAlias.value_sha256
    found = (
        select(*search.COLUMNS)
        .join(CompositeAlias, CompositeAlias.composite_id == Composite.id)
        .where(or_(CompositeAlias.value_sha256 == wanted.c.written, CompositeAlias.value_sha256 == wanted.c.evaluated))
        .order_by(
            (CompositeAlias.value_sha256 == wanted.c.written).desc(),
            (CompositeAlias.kind == registry.NUMBER).desc(),
            is_current.desc(),
            Composite.id,
        )
        .limit(1)
        .lateral("found")
    )
    statement = select(found).select_from(wanted.outerjoin(found, true())).order_by(wanted.c.place)
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
    return [
        NumberStatus(number, None if row.id is None else row, problem if row.id is None else None)
        for number, row, problem in zip(numbers, rows, asked.problems, strict=True)
    ]


def _lookup_table(asked: LookupKeys) -> Any:
    columns = ((range(len(asked.written)), BigInteger), (asked.written, LargeBinary), (asked.evaluated, LargeBinary))
    arrays = (cast(literal(list(values), postgresql.ARRAY(kind)), postgresql.ARRAY(kind)) for values, kind in columns)
    table = func.unnest(*arrays).table_valued(column("place"), column("written"), column("evaluated"))
    return table.render_derived("wanted")


@dataclass(frozen=True)
class ProgressFilters:
    """Which numbers to look for those nearest to their targets among; None leaves it open.

    A number's difficulty is that of its special form, if it has one, else its digits.
    """

    project: str | None = None
    min_priority: int | None = None
    include_factored: bool = False
    numbers: Sequence[str] | None = None
    min_difficulty: int | None = None
    max_difficulty: int | None = None


def top_progress(engine: Engine, chosen: ProgressFilters, *, limit: int, max_digits: int) -> list[Row]:
    """The numbers (listing.COLUMNS) that are nearest to their targets, nearest first; one query.

    To be chosen among hundredths of the target count. Raises Unknown for a project that there is not.
    """
    difficulty = func.coalesce(Composite.snfs_difficulty, Composite.digit_length)
    nearest = select(Composite.id)
    if not chosen.include_factored:
        nearest = nearest.where(Composite.listed_state.in_(search.UNFINISHED))
    if chosen.min_priority is not None:
        nearest = nearest.where(Composite.priority >= chosen.min_priority)
    if chosen.min_difficulty is not None:
        nearest = nearest.where(difficulty >= chosen.min_difficulty)
    if chosen.max_difficulty is not None:
        nearest = nearest.where(difficulty <= chosen.max_difficulty)
    with engine.connect() as connection:
        if chosen.project is not None:
            members = select(ProjectComposite.composite_id)
            known = select(Project.id).where(Project.name == chosen.project).scalar_subquery()
            nearest = nearest.where(Composite.id.in_(members.where(ProjectComposite.project_id == known)))
        if chosen.numbers is not None:
            asked = compute_lookup_keys(chosen.numbers, max_digits)
            hashes = {one for one in (*asked.written, *asked.evaluated) if one is not None}
            named = select(CompositeAlias.composite_id).where(CompositeAlias.value_sha256.in_(hashes))
            nearest = nearest.where(Composite.id.in_(named))
        ids = nearest.order_by(Composite.listed_progress.desc(), Composite.id.desc()).limit(limit).subquery()
        statement = select(*search.COLUMNS).join(ids, ids.c.id == Composite.id)
        order = (search.progress().desc().nulls_last(), Composite.id.desc())
        rows = list(connection.execute(statement.order_by(*order)))
        if not rows and chosen.project is not None:
            search.require_project_id(connection, chosen.project)
    return rows
