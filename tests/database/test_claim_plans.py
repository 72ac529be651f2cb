"""How claims find their numbers: each work type has an index, which contains only numbers that can be leased."""

import pytest
from pipeline import SETTINGS, result, rows, scalar, submit
from plans import executed, plan
from primes import prime, product
from sqlalchemy import text

from bench import claims as bench
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import registry
from coordinator.composites.eligibility import ECM
from coordinator.leases import candidates, claims, reservations
from coordinator.leases.work_request import Claim, WorkRequest
from models.engine import make_engine

NUMBERS = 20_000
WORK_TYPES = {
    "targets_standard": {"order": "standard"},
    "targets_progressive": {"order": "progressive"},
    "targets_priority": {"order": "priority"},
    "targets_best": {"order": "best"},
    "targets_pm1": {"method": "pm1"},
    "targets_pp1": {"method": "pp1"},
}
FILTERS = [
    {"min_digits": 200},
    {"min_digits": 120, "max_digits": 121},
    {"min_priority": 6},
    {"min_digits": 251},
    {"min_priority": 7},
    {"project": bench.PROJECT},
    {"project": "no such project"},
    {"min_target": 70.0},
    {"max_current": 10.0},
]


@pytest.fixture(scope="module")
def many(make_database):
    """A registry of 20,000 numbers in all states."""
    engine = make_engine(make_database(), pool_size=3)
    bench.load(engine, NUMBERS)
    yield engine
    engine.dispose()


def statements_of_a_claim(engine, **fields):
    return executed(engine, lambda: claims.claim(engine, WorkRequest("alice", **fields), SETTINGS))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("index", WORK_TYPES)
def test_each_work_type_takes_the_first_number_of_its_own_index(many, index, shared):
    sent = statements_of_a_claim(many, **WORK_TYPES[index], shared=shared)
    (search,) = [one for one in sent if "pg_try_advisory_xact_lock" in one]
    with many.connect() as connection:  # without plan settings that rule anything out
        lines = list(connection.exec_driver_sql(f"EXPLAIN (ANALYZE, TIMING off) {search}").scalars())
    (scan,) = [line for line in lines if f"using {index} " in line]
    assert not any("Sort" in line or "Seq Scan" in line for line in lines), lines
    assert "actual rows=1" in scan, "the search goes on after its first match"


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("index", ["targets_standard", "targets_best", "targets_pm1"])
def test_no_statement_of_a_claim_reads_all_of_a_table(many, index, filters):
    sent = statements_of_a_claim(many, **WORK_TYPES[index], **filters)
    plans = [plan(many, one) for one in sent if one.lstrip().startswith(("SELECT", "WITH"))]
    assert len(plans) > 2
    assert not any("Seq Scan" in one for one in plans), plans


@pytest.mark.parametrize("index", WORK_TYPES)
def test_rows_that_a_filter_passes_over_are_not_read(many, index):
    filters = {"min_digits": 100, "min_priority": 1, "min_target": 60.0}
    sent = statements_of_a_claim(many, **WORK_TYPES[index], **filters)
    (search,) = [one for one in sent if "pg_try_advisory_xact_lock" in one]
    assert f"Index Only Scan using {index} " in plan(many, search)


def test_a_claim_locks_only_one_number(many):
    statement = candidates.select_first_free("ecm_eligible", "best", ())
    locks = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
    with many.connect() as connection, many.connect() as another:
        first = connection.execute(statement).scalar_one()
        assert connection.execute(locks).scalar_one() == 1
        second = another.execute(statement).scalar_one()
    assert first != second


def test_the_indexes_contain_exactly_the_numbers_that_can_be_leased(many):
    with many.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE targets"))
    entries = {
        row.name: int(row.entries)
        for row in rows(many, "SELECT relname AS name, reltuples AS entries FROM pg_class WHERE relkind = 'i'")
    }
    leased = "SELECT FROM work_assignments w WHERE w.target_id = t.id AND closed_at IS NULL"
    closed = (
        f"is_finished OR is_prime IS DISTINCT FROM false OR hold IS NOT NULL OR EXISTS ({leased} AND method = 'nfs')"
    )
    saturated = f"current_t_level >= target_t_level OR EXISTS ({leased} AND method = 'ecm' AND curves IS NULL)"
    for column, indexes, never in (
        ("ecm_eligible", candidates.ORDERS, f"{closed} OR {saturated}"),
        ("pm1_eligible", ("pm1",), closed),
        ("pp1_eligible", ("pp1",), closed),
    ):
        eligible = scalar(many, f"SELECT count(*) FROM targets WHERE {column}")
        assert 0 < eligible < 0.7 * NUMBERS
        assert {entries[f"targets_{index}"] for index in indexes} == {eligible}
        assert scalar(many, f"SELECT count(*) FROM targets t WHERE {column} AND ({never})") == 0


def test_a_number_that_can_no_longer_be_leased_leaves_every_index(engine):
    """Numbers become finished, held, reserved, leased as a whole, or reach their target in the usual ways."""
    ids = []
    with unit_of_work(engine, "load") as connection:
        for which in range(6):
            number = product(prime(45, which), prime(46, which + 50))
            ids.append(registry.register_new(connection, str(number), number, is_prime=False))
    numbers = [row.number for row in rows(engine, "SELECT number FROM composites ORDER BY id")]
    finished, paused, _, whole, done, eligible = ids
    submit(engine, result(numbers[0], str(prime(45, 0)), curves=1))
    reservations.pause(engine, paused, "for a test")
    reservations.reserve(engine, numbers[2], "bob", "nfs", 24, details=None, max_digits=1000)
    assert isinstance(claims.claim(engine, WorkRequest("bob", composite=numbers[3]), SETTINGS), Claim)
    submit(engine, result(numbers[4], b1=3_000_000, curves=10_000))
    with engine.connect() as connection:
        by_curves = [
            list(connection.execute(candidates.select_candidates(f"{ECM}_eligible", order, ())).scalars())
            for order in candidates.ORDERS
        ]
        by_p1 = [
            set(connection.execute(candidates.select_candidates(column, "standard", ())).scalars())
            for column in ("pm1_eligible", "pp1_eligible")
        ]
    assert by_curves == [[eligible]] * len(candidates.ORDERS)
    # P-1 and P+1 go on beside somebody's curves.
    assert by_p1 == [{whole, done, eligible}] * 2
    assert finished not in by_p1[0]
