"""Many numbers at once: the status of each, and the numbers that are nearest to their targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Engine, LargeBinary, Row, cast, column, func, literal, or_, select, true
from sqlalchemy.dialects import postgresql

from coordinator.composites import registry
from coordinator.composites.values import sha256
from coordinator.numbers.expressions import ExpressionError, decimal, evaluate_number
from coordinator.reading import search
from models.tables import Composite, CompositeAlias, Project, ProjectComposite

# One expression takes some milliseconds at worst, and a request has at most a thousand of them.
EVALUATION_SECONDS = 1.0
TOO_LONG = "was not computed: those before it took too long; send it in decimal, or fewer at a time"


@dataclass(frozen=True)
class LookupKeys:
    """For each number of a request: the SHA-256 of its text and of its value, and why it has no value.

    `evaluated` is None for a number in decimal, and for one that cannot be evaluated; only that one has a problem.
    """

    written: list[bytes]
    evaluated: list[bytes | None]
    problems: list[str | None]


def compute_lookup_keys(numbers: Sequence[str], max_digits: int) -> LookupKeys:
    """Compute the hashes by which these numbers, in decimal or as expressions, are looked up."""
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
                    value = sha256(decimal(evaluate_number(number, max_digits)))
                except ExpressionError as error:
                    problem = error.detail
        evaluated.append(value)
        problems.append(problem)
    return LookupKeys([sha256(number) for number in numbers], evaluated, problems)


class LookupResult(NamedTuple):
    """The status of one number of a request: its row (search.COLUMNS) or None, and why it could not be read."""

    number: str
    row: Row[Any] | None
    problem: str | None


def read_batch_status(engine: Engine, numbers: Sequence[str], max_digits: int) -> list[LookupResult]:
    """Return the status of each of these numbers, in their order; one query for all.

    A number stands for the composite that `registry.find` returns; ids are not looked up.
    """
    keys = compute_lookup_keys(numbers, max_digits)
    lookup = _lookup_table(keys)
    is_current = func.sha256(func.convert_to(Composite.current_composite, "UTF8")) == CompositeAlias.value_sha256
    found = (
        search.select_shown()
        .join(CompositeAlias, CompositeAlias.composite_id == Composite.id)
        .where(or_(CompositeAlias.value_sha256 == lookup.c.written, CompositeAlias.value_sha256 == lookup.c.evaluated))
        .order_by(
            (CompositeAlias.value_sha256 == lookup.c.written).desc(),
            (CompositeAlias.kind == registry.NUMBER).desc(),
            is_current.desc(),
            Composite.id,
        )
        .limit(1)
        .lateral("found")
    )
    statement = select(found).select_from(lookup.outerjoin(found, true())).order_by(lookup.c.place)
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
    return [
        LookupResult(number, None if row.id is None else row, problem if row.id is None else None)
        for number, row, problem in zip(numbers, rows, keys.problems, strict=True)
    ]


def _lookup_table(keys: LookupKeys) -> Any:
    columns = ((range(len(keys.written)), BigInteger), (keys.written, LargeBinary), (keys.evaluated, LargeBinary))
    arrays = (cast(literal(list(values), postgresql.ARRAY(kind)), postgresql.ARRAY(kind)) for values, kind in columns)
    table = func.unnest(*arrays).table_valued(column("place"), column("written"), column("evaluated"))
    return table.render_derived("lookup")


@dataclass(frozen=True)
class ProgressFilters:
    """The numbers among which `top_progress` looks; None leaves a condition open.

    A number's difficulty is the SNFS difficulty of its special form, if it has one, else its number of digits.
    """

    project: str | None = None
    min_priority: int | None = None
    include_factored: bool = False
    numbers: Sequence[str] | None = None
    min_difficulty: int | None = None
    max_difficulty: int | None = None


def top_progress(engine: Engine, filters: ProgressFilters, *, limit: int, max_digits: int) -> list[Row[Any]]:
    """Return the numbers (search.COLUMNS) that pass the filters and are nearest to their targets, nearest first.

    The choice compares whole hundredths of the target. Raises NotFoundError for an unknown project.
    """
    difficulty = func.coalesce(Composite.snfs_difficulty, Composite.digit_length)
    nearest = select(Composite.id)
    if not filters.include_factored:
        nearest = nearest.where(Composite.listed_state.in_(search.UNFINISHED))
    if filters.min_priority is not None:
        nearest = nearest.where(Composite.priority >= filters.min_priority)
    if filters.min_difficulty is not None:
        nearest = nearest.where(difficulty >= filters.min_difficulty)
    if filters.max_difficulty is not None:
        nearest = nearest.where(difficulty <= filters.max_difficulty)
    keys = None if filters.numbers is None else compute_lookup_keys(filters.numbers, max_digits)
    with engine.connect() as connection:
        if filters.project is not None:
            members = select(ProjectComposite.composite_id)
            known = select(Project.id).where(Project.name == filters.project).scalar_subquery()
            nearest = nearest.where(Composite.id.in_(members.where(ProjectComposite.project_id == known)))
        if keys is not None:
            hashes = {value for value in (*keys.written, *keys.evaluated) if value is not None}
            named = select(CompositeAlias.composite_id).where(CompositeAlias.value_sha256.in_(hashes))
            nearest = nearest.where(Composite.id.in_(named))
        ids = nearest.order_by(Composite.listed_progress.desc(), Composite.id.desc()).limit(limit).subquery()
        statement = search.select_shown().join(ids, ids.c.id == Composite.id)
        order = (search.progress().desc().nulls_last(), Composite.id.desc())
        rows = list(connection.execute(statement.order_by(*order)))
        if not rows and filters.project is not None:
            search.require_project_id(connection, filters.project)
    return rows
