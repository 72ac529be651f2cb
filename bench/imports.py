"""The time and memory that the command line needs to load a list of numbers."""

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

from config.local.postgres import start_postgres
from models.engine import make_engine
from models.migrate import upgrade

SAMPLE_SECONDS = 0.25
KINDS = ("products", "random")


@dataclass(frozen=True)
class ImportMeasurement:
    """A load: seconds by the clock, processor seconds, the most memory (MB), and the rows afterwards.

    The processor seconds are those of the command with its processes, and of its backend in the database. They do not
    depend on what else the machine does.
    """

    seconds: float
    command_seconds: float
    database_seconds: float
    megabytes: float
    composites: int
    factors: int


def numbers(count: int, digits: int, kind: str, seed: int = 1) -> Iterator[mpz]:
    """Yield different numbers of about `digits` digits: products of two primes, or random integers."""
    generator = random.Random(seed)
    if kind == "random":
        for _ in range(count):
            yield mpz(generator.randrange(10 ** (digits - 1), 10**digits))
        return
    low, high = 10 ** (digits // 2 - 1) * 4, 10 ** (digits // 2)
    # The products of pairs of this many primes are more than enough.
    primes = [gmpy2.next_prime(generator.randrange(low, high)) for _ in range(int((2 * count) ** 0.5) + 3)]
    for place, (left, right) in enumerate((a, b) for i, a in enumerate(primes) for b in primes[:i]):
        if place == count:
            return
        yield left * right


def load(url: str, home: Path, file: Path) -> tuple[float, float, float, float]:
    """Run `composites import`; returns its seconds, its and its backend's processor seconds, and its megabytes."""
    command = [sys.executable, "-c", "from ingest.cli import main; main()", "composites", "import", str(file)]
    started = time.monotonic()
    most = 0.0
    processors: dict[int, float] = {}
    backends: dict[int, float] = {}
    with subprocess.Popen(command, env=os.environ | {"DATABASE_URL": url}, stdout=sys.stderr) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                tree = [watched, *watched.children(recursive=True)]
                most = max(most, sum(member.memory_info().rss for member in tree) / 1e6)
                processors |= {member.pid: sum(member.cpu_times()[:2]) for member in tree}
                backends |= {backend.pid: sum(backend.cpu_times()[:2]) for backend in _backends(home)}
            except psutil.NoSuchProcess:
                pass
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise click.ClickException(f"the import failed with {process.returncode}")
    return time.monotonic() - started, sum(processors.values()), max(backends.values()), most


def _backends(home: Path) -> list[psutil.Process]:
    """The child processes of the PostgreSQL whose data is under `home`."""
    (pid_file,) = home.rglob("postmaster.pid")
    return psutil.Process(int(pid_file.read_text().split()[0])).children()


def measure(
    count: int = 1_000_000, digits: int = 150, kind: str = "products", again: bool = False
) -> list[ImportMeasurement]:
    """Load a list into a new database, once, or with `again` twice."""
    results = []
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "numbers.txt"
        with file.open("w") as lines:
            lines.writelines(f"{number}\n" for number in numbers(count, digits, kind))
        server = start_postgres(Path(home))
        try:
            upgrade(server.url)
            for _ in range(2 if again else 1):
                figures = load(server.url, Path(home), file)
                engine = make_engine(server.url)
                with engine.connect() as connection:
                    rows = [
                        connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
                        for table in ("composites", "factors")
                    ]
                engine.dispose()
                results.append(ImportMeasurement(*figures, *rows))
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
            f"{count:,} {kind} of {digits} digits: {loaded.seconds:.0f} s by the clock,"
            f" {loaded.command_seconds:.0f} + {loaded.database_seconds:.0f} s of processors,"
            f" at most {loaded.megabytes:.0f} MB; {loaded.composites:,} composites, {loaded.factors:,} factors"
        )


if __name__ == "__main__":
    imports()
