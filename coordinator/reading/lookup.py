"""Find composites by value, spelling or id, and list them by id.

`coordinator/composites/identification.py` decides what a text means; batch_lookup.py asks for many numbers at once;
the text search of search.py also finds the beginnings of numbers, and no ids.
"""

from typing import Any

from sqlalchemy import Engine, Row, func, select

from coordinator.composites import identification, registry
from coordinator.numbers.expressions import ExpressionError
from models.tables import Composite, Project, ProjectComposite, Target

# A composite in operators' lists.
SHORT: tuple[Any, ...] = (
    Composite.id,
    Composite.number,
    Composite.current_composite,
    Composite.digit_length,
    Composite.is_prime,
    Composite.is_fully_factored,
    Composite.priority,
    Composite.current_t_level,
    Composite.target_t_level,
    Composite.attempt_count,
    Target.hold,
    Composite.parent_id,
    func.coalesce(Target.open_leases, 0).label("open_leases"),
)
_SHORT_ROWS = select(*SHORT).outerjoin(Target, Target.id == Composite.target_id)


def identify_composite(engine: Engine, identifier: str, max_digits: int) -> int:
    """Return the id of the composite with this value, else of the one with this id. Raises NotFoundError."""
    registry.evaluate_ahead(identifier, max_digits)
    with engine.connect() as connection:
        return identification.identify(connection, identifier, max_digits)


def find_composites(engine: Engine, identifier: str, max_digits: int, limit: int = 100) -> list[Row[Any]]:
    """Return SHORT of the composites that `identifier` may mean, the one that `identify_composite` returns first."""
    registry.evaluate_ahead(identifier, max_digits)
    with engine.connect() as connection:
        try:
            ids = identification.matching_ids(connection, identifier, max_digits)[:limit]
        except ExpressionError:
            return []
        rows = {row.id: row for row in connection.execute(_SHORT_ROWS.where(Composite.id.in_(ids)))}
    return [rows[composite_id] for composite_id in ids if composite_id in rows]


def list_by_id(
    engine: Engine, *, project: str | None = None, unfinished: bool = False, after: int = 0, limit: int = 1000
) -> list[Row[Any]]:
    """Return SHORT of the composites whose id is above `after`, by id: of one project or all, unfinished or all."""
    statement = _SHORT_ROWS.where(Composite.id > after).order_by(Composite.id).limit(limit)
    if unfinished:
        statement = statement.where(Composite.is_fully_factored.is_(False))
    if project is not None:
        members = select(ProjectComposite.composite_id).join(Project, Project.id == ProjectComposite.project_id)
        statement = statement.where(Composite.id.in_(members.where(Project.name == project)))
    with engine.connect() as connection:
        return list(connection.execute(statement))
