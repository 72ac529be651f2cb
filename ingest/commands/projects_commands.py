"""`ecm-coordinator projects`: list, create and delete projects, in the database directly."""

from pathlib import Path

import click

from ingest.commands.database import database, one_line, operator
from ingest.commands.home import HOME_OPTION
from ingest.commands.options_and_errors import JSON_OPTION, YES_OPTION, domain_errors_end_command
from ingest.commands.text_tables import add_row, print_json, print_table, table_of

MANY = 10_000
LONGEST_NAME = 200
NAME = click.argument("name", callback=one_line)


@click.group()
def projects() -> None:
    """List, create and delete projects.

    Works on the database of DATABASE_URL, or on the embedded database in --home, also while `up` runs.
    """


@projects.command()
@JSON_OPTION
@HOME_OPTION
def ls(as_json: bool, home: Path | None) -> None:
    """List projects by name, and how many numbers are in each."""
    from coordinator.reading import projects as registry

    with database(home) as engine:
        rows = registry.list_projects(engine, limit=MANY).rows
    if as_json:
        print_json([{**row._asdict()} for row in rows])
    elif not rows:
        click.echo("No projects yet; `projects add` creates one.")
    else:
        table = table_of("id", "name", ">numbers", "created")
        for row in rows:
            add_row(table, str(row.id), row.name, f"{row.composites:,}", row.created_at.strftime("%Y-%m-%d"))
        print_table(table)


@projects.command()
@NAME
@HOME_OPTION
def add(name: str, home: Path | None) -> None:
    """Create the project NAME.

    \b
    Exit status:
      0  the project is created
      1  there is a project of this name
    """
    from coordinator.administration import project_edits as registry

    if not 0 < len(name.strip()) <= LONGEST_NAME:
        raise click.ClickException(f"a project's name has 1 to {LONGEST_NAME} characters; this has {len(name.strip())}")
    with database(home) as engine, domain_errors_end_command():
        row = registry.create_project(engine, operator(), name.strip())
    click.echo(f"project {row.id} is {row.name}")


@projects.command()
@NAME
@YES_OPTION
@HOME_OPTION
def rm(name: str, yes: bool, home: Path | None) -> None:
    """Delete the project NAME; its numbers stay.

    \b
    Exit status:
      0  the project is deleted
      1  there is no project of this name
    """
    from coordinator.administration import project_edits as registry

    if not yes:
        click.confirm(f"Delete the project {name.strip()}? Its numbers stay.", abort=True)
    with database(home) as engine, domain_errors_end_command():
        gone = registry.delete_project(engine, operator(), name=name.strip())
    click.echo(f"project {gone['name']} is deleted; its numbers stay: {gone['composites']:,}")
