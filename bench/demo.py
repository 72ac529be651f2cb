"""`ecm-coordinator demo`: the main job once through, on real numbers and a private stack.

A coordinator of its own is started on free ports with its data in a temporary directory; GMP-ECM runs on each number of
demo_composites.txt; each result is posted and followed until it is applied; then everything is stopped and removed.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import requests
from rich import box
from rich.console import Console
from rich.table import Table

from agent import client, gmp_ecm, spool
from agent.cli import curve_progress, report_wait, shorten
from agent.gmp_ecm import Factor
from agent.run import Order, run_curves
from bench.stack import StackError, private_stack

B1 = 11_000  # finds 20 digits in 107 curves on average, at some 20 ms a curve
CURVES = 1_000
APPLY_PATIENCE = 60.0  # seconds
FINISH_PATIENCE = 20.0  # a small cofactor is finished in the background, which takes FLINT a moment
FINISHED_BY_SERVER = 45  # digits: a cofactor this small is the server's own job

console = Console(highlight=False, markup=False, soft_wrap=True)


@dataclass
class Row:
    """What became of one number."""

    source: str
    number: str
    curves: int
    factors: list[Factor]
    applied: bool
    stats: dict[str, Any]


@click.command()
def demo() -> None:
    """Run GMP-ECM on a dozen real composites against a private coordinator, and show what it makes of the results."""
    try:
        ecm = gmp_ecm.find_ecm()
    except gmp_ecm.EcmMissing as error:
        raise click.ClickException(str(error)) from error
    composites = read_composites()
    rows = []
    console.print("starting a private coordinator ...")
    started = time.monotonic()
    with started_stack() as (server, home):
        console.print(f"{server} is ready after {time.monotonic() - started:.1f} s")
        for position, (number, source) in enumerate(composites, 1):
            row = factor_and_post(number, source, ecm, server, home / "spool")
            rows.append(row)
            found = ", ".join(factor.value for factor in row.factors) or "no factor"
            verdict = "applied" if row.applied else "NOT APPLIED"
            console.print(f"{position:2}/{len(composites)}  {source}: {row.curves} curves, {found}, {verdict}")
        for row in rows:
            row.stats = settled_stats(server, row.number)
    console.print(as_table(rows))
    applied = sum(row.applied for row in rows)
    console.print(
        f"{len(rows)} numbers, {sum(row.curves for row in rows)} curves,"
        f" {sum(len(row.factors) for row in rows)} factors found by GMP-ECM, {applied} results applied,"
        f" {sum(row.stats.get('status') == 'fully_factored' for row in rows)} numbers fully factored,"
        f" {time.monotonic() - started:.0f} s"
    )
    if applied != len(rows):
        raise click.ClickException(f"{len(rows) - applied} of {len(rows)} results were not applied")


@contextmanager
def started_stack() -> Iterator[tuple[str, Path]]:
    """A private stack, whose failures are told in a line."""
    try:
        with private_stack("--no-flower") as stack:
            yield stack
    except StackError as error:
        raise click.ClickException(str(error)) from error


def read_composites() -> list[tuple[str, str]]:
    """The demo's numbers: (decimal number, where it comes from)."""
    text = (files("bench") / "demo_composites.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(number, source) for number, source in (line.split("  # ") for line in lines)]


def factor_and_post(number: str, source: str, ecm: Path, server: str, root: Path) -> Row:
    """Run curves on a number until one finds a factor, and follow the result until the server has applied it."""
    order = Order(server=server, client_id="demo", composite=number, b1=B1, curves=CURVES)
    with curve_progress(order) as on_line:
        output, entry = run_curves(order, ecm, root, on_line=on_line)
    if entry is None:
        return Row(source, number, 0, [], False, {})
    answer = client.deliver(entry, patience=APPLY_PATIENCE, on_wait=report_wait, first_delay=0.1)
    if answer.verdict == "settled":
        spool.settle(entry)
    else:
        console.print(f"{shorten(number)}: {answer.message}")
        entry.release()
    return Row(source, number, output.curves_completed, output.factors, answer.verdict == "settled", {})


def settled_stats(server: str, number: str) -> dict[str, Any]:
    """The server's view of a number, once it has finished the cofactor that is its own to finish."""
    until = time.monotonic() + FINISH_PATIENCE
    while True:
        answer = requests.get(f"{server}/api/v1/stats/{number}", timeout=30)
        stats: dict[str, Any] = answer.json() if answer.ok else {}
        small = len(stats.get("current_composite") or "") <= FINISHED_BY_SERVER
        if not (stats.get("status") == "composite" and small) or time.monotonic() > until:
            return stats
        time.sleep(0.2)


def as_table(rows: list[Row]) -> Table:
    # It has to fit the 80 columns of a terminal or a log, its factors and sigmas whole.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("number", "factor", "sigma", "t-level", "cofactor"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        t_level = row.stats.get("current_t_level")
        table.add_row(
            row.source,
            "\n".join(factor.value for factor in row.factors) or "-",
            "\n".join(factor.sigma or "-" for factor in row.factors) or "-",
            "-" if t_level is None else f"{t_level:.2f}",
            cofactor_state(row.stats),
        )
    return table


def cofactor_state(stats: dict[str, Any]) -> str:
    """What is left of a number: `3 primes` when it is fully factored, else the composite still to do, as `C50`."""
    if stats.get("status") == "fully_factored":
        return f"{len(stats.get('factors_found') or [])} primes"
    if left := stats.get("current_composite"):
        return f"C{len(left)}"
    return "unknown"
