"""Reading projects, the names under which numbers are grouped."""

from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, Select, func, select

from coordinator.base import cursors
from coordinator.base.cursors import Page
from coordinator.base.errors import NotFoundError
from models.tables import Project, ProjectComposite

# Lists of projects count at most this many numbers in each project.
MOST_COUNTED = 10_000


def list_projects(engine: Engine, *, limit: int, cursor: str | None = None, count_to: int = MOST_COUNTED) -> Page:
    """Return a page of projects by name, each with its number of composites, counted up to `count_to`.

    Raises cursors.InvalidCursorError.
    """
    statement = _counted(count_to).order_by(Project.name).limit(limit + 1)
    if cursor is not None:
        (name,) = cursors.decode("projects", cursor, (str,))
        statement = statement.where(Project.name > name)
    with engine.connect() as connection:
        rows = list(connection.execute(statement))
    more = cursors.encode("projects", (rows[limit - 1].name,)) if len(rows) > limit else None
    return Page(rows[:limit], more)


def read_project(engine: Engine, *, project_id: int | None = None, name: str | None = None) -> Row[Any]:
    """Return a project by its id or its name, with the columns of `list_projects`. Raises NotFoundError."""
    chosen: ColumnElement[bool] = Project.id == project_id if name is None else Project.name == name
    with engine.connect() as connection:
        row = connection.execute(_counted(MOST_COUNTED).where(chosen)).one_or_none()
    if row is None:
        raise project_not_found(project_id, name)
    return row


def _counted(most: int) -> Select[Any]:
    members = select(ProjectComposite.composite_id).where(ProjectComposite.project_id == Project.id)
    counted = select(func.count()).select_from(members.correlate(Project).limit(most).subquery()).scalar_subquery()
    return select(Project.id, Project.name, Project.created_at, counted.label("composites"))


def project_not_found(project_id: int | None, name: str | None) -> NotFoundError:
    """Return the error for a project that does not exist."""
    which = f"with id {project_id}" if name is None else repr(name[:200])
    return NotFoundError("unknown_project", f"There is no project {which}")
