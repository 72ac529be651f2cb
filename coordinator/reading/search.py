"""Lists of numbers: filtered, sorted, page by page, in a few hundredths of a second among a million.

Each order has an index that holds what filters ask for as well (`composites_by_...`), so that numbers which a filter
passes over are not read. A page is found in one of three ways:

 1. in the order's index, within its first LOOKED_AT entries from where the page before ended: nearly always;
 2. else, if few numbers pass the filters (by the planner's statistics), by sorting all those;
 3. else in the order's index, however far that is: what passes is so much that it cannot be very far.

Filters by t-level and progress, like the sorts, work in tenths of a t-level and hundredths of the target, rounded down.
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
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import InstrumentedAttribute

from coordinator.base import cursors
from coordinator.base.errors import NotFoundError
from coordinator.composites import registry
from coordinator.numbers.expressions import ExpressionError
from models.tables import Composite, Project, ProjectComposite

MAX_SCANNED = 20_000
MAX_SORTED_MEMBERS = 5_000  # of a project whose numbers are all sorted
FEW = 1 / 3  # of all numbers: sorting these costs what passing by the others does
BEGINNING = 60  # characters of a number that are indexed
# Of numbers beginning alike so many are looked at, in the order of how they are written.
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
    """Which numbers; None leaves it open. `progress` is the share of the target that is reached."""

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
    """Some rows of a list, the cursor of those that follow, and whether a search was cut off at MOST_ALIKE."""

    rows: list[Row]
    next: str | None
    is_cut: bool = False


def shortened(column: InstrumentedAttribute[str]) -> Case[str]:
    """A number as lists show it: one of thousands of digits with its middle left out."""
    part = SHOWN_CHARACTERS // 2
    cut = func.left(column, part).concat("...").concat(func.right(column, part))
    return case((func.length(column) > SHOWN_CHARACTERS, cut), else_=column)


def progress() -> ColumnElement[float]:
    """The exact share of the target that is reached; null without a target."""
    return Composite.current_t_level / func.nullif(Composite.target_t_level, 0)


COLUMNS = (
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
    Composite.hold,
    Composite.parent_id,
    Composite.created_at,
)


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
    """A page of the numbers that pass the filters, sorted by one of SORTS and then by id.

    `filters.text`: the number that has had this value (number, expression, old cofactor); if there is none, those
    whose written form begins so. Raises cursors.BadCursor, and Unknown for a project that there is not.
    """
    question = orjson.dumps([sort, descending, asdict(filters)], option=orjson.OPT_SORT_KEYS).decode()
    place = None if cursor is None else _place(question, cursor, sort)
    with engine.connect() as connection:
        asked = _Search(connection, filters, sort=sort, descending=descending, place=place, count=limit + 1)
        is_cut = False
        if filters.text is None:
            chosen = asked.page()
        else:
            chosen, is_cut = asked.search(filters.text, max_digits)
        shown_rows = _show(connection, chosen[:limit])
    more = (
        cursors.encode(question, (cursors.to_json_value(chosen[limit - 1].key), chosen[limit - 1].id))
        if len(chosen) > limit
        else None
    )
    return SearchPage(shown_rows, more, is_cut)


def _show(connection: Connection, chosen: list[Row]) -> list[Row]:
    ids = [row.id for row in chosen]
    rows = {row.id: row for row in connection.execute(select(*COLUMNS).where(Composite.id.in_(ids)))} if ids else {}
    return [rows[one] for one in ids if one in rows]  # one may just have been deleted


def _place(question: str, cursor: str, sort: str) -> tuple[Any, int]:
    key, composite_id = cursors.decode(question, cursor, (str if sort == "created" else int, int))
    return (cursors.parse_time(key) if sort == "created" else key), composite_id


# Finding a page -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Condition:
    """That a column is at least, at most or just so much, on a table or a subquery that has it."""

    column: InstrumentedAttribute[Any]
    compare: Callable[[Any, Any], ColumnElement[bool]]
    value: Any

    def __call__(self, of: Any, name: str | None = None) -> ColumnElement[bool]:
        return self.compare(getattr(of, name or self.column.key), self.value)


class _Search:
    """One page's question: what passes, in which order, from where on."""

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
        self.of_key = [one for one in conditions if one.column is self.key]
        self.others = [one for one in conditions if one.column is not self.key]
        self.project_id = None if filters.project is None else require_project_id(connection, filters.project)

    def page(self) -> list[Row]:
        """(id, key) of the numbers on the page, in order."""
        if self.project_id is not None:
            is_small = self._members() < MAX_SORTED_MEMBERS
            return self._execute(self._sorted() if is_small else self._ordered(self._passing()))
        if not self.others:
            return self._execute(self._ordered(self._passing()))
        rows = self._execute(self._near())
        if len(rows) == self.count:
            return rows
        return self._execute(self._sorted() if self._are_few() else self._ordered(self._passing()))

    def search(self, word: str, max_digits: int) -> tuple[list[Row], bool]:
        """(id, key) of the numbers on the page among those that `word` means, and whether those were too many."""
        exact = _exact(self.connection, word, max_digits)
        if exact is not None:
            return self._execute(self._ordered(self._passing().where(Composite.id == exact))), False
        alike = select(Composite.id, self.key.label("key"), *(column for column in _FILTERED if column is not self.key))
        alike = alike.where(func.left(Composite.number, BEGINNING).like(_escaped(word[:BEGINNING]) + "%"))
        if len(word) > BEGINNING:
            alike = alike.where(func.starts_with(Composite.number, word))
        # In the order of the index, whatever the database's collation.
        alike = alike.order_by(text(f"left(composites.number, {BEGINNING}) USING ~<~"), Composite.id)
        found = alike.limit(MAX_MATCHES + 1).cte("alike")
        page = self._among(found).subquery("page")
        counted = select(func.count().label("found")).select_from(found).subquery("counted")
        rows = self._execute(
            select(counted.c.found, page.c.id, page.c.key)
            .select_from(counted.outerjoin(page, true()))
            .order_by(*self._order(page.c.key, page.c.id))
        )
        return [row for row in rows if row.id is not None], rows[0].found > MAX_MATCHES

    def _execute(self, statement: Select[Any]) -> list[Row]:
        return list(self.connection.execute(statement))

    def _order(self, key: Any, composite_id: Any) -> list[Any]:
        columns = (key,) if self.key is Composite.id else (key, composite_id)
        return [column.desc() if self.descending else column.asc() for column in columns]

    def _ordered(self, statement: Select[Any]) -> Select[Any]:
        return statement.order_by(*self._order(self.key, Composite.id)).limit(self.count)

    def _from_here(self, statement: Select[Any]) -> Select[Any]:
        """What the order's index can tell by itself."""
        statement = statement.where(*(condition(Composite) for condition in self.of_key))
        if self.place is not None:
            reached, place = tuple_(self.key, Composite.id), tuple_(*self.place)
            statement = statement.where(reached < place if self.descending else reached > place)
        return statement

    def _passing(self) -> Select[Any]:
        statement = self._from_here(select(Composite.id, self.key.label("key")))
        statement = statement.where(*(condition(Composite) for condition in self.others))
        return statement if self.project_id is None else statement.where(self._in_project(Composite.id))

    def _in_project(self, composite_id: Any) -> ColumnElement[bool]:
        mine = select(ProjectComposite.composite_id).where(ProjectComposite.project_id == self.project_id)
        return exists(mine.where(ProjectComposite.composite_id == composite_id))

    def _members(self) -> int:
        members = select(ProjectComposite.composite_id).where(ProjectComposite.project_id == self.project_id)
        counted = select(func.count()).select_from(members.limit(MAX_SORTED_MEMBERS).subquery())
        return self.connection.execute(counted).scalar_one()

    def _near(self) -> Select[Any]:
        """What passes among the next entries of the order's index."""
        columns = [column for column in _FILTERED if column is not self.key]
        entries = self._from_here(select(Composite.id, self.key.label("key"), *columns))
        near = entries.order_by(*self._order(self.key, Composite.id)).limit(MAX_SCANNED).subquery("near")
        statement = select(near.c.id, near.c.key).where(*(condition(near.c) for condition in self.others))
        return statement.order_by(*self._order(near.c.key, near.c.id)).limit(self.count)

    def _among(self, found: Any) -> Select[Any]:
        """The page among those that a search has found."""
        statement = select(found.c.id, found.c.key).where(*(condition(found.c) for condition in self.others))
        statement = statement.where(*(condition(found.c, "key") for condition in self.of_key))
        if self.place is not None:
            reached, place = tuple_(found.c.key, found.c.id), tuple_(*self.place)
            statement = statement.where(reached < place if self.descending else reached > place)
        if self.project_id is not None:
            statement = statement.where(self._in_project(found.c.id))
        return statement.order_by(*self._order(found.c.key, found.c.id)).limit(self.count)

    def _sorted(self) -> Select[Any]:
        """All that passes, and then the first of it: otherwise the planner may hope to meet it early in the order."""
        passing = self._passing().offset(0).subquery("passing")  # an offset keeps the two apart
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
    """How many rows the planner expects a statement to give."""
    sql = statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
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
        # Rounded first: a product such as 0.29 * 100 is not quite what it should be.
        if least is not None:
            conditions.append(_Condition(column, operator.ge, math.ceil(round(least * parts, 6))))
        if most is not None:
            conditions.append(_Condition(column, operator.le, math.floor(round(most * parts, 6))))
    if filters.state is not None:
        conditions.append(_Condition(Composite.listed_state, operator.eq, filters.state))
    return conditions


def require_project_id(connection: Connection, name: str) -> int:
    """The id of the project of that name. Raises Unknown."""
    found = connection.execute(select(Project.id).where(Project.name == name)).scalar_one_or_none()
    if found is None:
        raise NotFoundError("unknown_project", f"There is no project {name[:200]!r}")
    return found


def _exact(connection: Connection, word: str, max_digits: int) -> int | None:
    try:
        found = registry.find(connection, word, max_digits)
    except ExpressionError:  # it may be the beginning of one
        return None
    return None if found is None else found.id


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
