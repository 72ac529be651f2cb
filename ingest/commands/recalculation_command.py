"""`ecm-coordinator recalculate-effort`."""

import json
from pathlib import Path

import click

from ingest.commands.database import HOME_OPTION, database


@click.command("recalculate-effort")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Begin after the composite with this id.")
@HOME_OPTION
def recalculate_effort(as_json: bool, after: int, home: Path | None) -> None:
    """Recompute every composite's curve sums and t-level from its attempts, and correct what differs.

    Works on the database of DATABASE_URL, or on that of the `up` that runs on --home, while everything runs; results
    that arrive meanwhile are not lost. Exits with 1 if anything differed.
    """
    from coordinator.composites import ledger

    with database(home) as engine:
        differences = ledger.recalculate_all(engine, after)
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
