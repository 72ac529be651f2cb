"""How long the migration of a large database to targets takes, and how much memory.

100,000 numbers of 110 to 210 digits, of which 5 % share their cofactors with another one, with 1,000,000 attempts of
1,000 clients, as revision 0011 had them: half of the numbers are divided by a factor, one in ten is finished, one in
twenty has prior work, and one in fifty is a part that was split from another one. The results name the number, its
cofactor, or the cofactor as an expression. `ecm-coordinator migrate` migrates the database in a process of its own.
"""

import contextlib
import io
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import gmpy2
import psutil
from alembic import command
from gmpy2 import mpz
from sqlalchemy import Connection, text

from config.local.postgres import start_postgres
from coordinator import effort
from coordinator.composites.values import sha256
from coordinator.numbers.expressions import decimal
from coordinator.reading import invariants
from models.engine import make_engine
from models.migrate import alembic_config

NUMBERS, ATTEMPTS = 100_000, 1_000_000
OLD_REVISION = "0011"
SAMPLE_SECONDS = 0.25
MAX_DIGITS = 1000
SHOWN_VIOLATIONS = 10

_NUMBER_COLUMNS = (
    "id, number, value_sha256, current_composite, digit_length, is_prime, is_fully_factored, parent_id, priority,"
    " target_t_level, current_t_level, effort, hold, held_at"
)
_FACTOR_COLUMNS = "composite_id, factor, factor_sha256, digit_length, multiplicity, is_prime, origin"
_FILL = (
    """
INSERT INTO composite_aliases (value_sha256, composite_id, kind)
SELECT value, id, kind FROM composites, LATERAL (VALUES
    (value_sha256, 'number'), (sha256(convert_to(number, 'UTF8')), 'number'),
    (sha256(convert_to(current_composite, 'UTF8')), 'cofactor')) AS alias (value, kind)
WHERE current_composite <> '1' OR kind = 'number' ORDER BY value ON CONFLICT DO NOTHING
""",
    # A thousandth of the numbers has a good part of the attempts.
    """
CREATE TEMP TABLE runs ON COMMIT DROP AS
SELECT n AS id, 1 + floor(:numbers * power(random(), 3))::bigint AS composite_id,
       'client-' || floor(1000 * power(random(), 2)) AS client_id,
       CASE WHEN random() < 0.05 THEN 'pm1' ELSE 'ecm' END AS method, random() AS spelled,
       (ARRAY[11000, 50000, 250000, 1000000, 3000000])[1 + floor(5 * random())::integer] AS b1,
       1 + floor(100 * random())::integer AS curves, random() AS fate,
       now() - (:attempts - n) * interval '1 minute' AS created_at
FROM generate_series(1, :attempts) n
""",
    """
INSERT INTO submissions (
    id, client_id, idempotency_key, key_is_implicit, payload_sha256, payload, state, outcome, composite_id, attempt_id,
    created_at, settled_at
)
SELECT r.id, client_id, md5(r.id::text), false, sha256(r.id::text::bytea),
       jsonb_build_object(
           'client_id', client_id, 'method', method, 'program', 'gmp-ecm', 'program_version', '7.0.5',
           'composite', CASE WHEN c.current_composite = '1' OR spelled < 0.45 THEN c.number
                             WHEN spelled < 0.95 THEN c.current_composite
                             ELSE '(' || c.current_composite || '*1)' END,
           'parameters', jsonb_build_object('b1', b1, 'curves', curves, 'parametrization', 3),
           'results', jsonb_build_object('execution_time', 1000 * fate)),
       'applied',
       jsonb_build_object('attempt_id', r.id, 'composite_id', c.id, 'factor_status', 'no_factor',
           'message', 'Result applied', 'current_t_level', c.current_t_level, 'target_t_level', c.target_t_level),
       c.id, r.id, r.created_at, r.created_at
FROM runs r JOIN composites c ON c.id = r.composite_id ORDER BY r.id
""",
    """
INSERT INTO ecm_attempts (
    id, composite_id, submission_id, client_id, method, program, program_version, b1, b2, parametrization, curves,
    execution_time, curves_sha256, voided_at, created_at
)
SELECT id, composite_id, id, client_id, method, 'gmp-ecm', '7.0.5', b1, -1,
       CASE method WHEN 'ecm' THEN 3 END, CASE method WHEN 'ecm' THEN curves ELSE 1 END, 1000 * fate,
       CASE WHEN spelled < 0.7 THEN sha256(id::text::bytea) END, CASE WHEN fate < 0.01 THEN now() END, created_at
FROM runs ORDER BY id
""",
    """
INSERT INTO composite_effort (composite_id, b1, b2, parametrization, curves)
SELECT composite_id, b1, b2, parametrization, sum(curves) FROM ecm_attempts
WHERE method = 'ecm' AND voided_at IS NULL GROUP BY 1, 2, 3, 4
""",
    """
INSERT INTO composite_effort (composite_id, b1, b2, parametrization, prior_curves)
SELECT id, 50000, -1, 1, 100 FROM composites WHERE id % 20 = 3
ON CONFLICT (composite_id, b1, b2, parametrization) DO UPDATE SET prior_curves = excluded.prior_curves
""",
    """
UPDATE composites c SET attempt_count = a.attempts, last_attempt_at = a.last
FROM (SELECT composite_id, count(*) AS attempts, max(created_at) AS last FROM ecm_attempts
      WHERE voided_at IS NULL GROUP BY 1) a
WHERE a.composite_id = c.id
""",
    """
INSERT INTO work_assignments (id, composite_id, client_id, method, b1, b2, parametrization, curves, expires_at)
SELECT gen_random_uuid(), id, 'client-' || id % 1000, 'ecm', 250000, -1, 3, 100, now() + interval '1 day'
FROM composites WHERE id % 50 = 7 AND NOT is_fully_factored
""",
    """
INSERT INTO ecm_residues (
    composite_id, client_id, number, b1, parametrization, curve_count, sha256, file_name, file_size_bytes, expires_at
)
SELECT id, 'client-1', current_composite, 250000, 3, 10, value_sha256, id::text, 5000, now() + interval '1 day'
FROM composites WHERE id % 200 = 9 AND NOT is_fully_factored
""",
    "SELECT setval('ecm_attempts_id_seq', :attempts), setval('submissions_id_seq', :attempts),"
    " setval('composites_id_seq', :numbers)",
)


