"""Reading factors: page by page, one by one, and all of them in batches.

A page is read from one index, in its order. Filters that few of many factors pass would make that slow, so a page comes
from the next MAX_SCANNED entries of the index and may be short; its cursor continues behind those entries.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, func, select, tuple_

from coordinator.base import cursors
from coordinator.base.cursors import Page
from coordinator.base.errors import NotFoundError
from coordinator.composites import registry
from coordinator.reading import search
from models.tables import Composite, EcmAttempt, Factor, ProjectComposite

MAX_SCANNED = 20_000
EXPORTED_AT_ONCE = 2_000

NEWEST, LARGEST = "newest", "largest"

COLUMNS: tuple[Any, ...] = (
    Factor.id,
    Factor.composite_id,
    search.shortened(Composite.number).label("number"),
    Factor.factor,
    Factor.digit_length,
    Factor.multiplicity,
    Factor.is_prime,
    Factor.origin,
    Factor.split_from_id,
    Factor.child_composite_id,
    Factor.client_id,
    Factor.method,
    EcmAttempt.b1,
    EcmAttempt.b2,
    Factor.sigma,
    Factor.parametrization,
    Factor.attempt_id,
    Factor.source,
    Factor.found_at,
    Factor.group_order,
    Factor.group_order_factors,
    Factor.is_explained,
    Factor.order_remark,
    Factor.created_at,
)


@dataclass(frozen=True)
class FactorListFilters:
    """The conditions of a list of factors; None leaves one open. `number` is any value that a composite has had."""

    number: str | None = None
    project: str | None = None
    client_id: str | None = None
    min_digits: int | None = None
    max_digits: int | None = None
    only_prime: bool = False


def _with_origins() -> Select[Any]:
    return (
        select(*COLUMNS)
        .join(Composite, Composite.id == Factor.composite_id)
        .outerjoin(EcmAttempt, EcmAttempt.id == Factor.attempt_id)
    )


def read_factor(engine: Engine, factor_id: int) -> Row[Any]:
    """Return COLUMNS of the factor with this id. Raises NotFoundError."""
    with engine.connect() as connection:
        row = connection.execute(_with_origins().where(Factor.id == factor_id)).one_or_none()
    if row is None:
        raise NotFoundError("unknown_factor", f"There is no factor with id {factor_id}")
    return row


def composite_factors(connection: Connection, composite_id: int, limit: int) -> list[Row[Any]]:
    """Return COLUMNS of the first `limit` factors in a composite's tree, each after the one it was split from."""
    # A factor that was split has a smaller id than its parts. This is the order of an index.
    order = (func.coalesce(Factor.split_from_id, 0), Factor.factor_sha256)
    first = select(Factor.id).where(Factor.composite_id == composite_id).order_by(*order).limit(limit)
    return list(connection.execute(_with_origins().where(Factor.id.in_(first)).order_by(*order)))


def list_factors(
    engine: Engine,
    filters: FactorListFilters,
    *,
    order: str = NEWEST,
    limit: int = 100,
    cursor: str | None,
    max_digits: int,
) -> Page:
    """Return a page of COLUMNS of the factors that pass the filters, NEWEST or LARGEST first.

    A page may be short, even empty, and still have a next page. Raises cursors.InvalidCursorError, ExpressionError, and
    NotFoundError for an unknown composite or project.
    """
    question = orjson.dumps([order, asdict(filters)], option=orjson.OPT_SORT_KEYS).decode()
    key = Factor.digit_length if order == LARGEST else Factor.created_at
    place = None if cursor is None else _place(question, cursor, order)
    near = select(Factor.id, key.label("key"), Factor.digit_length, Factor.is_prime)
    if filters.number is not None:
        registry.evaluate_ahead(filters.number, max_digits)
    if filters.project is not None:
        near = near.add_columns(Factor.composite_id)
    with engine.connect() as connection:
        if filters.number is not None:
            found = registry.find(connection, filters.number, max_digits)
            if found is None:
                raise NotFoundError("unknown_composite", "There is no such composite")
            near = near.where(Factor.composite_id == found.id)
        if filters.client_id is not None:
            near = near.where(Factor.client_id == filters.client_id)
        if order == LARGEST:
            near = near.where(*_of_size(filters, Factor.digit_length))
        if place is not None:
            near = near.where(tuple_(key, Factor.id) < tuple_(*place))
        entries = near.order_by(key.desc(), Factor.id.desc()).limit(MAX_SCANNED).cte("near")
        passing = select(entries.c.id, entries.c.key).where(*_of_size(filters, entries.c.digit_length))
        if filters.only_prime:
            passing = passing.where(entries.c.is_prime)
        if filters.project is not None:
            members = select(ProjectComposite.composite_id)
            project_id = search.require_project_id(connection, filters.project)
            members = members.where(ProjectComposite.project_id == project_id)
            passing = passing.where(entries.c.composite_id.in_(members))
        passing = passing.order_by(entries.c.key.desc(), entries.c.id.desc()).limit(limit + 1)
        chosen = connection.execute(passing).all()
        shown = [row.id for row in chosen[:limit]]
        rows = {row.id: row for row in connection.execute(_with_origins().where(Factor.id.in_(shown)))} if shown else {}
        last: Any = chosen[limit - 1] if len(chosen) > limit else None
        if last is None:
            # The entries that were read have no more, but the index may have more entries.
            farthest = near.order_by(key.desc(), Factor.id.desc()).offset(MAX_SCANNED - 1).limit(1)
            last = connection.execute(farthest).one_or_none()
    more = None if last is None else cursors.encode(question, (cursors.to_json_value(last.key), last.id))
    return Page([rows[factor_id] for factor_id in shown if factor_id in rows], more)


def _of_size(filters: FactorListFilters, digits: Any) -> list[ColumnElement[bool]]:
    bounds = ((filters.min_digits, digits.__ge__), (filters.max_digits, digits.__le__))
    return [compare(bound) for bound, compare in bounds if bound is not None]


def _place(question: str, cursor: str, order: str) -> tuple[Any, int]:
    key, factor_id = cursors.decode(question, cursor, (int if order == LARGEST else str, int))
    return (key if order == LARGEST else cursors.parse_time(key)), factor_id


def export_factors(
    engine: Engine, *, project: str | None = None, client_id: str | None = None, since: datetime | None = None
) -> Iterator[list[Row[Any]]]:
    """Return batches of COLUMNS, by id: of all factors, or of a project, of a client, recorded at `since` or later.

    Each batch is a query of its own, so no connection is held while the caller sends a batch. Raises NotFoundError for
    an unknown project at once, before the first batch.
    """
    project_id: int | None = None
    if project is not None:
        with engine.connect() as connection:
            project_id = search.require_project_id(connection, project)
    return _batches(engine, project_id, client_id, since)


def _batches(
    engine: Engine, project_id: int | None, client_id: str | None, since: datetime | None
) -> Iterator[list[Row[Any]]]:
    after = 0
    while True:
        batch = _with_origins().where(Factor.id > after)
        if project_id is not None:
            members = select(ProjectComposite.composite_id).where(ProjectComposite.project_id == project_id)
            batch = batch.where(Factor.composite_id.in_(members))
        if client_id is not None:
            batch = batch.where(Factor.client_id == client_id)
        if since is not None:
            batch = batch.where(Factor.created_at >= since)
        with engine.connect() as connection:
            rows = list(connection.execute(batch.order_by(Factor.id).limit(EXPORTED_AT_ONCE)))
        if not rows:
            return
        yield rows
        after = rows[-1].id
