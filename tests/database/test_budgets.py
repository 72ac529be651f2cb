"""What one result may cost (E1, E2): a worker is held for seconds at most, and the rest becomes a few bounded jobs."""

from functools import lru_cache
from time import perf_counter, process_time

import gmpy2
import pytest
from gmpy2 import mpz
from pipeline import SETTINGS, assert_sound, leaves, receive, result, rows, run_jobs, scalar, submit

from coordinator.base import jobs
from coordinator.composites import families
from coordinator.housekeeping import job_runner
from coordinator.numbers import factor_tree
from coordinator.numbers.budget import Budget, primality_seconds, split_seconds
from coordinator.numbers.expressions import ExpressionError
from coordinator.results import applying, inbox
from models.wire.results import SubmitResult

WIDE = SETTINGS.model_copy(update={"max_digits": 50_000, "max_digits_unknown": 50_000})
QUICK = SETTINGS.model_copy(update={"arithmetic_seconds": 0.02})
LAST = gmpy2.next_prime(mpz(10) ** 60)
# Two seconds of arithmetic, and what it takes to store the rows: on a machine that others use, too.
MOST_SECONDS = 8


@lru_cache
def primes(count, digits):
    found, value = [], mpz(10) ** (digits - 1) * 2
    for _ in range(count):
        value = gmpy2.next_prime(value + mpz(10) ** (digits // 2))
        found.append(value)
    return found


def product(values):
    total = mpz(1)
    for value in values:
        total *= value
    return total


def semiprimes(count, digits):
    half = primes(2 * count, digits // 2 + 1)
    return [half[2 * place] * half[2 * place + 1] for place in range(count)]


def apply(engine, body, settings=WIDE):
    receipt = receive(engine, body)
    return applying.apply_result(engine, receipt.submission_id, settings)


@pytest.mark.parametrize("claimed", ["each", "in pairs", "overlapping", "and again"])
def test_a_thousand_factors_hold_a_worker_for_seconds(engine, claimed):
    parts, halves = semiprimes(1000, 44), primes(2000, 23)
    number = str(product(parts))
    factors = {
        "each": parts,
        "in pairs": [parts[n] * parts[n + 1] for n in range(0, 1000, 2)],
        "overlapping": [halves[n] * halves[n + 1] for n in range(990)],
        "and again": parts,
    }[claimed]
    if claimed == "and again":
        assert apply(engine, result(number, *map(str, factors), curves=1)).state == "applied"
    started, processor = perf_counter(), process_time()
    applied = apply(engine, result(number, *map(str, factors)))
    held, processor = perf_counter() - started, process_time() - processor
    print(f"{claimed}: {held:.1f} s, of which {processor:.1f} s of processor time")
    assert applied.state == "applied"
    assert processor < MOST_SECONDS
    assert 1 <= scalar(engine, "SELECT count(*) FROM jobs WHERE state = 'waiting'") <= jobs.MOST_WAITING + 2


@pytest.mark.parametrize("digits", [30, 43, 48])
def test_jobs_finish_what_the_budget_left(engine, digits):
    parts = semiprimes(30 if digits < 45 else 3, digits)
    number = product(parts) * LAST
    apply(engine, result(str(number), *map(str, parts)), QUICK)
    unsplit = scalar(engine, "SELECT count(*) FROM factors WHERE is_prime IS NOT TRUE AND split_from_id IS NULL")
    assert unsplit == len(parts)
    assert scalar(engine, "SELECT count(*) FROM factors WHERE split_from_id IS NOT NULL") < 2 * len(parts)
    assert 0 < scalar(engine, "SELECT count(*) FROM jobs WHERE state = 'waiting'") <= jobs.MOST_WAITING
    assert_sound(engine)
    run_jobs(engine)
    primes_found = [mpz(value) for value, is_prime in leaves(engine, str(number)) if is_prime]
    assert sorted(primes_found) == [*primes(2 * len(parts), digits // 2 + 1), LAST]
    # The client that found the part has found its primes.
    assert rows(engine, "SELECT DISTINCT client_id FROM factors") == [("alice",)]
    assert scalar(engine, "SELECT is_fully_factored FROM composites") is True
    assert_sound(engine)


def test_a_cofactor_that_does_not_fit_is_finished_by_a_job(engine):
    first, second, third = primes(3, 21)
    none = SETTINGS.model_copy(update={"arithmetic_seconds": 1e-9})
    apply(engine, result(str(first * second * third), str(first)), none)
    assert rows(engine, "SELECT is_prime, is_fully_factored FROM composites") == [(None, False)]
    run_jobs(engine)
    assert scalar(engine, "SELECT is_fully_factored FROM composites") is True
    assert_sound(engine)


def test_large_parts_wait_in_small_numbers_and_are_given_up_after_some(engine, monkeypatch):
    """600 factors of 75 digits made 599 jobs of minutes each."""
    parts = semiprimes(60, 75)
    apply(engine, result(str(product(parts)), *map(str, parts)))
    assert scalar(engine, "SELECT count(*) FROM jobs WHERE kind = 'split_factor'") == jobs.MOST_WAITING

    def too_long(n, seconds):
        raise job_runner.OutOfTimeError(f"more than {seconds} s")

    monkeypatch.setattr(job_runner, "factorize_within", too_long)
    run_jobs(engine)
    assert rows(engine, "SELECT DISTINCT state, tries FROM jobs WHERE kind = 'split_factor'") == [("unknown", 1)]
    assert scalar(engine, "SELECT count(*) FROM jobs") < jobs.MOST_WAITING + jobs.MOST_UNKNOWN
    assert_sound(engine)


def test_many_parts_get_composites_of_their_own_step_by_step(engine):
    parts = semiprimes(50, 80)
    apply(engine, result(str(product(parts)), *map(str, parts)))
    assert scalar(engine, "SELECT count(*) FROM composites") < len(parts)
    assert_sound(engine)
    run_jobs(engine)
    # One part is the cofactor, and the number itself is a composite.
    assert scalar(engine, "SELECT count(*) FROM composites") == len(parts)
    assert scalar(engine, "SELECT count(*) FROM composites WHERE registered_by = 'alice'") == len(parts)
    assert_sound(engine)


def check(composite, *factors):
    inbox.check_numbers(SubmitResult.model_validate(result(composite, *factors)), 50_000)


A, B, C = (str(prime) for prime in primes(3, 30))
NUMBER = str(mpz(A) * mpz(B) * mpz(C))


@pytest.mark.parametrize(
    ("composite", "factors"),
    [
        (NUMBER, [str(mpz(A) * mpz(B)), str(mpz(B) * mpz(C))]),
        (NUMBER, [NUMBER, NUMBER.replace("0", "1"), A]),
        ("2^1277-1", [f"2^{600 + n}-1" for n in range(3)]),
        ("2^1277-1", [str(2**640 + n) for n in range(3)]),
        ("15", ["3", "5", "7"]),
        ("2^163-1", [f"{n}*10^20+{n}" for n in range(2, 200)]),
    ],
)
def test_factors_that_are_larger_together_than_their_number_are_refused_before_they_are_stored(composite, factors):
    with pytest.raises(ExpressionError) as refused:
        check(composite, *factors)
    assert (refused.value.reason, refused.value.field) == ("factors_exceed_number", "results.factors_found")


@pytest.mark.parametrize(
    ("composite", "factors"),
    [
        (NUMBER, [A, B, C]),
        (NUMBER, [A, A, A, B, B, A]),  # several curves found the same one
        (NUMBER, [NUMBER, A, B]),
        ("2^1277-1", [str(2**1277 - 1), "3"]),
        ("6", ["2", "3", "6", "1"]),
        ("2^12-1", ["3^2", "5", "7", "13"]),
    ],
)
def test_factors_that_a_number_can_have_are_taken(composite, factors):
    check(composite, *factors)


def test_the_expressions_of_all_factors_together_have_a_limit():
    started = process_time()
    many = ["+".join(["1"] * 500) + f"+{n}" for n in range(1000)]
    with pytest.raises(ExpressionError) as refused:
        check("2^100000-1", *many)
    assert refused.value.reason == "number_too_large"
    assert process_time() - started < 1


def test_what_only_the_evaluation_shows_is_rejected_when_the_result_is_applied(engine):
    """Differences of large powers: their size is not known before they are computed."""
    claims = [f"10^70-(10^70-{value})" for value in (mpz(A) * mpz(B), mpz(B) * mpz(C))]
    row = submit(engine, result(NUMBER, *claims))
    assert (row.state, row.reason) == ("rejected", "factors_exceed_number")
    assert submit(engine, result(NUMBER, claims[0])).state == "applied"


def test_a_number_beyond_the_limit_for_results_must_be_loaded_first(engine):
    narrow = SETTINGS.model_copy(update={"max_digits_unknown": 100})
    receipt = receive(engine, result("10^100+3"))
    applying.apply_result(engine, receipt.submission_id, narrow)
    row = inbox.submission_row(engine, receipt.submission_id)
    assert (row.state, row.reason) == ("rejected", "unknown_composite")
    assert "MAX_DIGITS_UNKNOWN" in row.detail
    assert "101 digits" in row.detail
    submit(engine, result("10^100+3"))  # now it is registered
    assert applying.apply_result(engine, receive(engine, result("10^100+3", curves=7)).submission_id, narrow).state == (
        "applied"
    )
    submit(engine, result("10^99+1", client="bob"))
    assert {row.number: row.registered_by for row in rows(engine, "SELECT number, registered_by FROM composites")} == {
        "10^100+3": "alice",
        "10^99+1": "bob",
    }


def test_a_deep_tree_is_read_and_does_not_grow_without_end(engine, monkeypatch):
    """Each claim is the one before it without a prime: what is left of a part goes one level down each time."""
    small = primes(30, 9)
    number = product(small) * product(primes(2, 60))
    for n in range(1, 28):
        assert apply(engine, result(str(number), str(number // product(small[:n])), curves=n)).state == "applied"
    assert_sound(engine)
    monkeypatch.setattr(families, "MOST_DIGITS_OF_A_TREE", 5)
    row = submit(engine, result(str(number), str(number // product(small[:28]))))
    assert (row.state, row.reason) == ("rejected", "too_many_factors")
    assert_sound(engine)


def test_a_tree_may_be_deeper_than_pythons_recursion():
    node = factor_tree.FactorNode(mpz(2) ** 3000)
    tree = factor_tree.Tree(mpz(2) ** 3000, mpz(1), False, [node])
    for exponent in range(2999, 0, -1):
        node.children = [factor_tree.FactorNode(mpz(2) ** exponent), factor_tree.FactorNode(mpz(2))]
        node = node.children[0]
    assert len(list(tree.leaves())) == 3000
    assert tree.product() == tree.number


def test_the_costs_grow_with_the_digits_and_a_budget_is_spent():
    for cost in (split_seconds, primality_seconds):
        values = [cost(digits) for digits in range(1, 76)]
        assert values == sorted(values)
    assert split_seconds(45) < 1 < split_seconds(60)
    assert split_seconds(76) == float("inf")
    assert primality_seconds(2000) < 2 < primality_seconds(20_000)
    budget = Budget(0.05)
    assert budget.allows(0.05)
    with budget.pays():
        until = process_time() + 0.06
        while process_time() < until:
            pass
    assert not budget.allows(0.0)
