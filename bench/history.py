"""A long history for benchmarks: millions of results of several years, which SQL inserts in minutes.

Each result is a submission and, unless it is rejected or failed, an attempt. The attempts follow a power law over
clients and numbers: a thousandth of the numbers has a good part of the attempts. The functions of housekeeping compute
the derived tables.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Engine, text

from bench.claims import numbers_in_all
from coordinator.composites import statistics

YEARS = 5
CLIENTS = 1_000
REJECTED = 100  # one in this many is rejected; one in a thousand of these has a true factor
FAILED = 100_000  # one in this many is failed


@dataclass(frozen=True)
class History:
    """The amounts of everything; `busy` and `split` are ids of numbers among `numbers`.

    `busy` has `busy_attempts` attempts, with curves at many B1; `split` has a tree of `split_factors` factors. One more
    number, `longest`, has `longest_digits` digits and a cofactor that is nearly as long.
    """

    numbers: int
    attempts: int
    busy: int
    busy_attempts: int
    split: int
    split_factors: int
    longest_digits: int

    @property
    def longest(self) -> int:
        return numbers_in_all(self.numbers) + 1


_BULK = (
    """
INSERT INTO submissions (
    id, client_id, idempotency_key, key_is_implicit, payload_sha256, payload, state, reason, detail, outcome,
    composite_id, attempt_id, created_at, settled_at
)
SELECT n, client, md5(n::text), false, sha256(n::text::bytea),
    jsonb_build_object('composite', '1' || lpad(number::text, 12, '0') || repeat('7', 77), 'client_id', client,
                       'method', 'ecm', 'b1', 50000, 'curves', 10 + n % 90),
    CASE WHEN n % :rejected = 0 THEN 'rejected' WHEN n % :failed = 1 THEN 'failed' ELSE 'applied' END,
    CASE WHEN n % :rejected = 0 THEN 'factor_does_not_divide' WHEN n % :failed = 1 THEN 'too_many_tries' END,
    CASE WHEN n % :rejected = 0 THEN 'The factor 1234577 does not divide' END,
    CASE WHEN n % (1000 * :rejected) = 0 THEN '{"true_factors": ["1234567"]}'::jsonb END,
    number, n, at, at + interval '1 second'
FROM (
    SELECT n, 'client-' || floor(:clients * power((hashint8(n) & 1048575) / 1048576.0, 3)) AS client,
        CASE WHEN n % (:attempts / :busy_attempts) = 7 THEN :busy
             ELSE 1 + floor(:numbers * power((hashint8(-n) & 1073741823) / 1073741824.0, 2))::bigint END AS number,
        now() - make_interval(secs => :seconds * (1 - n::double precision / :attempts)) AS at
    FROM generate_series(1, :attempts) n
) made
""",
    # The results are about the numbers that are their targets' values and have the same ids.
    """
INSERT INTO worked_values (id, value_sha256, value)
SELECT id, value_sha256, number FROM composites c
WHERE EXISTS (SELECT FROM submissions s WHERE s.composite_id = c.id AND s.state = 'applied')
ON CONFLICT DO NOTHING
""",
    "INSERT INTO target_sources (target_id, value_id) SELECT id, id FROM worked_values ON CONFLICT DO NOTHING",
    """
INSERT INTO ecm_attempts (
    id, composite_id, value_id, submission_id, client_id, method, program, program_version, b1, b2, parametrization,
    curves, sigma, execution_time, curves_sha256, created_at
)
SELECT attempt_id, composite_id, composite_id, id, client_id, 'ecm', 'GMP-ECM', '7.0.5',
    (ARRAY[2000, 11000, 50000, 250000, 1000000, 3000000, 11000000])[1 + (id % 7)::int], -1, 1,
    (payload ->> 'curves')::bigint, (1000000000 + id)::text, 60 + id % 600, payload_sha256, created_at
FROM submissions WHERE state = 'applied' ORDER BY id
""",
)
_REST = (
    "SELECT setval('ecm_attempts_id_seq', :attempts)",
    """
UPDATE factors f SET attempt_id = a.id, created_at = a.created_at, method = 'ecm', sigma = a.sigma, parametrization = 1
FROM ecm_attempts a
WHERE a.id = 2 + (f.id * 48271) % (:attempts / :rejected) * :rejected
""",
    # Housekeeping reads only the last minutes of submissions, as it has read the others before.
    """
INSERT INTO clients (name, first_seen, last_seen)
SELECT client_id, min(created_at), max(created_at) FROM submissions GROUP BY client_id
""",
    "UPDATE targets SET attempt_count = :busy_attempts, last_attempt_at = now() WHERE id = :busy",
    "UPDATE composites SET attempt_count = :busy_attempts, last_attempt_at = now() WHERE target_id = :busy",
    """
INSERT INTO value_effort (value_id, b1, b2, parametrization, curves)
SELECT :busy, 1000 * b1, b2, 1, 100 * b1 FROM generate_series(11, 40) b1, (VALUES (-1), (0), (1000000000)) b (b2)
ON CONFLICT DO NOTHING
""",
    """
