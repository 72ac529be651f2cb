"""`ecm-coordinator recalculate-effort`."""

import json
from pathlib import Path

import click

from ingest.commands.database import HOME_OPTION, database
from ingest.plurals import counted


@click.command("recalculate-effort")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only numbers whose id is above this one.")
@HOME_OPTION
def recalculate_effort(as_json: bool, after: int, home: Path | None) -> None:
    """Recalculate the effort of every number from its attempts, and correct what differs.

    Works on the database of DATABASE_URL, or on the embedded database in --home, also while `up` runs.
    Results that arrive meanwhile are not lost.

    \b
    Exit status:
      0  everything was right
      1  some numbers differed and have been corrected
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
        click.echo(f"{counted(len(differences), 'number')} differed.")
    raise SystemExit(1 if differences else 0)
