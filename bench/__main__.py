"""`make bench`: every benchmark, as tables, and as JSON for whoever compares two runs."""

import json
from pathlib import Path

import click
from rich.console import Console

from bench import claims, effort, pipeline, planner


@click.command()
@click.option("--json", "target", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here too.")
@click.option("--only", type=click.Choice(["effort", "planner", "pipeline", "claims"]), help="Just this one.")
def bench(target: Path | None, only: str | None) -> None:
    """Measure the effort model, the planner, the results pipeline and claims here; compare ratios, not machines."""
    console = Console()
    figures = {}
    if only in (None, "effort"):
        figures["effort"] = effort.measure()
        click.echo(effort.report(figures["effort"]))
    if only in (None, "planner"):
        figures["planner"] = planner.measure()
        click.echo(planner.report(figures["planner"]))
    if only in (None, "pipeline"):
        figures["pipeline"] = pipeline.measure()
        console.print(pipeline.as_table(figures["pipeline"]))
    if only in (None, "claims"):
        figures["claims"] = claims.measure()
        console.print(claims.as_table(figures["claims"]))
    text = json.dumps(figures, indent=2)
    if target:
        target.write_text(text + "\n")
    else:
        click.echo(text)


if __name__ == "__main__":
    bench()
