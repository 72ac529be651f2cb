"""`ecm-coordinator migrate`."""

import click

from config.settings import settings


@click.command()
def migrate() -> None:
    """Bring the schema of DATABASE_URL to this version; `up` does it by itself."""
    from models.migrate import newest_revision, upgrade

    if not settings().database_url:
        raise click.ClickException("DATABASE_URL is not set; `ecm-coordinator up` migrates its own database.")
    upgrade(settings().database_url)
    click.echo(f"The schema is at {newest_revision()}.")
