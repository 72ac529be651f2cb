"""How long a list of numbers takes to load, through the command line, and how much memory that needs."""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import gmpy2
import psutil
from gmpy2 import mpz
from sqlalchemy import text

from config.embedded import start_postgres
from models.engine import make_engine
from models.migrate import upgrade

LOOK_EVERY = 0.25
KINDS = ("products", "random")


@dataclass(frozen=True)
class Loaded:
    """A load: seconds, the most memory (MB) of the command and its processes, and the rows that came of it."""

    seconds: float
    megabytes: float
    composites: int
    factors: int


def numbers(count: int, digits: int, kind: str, seed: int = 1) -> Iterator[mpz]:
    """Different numbers of about so many digits: products of two primes, or random ones with whatever is in them."""
    chance = random.Random(seed)
    if kind == "random":
        for _ in range(count):
            yield mpz(chance.randrange(10 ** (digits - 1), 10**digits))
        return
    low, high = 10 ** (digits // 2 - 1) * 4, 10 ** (digits // 2)
    # The products of so many primes are more than enough.
    primes = [gmpy2.next_prime(chance.randrange(low, high)) for _ in range(int((2 * count) ** 0.5) + 3)]
    for place, (left, right) in enumerate((a, b) for i, a in enumerate(primes) for b in primes[:i]):
        if place == count:
            return
        yield left * right


def load(url: str, file: Path) -> tuple[float, float]:
    """(seconds, most megabytes) of `ecm-coordinator composites import`."""
    command = [sys.executable, "-c", "from ingest.cli import main; main()", "composites", "import", str(file)]
    started = time.monotonic()
    most = 0.0
    with subprocess.Popen(command, env=os.environ | {"DATABASE_URL": url}, stdout=sys.stderr) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                tree = [watched, *watched.children(recursive=True)]
                most = max(most, sum(member.memory_info().rss for member in tree) / 1e6)
            except psutil.NoSuchProcess:
                pass
            time.sleep(LOOK_EVERY)
    if process.returncode:
        raise click.ClickException(f"the import failed with {process.returncode}")
    return time.monotonic() - started, most


def measure(count: int = 1_000_000, digits: int = 150, kind: str = "products", again: bool = False) -> list[Loaded]:
    """Load a list into a database of its own, once or twice."""
    results = []
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "numbers.txt"
        with file.open("w") as lines:
            lines.writelines(f"{number}\n" for number in numbers(count, digits, kind))
        server = start_postgres(Path(home))
        try:
            upgrade(server.url)
            for _ in range(2 if again else 1):
                seconds, megabytes = load(server.url, file)
                engine = make_engine(server.url)
                with engine.connect() as connection:
                    rows = [
                        connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
                        for table in ("composites", "factors")
                    ]
                engine.dispose()
                results.append(Loaded(seconds, megabytes, *rows))
        finally:
            server.stop()
    return results


@click.command()
@click.option("--count", default=1_000_000, show_default=True)
@click.option("--digits", default=150, show_default=True)
@click.option("--kind", type=click.Choice(KINDS), default="products", show_default=True)
@click.option("--again", is_flag=True, help="Load the same list a second time as well.")
def imports(count: int, digits: int, kind: str, again: bool) -> None:
    """Measure `ecm-coordinator composites import`."""
    for loaded in measure(count, digits, kind, again):
        click.echo(
            f"{count:,} {kind} of {digits} digits: {loaded.seconds:.0f} s, at most {loaded.megabytes:.0f} MB;"
            f" {loaded.composites:,} composites, {loaded.factors:,} factors"
        )


if __name__ == "__main__":
    imports()
