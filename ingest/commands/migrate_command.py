"""`ecm-coordinator migrate`."""

import click

from config.settings import settings


@click.command()
def migrate() -> None:
    """Migrate the schema of DATABASE_URL to this version; `up` does so itself."""
    from coordinator.housekeeping.eligibility_refresh import refresh_database
    from models.migrate import newest_revision, upgrade

    if not settings().database_url:
        raise click.ClickException("DATABASE_URL is not set; `ecm-coordinator up` migrates its own database.")
    if upgrade(settings().database_url):
        click.echo("The schema has changed; refreshing which work each number needs ...", err=True)
        refresh_database(settings().database_url)
    click.echo(f"The schema is at {newest_revision()}.")
