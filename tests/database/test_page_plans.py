"""What pages ask of large tables is answered from indexes, in their order."""

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
    """The plans of what it asks of that table, but for what is only to be explained."""
    statements = [one for one in executed(engine, call) if f"FROM {table}" in one and not one.startswith("EXPLAIN")]
    assert statements
    return [plan(engine, one) for one in statements]


def test_dead_letters(engine, known):
    with_factors, others = plans_of(engine, lambda: dead_letters.list_dead_letters(engine), "submissions")
    assert "submissions_true_factors" in with_factors
    # The failed ones and the refused ones, each from the end of its own.
    assert others.count("Scan Backward using submissions_unsettled") == 2
    assert all("Sort" not in one.split("Append")[-1] for one in (with_factors, others))


def test_numbers_kept_from_work(engine, known, monkeypatch):
    monkeypatch.setattr(counts, "COUNTED_BYTES", 0)
    *_, held = plans_of(engine, lambda: counts.composites_status(engine), "composites")
    assert "Index Only Scan Backward using composites_held" in held


def test_the_first_of_a_large_tree(engine, known):
    (tree,) = plans_of(engine, lambda: detail.read_detail(engine, known, most=10), "factors")
    # In the order of the index, up to the limit: not all of it, sorted.
    assert re.search(r"Limit[^\n]*\n\s*->  Index Scan using factors_once", tree)


def test_the_last_attempts_of_a_number(engine, known):
    (attempts,) = plans_of(engine, lambda: detail.read_detail(engine, known, most=10), "ecm_attempts")
    assert "Scan Backward using ecm_attempts_composite" in attempts


@pytest.mark.parametrize("reserving", [True, False])
def test_open_leases_come_in_their_order(engine, known, reserving):
    (leases,) = plans_of(engine, lambda: reservations.list_open_leases(engine, reserving=reserving), "work_assignments")
    assert "Index Scan using work_assignments_expiry" in leases
    assert "Sort" not in leases
