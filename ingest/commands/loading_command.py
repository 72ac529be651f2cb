"""`ecm-coordinator composites import`: load numbers from a file into the database directly."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from config.settings import settings
from ingest.commands.database import database, one_line, operator
from ingest.commands.home import HOME_OPTION
from ingest.plurals import counted

# The longest line of a table: up to CELLS numbers of the most digits, and BESIDES other characters.
CELLS, BESIDES = 8, 100_000


@click.command("import", short_help="Load the numbers of a file.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--project", callback=one_line, help="Project of numbers that name none; created if it is missing.")
@click.option(
    "--priority",
    type=click.IntRange(-(2**31), 2**31 - 1),
    help="Priority of numbers that give none, also registered ones.",
)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="skip: load the valid lines.",
)
@click.option("--dry-run", is_flag=True, help="Check and report; store nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--processes", type=click.IntRange(0, 256), help="Checking processes (default: one per core).")
@HOME_OPTION
def import_file(
    *,
    file: str,
    project: str | None,
    priority: int | None,
    on_error: str,
    dry_run: bool,
    as_json: bool,
    processes: int | None,
    home: Path | None,
) -> None:
    """Load the numbers of FILE (- for standard input): all of them, or none if one is invalid.

    FILE is text with a number or an expression on each line (# begins a comment line), or CSV whose header names the
    columns: number, and any of current_composite, factors, priority, project, target_t_level, snfs_difficulty,
    has_snfs_form, prior_work. Numbers that are registered already are updated, not added twice.

    \b
    Exit status:
      0  the list is loaded or, with --dry-run, checked
      1  a line is invalid, or the file cannot be read; nothing was stored
    """
    from concurrent.futures.process import BrokenProcessPool

    from coordinator.loading.list_formats import ListError, read_list
    from coordinator.loading.load import InvalidNumbersError, LoadConflictError, LoadInProgressError, load_numbers

    most = settings().max_digits
    with database(home) as engine, _opened(file) as stream, _progress(stream, quiet=as_json) as progress:
        try:
            listing = read_list(stream, Path(file).name, CELLS * most + BESIDES)
            report = load_numbers(
                engine,
                listing.numbers,
                max_digits=most,
                actor=operator(),
                source=_printable(Path(file).name),
                project=project and project.strip(),
                priority=priority,
                known_priority=priority,
                skip_bad=on_error == "skip",
                dry_run=dry_run,
                processes=os.cpu_count() or 1 if processes is None else processes,
                progress=progress,
            )
        except BrokenProcessPool as error:
            raise click.ClickException(
                "a process that checks numbers was killed; the machine may have too little memory"
            ) from error
        except (ListError, LoadInProgressError, LoadConflictError) as error:
            raise click.ClickException(f"{error}") from error
        except InvalidNumbersError as error:
            _print_report(error.report, [], as_json)
            raise click.ClickException(str(error) if as_json else error.outcome) from error
    _print_report(report, listing.ignored_columns, as_json)


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in name)[:200]


def _print_report(report: Any, ignored_columns: list[str], as_json: bool) -> None:
    from models.wire.loading import LoadReport

    answer = LoadReport(**report.answer(), ignored_columns=ignored_columns, message=report.summary())
    if as_json:
        click.echo(answer.model_dump_json(indent=2))
        return
    for error in report.errors:
        click.echo(f"line {error.line}: {error.message}", err=True)
    if report.invalid > len(report.errors):
        click.echo(f"... and {counted(report.invalid - len(report.errors), 'more invalid line')}", err=True)
    for number in report.sharing:
        click.echo(f"line {number.line}: {number.number}: {number.message}", err=True)
    if report.shared > len(report.sharing):
        click.echo(f"... and {counted(report.shared - len(report.sharing), 'more shared number')}", err=True)
    if ignored_columns:
        click.echo(f"Ignored columns: {', '.join(map(_printable, ignored_columns))}", err=True)
    click.echo(answer.message)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with Path(file).open("rb") as stream:
        yield stream


@contextlib.contextmanager
def _progress(stream: BinaryIO, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """Yield a function that advances progress bars on a terminal: bytes checked, numbers stored."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from coordinator.loading.load import CHECKED

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda stage, count: None
        return
    size = os.fstat(stream.fileno()).st_size if stream.seekable() else None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[count]:,}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        checked = bars.add_task("checked", total=size, count=0)
        stored = bars.add_task("stored", total=None, count=0, visible=False)
        counts = {checked: 0, stored: 0}

        def advance(stage: str, count: int) -> None:
            task = checked if stage == CHECKED else stored
            counts[task] += count
            if stage == CHECKED:
                bars.update(checked, completed=stream.tell() if size else 0, count=counts[checked])
            else:
                bars.update(checked, completed=size or 0)
                bars.update(stored, visible=True, total=counts[checked], completed=counts[stored], count=counts[stored])

        yield advance
