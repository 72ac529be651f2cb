"""`ecm-coordinator submissions`: list and retry rejected and failed results, in the database directly."""

from pathlib import Path
from typing import Any

import click

from config.settings import settings
from ingest.commands.database import database, operator
from ingest.commands.home import HOME_OPTION
from ingest.commands.options_and_errors import JSON_OPTION, domain_errors_end_command
from ingest.commands.text_tables import add_row, print_json, print_table, table_of

STATES = ("received", "applied", "duplicate", "rejected", "failed")
SUBMISSION_ID = click.argument("submission_id", type=click.IntRange(0, 2**63 - 1))


@click.group()
def submissions() -> None:
    """List and retry failed results.

    Works on the database of DATABASE_URL, or on the embedded database in --home, also while `up` runs.
    """


@submissions.command(short_help="List submissions by state.")
@click.option("--state", type=click.Choice(STATES), help="State (default: rejected and failed).")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most rows to list.")
@JSON_OPTION
@HOME_OPTION
def ls(state: str | None, limit: int, as_json: bool, home: Path | None) -> None:
    """List submissions by state: rejected ones with true factors first, then the newest first."""
    from coordinator.administration import dead_letters
    from ingest.admin.admin_submissions import submission_answer

    with database(home) as engine:
        rows = dead_letters.list_dead_letters(engine, (state,) if state else dead_letters.DEAD_STATES, limit=limit + 1)
    shown = [submission_answer(row) for row in rows[:limit]]
    if as_json:
        print_json(shown)
    elif not shown:
        click.echo("No submissions match.")
    else:
        _print_submissions(shown)
    if len(rows) > limit:
        click.echo(f"There are more submissions than {limit}; --limit shows more.", err=True)


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
    """Show a submission with its payload and raw output, as JSON.

    \b
    Exit status:
      0  the submission is shown
      1  there is no such submission
    """
    from coordinator.administration import dead_letters

    with database(home) as engine, domain_errors_end_command():
        row = dead_letters.read_submission(engine, submission_id)
    print_json({**row._asdict()})


@submissions.command(short_help="Queue a rejected or failed submission again.")
@SUBMISSION_ID
@click.option("--accept-factors", is_flag=True, help="Accept the true factors of a rejected one; it stays rejected.")
@HOME_OPTION
def retry(submission_id: int, accept_factors: bool, home: Path | None) -> None:
    """Queue a rejected or failed submission again; housekeeping publishes it soon.

    \b
    Exit status:
      0  the submission is queued, or its factors are accepted
      1  there is no such submission, or it is neither rejected nor failed
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
