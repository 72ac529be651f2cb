"""`ecm-coordinator composites`: numbers, in the database directly."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from config.settings import settings
from ingest.commands.database import database, one_line, operator
from ingest.commands.home import HOME_OPTION
from ingest.commands.loading_command import import_file
from ingest.commands.options_and_errors import JSON_OPTION, YES_OPTION, domain_errors_end_command, identify
from ingest.commands.text_tables import add_row, print_json, print_table, table_of
from ingest.plurals import counted

if TYPE_CHECKING:  # the command's --help needs no database library
    from sqlalchemy import Row

NUMBER = click.argument("number", callback=one_line)
PRIORITY = click.IntRange(-(2**31), 2**31 - 1)
FACTOR_COLUMNS = ("id", "factor", "multiplicity", "is_prime", "origin", "client_id", "split_from_id")
EFFORT_COLUMNS = ("b1", "b2", "parametrization", "curves", "prior_curves")
WORK_COLUMNS = ("id", "client_id", "method", "curves", "status", "expires_at")


@click.group()
def composites() -> None:
    """Import, list, change and delete numbers.

    Works on the database of DATABASE_URL, or on the embedded database in --home, also while `up` runs.
    """


composites.add_command(import_file)


@composites.command(short_help="Show numbers.")
@click.argument("word", required=False, callback=one_line)
@click.option("--project", callback=one_line, help="Only numbers of this project.")
@click.option("--unfinished", is_flag=True, help="Only numbers that are not fully factored.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only numbers whose id is above this one.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most rows to list.")
@JSON_OPTION
@HOME_OPTION
def ls(
    *,
    word: str | None,
    project: str | None,
    unfinished: bool,
    after: int,
    limit: int,
    as_json: bool,
    home: Path | None,
) -> None:
    """Show numbers, by id; only numbers that WORD matches: a value, expression, old cofactor or id."""
    from coordinator.reading import lookup

    with database(home) as engine:
        if word is not None:
            rows = lookup.find_composites(engine, word.strip(), settings().max_digits)
        else:
            chosen: dict[str, Any] = {"project": project and project.strip(), "unfinished": unfinished, "after": after}
            rows = lookup.list_by_id(engine, **chosen, limit=limit + 1)
    shown = rows[:limit]
    if as_json:
        print_json([{**row._asdict()} for row in shown])
    elif not shown:
        click.echo("No numbers match.")
    else:
        _print_numbers(shown)
    if len(rows) > limit:
        click.echo(f"There are more numbers; --after {shown[-1].id} shows the next ones.", err=True)


def _print_numbers(rows: "list[Row[Any]]") -> None:
    from coordinator.numbers.expressions import shorten

    table = table_of("id", "number", ">digits", "state", ">t-level", ">target", ">attempts", ">priority")
    for row in rows:
        level, target = f"{row.current_t_level:.2f}", f"{row.target_t_level:.2f}"
        counts = (f"{row.attempt_count:,}", f"{row.priority}")
        add_row(table, str(row.id), shorten(row.number), f"{row.digit_length}", _state(row), level, target, *counts)
    print_table(table)


def _state(row: "Row[Any]") -> str:
    if row.is_fully_factored:
        return "prime" if row.is_prime else "fully factored"
    if row.hold:
        return "set aside" if row.hold == "parked" else str(row.hold)
    return "composite" if row.is_prime is False else "primality unknown"


@composites.command(short_help="Show a number with its factors and effort.")
@NUMBER
@JSON_OPTION
@HOME_OPTION
def show(number: str, as_json: bool, home: Path | None) -> None:
    """Show NUMBER (its value or its id) with its factors and their ids, effort, open leases and projects.

    \b
    Exit status:
      0  the number is shown
      1  there is no such number
    """
    from coordinator.reading import detail

    with database(home) as engine, domain_errors_end_command():
        found = detail.read_columns(engine, identify(engine, number))
    if as_json:
        print_json(found)
        return
    plain = ("number", "current_composite", "digit_length", "is_prime", "is_fully_factored", "priority")
    more = ("current_t_level", "target_t_level", "attempt_count", "pm1_b1", "pp1_b1", "hold", "hold_reason", "parts")
    table = table_of("composite", str(found["id"]))
    for name in (*plain, *more, "projects"):
        add_row(table, name, _text(found[name]))
    print_table(table)
    _print_parts(found)


def _print_parts(found: dict[str, Any]) -> None:
    if found["factors"]:
        table = table_of("factor id", "value", ">times", "prime", "origin", "client", "split from")
        for row in found["factors"]:
            add_row(table, *(_text(row[name]) for name in FACTOR_COLUMNS))
        print_table(table)
    if found["effort"]:
        table = table_of(">B1", ">B2", ">parametrization", ">curves", ">prior curves")
        for row in found["effort"]:
            add_row(table, *(f"{row[name]:,}" for name in EFFORT_COLUMNS))
        print_table(table)
    if found["open_work"]:
        table = table_of("work", "client", "method", ">curves", "status", "expires")
        for row in found["open_work"]:
            add_row(table, *(_text(row[name]) for name in WORK_COLUMNS))
        print_table(table)


def _text(value: Any) -> str:
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@composites.command(short_help="Complete a number with factors.")
@NUMBER
@click.argument("factors", nargs=-1)
@click.option("--source", callback=one_line, help="Where the factors come from.")
@click.option("--prime", is_flag=True, help="Declare that the cofactor is prime, if it is not tested yet.")
@HOME_OPTION
def complete(number: str, factors: tuple[str, ...], source: str | None, prime: bool, home: Path | None) -> None:
    """Complete NUMBER (its value or its id) with FACTORS and the known factors.

    Their product must be the number, and all of them must be prime.

    \b
    Exit status:
      0  the number is fully factored
      1  a factor does not divide, or a composite part is left; nothing was changed
    """
    from coordinator.administration import edits

    with database(home) as engine, domain_errors_end_command():
        done = edits.complete_composite(
            engine,
            operator(),
            identify(engine, number),
            factors,
            edits.Provenance(source, None),
            cofactor_is_prime=prime,
            max_digits=settings().max_digits,
        )
    click.echo(f"composite {done.row.id} is fully factored, with {counted(len(done.new), 'new factor')}")


@composites.command(short_help="Set the priority of a number.")
@NUMBER
@click.argument("value", type=PRIORITY)
@HOME_OPTION
def priority(number: str, value: int, home: Path | None) -> None:
    """Set the priority of NUMBER (its value or its id) to VALUE; numbers of higher priority are leased first.

    Put -- before a negative VALUE.

    \b
    Exit status:
      0  the priority is set
      1  there is no such number
    """
    from coordinator.administration import edits

    with database(home) as engine, domain_errors_end_command():
        composite_id = identify(engine, number)
        before = edits.set_priority(engine, operator(), composite_id, value)
    click.echo(f"composite {composite_id} has priority {value}; it was {before}")


@composites.command(short_help="Recalculate curve sums and t-levels.")
@click.argument("number", required=False, callback=one_line)
@click.option("--all", "every", is_flag=True, help="Recalculate all numbers.")
@click.option(
    "--missing", is_flag=True, help="Recalculate the numbers that have attempts, but no t-level or curve sums."
)
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
@HOME_OPTION
def recalculate(*, number: str | None, every: bool, missing: bool, as_json: bool, home: Path | None) -> None:
    """Recalculate curve sums and t-levels from the attempts and correct what differs: NUMBER (value or id), or many.

    --all and --missing write all corrections at once, or none. Everything may run meanwhile: results that arrive are
    not lost. A recalculation that was stopped is finished first.

    \b
    Exit status:
      0  everything was right
      1  something differed and was corrected
    """
    from coordinator.administration import recalculation

    if sum((number is not None, every, missing)) != 1:
        raise click.UsageError("Name one NUMBER, or use either --all or --missing.")
    with database(home) as engine, domain_errors_end_command():
        if number is not None:
            composite_id = identify(engine, number)
            differences = recalculation.recalculate_composite(engine, operator(), composite_id).differences
        else:
            differences = recalculation.recalculate_all(engine, operator(), only_missing=missing)
    if as_json:
        print_json([difference._asdict() for difference in differences])
    else:
        for difference in differences:
            click.echo(
                f"composite {difference.composite_id}: {difference.what} corrected;"
                f" t-level {difference.stored_t_level:.3f} corrected to {difference.correct_t_level:.3f}"
            )
        click.echo(f"{counted(len(differences), 'number')} differed.")
    raise SystemExit(1 if differences else 0)


@composites.command(short_help="Delete a number with its attempts and factors.")
@NUMBER
@YES_OPTION
@HOME_OPTION
def rm(number: str, yes: bool, home: Path | None) -> None:
    """Delete NUMBER (its value or its id) with its attempts, factors, effort, leases and parts.

    The submissions of clients stay, as rejected.

    \b
    Exit status:
      0  the number is deleted
      1  there is no such number, or it is a part of another number
    """
    from coordinator.administration import deletions
    from coordinator.numbers.expressions import shorten
    from coordinator.reading import detail
    from ingest.admin.admin_composites import deleted_rows

    with database(home) as engine, domain_errors_end_command():
        composite_id = identify(engine, number)
        found = None if yes else detail.read_columns(engine, composite_id)
        if found is not None:
            what = f"{shorten(found['number'])} with {counted(found['attempt_count'], 'attempt')}"
            click.confirm(f"Delete {what} permanently?", abort=True)
        gone, _ = deletions.delete_composite(engine, operator(), composite_id, settings().max_digits)
    click.echo(f"composite {composite_id} is deleted: {deleted_rows(gone)}")