INSERT INTO work_assignments (
    id, composite_id, target_id, client_id, method, b1, b2, parametrization, curves, expires_at
)
SELECT gen_random_uuid(), :busy, :busy, 'holder-' || n, 'ecm', 50000, -1, 1, 10, now() + interval '5 days'
FROM generate_series(1, 50) n
""",
    """
INSERT INTO work_assignments (id, composite_id, target_id, client_id, method, expires_at)
SELECT gen_random_uuid(), n, n, 'holder-' || n, 'nfs', now() + interval '90 days' FROM generate_series(1, 100) n
""",
    """
INSERT INTO targets (id, value_sha256, digit_length, is_prime, target_t_level, current_t_level, effort)
SELECT :longest, sha256(repeat('9', :longest_digits - 7)::bytea), :longest_digits - 7, false, 100, current_t_level,
    effort
FROM targets WHERE id = :busy
""",
    """
INSERT INTO composites (
    id, number, value_sha256, current_composite, digit_length, is_prime, target_id, explicit_target_t_level,
    target_t_level, current_t_level
)
SELECT id, '3' || repeat('7', :longest_digits - 1), sha256('longest'), repeat('9', digit_length), digit_length,
    is_prime, id, target_t_level, target_t_level, current_t_level
FROM targets WHERE id = :longest
""",
    "SELECT setval('targets_id_seq', :longest), setval('composites_id_seq', :longest)",
    # Each factor is split into the next five, up to the last factor.
    """
INSERT INTO factors (
    id, composite_id, factor, factor_sha256, digit_length, multiplicity, is_prime, split_from_id, origin, client_id,
    sigma, group_order, group_order_factors, is_explained
)
OVERRIDING SYSTEM VALUE
SELECT last + n, :split, '1' || lpad(n::text, 6, '0') || repeat('3', 33), sha256(n::text::bytea), 40, 1,
    n > :split_factors / 5,
    CASE WHEN n > 5 THEN last + (n - 1) / 5 END, CASE WHEN n > 5 THEN 'split' ELSE 'submitted' END, 'client-7',
    '3:123456789', repeat('1', 40), '2^5 * 3^2 * 101 * 1009 * 10007 * 100003 * 1000003 * 10000019', true
FROM (SELECT max(id) AS last FROM factors) known, generate_series(1, :split_factors) n
""",
)


def fill(engine: Engine, history: History) -> None:
    """Add the history to a database with its numbers, derive tables as housekeeping does, and update statistics."""
    sizes = vars(history) | {
        "longest": history.longest,
        "clients": CLIENTS,
        "rejected": REJECTED,
        "failed": FAILED,
        "seconds": timedelta(days=365 * YEARS).total_seconds(),
    }
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL maintenance_work_mem = '1GB'"))
        connection.execute(text("SET LOCAL work_mem = '512MB'"))
        with _without_indexes(connection, ("submissions", "ecm_attempts")):
            for statement in _BULK:
                connection.execute(text(statement), sizes)
        connection.execute(text("ANALYZE submissions, ecm_attempts"))
        for statement in _REST:
            connection.execute(text(statement), sizes)
    statistics.update_clients(engine)
    statistics.aggregate_attempts(engine, datetime.now(UTC), timedelta())
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


_CONSTRAINTS = """
SELECT conrelid::regclass::text AS of, quote_ident(conname) AS name, pg_get_constraintdef(oid) AS definition, contype
FROM pg_constraint
WHERE contype IN ('p', 'u', 'f')
    AND (conrelid = ANY(CAST(:tables AS regclass[])) OR confrelid = ANY(CAST(:tables AS regclass[])))
ORDER BY contype
"""
_INDEXES = """
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
FROM pg_index WHERE indrelid = ANY(CAST(:tables AS regclass[]))
"""


@contextmanager
def _without_indexes(connection: Connection, tables: Sequence[str]) -> Iterator[None]:
    """Drop the tables' keys and indexes, and create them again at the end, which is several times as fast."""
    parameters = {"tables": list(tables)}
    # Foreign keys first, because they depend on the other constraints.
    constraints = connection.execute(text(_CONSTRAINTS), parameters).all()
    for one in constraints:
        connection.execute(text(f"ALTER TABLE {one.of} DROP CONSTRAINT {one.name}"))
    indexes = connection.execute(text(_INDEXES), parameters).all()
    for one in indexes:
        connection.execute(text(f"DROP INDEX {one.name}"))
    yield
    for one in indexes:
        connection.exec_driver_sql(one.definition)
    for one in reversed(constraints):
        # Checking the references would take long, and the rows are known to be right.
        unchecked = " NOT VALID" if one.contype == "f" else ""
        connection.exec_driver_sql(f"ALTER TABLE {one.of} ADD CONSTRAINT {one.name} {one.definition}{unchecked}")
