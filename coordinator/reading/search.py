"""List numbers, filtered and sorted: a page takes a few hundredths of a second among a million numbers.

Each order has an index that also holds the columns of the filters (`composites_by_...`), so that the rows of numbers
that fail a filter are not read. A page is found in one of three ways:

 1. among the next MAX_SCANNED entries of the order's index, from the end of the previous page on: nearly always;
 2. else, if few numbers pass the filters (by the planner's statistics), by sorting all of them;
 3. else in the order's index without a bound: so many numbers pass that the page cannot be far away.

Filters and sorts by t-level and progress work in tenths of a t-level and hundredths of the target, rounded down.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import orjson
from sqlalchemy import (
    Case,
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    case,
    exists,
    func,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.orm import InstrumentedAttribute

from coordinator.base import cursors
from coordinator.base.errors import NotFoundError
from coordinator.composites import registry
from coordinator.numbers.expressions import ExpressionError
from models.tables import Composite, Project, ProjectComposite, Target

MAX_SCANNED = 20_000
MAX_SORTED_MEMBERS = 5_000  # a project with fewer numbers has all of them sorted
FEW = 1 / 3  # the share of all numbers whose sorting costs as much as skipping the others
BEGINNING = 60  # characters of a number that are indexed
# A text search reads at most this many numbers that begin with the text, in the order of their written form.
MAX_MATCHES = 5_000
SHOWN_CHARACTERS = 1_000

UNFINISHED = ("composite", "unknown")

SORTS: dict[str, InstrumentedAttribute[Any]] = {
    "id": Composite.id,
    "digits": Composite.digit_length,
    "t_level": Composite.listed_t_level,
    "progress": Composite.listed_progress,
    "priority": Composite.priority,
    "created": Composite.created_at,
}


@dataclass(frozen=True)
class CompositeFilters:
    """The conditions of a list of numbers; None leaves one open. `progress` is the reached share of the target."""

    state: str | None = None
    min_digits: int | None = None
    max_digits: int | None = None
    min_t_level: float | None = None
    max_t_level: float | None = None
    min_progress: float | None = None
    max_progress: float | None = None
    min_priority: int | None = None
    max_priority: int | None = None
    project: str | None = None
    text: str | None = None


class SearchPage(NamedTuple):
    """Rows of a list, the cursor of the next page, and whether a text search was cut off at MAX_MATCHES."""

    rows: list[Row[Any]]
    next: str | None
    is_cut: bool = False


def shortened(column: InstrumentedAttribute[str]) -> Case[str]:
    """The expression for a number in lists: a very long one has its middle left out."""
    part = SHOWN_CHARACTERS // 2
    cut = func.left(column, part).concat("...").concat(func.right(column, part))
    return case((func.length(column) > SHOWN_CHARACTERS, cut), else_=column)


def progress() -> ColumnElement[float]:
    """The expression for the exact share of the target that is reached; null without a target."""
    return Composite.current_t_level / func.nullif(Composite.target_t_level, 0)


COLUMNS: tuple[Any, ...] = (
    Composite.id,
    shortened(Composite.number).label("number"),
    shortened(Composite.current_composite).label("current_composite"),
    Composite.digit_length,
    Composite.listed_state.label("state"),
    Composite.priority,
    Composite.current_t_level,
    Composite.target_t_level,
    progress().label("progress"),
    Composite.has_snfs_form,
    Composite.snfs_difficulty,
    Composite.attempt_count,
    Composite.last_attempt_at,
    Target.hold,
    Composite.parent_id,
    Composite.created_at,
)


def select_shown() -> Select[Any]:
    """Return SELECT of COLUMNS, to which the caller adds conditions; the hold is that of the target."""
    return select(*COLUMNS).outerjoin(Target, Target.id == Composite.target_id)


def list_composites(
    engine: Engine,
    filters: CompositeFilters,
    *,
    sort: str = "id",
    descending: bool = False,
    limit: int = 100,
    cursor: str | None = None,
    max_digits: int,
) -> SearchPage:
    """Return a page of the numbers that pass the filters, sorted by one of SORTS and then by id.

    `filters.text` means the number that has had this value (number, expression, old cofactor); if there is none, the
    numbers whose written form begins with the text. Ids are not searched. Raises cursors.InvalidCursorError, and
    NotFoundError for an unknown project.
    """
    question = orjson.dumps([sort, descending, asdict(filters)], option=orjson.OPT_SORT_KEYS).decode()
    place = None if cursor is None else _place(question, cursor, sort)
    if filters.text is not None:
        registry.evaluate_ahead(filters.text, max_digits)
    with engine.connect() as connection:
        search = _Search(connection, filters, sort=sort, descending=descending, place=place, count=limit + 1)
        is_cut = False
        if filters.text is None:
            chosen = search.page()
        else:
            chosen, is_cut = search.page_of_matches(filters.text, max_digits)
        shown_rows = _show(connection, chosen[:limit])
    more = (
        cursors.encode(question, (cursors.to_json_value(chosen[limit - 1].key), chosen[limit - 1].id))
        if len(chosen) > limit
        else None
    )
    return SearchPage(shown_rows, more, is_cut)


def _show(connection: Connection, chosen: list[Row[Any]]) -> list[Row[Any]]:
    ids = [row.id for row in chosen]
    rows = {row.id: row for row in connection.execute(select_shown().where(Composite.id.in_(ids)))} if ids else {}
    # A number may have been deleted since it was chosen.
    return [rows[composite_id] for composite_id in ids if composite_id in rows]


def _place(question: str, cursor: str, sort: str) -> tuple[Any, int]:
    key, composite_id = cursors.decode(question, cursor, (str if sort == "created" else int, int))
    return (cursors.parse_time(key) if sort == "created" else key), composite_id


# Finding a page -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Condition:
    """A comparison of a column with a value, on the table or on a subquery that has the column."""

    column: InstrumentedAttribute[Any]
    compare: Callable[[Any, Any], ColumnElement[bool]]
    value: Any

    def __call__(self, source: Any, name: str | None = None) -> ColumnElement[bool]:
        return self.compare(getattr(source, name or self.column.key), self.value)


class _Search:
    """The search for one page: the filters, the order, and the place behind which the page begins."""

    def __init__(
        self,
        connection: Connection,
        filters: CompositeFilters,
        *,
        sort: str,
        descending: bool,
        place: tuple[Any, int] | None,
        count: int,
    ) -> None:
        self.connection, self.count, self.place, self.descending = connection, count, place, descending
        self.key = SORTS[sort]
        conditions = _conditions(filters)
        self.key_conditions = [condition for condition in conditions if condition.column is self.key]
        self.others = [condition for condition in conditions if condition.column is not self.key]
        self.project_id = None if filters.project is None else require_project_id(connection, filters.project)

    def page(self) -> list[Row[Any]]:
        """Return (id, key) of the numbers on the page, in order."""
        if self.project_id is not None:
            is_small = self._members() < MAX_SORTED_MEMBERS
            return self._execute(self._sorted() if is_small else self._ordered(self._passing()))
        if not self.others:
            return self._execute(self._ordered(self._passing()))
        rows = self._execute(self._near())
        if len(rows) == self.count:
            return rows
        return self._execute(self._sorted() if self._are_few() else self._ordered(self._passing()))

    def page_of_matches(self, word: str, max_digits: int) -> tuple[list[Row[Any]], bool]:
        """Return ((id, key) of the page of numbers that match `word`, whether too many numbers match)."""
        exact = _exact(self.connection, word, max_digits)
        if exact is not None:
            return self._execute(self._ordered(self._passing().where(Composite.id == exact))), False
        matches = select(
            Composite.id, self.key.label("key"), *(column for column in _FILTERED if column is not self.key)
        )
        matches = matches.where(func.left(Composite.number, BEGINNING).like(_escaped(word[:BEGINNING]) + "%"))
        if len(word) > BEGINNING:
            matches = matches.where(func.starts_with(Composite.number, word))
        # This operator gives the order of the index under any collation of the database.
        matches = matches.order_by(text(f"left(composites.number, {BEGINNING}) USING ~<~"), Composite.id)
        found = matches.limit(MAX_MATCHES + 1).cte("matches")
        page = self._among(found).subquery("page")
        counted = select(func.count().label("found")).select_from(found).subquery("counted")
        rows = self._execute(
            select(counted.c.found, page.c.id, page.c.key)
            .select_from(counted.outerjoin(page, true()))
            .order_by(*self._order(page.c.key, page.c.id))
        )
        return [row for row in rows if row.id is not None], rows[0].found > MAX_MATCHES

    def _execute(self, statement: Select[Any]) -> list[Row[Any]]:
        return list(self.connection.execute(statement))

    def _order(self, key: Any, composite_id: Any) -> list[Any]:
        columns = (key,) if self.key is Composite.id else (key, composite_id)
        return [column.desc() if self.descending else column.asc() for column in columns]

    def _ordered(self, statement: Select[Any]) -> Select[Any]:
        return statement.order_by(*self._order(self.key, Composite.id)).limit(self.count)

    def _from_here(self, statement: Select[Any]) -> Select[Any]:
        """Add the conditions on the order's own columns: where the page begins, and filters of the sorted column."""
        statement = statement.where(*(condition(Composite) for condition in self.key_conditions))
        if self.place is not None:
            row_place, place = tuple_(self.key, Composite.id), tuple_(*self.place)
            statement = statement.where(row_place < place if self.descending else row_place > place)
        return statement

    def _passing(self) -> Select[Any]:
        statement = self._from_here(select(Composite.id, self.key.label("key")))
        statement = statement.where(*(condition(Composite) for condition in self.others))
        return statement if self.project_id is None else statement.where(self._in_project(Composite.id))

    def _in_project(self, composite_id: Any) -> ColumnElement[bool]:
        members = select(ProjectComposite.composite_id).where(ProjectComposite.project_id == self.project_id)
        return exists(members.where(ProjectComposite.composite_id == composite_id))

    def _members(self) -> int:
        members = select(ProjectComposite.composite_id).where(ProjectComposite.project_id == self.project_id)
        counted = select(func.count()).select_from(members.limit(MAX_SORTED_MEMBERS).subquery())
        return self.connection.execute(counted).scalar_one()

    def _near(self) -> Select[Any]:
        """Select the numbers that pass among the next MAX_SCANNED entries of the order's index."""
        columns = [column for column in _FILTERED if column is not self.key]
        entries = self._from_here(select(Composite.id, self.key.label("key"), *columns))
        near = entries.order_by(*self._order(self.key, Composite.id)).limit(MAX_SCANNED).subquery("near")
        statement = select(near.c.id, near.c.key).where(*(condition(near.c) for condition in self.others))
        return statement.order_by(*self._order(near.c.key, near.c.id)).limit(self.count)

    def _among(self, found: Any) -> Select[Any]:
        """Select the page among the numbers that a text search has found."""
        statement = select(found.c.id, found.c.key).where(*(condition(found.c) for condition in self.others))
        statement = statement.where(*(condition(found.c, "key") for condition in self.key_conditions))
        if self.place is not None:
            row_place, place = tuple_(found.c.key, found.c.id), tuple_(*self.place)
            statement = statement.where(row_place < place if self.descending else row_place > place)
        if self.project_id is not None:
            statement = statement.where(self._in_project(found.c.id))
        return statement.order_by(*self._order(found.c.key, found.c.id)).limit(self.count)

    def _sorted(self) -> Select[Any]:
        """Select all numbers that pass, and then sort them."""
        # OFFSET keeps the subquery apart: else the planner may read the order's index and hope for an early match.
        passing = self._passing().offset(0).subquery("passing")
        order = self._order(passing.c.key, passing.c.id)
        return select(passing.c.id, passing.c.key).order_by(*order).limit(self.count)

    def _are_few(self) -> bool:
        everything = text("SELECT greatest(reltuples, 1) FROM pg_class WHERE oid = 'composites'::regclass")
        known: float = self.connection.execute(everything).scalar_one()
        return expected_rows(self.connection, self._passing()) <= FEW * known


