"""Numbers that come to have the same cofactor, or had it once: links of new values, open leases, jobs."""

import pytest
from pipeline import SETTINGS, assert_sound, composite, result, run_jobs, scalar, submit
from primes import prime, product
from shared_numbers import OTHER, SHARED, SMALL, know, level, register, target_of
from test_loading import load, load_json

from coordinator.administration import deletions
from coordinator.base.audit import OPERATOR
from coordinator.leases import claims
from coordinator.leases.work_request import WorkRequest

PART, REST = prime(80) * prime(82), prime(81) * prime(83)


@pytest.fixture
def one(engine):
    """A number whose factor SMALL is known, so that SHARED is its cofactor."""
    number = SMALL * SHARED
    register(engine, number)
    know(engine, number, SMALL)
    return number


def test_first_curves_on_a_value_count_for_a_number_that_only_had_it(engine):
    one, two = SMALL * PART * prime(60), OTHER * PART * prime(60)
    register(engine, one, two)
    know(engine, one, SMALL)
    know(engine, two, OTHER)
    know(engine, one, prime(60))
    run_jobs(engine)
    assert target_of(engine, one) == target_of(engine, two)
    factor = "SELECT f.id FROM factors f JOIN composites c ON c.id = composite_id WHERE c.number = :n AND f.factor = :f"
    deletions.delete_factor(engine, OPERATOR, scalar(engine, factor, n=str(one), f=str(prime(60))), 10_000)
    run_jobs(engine)
    submit(engine, result(str(PART * prime(60)), curves=50))
    assert level(engine, one) > 0
    assert level(engine, two) > 0
    assert_sound(engine)


def test_first_curves_on_a_whole_count_for_more_parts_than_one_unit_of_work_divides(engine):
    parts = [prime(40, place) * prime(41, place) for place in range(23)]
    whole = product(*parts)
    register(engine, *parts)
    register(engine, whole)
    know(engine, whole, *parts[:-1])
    run_jobs(engine)
    submit(engine, result(str(whole), curves=50))
    assert min(level(engine, part) for part in parts) > 0
    assert_sound(engine)


def test_curves_end_the_work_on_a_part_that_only_another_number_has(engine):
    whole, other = PART * REST, PART * prime(90) * prime(91)
    register(engine, whole, other)
    submit(engine, result(str(whole), curves=10))
    for number in (whole, other):
        know(engine, number, PART)
        run_jobs(engine)
    deletions.delete_composite(engine, OPERATOR, composite(engine, str(whole)).id, 10_000)
    run_jobs(engine)
    register(engine, whole)
    assert_sound(engine)
    submit(engine, result(str(whole), b1=260_000_000, curves=2_000_000))
    assert_sound(engine)


def test_a_lease_is_not_too_large_when_another_number_brings_its_curves(engine, one):
    two = OTHER * SHARED
    register(engine, two)
    submit(engine, result(str(two), b1=1_000_000, curves=900, parametrization=1))
    one_lease = SETTINGS.model_copy(update={"lease_target_minutes": 1e6})
    request = WorkRequest("alice", shared=True, composite=str(one), b1=1_000_000)
    assert claims.claim(engine, request, one_lease).plan.curves > 1600
    know(engine, two, OTHER)
    assert target_of(engine, one) == target_of(engine, two)
    assert_sound(engine)


def test_two_leases_of_a_whole_number_become_one(engine, one):
    two = OTHER * SHARED
    register(engine, two)
    first = claims.claim(engine, WorkRequest("alice", composite=str(one)), SETTINGS)
    second = claims.claim(engine, WorkRequest("bob", composite=str(two)), SETTINGS)
    know(engine, two, OTHER)
    status = "SELECT status FROM work_assignments WHERE id = :id"
    assert scalar(engine, status, id=str(first.work_id)) == "assigned"
    assert scalar(engine, status, id=str(second.work_id)) == "completed"
    said = scalar(engine, "SELECT message FROM work_assignments WHERE id = :id", id=str(second.work_id))
    assert "works on as a whole" in said
    # Its client has run curves nevertheless: they count.
    row = submit(engine, result(str(two), curves=100, client="bob", work_id=str(second.work_id)))
    assert row.outcome["message"] == "Result applied, 100 curves without a factor"
    assert level(engine, one) > 0
    assert_sound(engine)


def test_a_number_whose_value_is_known_to_be_finished_is_finished_by_a_job(engine, one):
    know(engine, one, prime(60))
    load(engine, f"{SHARED}\n")
    run_jobs(engine)
    assert composite(engine, str(SHARED)).is_fully_factored
    assert_sound(engine)


def test_a_target_that_only_a_divided_number_had_again_is_finished_again(engine):
    part = prime(62)
    value = part * prime(63)
    load(engine, f"{5 * value}\n")
    load_json(engine, {"number": str(5 * value), "factors": [str(value)]})
    load(engine, f"{3 * value}\n")
    assert_sound(engine)
    load_json(engine, {"number": str(3 * value), "factors": [str(part)]})
    run_jobs(engine)
    assert_sound(engine)


def test_a_factor_for_many_numbers_takes_few_jobs(engine):
    numbers = [prime(12, place) * SHARED for place in range(25)]
    register(engine, *numbers)
    for place, number in enumerate(numbers):
        know(engine, number, prime(12, place))
    run_jobs(engine)
    know(engine, numbers[0], prime(60))
    # One job for each of these would visit all others.
    assert run_jobs(engine) <= 5
    assert scalar(engine, "SELECT count(*) FROM composites WHERE is_fully_factored") == len(numbers)
    assert_sound(engine)
