"""Projects: names that numbers are put together under."""

from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, Select, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from coordinator import cursors
from coordinator.audit import By
from coordinator.cursors import Page
from coordinator.refusals import Conflict, Unknown
from coordinator.unit_of_work import unit_of_work
from models.tables import Project, ProjectComposite

# Lists of projects do not count further than this in each.
MOST_COUNTED = 10_000


def create(engine: Engine, by: By, name: str) -> Row:
    """A new project's row. Raises Conflict if there is one of that name."""
    with unit_of_work(engine, "create_project") as connection:
        made = insert(Project).values(name=name).on_conflict_do_nothing().returning(Project)
        row = connection.execute(made).one_or_none()
        if row is None:
            raise Conflict("project_exists", f"There is a project {name!r} already")
        by.did(connection, "create", f"project {row.id}", after={"name": name})
    return row


def remove(engine: Engine, by: By, *, project_id: int | None = None, name: str | None = None) -> dict[str, Any]:
    """Delete a project, by its id or its name; its numbers stay. What went. Raises Unknown."""
    chosen: ColumnElement[bool] = Project.id == project_id if name is None else Project.name == name
    with unit_of_work(engine, "delete_project") as connection:
        row = connection.execute(select(Project).where(chosen).with_for_update()).one_or_none()
        if row is None:
            raise _unknown(project_id, name)
        left = connection.execute(delete(ProjectComposite).where(ProjectComposite.project_id == row.id)).rowcount
        connection.execute(delete(Project).where(Project.id == row.id))
        gone = {"project_id": row.id, "name": row.name, "composites": left}
        by.did(connection, "delete", f"project {row.id}", before=gone)
    return gone


def page(engine: Engine, *, limit: int, cursor: str | None = None, count_to: int = MOST_COUNTED) -> Page:
    """Projects by name, each with how many numbers are in it, up to `count_to`. Raises cursors.BadCursor."""
    statement = _counted(count_to).order_by(Project.name).limit(limit + 1)
    if cursor is not None:
        (name,) = cursors.decode("projects", cursor, (str,))
        statement = statement.where(Project.name > name)
    with engine.connect() as connection:
        rows = list(connection.execute(statement))
    more = cursors.encode("projects", (rows[limit - 1].name,)) if len(rows) > limit else None
    return Page(rows[:limit], more)


def find(engine: Engine, *, project_id: int | None = None, name: str | None = None) -> Row:
    """A project by its id or its name, as in `page`. Raises Unknown."""
    chosen: ColumnElement[bool] = Project.id == project_id if name is None else Project.name == name
    with engine.connect() as connection:
        row = connection.execute(_counted(MOST_COUNTED).where(chosen)).one_or_none()
    if row is None:
        raise _unknown(project_id, name)
    return row


def _counted(most: int) -> Select[Any]:
    members = select(ProjectComposite.composite_id).where(ProjectComposite.project_id == Project.id)
    counted = select(func.count()).select_from(members.correlate(Project).limit(most).subquery()).scalar_subquery()
    return select(Project.id, Project.name, Project.created_at, counted.label("composites"))


def _unknown(project_id: int | None, name: str | None) -> Unknown:
    which = f"with id {project_id}" if name is None else repr(name[:200])
    return Unknown("unknown_project", f"There is no project {which}")
