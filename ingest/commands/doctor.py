"""`ecm-coordinator doctor`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from config.settings import settings
from ingest.commands.database import database
from ingest.commands.home import HOME_OPTION
from ingest.commands.options_and_errors import JSON_OPTION
from ingest.commands.text_tables import add_row, print_json, print_table, table_of
from ingest.plurals import counted


@click.command()
@click.option(
    "--most",
    type=click.IntRange(1, 1_000_000),
    default=1000,
    show_default=True,
    help="Most violations to list.",
)
@JSON_OPTION
@HOME_OPTION
def doctor(most: int, as_json: bool, home: Path | None) -> None:
    """Check every invariant of the live database; nothing is locked or changed.

    Works on the database of DATABASE_URL, or on the embedded database in --home, also while `up` runs.
    `composites recalculate --all` corrects violations of effort; the others need a person.

    \b
    Exit status:
      0  every invariant holds
      1  at least one is violated; a list names the rows
    """
    from coordinator.reading import invariants
    from models.engine import check_sessions

    current = settings()
    with database(home) as engine, _progress(quiet=as_json) as progress:
        check_sessions(engine)
        found = invariants.violations(engine, max_digits=current.max_digits, most=most, progress=progress)
    if as_json:
        print_json([{**one._asdict(), "id": str(one.id)} for one in found])
    elif found:
        table = table_of("invariant", "table", "id", "what is wrong")
        for one in found:
            add_row(table, one.invariant, one.table, str(one.id), one.detail)
        print_table(table)
        click.echo(f"{counted(len(found), 'violation')}{' or more' if len(found) == most else ''}.", err=True)
    else:
        click.echo("Every invariant holds.")
    raise SystemExit(1 if found else 0)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """Yield a function that shows on a terminal the current check and how many rows it has read."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda stage, rows: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, int] = {}

        def advance(stage: str, rows: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None)
            bars.update(tasks[stage], advance=rows)  # type: ignore[arg-type]

        yield advance
