"""Two agents on a real list whose numbers share cofactors: Fibonacci and Lucas numbers with their small factors.

F(2n) = F(n) L(n), so F(2n) with the known factor F(n) shares its cofactor with L(n). `python -m bench.shared_list` runs
a private coordinator and two agents until they have found enough factors, and then checks that

- no target was leased twice at a time as a whole (sampled while the agents work);
- every curve of every lease counts for the number that was leased;
- numbers with the same cofactor show the same t-level;
- `doctor` finds nothing.
"""

import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import gmpy2
from gmpy2 import mpz
from sqlalchemy import Engine, text

from config.local.postgres import postgres_url
from config.settings import Settings
from coordinator.reading import invariants
from ingest.commands.private_stack import COMMAND, private_environment, private_stack
from models.engine import make_engine

INDEXES = range(200, 701)
SMALL_PRIMES_BELOW = 1_000_000
SAMPLE_SECONDS = 0.2
AGENTS = ("ada", "emmy")

_OPEN_LEASES = """
SELECT target_id FROM work_assignments WHERE closed_at IS NULL
GROUP BY target_id HAVING count(*) > 1 AND bool_or(curves IS NULL)
"""
# `leases another number` is the note of a result that counts without its lease.
_LEFT_OUT = """
SELECT count(*) FROM submissions WHERE payload ? 'work_id' AND outcome->>'message' LIKE '%leases another number%'
"""
# The curves of a lease count for its number if they were run on a multiple of what is left of it.
_LOST_LEASES = """
SELECT count(*) FROM work_assignments w JOIN composites c ON c.id = w.composite_id JOIN targets t ON t.id = c.target_id
WHERE w.method = 'ecm' AND w.curves_submitted > 0 AND w.curves_submitted <> (
    SELECT coalesce(sum(a.curves), 0) FROM ecm_attempts a
    JOIN target_sources s ON s.value_id = a.value_id AND s.target_id = t.id
    WHERE a.work_id = w.id AND a.composite_id = w.composite_id)
"""
_SHARERS = """
SELECT count(*), count(*) FILTER (WHERE levels > 1) FROM (
    SELECT count(DISTINCT current_t_level) AS levels FROM composites
    WHERE NOT is_fully_factored AND current_composite <> '1' GROUP BY current_composite HAVING count(*) > 1) shared
"""
_COUNTS = """
SELECT (SELECT count(*) FROM composites), (SELECT count(*) FROM targets),
       (SELECT count(*) FROM work_assignments WHERE status = 'completed' AND curves_submitted > 0),
       (SELECT coalesce(sum(curves), 0) FROM ecm_attempts)
"""
_FACTORS_FOUND = "SELECT count(DISTINCT factor) FROM factors WHERE attempt_id IS NOT NULL"


@dataclass(frozen=True)
class SharedListMeasurement:
    """What the agents did in how many seconds; all figures from `leased_twice` on should be 0."""

    seconds: float
    composites: int
    targets: int
    shared_cofactors: int
    factors_found: int
    leases: int
    curves: int
    leased_twice: int
    results_without_lease: int
    leases_that_do_not_count: int
    sharers_with_other_levels: int
    violations: int


def lines() -> list[str]:
    """Return the lines of a list: each number in decimal, with its known factors.

    These are its prime factors below SMALL_PRIMES_BELOW, and F(n) for F(2n) = F(n) L(n) (https://oeis.org/A000045).
    """
    primes = [mpz(2)]
    while primes[-1] < SMALL_PRIMES_BELOW:
        primes.append(gmpy2.next_prime(primes[-1]))
    small = gmpy2.primorial(SMALL_PRIMES_BELOW)
    found = ["number,factors"]
    for index in INDEXES:
        for value, algebraic in ((gmpy2.fib(index), gmpy2.fib(index // 2)), (gmpy2.lucas(index), mpz(1))):
            common = gmpy2.gcd(value, small)
            factors = [prime for prime in primes if common % prime == 0] if common > 1 else []
            if index % 2 == 0 and algebraic > 1:
                factors.append(algebraic)
            found.append(f"{value},{' '.join(map(str, factors))}")
    return found


def measure(factors: int, minutes: float) -> SharedListMeasurement:
    """Run the agents until they have found `factors` factors, at most so many minutes, and check what they did."""
    with private_stack("--no-flower", LOG_LEVEL="WARNING", LEASE_TARGET_MINUTES="0.1") as (server, home):
        file = home / "list.csv"
        file.write_text("\n".join(lines()) + "\n")
        environment = private_environment(ECM_HOME=str(home))
        subprocess.run([*COMMAND, "composites", "import", str(file)], env=environment, check=True)
        engine = make_engine(postgres_url(home), pool_size=2)
        began = time.monotonic()
        agents = [_start_agent(server, name, home) for name in AGENTS]
        twice: set[int] = set()
        try:
            while time.monotonic() < began + 60 * minutes and _scalar(engine, _FACTORS_FOUND) < factors:
                with engine.connect() as connection:
                    twice.update(connection.execute(text(_OPEN_LEASES)).scalars())
                time.sleep(SAMPLE_SECONDS)
        finally:
            for agent in agents:
                agent.terminate()
            for agent in agents:
                agent.wait(120)
        seconds = time.monotonic() - began
        while _scalar(engine, "SELECT count(*) FROM submissions WHERE state = 'received'"):
            time.sleep(SAMPLE_SECONDS)
        with engine.connect() as connection:
            counts = connection.execute(text(_COUNTS)).one()
            sharers = connection.execute(text(_SHARERS)).one()
        measured = SharedListMeasurement(
            round(seconds, 1),
            counts[0],
            counts[1],
            sharers[0],
            _scalar(engine, _FACTORS_FOUND),
            counts[2],
            counts[3],
            len(twice),
            _scalar(engine, _LEFT_OUT),
            _scalar(engine, _LOST_LEASES),
            sharers[1],
            len(invariants.violations(engine, max_digits=Settings().max_digits)),
        )
        engine.dispose()
    return measured


def _start_agent(server: str, name: str, home: Path) -> "subprocess.Popen[bytes]":
    options = ["--server", server, "--name", name, "--threads", "1", "--spool", str(home / f"spool-{name}")]
    return subprocess.Popen([*COMMAND, "agent", "work", *options], env=private_environment(), stdout=sys.stderr)


def _scalar(engine: Engine, statement: str) -> int:
    with engine.connect() as connection:
        value: int = connection.execute(text(statement)).scalar_one()
    return value


@click.command()
@click.option("--factors", default=20, show_default=True, help="Stop when so many factors were found.")
@click.option("--minutes", default=20.0, show_default=True, help="Stop after so many minutes in any case.")
def main(factors: int, minutes: float) -> None:
    """Two agents on Fibonacci and Lucas numbers that share cofactors."""
    for name, value in asdict(measure(factors, minutes)).items():
        click.echo(f"{name.replace('_', ' ')}: {value:,}")


if __name__ == "__main__":
    main()
