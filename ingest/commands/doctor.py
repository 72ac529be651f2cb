"""`ecm-coordinator doctor`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from config.settings import settings
from ingest.commands.database import HOME_OPTION, database
from ingest.commands.options_and_errors import JSON_OPTION
from ingest.commands.text_tables import add_row, print_json, print_table, table_of


@click.command()
@click.option(
    "--most", type=click.IntRange(1, 1_000_000), default=1000, show_default=True, help="List at most so many."
)
@JSON_OPTION
@HOME_OPTION
def doctor(most: int, as_json: bool, home: Path | None) -> None:
    """Check every invariant on the live database; nothing is locked or changed.

    Works on the database of DATABASE_URL, or on that of the `up` that runs on --home, while everything runs. Exits with
    1 and a list if one is broken: `recalculate-effort` mends effort, the rest needs a person.
    """
    from coordinator.reading import invariants

    current = settings()
    with database(home) as engine, _progress(quiet=as_json) as progress:
        found = invariants.violations(engine, max_digits=current.max_digits, most=most, progress=progress)
    if as_json:
        print_json([{**one._asdict(), "id": str(one.id)} for one in found])
    elif found:
        table = table_of("invariant", "table", "id", "what is wrong")
        for one in found:
            add_row(table, one.invariant, one.table, str(one.id), one.detail)
        print_table(table)
        click.echo(f"{len(found)}{' or more' if len(found) == most else ''} violations.", err=True)
    else:
        click.echo("Every invariant holds.")
    raise SystemExit(1 if found else 0)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """What is being checked, and how many rows were, on a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda stage, rows: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, int] = {}

        def tell(stage: str, rows: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None)
            bars.update(tasks[stage], advance=rows)  # type: ignore[arg-type]

        yield tell
