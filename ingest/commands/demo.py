"""`ecm-coordinator demo`: the main job from start to end, on real numbers, with a private coordinator and two agents.

It starts a coordinator on free ports with its data in a temporary directory, and loads the numbers of
demo_composites.txt. Two agents lease work, run GMP-ECM and send their results until every number is fully factored.
Then it prints a table, and stops and removes everything.
"""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import requests
from rich import box
from rich.console import Console
from rich.table import Table

from ingest.commands.private_stack import COMMAND, StackError, private_environment, private_stack

AGENTS = ("ada", "bob")
LEASE_MINUTES = 0.05  # seconds of work rather than an hour: many leases for so few numbers
TIMEOUT = 240.0  # seconds, for all numbers; a quiet machine takes a tenth of that
LOOK_EVERY = 0.3
STOP_TIMEOUT = 30.0

console = Console(highlight=False, markup=False, soft_wrap=True)


@click.command()
def demo() -> None:
    """Let two agents factor a dozen real composites with a private coordinator, and show the result."""
    composites = read_composites()
    console.print("starting a private coordinator ...")
    started = time.monotonic()
    with started_stack() as (server, home):
        console.print(f"{server} is ready after {time.monotonic() - started:.1f} s")
        load(server, [number for number, _ in composites])
        agents = {home / f"{name}.log": start_agent(server, name, home) for name in AGENTS}
        console.print(f"{len(composites)} numbers are loaded; the agents {' and '.join(AGENTS)} begin")
        try:
            stats = watch(server, composites, agents)
        finally:
            for agent in agents.values():
                stop_agent(agent)
    console.print(as_table(composites, stats))
    finished = sum(is_finished(stat) for stat in stats)
    console.print(
        f"{finished} of {len(composites)} numbers are fully factored, with"
        f" {sum(stat['ecm_work']['total_curves'] for stat in stats)} curves in"
        f" {sum(stat['ecm_work']['total_attempts'] for stat in stats)} results, {time.monotonic() - started:.0f} s"
    )
    if finished != len(composites):
        raise click.ClickException(f"{len(composites) - finished} numbers are not factored")


@contextmanager
def started_stack() -> Iterator[tuple[str, Path]]:
    """Run a private coordinator; raise ClickException if it does not become ready."""
    try:
        with private_stack("--no-flower", LEASE_TARGET_MINUTES=str(LEASE_MINUTES)) as stack:
            yield stack
    except StackError as error:
        raise click.ClickException(str(error)) from error


def read_composites() -> list[tuple[str, str]]:
    """Return the demo's numbers: (decimal number, its origin)."""
    text = (files("ingest.commands") / "demo_composites.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(number, source) for number, source in (line.split("  # ") for line in lines)]


def load(server: str, numbers: list[str]) -> None:
    """Register the numbers: a result of no curves registers its number."""
    for number in numbers:
        body = {"client_id": "demo", "composite": number, "parameters": {"b1": 100, "curves": 0}}
        answer = requests.post(f"{server}/api/v1/submit_result", json=body, timeout=60)
        if answer.status_code != 200:
            raise click.ClickException(f"{shorten(number)} could not be loaded: {answer.text[:300]}")


def start_agent(server: str, name: str, home: Path) -> subprocess.Popen[bytes]:
    """Start `agent work` on one core, with a spool and a log of its own in `home`."""
    options = ["--server", server, "--name", name, "--threads", "1", "--spool", str(home / name)]
    with (home / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [*COMMAND, "agent", "work", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=private_environment(NO_COLOR="1"),
            start_new_session=True,
        )


def stop_agent(agent: subprocess.Popen[bytes]) -> None:
    """Stop an agent as Ctrl-C does: it sends what it has done and returns its lease."""
    agent.send_signal(signal.SIGINT)
    try:
        agent.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()


def watch(
    server: str, composites: list[tuple[str, str]], agents: dict[Path, subprocess.Popen[bytes]]
) -> list[dict[str, Any]]:
    """Print each number when it is factored; return the server's last answer for each number.

    `agents` are the agents by their logs. Raises ClickException with the last line of its log if one ends.
    """
    until = time.monotonic() + TIMEOUT
    known: dict[str, dict[str, Any]] = {}
    while time.monotonic() < until:
        for number, source in composites:
            if number in known and is_finished(known[number]):
                continue
            known[number] = requests.get(f"{server}/api/v1/stats/{number}", timeout=30).json()
            if is_finished(known[number]):
                done = sum(map(is_finished, known.values()))
                console.print(f"{done:2}/{len(composites)}  {source} = {' * '.join(known[number]['factors_found'])}")
        if all(map(is_finished, known.values())):
            break
        for log, agent in agents.items():
            if agent.poll() is not None:
                raise click.ClickException(f"an agent ended: {(log.read_text().splitlines() or [''])[-1]}")
        time.sleep(LOOK_EVERY)
    return [known[number] for number, _ in composites]


def is_finished(stats: dict[str, Any]) -> bool:
    return stats.get("status") == "fully_factored"


def as_table(composites: list[tuple[str, str]], stats: list[dict[str, Any]]) -> Table:
    """Return a table with each number's size, effort, and sizes of its factors."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for heading, justify in (
        ("number", "left"),
        ("digits", "right"),
        ("curves", "right"),
        ("t-level", "right"),
        ("target", "right"),
        ("factors", "left"),
    ):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for (number, source), stat in zip(composites, stats, strict=True):
        table.add_row(
            source,
            str(len(number)),
            str(stat["ecm_work"]["total_curves"]),
            f"{stat['current_t_level']:.2f}",
            f"{stat['target_t_level']:.1f}",
            " * ".join(f"p{len(factor)}" for factor in stat["factors_found"]) if is_finished(stat) else "not finished",
        )
    return table


def shorten(number: str) -> str:
    return number if len(number) <= 40 else f"{number[:15]}...{number[-15:]}"
