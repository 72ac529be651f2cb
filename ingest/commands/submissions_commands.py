"""`ecm-coordinator submissions`: the dead letters, on the database itself."""

from pathlib import Path
from typing import Any

import click

from config.settings import settings
from ingest.commands.database import HOME_OPTION, database, operator
from ingest.commands.options_and_errors import JSON_OPTION, domain_errors_end_command
from ingest.commands.text_tables import add_row, print_json, print_table, table_of

STATES = ("received", "applied", "duplicate", "rejected", "failed")
SUBMISSION_ID = click.argument("submission_id", type=click.IntRange(0, 2**63 - 1))


@click.group()
def submissions() -> None:
    """What clients sent: look at it, and send again what was refused or failed.

    Works on the database of DATABASE_URL, or on that of the `up` that runs on --home, while everything runs.
    """


@submissions.command()
@click.option("--state", type=click.Choice(STATES), help="Default: rejected and failed ones.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many.")
@JSON_OPTION
@HOME_OPTION
def ls(state: str | None, limit: int, as_json: bool, home: Path | None) -> None:
    """Show submissions by state: refused ones that hold true factors first, then the newest first."""
    from coordinator.administration import dead_letters
    from ingest.admin.admin_submissions import submission_answer

    with database(home) as engine:
        rows = dead_letters.list_dead_letters(engine, (state,) if state else dead_letters.DEAD_STATES, limit=limit + 1)
    shown = [submission_answer(row) for row in rows[:limit]]
    if as_json:
        print_json(shown)
    elif not shown:
        click.echo("There is no such submission.")
    else:
        _print_submissions(shown)
    if len(rows) > limit:
        click.echo(f"There are more than these {limit}; --limit shows them.", err=True)


def _print_submissions(shown: list[dict[str, Any]]) -> None:
    from coordinator.numbers.expressions import shorten

    table = table_of("id", "client", "composite", "state", "reason", "true factors", "received", "detail")
    for one in shown:
        factors = ", ".join(map(shorten, one["true_factors"]))
        received = one["created_at"].strftime("%Y-%m-%d %H:%M UTC")
        what = (one["state"], one["reason"] or "", factors, received, one["detail"] or "")
        add_row(table, str(one["submission_id"]), one["client_id"], shorten(one["composite"]), *what)
    print_table(table)


@submissions.command()
@SUBMISSION_ID
@HOME_OPTION
def show(submission_id: int, home: Path | None) -> None:
    """Show all of a submission, its payload and raw output too, as JSON. Exits with 1 if there is none."""
    from coordinator.administration import dead_letters

    with database(home) as engine, domain_errors_end_command():
        row = dead_letters.read_submission(engine, submission_id)
    print_json({**row._asdict()})


@submissions.command()
@SUBMISSION_ID
@click.option("--accept-factors", is_flag=True, help="Use the true factors of a refused one; it stays refused.")
@HOME_OPTION
def retry(submission_id: int, accept_factors: bool, home: Path | None) -> None:
    """Queue a refused or failed submission again; upkeep rings for it soon.

    Exits with 1 if there is none, or it is neither.
    """
    from coordinator.administration import dead_letters

    with database(home) as engine, domain_errors_end_command():
        if accept_factors:
            most = settings().max_digits
            done = dead_letters.accept_factors(engine, operator(), submission_id, most)
            accepted = ", ".join(done.accepted)
            click.echo(f"accepted of submission {submission_id}: {accepted}; {len(done.new)} of them new")
        else:
            dead_letters.retry(engine, operator(), submission_id)
            click.echo(f"submission {submission_id} is queued again")