_FILTERED = (
    Composite.digit_length,
    Composite.listed_t_level,
    Composite.listed_progress,
    Composite.listed_state,
    Composite.priority,
)


def expected_rows(connection: Connection, statement: Select[Any]) -> float:
    """Return the number of rows that the planner expects of a statement."""
    sql = statement.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
    plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}").scalar_one()
    return float(plan[0]["Plan"]["Plan Rows"])


def _conditions(filters: CompositeFilters) -> list[_Condition]:
    ranges = (
        (Composite.digit_length, filters.min_digits, filters.max_digits, 1),
        (Composite.listed_t_level, filters.min_t_level, filters.max_t_level, 10),
        (Composite.listed_progress, filters.min_progress, filters.max_progress, 100),
        (Composite.priority, filters.min_priority, filters.max_priority, 1),
    )
    conditions = []
    for column, least, most, parts in ranges:
        # The product is rounded first, because 0.29 * 100 is not quite 29 in floating point.
        if least is not None:
            conditions.append(_Condition(column, operator.ge, math.ceil(round(least * parts, 6))))
        if most is not None:
            conditions.append(_Condition(column, operator.le, math.floor(round(most * parts, 6))))
    if filters.state is not None:
        conditions.append(_Condition(Composite.listed_state, operator.eq, filters.state))
    return conditions


def require_project_id(connection: Connection, name: str) -> int:
    """Return the id of the project of that name. Raises NotFoundError."""
    found = connection.execute(select(Project.id).where(Project.name == name)).scalar_one_or_none()
    if found is None:
        raise NotFoundError("unknown_project", f"There is no project {name[:200]!r}")
    return found


def _exact(connection: Connection, word: str, max_digits: int) -> int | None:
    try:
        found = registry.find(connection, word, max_digits)
    except ExpressionError:  # the text may still be the beginning of a number
        return None
    return None if found is None else found.id


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
