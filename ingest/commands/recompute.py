"""`ecm-coordinator recompute-effort`."""

import json

import click

from config.settings import settings


@click.command("recompute-effort")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def recompute_effort(as_json: bool) -> None:
    """Recompute every composite's curve sums and t-level from its attempts, and correct what differs.

    Works on the database of DATABASE_URL while everything runs; results that arrive meanwhile are not lost. Exits with
    1 if anything differed.
    """
    from coordinator import ledger
    from models.engine import make_engine

    if not settings().database_url:
        raise click.ClickException("DATABASE_URL is not set; it says which database to look at.")
    differences = ledger.recompute_all(make_engine(settings().database_url))
    if as_json:
        click.echo(json.dumps([difference._asdict() for difference in differences]))
    else:
        for difference in differences:
            click.echo(
                f"composite {difference.composite_id}: {difference.what} corrected,"
                f" t{difference.stored_t_level:.3f} is t{difference.correct_t_level:.3f}"
            )
        click.echo(f"{len(differences)} composites differed.")
    raise SystemExit(1 if differences else 0)