@dataclass(frozen=True)
class MigrationMeasurement:
    """A migration: its seconds, the most memory of its process (MB), the rows afterwards, and the broken invariants.

    The processor seconds are those of its process, without the database's. They and the memory do not depend on what
    else the machine does.
    """

    numbers: int
    attempts: int
    seconds: float
    processor_seconds: float
    megabytes: float
    targets: int
    worked_values: int
    target_sources: int
    violations: int


def _random_composite(generator: random.Random) -> mpz:
    """Return an odd composite of 110 to 210 digits."""
    digits = generator.randint(110, 200) // 2
    halves = [mpz(generator.randrange(10 ** (digits - 1), 10**digits)) | 1 for _ in range(2)]
    return 1009 * halves[0] * halves[1]


def _numbers(count: int) -> Iterator[tuple[tuple[Any, ...], list[tuple[mpz, int]]]]:
    """Yield rows of numbers, by _NUMBER_COLUMNS, each with its prime factors and their multiplicities."""
    generator = random.Random(1)
    done = effort.effort_of([(250_000, -1, 3, 1000)]).tobytes()
    shared = mpz(0)
    for number_id in range(1, count + 1):
        cofactor = _random_composite(generator)
        if number_id % 40 == 0:
            shared = cofactor
        elif number_id % 40 == 20 and shared:
            cofactor = shared
        factor = gmpy2.next_prime(generator.randrange(10**6, 10**9)) if number_id % 40 in (0, 20) else mpz(1)
        if number_id % 2:
            factor = gmpy2.next_prime(generator.randrange(10**6, 10**9))
        is_finished = number_id % 10 == 1
        factors = [(factor, 1)] if factor > 1 else []
        if is_finished:
            # A power of a prime of eleven digits: there are no large primes to look for.
            prime = gmpy2.next_prime(generator.randrange(10**10, 10**11))
            exponent = generator.randint(11, 18)
            cofactor = prime**exponent
            factors.append((prime, exponent))
        value = factor * cofactor
        written = f"{factor}*{cofactor}" if number_id % 4 == 1 else decimal(value)
        left = "1" if is_finished else decimal(cofactor)
        is_held = number_id % 500 == 3
        row = (
            number_id,
            written,
            "\\x" + sha256(decimal(value)).hex(),
            left,
            len(decimal(value) if is_finished else left),
            None if is_finished else False,
            is_finished,
            number_id - 1 if number_id % 50 == 35 else None,
            number_id % 7,
            effort.target_t_level(len(left)),
            30.0,
            "\\x" + done.hex(),
            "paused" if is_held else None,
            "2026-01-01" if is_held else None,
        )
        yield row, factors


