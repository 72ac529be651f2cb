"""Projects: names that numbers are put together under."""

from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from coordinator.audit import By
from coordinator.refusals import Conflict, Unknown
from coordinator.unit_of_work import unit_of_work
from models.tables import Project, ProjectComposite


def create(engine: Engine, by: By, name: str) -> Row[Any]:
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
            which = f"with id {project_id}" if name is None else repr(name[:200])
            raise Unknown("unknown_project", f"There is no project {which}")
        left = connection.execute(delete(ProjectComposite).where(ProjectComposite.project_id == row.id)).rowcount
        connection.execute(delete(Project).where(Project.id == row.id))
        gone = {"project_id": row.id, "name": row.name, "composites": left}
        by.did(connection, "delete", f"project {row.id}", before=gone)
    return gone


def listed(engine: Engine, limit: int) -> list[Row[Any]]:
    """Projects by name, each with how many numbers are in it."""
    numbers = select(func.count()).where(ProjectComposite.project_id == Project.id).scalar_subquery()
    statement = select(Project.id, Project.name, Project.created_at, numbers.label("composites"))
    with engine.connect() as connection:
        return list(connection.execute(statement.order_by(Project.name).limit(limit)))
