"""`ecm-coordinator tlevel`: the t-level of curves, without a server or a database."""

import json
from pathlib import Path
from typing import Any

import click

from coordinator import effort
from coordinator.effort import chart
from coordinator.effort.arrays import Array
from coordinator.effort.vector import Run

SHOWN_DIGITS = range(15, 101, 5)
SUGGESTIONS = 5
LONGEST_TITLE = 70


@click.command()
@click.argument("curves")
@click.option(
    "--target", type=click.FloatRange(10, 100), help="T-level to reach, in digits (default: the next multiple of 5)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw the chart to FILE.svg or FILE.png.",
)
def tlevel(*, curves: str, target: float | None, as_json: bool, plot: Path | None) -> None:
    """Compute the t-level that CURVES amount to, the chance of a missed factor, and the curves still to run.

    CURVES is like "5208@11e6;261@5e4,p=3;5208/8192@11e6": curves@B1[,B2][,p=N]. 5208/8192 means that only 5208 of
    8192 curves had a stage 2. The default of B2 is that of GMP-ECM, the default parametrization is 1.
    """
    try:
        runs = effort.parse_curves(curves)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="CURVES") from error
    vector = effort.effort_of(runs)
    reached = effort.t_level(vector)
    target = min(100.0, max(10.0, 5 * (reached // 5 + 1))) if target is None else target
    remaining = effort.suggested_curves(vector, target, SUGGESTIONS)
    if plot is not None:
        _draw(plot, vector, f"{_shortened(curves)}: t{reached:.2f}", target)
    if as_json:
        click.echo(json.dumps(_document(runs, vector, target, remaining), indent=2))
    else:
        click.echo(_page(vector, target, remaining))


def _document(runs: list[Run], vector: Array, target: float, remaining: list[Run]) -> dict[str, Any]:
    names = ("b1", "b2", "parametrization", "curves")
    return {
        "runs": [dict(zip(names, run, strict=True)) for run in runs],
        "t_level": effort.t_level(vector),
        "missed": dict(zip(map(str, effort.DIGITS), effort.missed(vector).tolist(), strict=True)),
        "target_t_level": target,
        "remaining": [dict(zip(names, run, strict=True)) for run in remaining],
    }


def _page(vector: Array, target: float, remaining: list[Run]) -> str:
    reached = effort.t_level(vector)
    chances = dict(zip(effort.DIGITS.tolist(), effort.missed(vector).tolist(), strict=True))
    lines = [f"t{reached:.3f}", "", "digits   chance that a factor has been missed"]
    lines += [f"{digits:6}   {100 * chances[digits]:7.3f} %" for digits in SHOWN_DIGITS]
    if reached >= target:
        return "\n".join([*lines, "", f"t{target:g} is reached."])
    lines += ["", f"Still to run for t{target:g}, any one of:"]
    lines += [f"{curves:>15,} curves at B1 = {b1:,}" for b1, _, _, curves in remaining]
    return "\n".join(lines)


def _shortened(curves: str) -> str:
    words = " ".join(curves.split())
    return words if len(words) <= LONGEST_TITLE else words[: LONGEST_TITLE - 1] + "…"


def _draw(file: Path, vector: Array, title: str, target: float) -> None:
    try:
        if file.suffix.lower() == ".svg":
            file.write_text(chart.svg(vector, title, target), encoding="utf-8")
        elif file.suffix.lower() == ".png":
            file.write_bytes(chart.png(vector, title, target))
        else:
            raise click.BadParameter(f"{file.name} must end in .svg or .png", param_hint="--plot")
    except ImportError as error:
        raise click.ClickException(
            "drawing PNG needs Pillow: pip install 'ecm-coordinator[plot]', or take FILE.svg"
        ) from error
    except OSError as error:
        raise click.ClickException(f"cannot write {file}: {error.strerror or error}") from error