def _copy_line(row: tuple[Any, ...]) -> str:
    cells = ("\\N" if cell is None else str(cell).replace("\\", "\\\\") for cell in row)
    return "\t".join(cells) + "\n"


def fill(connection: Connection, numbers: int, attempts: int) -> None:
    """Fill an empty database of revision 0011."""
    cursor: Any = connection.connection.cursor()  # psycopg2's, which knows COPY
    composites, factors = io.StringIO(), io.StringIO()
    for row, primes in _numbers(numbers):
        composites.write(_copy_line(row))
        for prime, multiplicity in primes:
            written = decimal(prime)
            hashed = "\\x" + sha256(written).hex()
            factors.write(_copy_line((row[0], written, hashed, len(written), multiplicity, True, "known")))
    composites.seek(0)
    factors.seek(0)
    cursor.copy_expert(f"COPY composites ({_NUMBER_COLUMNS}) FROM STDIN", composites)
    cursor.copy_expert(f"COPY factors ({_FACTOR_COLUMNS}) FROM STDIN", factors)
    connection.execute(text("SELECT setseed(0.5)"))
    for statement in _FILL:
        connection.execute(text(statement), {"numbers": numbers, "attempts": attempts})


def migrate(url: str) -> tuple[float, float, float]:
    """Run `ecm-coordinator migrate`; returns its seconds, its processor seconds, and the most memory it had, in MB."""
    started = perf_counter()
    command = [sys.executable, "-c", "from ingest.cli import main; main()", "migrate"]
    most, processor = 0.0, 0.0
    with subprocess.Popen(command, env=os.environ | {"DATABASE_URL": url}, stdout=sys.stderr) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                most = max(most, watched.memory_info().rss / 1e6)
                processor = sum(watched.cpu_times()[:2])
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise RuntimeError(f"the migration failed with {process.returncode}")
    return perf_counter() - started, processor, most


def measure(numbers: int = NUMBERS, attempts: int = ATTEMPTS) -> dict[str, Any]:
    """Fill a database of the old revision, migrate it, and check its invariants."""
    with tempfile.TemporaryDirectory() as directory:
        server = start_postgres(Path(directory), durable=False)
        engine = make_engine(server.url)
        try:
            with engine.begin() as connection:
                config = alembic_config()
                config.attributes["connection"] = connection
                command.upgrade(config, OLD_REVISION)
                fill(connection, numbers, attempts)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE"))
            seconds, processor, megabytes = migrate(server.url)
            with engine.connect() as connection:
                counts = {
                    table: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
                    for table in ("targets", "worked_values", "target_sources")
                }
            found = invariants.violations(engine, max_digits=MAX_DIGITS)
            for violation in found[:SHOWN_VIOLATIONS]:
                print(f"  broken: {violation}", file=sys.stderr)
        finally:
            engine.dispose()
            server.stop()
    return asdict(
        MigrationMeasurement(
            numbers,
            attempts,
            round(seconds, 1),
            round(processor, 1),
            round(megabytes, 1),
            **counts,
            violations=len(found),
        )
    )


def report(figures: dict[str, Any]) -> str:
    """Return the measurement as a sentence."""
    return (
        f"migration to targets: {figures['numbers']:,} numbers and {figures['attempts']:,} attempts in"
        f" {figures['seconds']:.0f} s ({figures['processor_seconds']:.0f} s of its processor time) with"
        f" {figures['megabytes']:.0f} MB;"
        f" {figures['targets']:,} targets, {figures['worked_values']:,} values, {figures['target_sources']:,} sources;"
        f" the doctor finds {figures['violations']} broken invariants"
    )
