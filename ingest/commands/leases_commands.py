"""`ecm-coordinator work`: leases, and numbers that are paused or set aside, in the database directly."""

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingest.commands.database import database, one_line, operator
from ingest.commands.home import HOME_OPTION
from ingest.commands.options_and_errors import domain_errors_end_command, identify
from ingest.commands.text_tables import add_row, print_json, print_table, table_of
from ingest.plurals import counted

if TYPE_CHECKING:  # the command's --help needs no database library
    from rich.table import Table
    from sqlalchemy import Row

MANY = 1000


@click.group()
def work() -> None:
    """List and cancel leases; pause and resume numbers.

    Works on the database of DATABASE_URL, or on the embedded database in --home, also while `up` runs.
    """


@work.command()
@click.option("--client", callback=one_line, help="Only this client's leases.")
@click.option("--held", is_flag=True, help="List numbers that are paused or set aside, instead of leases.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=MANY, show_default=True, help="Most rows to list.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@HOME_OPTION
def ls(*, client: str | None, held: bool, limit: int, as_json: bool, home: Path | None) -> None:
    """List open leases, those that expire next first."""
    if held and client is not None:
        raise click.UsageError("--held lists numbers, which belong to no client; leave --client out")
    from coordinator.leases import reservations

    with database(home) as engine:
        rows = (
            reservations.held_composites(engine, limit + 1)
            if held
            else reservations.list_open_leases(engine, client_id=client, limit=limit + 1)
        )
    shown = rows[:limit]
    if as_json:
        print_json([_held(row) for row in shown] if held else _assignments(shown))
    elif not shown:
        click.echo("No number is paused or set aside." if held else "No leases are open.")
    else:
        print_table(_held_table(shown) if held else _lease_table(shown))
    if len(rows) > limit:
        click.echo(f"There are more rows than {limit}; --limit shows more.", err=True)


@work.command(short_help="Cancel a lease or a reservation.")
@click.argument("work_id")
@click.option("--reason", callback=one_line, help="Reason, shown to the client and to other operators.")
@HOME_OPTION
def cancel(work_id: str, reason: str | None, home: Path | None) -> None:
    """Cancel the lease or reservation WORK_ID, whoever holds it.

    A closed lease stays as it is. The client is told at its next heartbeat.

    \b
    Exit status:
      0  the lease is closed
      1  there is no such lease
    """
    from coordinator.composites.lease_lifecycle import LeaseNotFoundError
    from coordinator.leases import reservations

    try:
        lease_id = uuid.UUID(work_id)
    except ValueError:
        raise click.ClickException(f"{work_id[:60]!r} is no work id; those are UUIDs (see `work ls`)") from None
    try:
        with database(home) as engine:
            lease = reservations.cancel(engine, lease_id, reason, operator())
    except LeaseNotFoundError:
        raise click.ClickException(f"there is no work {lease_id}; see `work ls`") from None
    state = "cancelled" if lease.is_cancelled else lease.status
    click.echo(f"lease {lease.id} of {lease.client_id} is {state}" + (f": {lease.message}" if lease.message else ""))


@work.command(short_help="Time out overdue leases now.")
@HOME_OPTION
def cleanup(home: Path | None) -> None:
    """Time out overdue leases now, as housekeeping does every few seconds."""
    from coordinator.base import clock
    from coordinator.housekeeping import lease_expiry

    with database(home) as engine:
        expired = lease_expiry.expire_leases(engine, clock.now(engine))
    click.echo(f"{counted(expired, 'overdue lease')} timed out.")


@work.command(short_help="Pause a number: it gets no new leases.")
@click.argument("number", callback=one_line)
@click.option("--reason", callback=one_line, help="Reason; anybody can read it on the number's page.")
@HOME_OPTION
def pause(number: str, reason: str | None, home: Path | None) -> None:
    """Pause NUMBER (its value or its id): it gets no new leases until it is resumed; open leases go on.

    \b
    Exit status:
      0  the number is paused
      1  there is no such number
    """
    from coordinator.leases import reservations

    with database(home) as engine, domain_errors_end_command():
        row = reservations.pause(engine, identify(engine, number), reason, operator())
    leases = f"{counted(row.open_leases, 'open lease')} {'goes' if row.open_leases == 1 else 'go'} on"
    click.echo(f"composite {row.id} is {row.hold}: {row.hold_reason}; {leases}")


@work.command(short_help="Resume a number that is paused or set aside.")
@click.argument("number", callback=one_line)
@HOME_OPTION
def resume(number: str, home: Path | None) -> None:
    """Resume NUMBER (its value or its id) that is paused or set aside.

    \b
    Exit status:
      0  the number gets work again
      1  there is no such number
    """
    from coordinator.leases import reservations

    with database(home) as engine, domain_errors_end_command():
        row = reservations.resume(engine, identify(engine, number), operator())
    click.echo(f"composite {row.id} gets work again" + ("" if row.ecm_eligible else "; it needs no ECM now"))


# Output --------------------------------------------------------------------------------------------------------------


def _assignments(rows: list["Row[Any]"]) -> list[dict[str, Any]]:
    from ingest.leases_routes import assignment

    return [assignment(row) for row in rows]


def _held(row: "Row[Any]") -> dict[str, Any]:
    return {
        "composite_id": row.id,
        "number": row.number,
        "digit_length": row.digit_length,
        "hold": row.hold,
        "hold_reason": row.hold_reason,
        "held_at": row.held_at,
    }


def _lease_table(rows: list["Row[Any]"]) -> "Table":
    now = datetime.now(UTC)
    table = table_of("work", "client", "composite", "run", ">curves", "status", ">expires")
    for row in rows:
        curves = f"{row.curves_completed:,}" + ("" if row.curves is None else f" of {row.curves:,}")
        run = row.method if row.b1 is None else f"{row.method} B1={row.b1:,}"
        number = f"{row.composite_id} ({row.digit_length} digits)"
        add_row(table, str(row.id), row.client_id, number, run, curves, row.status, _ahead(row.expires_at - now))
    return table


def _held_table(rows: list["Row[Any]"]) -> "Table":
    from coordinator.numbers.expressions import shorten

    table = table_of("composite", "number", ">digits", "state", "since", "reason")
    for row in rows:
        since = row.held_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
        add_row(table, str(row.id), shorten(row.number), f"{row.digit_length}", row.hold, since, row.hold_reason or "")
    return table


def _ahead(left: timedelta) -> str:
    minutes = int(left.total_seconds() / 60)
    if minutes < 0:
        return "overdue"
    days, hours = divmod(minutes // 60, 24)
    return f"in {days} d {hours} h" if days else f"in {hours} h {minutes % 60} min"
