"""Pages read large tables through indexes, in the order of these."""

import re

import pytest
from pipeline import composite, result, run_sql, submit
from plans import executed, plan
from primes import prime, product

from coordinator.administration import dead_letters
from coordinator.leases import reservations
from coordinator.reading import counts, detail

NUMBER = str(product(prime(15), prime(40), prime(60)))


@pytest.fixture
def known(engine):
    submit(engine, result(NUMBER, str(prime(15))))
    run_sql(engine, "ANALYZE")
    return composite(engine, NUMBER).id


def plans_of(engine, call, table):
    """The plans of the statements of `call` that read the table; statements that only EXPLAIN are left out."""
    statements = [sql for sql in executed(engine, call) if f"FROM {table}" in sql and not sql.startswith("EXPLAIN")]
    assert statements
    return [plan(engine, sql) for sql in statements]


def test_dead_letters(engine, known):
    with_factors, others = plans_of(engine, lambda: dead_letters.list_dead_letters(engine), "submissions")
    assert "submissions_true_factors" in with_factors
    # Failed and rejected submissions, each from the end of its own index.
    assert others.count("Scan Backward using submissions_unsettled") == 2
    assert all("Sort" not in found.split("Append")[-1] for found in (with_factors, others))


def test_numbers_on_hold(engine, known, monkeypatch):
    monkeypatch.setattr(counts, "COUNTED_BYTES", 0)
    *_, held = plans_of(engine, lambda: counts.composites_status(engine), "targets")
    assert "Index Scan Backward using targets_held" in held
    assert "Index Only Scan using composites_target" in held


def test_the_first_of_a_large_tree(engine, known):
    (tree,) = plans_of(engine, lambda: detail.read_detail(engine, known, most=10), "factors")
    # The rows come in the order of the index up to the limit; no row is sorted.
    assert re.search(r"Limit[^\n]*\n\s*->  Index Scan using factors_once", tree)


def test_the_last_attempts_of_a_number(engine, known):
    of_value, of_number = plans_of(engine, lambda: detail.read_detail(engine, known, most=10), "ecm_attempts")
    assert "Scan Backward using ecm_attempts_value" in of_value
    assert "Scan Backward using ecm_attempts_composite" in of_number


@pytest.mark.parametrize("reserving", [True, False])
def test_open_leases_come_in_their_order(engine, known, reserving):
    (leases,) = plans_of(engine, lambda: reservations.list_open_leases(engine, reserving=reserving), "work_assignments")
    assert "Index Scan using work_assignments_expiry" in leases
    assert "Sort" not in leases
