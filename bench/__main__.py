"""`make bench`: every benchmark, as tables, and as JSON for comparisons."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench import claims, effort, long_writes, migration, pages, pipeline, planner, reading, storm

# By name: the function that measures, and the one that makes a table or a text of the figures.
BENCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "effort": (effort.measure, effort.report),
    "planner": (planner.measure, planner.report),
    "pipeline": (pipeline.measure, pipeline.as_table),
    "claims": (claims.measure, claims.as_table),
    "reading": (reading.measure, reading.as_table),
    "pages": (pages.measure, pages.as_table),
    "storm": (storm.measure, storm.report),
    "long_writes": (long_writes.measure, long_writes.as_table),
    "migration": (migration.measure, migration.report),
}


@click.command()
@click.option(
    "--json", "target", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures to this file."
)
@click.option("--only", type=click.Choice(list(BENCHES)), help="Run only this benchmark.")
def bench(target: Path | None, only: str | None) -> None:
    """Measure the effort model, the planner, the pipeline, claims, reading and pages; compare ratios, not machines."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    figures = {}
    for name, (measure, show) in BENCHES.items():
        if only in (None, name):
            figures[name] = measure()
            console.print(show(figures[name]))
    text = json.dumps(figures, indent=2)
    if target:
        target.write_text(text + "\n")
    else:
        click.echo(text)


if __name__ == "__main__":
    bench()
