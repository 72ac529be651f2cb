"""Creating and deleting projects, the names under which numbers are grouped."""

from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, delete, select
from sqlalchemy.dialects.postgresql import insert

from coordinator.base import audit
from coordinator.base.audit import Actor
from coordinator.base.errors import ConflictError
from coordinator.base.unit_of_work import unit_of_work
from coordinator.reading.projects import project_not_found
from models.tables import Project, ProjectComposite


def create_project(engine: Engine, actor: Actor, name: str) -> Row[Any]:
    """Insert a project, and return its row. Raises ConflictError if the name is taken."""
    with unit_of_work(engine, "create_project") as connection:
        statement = insert(Project).values(name=name).on_conflict_do_nothing().returning(Project)
        row = connection.execute(statement).one_or_none()
        if row is None:
            raise ConflictError("project_exists", f"There is a project {name!r} already")
        audit.record(connection, actor, "create", f"project {row.id}", after={"name": name})
    return row


def delete_project(
    engine: Engine, actor: Actor, *, project_id: int | None = None, name: str | None = None
) -> dict[str, Any]:
    """Delete a project by its id or its name; its numbers stay. Returns what was deleted. Raises NotFoundError."""
    chosen: ColumnElement[bool] = Project.id == project_id if name is None else Project.name == name
    with unit_of_work(engine, "delete_project") as connection:
        row = connection.execute(select(Project).where(chosen).with_for_update()).one_or_none()
        if row is None:
            raise project_not_found(project_id, name)
        left = connection.execute(delete(ProjectComposite).where(ProjectComposite.project_id == row.id)).rowcount
        connection.execute(delete(Project).where(Project.id == row.id))
        deleted = {"project_id": row.id, "name": row.name, "composites": left}
        audit.record(connection, actor, "delete", f"project {row.id}", before=deleted)
    return deleted
