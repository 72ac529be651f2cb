"""`ecm-coordinator work`: what operators do to leases and to numbers kept from work, on the database itself."""

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingest.commands.database import HOME_OPTION, database, one_line, operator
from ingest.commands.options_and_errors import domain_errors_end_command, identify
from ingest.commands.text_tables import add_row, print_json, print_table, table_of

if TYPE_CHECKING:  # the command's --help needs no database library
    from rich.table import Table
    from sqlalchemy import Row

MANY = 1000


REASON_OPTION = click.option("--reason", callback=one_line, help="Why, for its client and other operators to read.")


@click.group()
def work() -> None:
    """Leases of work and numbers kept from it: look, cancel, time out, pause, resume.

    Works on the database of DATABASE_URL, or on that of the `up` that runs on --home, while everything runs.
    """


@work.command()
@click.option("--client", callback=one_line, help="Only this client's leases.")
@click.option("--held", is_flag=True, help="Paused and parked numbers, with the reasons, instead of leases.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=MANY, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@HOME_OPTION
def ls(*, client: str | None, held: bool, limit: int, as_json: bool, home: Path | None) -> None:
    """Show open leases, those that run out first first."""
    if held and client is not None:
        raise click.UsageError("--held shows numbers, which are no client's; leave --client out")
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
        click.echo("No number is paused or parked." if held else "No lease is open.")
    else:
        print_table(_held_table(shown) if held else _lease_table(shown))
    if len(rows) > limit:
        click.echo(f"There are more than these {limit}; --limit shows them.", err=True)


@work.command()
@click.argument("work_id")
@REASON_OPTION
@HOME_OPTION
def cancel(work_id: str, reason: str | None, home: Path | None) -> None:
    """End the lease or reservation WORK_ID, whoever holds it; one that is closed already stays as it is.

    Its client learns of it by its next heartbeat. Exits with 1 if there is no such lease.
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
    click.echo(f"{lease.id} of {lease.client_id} is {lease.status}" + (f": {lease.message}" if lease.message else ""))


@work.command()
@HOME_OPTION
def cleanup(home: Path | None) -> None:
    """Time out now the leases that are overdue, as beat does every few seconds."""
    from coordinator.housekeeping import lease_expiry

    with database(home) as engine:
        expired = lease_expiry.expire_leases(engine, datetime.now(UTC))
    click.echo(f"{expired} overdue leases timed out.")


@work.command()
@click.argument("number", callback=one_line)
@REASON_OPTION
@HOME_OPTION
def pause(number: str, reason: str | None, home: Path | None) -> None:
    """Lease no more work on NUMBER (its value or its id) until it is resumed; open leases go on.

    Exits with 1 if there is no such number.
    """
    from coordinator.leases import reservations

    with database(home) as engine, domain_errors_end_command():
        row = reservations.pause(engine, identify(engine, number), reason, operator())
    click.echo(f"composite {row.id} is {row.hold}: {row.hold_reason}; {row.open_leases} open leases go on")


@work.command()
@click.argument("number", callback=one_line)
@HOME_OPTION
def resume(number: str, home: Path | None) -> None:
    """Let NUMBER (its value or its id), paused or parked, be worked on again.

    Exits with 1 if there is no such number.
    """
    from coordinator.leases import reservations

    with database(home) as engine, domain_errors_end_command():
        row = reservations.resume(engine, identify(engine, number), operator())
    click.echo(
        f"composite {row.id} is neither paused nor parked" + ("" if row.ecm_eligible else "; it wants no ECM now")
    )


# What is shown -------------------------------------------------------------------------------------------------------


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
    table = table_of("work", "client", "composite", "run", ">curves", "status", ">runs out")
    for row in rows:
        curves = f"{row.curves_completed:,}" + ("" if row.curves is None else f" of {row.curves:,}")
        run = row.method if row.b1 is None else f"{row.method} B1={row.b1:,}"
        number = f"{row.composite_id} ({row.digit_length} digits)"
        add_row(table, str(row.id), row.client_id, number, run, curves, row.status, _ahead(row.expires_at - now))
    return table


def _held_table(rows: list["Row[Any]"]) -> "Table":
    from coordinator.numbers.expressions import shorten

    table = table_of("composite", "number", ">digits", "held", "since", "why")
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
