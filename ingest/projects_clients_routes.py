"""Reading projects and clients."""

from typing import Any

from flask import Response

from coordinator.reading import clients, projects
from ingest import openapi
from ingest.view_context import engine, json_of
from models.wire.common import PageQuery, ProjectNamePath, ProjectPath
from models.wire.reading import ClientsPage, ClientsQuery, ProjectListed, ProjectsPage

UNKNOWN: dict[Any, Any] = {404: openapi.problem("`unknown_project`")}

directory = openapi.blueprint("directory", openapi.READING)


@directory.get("/projects", operation_id="projects", responses={200: ProjectsPage})
def all_projects(query: PageQuery) -> Response:
    """Return a page of the projects by name."""
    found = projects.list_projects(engine(), limit=query.limit, cursor=query.cursor)
    return json_of(ProjectsPage, {"projects": [row._mapping for row in found.rows], "next": found.next})


@directory.get("/projects/<int:project_id>", operation_id="project", responses={200: ProjectListed, **UNKNOWN})
def project(path: ProjectPath) -> Response:
    """Return one project by its id."""
    return json_of(ProjectListed, projects.read_project(engine(), project_id=path.project_id)._mapping)


@directory.get(
    "/projects/by-name/<path:name>",
    operation_id="project_by_name",
    responses={200: ProjectListed, **UNKNOWN},
)
def project_by_name(path: ProjectNamePath) -> Response:
    """Return one project by its name."""
    return json_of(ProjectListed, projects.read_project(engine(), name=path.name)._mapping)


@directory.get("/clients", operation_id="clients", responses={200: ClientsPage})
def all_clients(query: ClientsQuery) -> Response:
    """Return a page of the clients, the last seen first or by name; updated every 30 seconds by default."""
    found = clients.list_clients(engine(), order=query.order, limit=query.limit, cursor=query.cursor)
    return json_of(ClientsPage, {"clients": [row._mapping for row in found.rows], "next": found.next})
