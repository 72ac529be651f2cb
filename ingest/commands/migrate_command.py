"""`ecm-coordinator migrate`."""

from collections.abc import Callable
from time import monotonic

import click

from config.logging import configure_logging
from config.settings import settings
from ingest.commands.database import describe_fault

# Seconds between two lines about a migration. One that is done sooner prints none.
PROGRESS_EVERY = 2.0


@click.command()
def migrate() -> None:
    """Migrate the schema of DATABASE_URL to this version; `up` does so itself.

    A migration that was stopped goes on where it stopped.
    """
    from sqlalchemy.exc import OperationalError

    from coordinator.housekeeping.schema_upgrade import bring_up_to_date
    from models.migrate import MigrationError, newest_revision

    if not settings().database_url:
        raise click.ClickException("DATABASE_URL is not set; `ecm-coordinator up` migrates its own database.")
    # Log lines of transactions would only disturb.
    configure_logging(settings().log_format, "WARNING")
    try:
        bring_up_to_date(settings().database_url, print_progress())
    except MigrationError as error:
        raise click.ClickException(str(error)) from error
    except OperationalError as error:
        raise click.ClickException(describe_fault(error)) from error
    click.echo(f"The schema is at {newest_revision()}.")


def print_progress() -> Callable[[str, float | None], None]:
    """Return a function that prints how far a migration is, on standard error and not too often."""
    printed = monotonic()

    def report(description: str, share: float | None) -> None:
        nonlocal printed
        if share is None:
            click.echo(f"migration: {description}", err=True)
        elif monotonic() - printed >= PROGRESS_EVERY:
            printed = monotonic()
            click.echo(f"migration: {description}, {share:.0%}", err=True)

    return report
