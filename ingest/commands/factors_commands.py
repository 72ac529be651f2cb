"""`ecm-coordinator factors`: list and export factors, from the database directly."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from config.settings import settings
from ingest.commands.database import database, one_line
from ingest.commands.home import HOME_OPTION
from ingest.commands.options_and_errors import JSON_OPTION, domain_errors_end_command
from ingest.commands.text_tables import add_row, print_json, print_table, table_of

if TYPE_CHECKING:  # the command's --help needs no models
    from sqlalchemy import Row

    from models.wire.reading import FactorListed

DIGITS = click.IntRange(0, 1_000_000)
PROJECT = click.option("--project", callback=one_line, help="Only factors of this project's numbers.")
CLIENT = click.option("--client", callback=one_line, help="Only factors that this client found.")


@click.group()
def factors() -> None:
    """List factors and export them to a file.

    Works on the database of DATABASE_URL, or on the embedded database in --home, also while `up` runs.
    """


@factors.command(short_help="List factors, the newest first.")
@click.argument("number", required=False, callback=one_line)
@PROJECT
@CLIENT
@click.option("--min-digits", type=DIGITS, help="Smallest number of digits.")
@click.option("--max-digits", type=DIGITS, help="Largest number of digits.")
@click.option("--largest", is_flag=True, help="List the largest first instead of the newest.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most rows to list.")
@JSON_OPTION
@HOME_OPTION
def ls(
    *,
    number: str | None,
    project: str | None,
    client: str | None,
    min_digits: int | None,
    max_digits: int | None,
    largest: bool,
    limit: int,
    as_json: bool,
    home: Path | None,
) -> None:
    """List factors, the newest first; with NUMBER only factors of this number (any value it has had)."""
    from coordinator.reading import factors as registry
    from models.wire.reading import FactorListed

    filters = registry.FactorListFilters(number and number.strip(), project, client, min_digits, max_digits)
    order = registry.LARGEST if largest else registry.NEWEST
    rows: list[Row[Any]] = []
    cursor = None
    with database(home) as engine, domain_errors_end_command():
        while len(rows) < limit:
            page = registry.list_factors(
                engine,
                filters,
                order=order,
                limit=limit - len(rows),
                cursor=cursor,
                max_digits=settings().max_digits,
            )
            rows += page.rows
            cursor = page.next
            if cursor is None:
                break
    shown = [FactorListed.model_validate(row._mapping) for row in rows]
    if as_json:
        print_json([one.model_dump() for one in shown])
    elif not shown:
        click.echo("No factors match.")
    else:
        _print_factors(shown)
    if cursor is not None:
        click.echo(f"There may be more factors than {len(rows)}; --limit shows more, export writes all.", err=True)


def _print_factors(listed: "list[FactorListed]") -> None:
    from coordinator.numbers.expressions import shorten

    table = table_of("id", ">digits", "factor", "of", "prime", "client", "method", ">B1", "sigma", "recorded")
    for one in listed:
        prime = "" if one.is_prime is None else "yes" if one.is_prime else "no"
        how = (one.client_id or one.origin, one.method or "", "" if one.b1 is None else f"{one.b1:,}", one.sigma or "")
        when = one.created_at.strftime("%Y-%m-%d %H:%M")
        what = (f"{one.factor_id}", f"{one.digit_length}", shorten(one.factor), shorten(one.number), prime)
        add_row(table, *what, *how, when)
    print_table(table)


@factors.command()
@click.argument("file", type=click.File("w", encoding="utf-8", lazy=True))
@click.option(
    "--format", "form", type=click.Choice(["csv", "ndjson"]), default="csv", show_default=True, help="Format of FILE."
)
@PROJECT
@CLIENT
@click.option(
    "--since",
    type=click.DateTime(),
    metavar="DATE[THH:MM:SS]",
    help="Only factors recorded since this time (UTC).",
)
@HOME_OPTION
def export(
    *,
    file: TextIO,
    form: str,
    project: str | None,
    client: str | None,
    since: datetime | None,
    home: Path | None,
) -> None:
    """Write factors to FILE (- for standard output), the oldest first."""
    from coordinator.reading import factors as registry
    from ingest.factor_files import lines

    from_then = since and since.replace(tzinfo=UTC)
    with database(home) as engine, domain_errors_end_command():
        for text in lines(registry.export_factors(engine, project=project, client_id=client, since=from_then), form):
            file.write(text)
