"""Small factors by a remainder tree, and the validation of numbers, compared with slower ways to the same results."""

import re

import gmpy2
import pytest
from gmpy2 import mpz
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.loading.list_formats import InputRow
from coordinator.loading.validation import divide_known, validate_batch
from coordinator.numbers.factor_tree import KNOWN, new_tree, refine, resolve
from coordinator.numbers.trial_division import BOUND, small_primes_of

LARGE = gmpy2.next_prime(mpz(10) ** 60)
LAST_SMALL, FIRST_LARGE = mpz(999_983), mpz(1_000_003)
PRIMES = [mpz(2), mpz(3), mpz(5), mpz(7), mpz(65_537), LAST_SMALL, FIRST_LARGE, LARGE, gmpy2.next_prime(LARGE)]


def test_primes_up_to_the_bound_are_found_and_larger_ones_are_not():
    assert BOUND == 10**6
    assert small_primes_of([LAST_SMALL * LARGE, FIRST_LARGE * LARGE, LARGE]) == [[LAST_SMALL], [], []]
    assert small_primes_of([]) == []


def test_a_small_prime_has_no_small_factor_but_itself():
    assert small_primes_of([mpz(7), mpz(49), mpz(14)]) == [[], [7], [2, 7]]


@given(st.lists(st.lists(st.sampled_from(PRIMES), min_size=2, max_size=8), min_size=1, max_size=40))
@settings(deadline=None)
def test_every_small_prime_is_found(products):
    numbers = []
    for primes in products:
        number = mpz(1)
        for prime in primes:
            number *= prime
        numbers.append(number)
    assert small_primes_of(numbers) == [sorted({p for p in primes if p < BOUND}) for primes in products]


def test_a_number_with_thousands_of_small_primes_is_factored():
    smooth = gmpy2.primorial(60_000)
    (found,) = small_primes_of([smooth * LARGE])
    assert len(found) == 6057
    tree = divide_known(smooth * LARGE, found, [])
    assert tree.finished
    assert tree.product() == smooth * LARGE


@given(
    st.lists(st.sampled_from(PRIMES), min_size=1, max_size=6), st.lists(st.integers(0, 63), max_size=3), st.booleans()
)
@settings(deadline=None)
# What is left of it is the square of q * p; the divisor q * p^2 is no part of that, and a multiple of its root.
@example([mpz(2), FIRST_LARGE, FIRST_LARGE, LARGE, LARGE], [0b11010], False)
def test_the_tree_equals_that_of_dividing_step_by_step(primes, chosen, squared):
    number = mpz(1)
    for prime in primes:
        number *= prime
    number **= 2 if squared else 1
    divisors = []
    for bits in chosen:
        divisor = mpz(1)
        for place, prime in enumerate(primes):
            divisor *= prime if bits >> place & 1 else 1
        if 1 < divisor < number:
            divisors.append(divisor)
    (small,) = small_primes_of([number])
    tree = divide_known(number, small, divisors)
    slow = new_tree(number)
    for by in [*small, *divisors]:
        pending = [by]
        while pending:
            value = pending.pop(0)
            pending += refine(slow, value, KNOWN if value in divisors else "split") + resolve(slow)
    resolve(slow)
    assert tree.product() == number
    assert tree.finished == slow.finished
    assert tree.cofactor == slow.cofactor

    def leaves(of):
        return sorted((leaf.value, leaf.is_prime) for leaf in of.leaves())

    assert {value for value, _ in leaves(tree)} == {value for value, _ in leaves(slow)}


def test_a_prime_that_flint_returns_twice_has_multiplicity_two():
    number = 65_537 * LAST_SMALL * FIRST_LARGE**2
    tree = divide_known(number, [], [])
    assert tree.finished
    assert tree.product() == number


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        ({"priority": "high"}, "invalid", "priority should be a valid integer"),
        ({"priority": "99999999999"}, "invalid", "priority should be less than"),
        ({"target_t_level": "nan"}, "invalid", "target_t_level"),
        ({"target_t_level": "101"}, "invalid", "target_t_level should be less than or equal to 100"),
        ({"factors": "3 4"}, "factor_does_not_divide", "4 does not divide 15"),
        ({"current_composite": "7"}, "factor_does_not_divide", "current_composite 7 does not divide 15"),
        ({"current_composite": "0"}, "factor_does_not_divide", "does not divide"),
        ({"factors": "=1+2"}, "malformed_number", "=1\\+2"),
        ({"prior_work": "lots"}, "invalid", "prior_work: cannot read 'lots' as curves"),
        ({"prior_work": "t200"}, "invalid", "prior_work: the t-level is 200"),
        ({"prior_work": "inf"}, "invalid", "prior_work"),
        ({"prior_work": "999999999@1e6;999999999@1e6"}, "invalid", "more than 1,000,000,000 curves"),
        ({"project": "a\x00b"}, "invalid", "project should be printable"),
    ],
)
def test_the_fields_of_a_number_are_checked(fields, reason, message):
    (bad,) = validate_batch([InputRow(3, "15", fields)], 1000).bad
    assert (bad.line, bad.number, bad.reason) == (3, "15", reason)
    assert re.search(message, bad.message)


@pytest.mark.parametrize("claim", ["is_prime", "is_fully_factored"])
def test_a_claim_that_a_number_is_finished_is_checked(claim):
    half_done = str(LARGE * gmpy2.next_prime(LARGE))
    (bad,) = validate_batch([InputRow(1, half_done, {claim: "true"})], 1000).bad
    assert bad.reason == "not_finished"
    assert "121 digits" in bad.message
    assert not validate_batch([InputRow(1, half_done, {claim: "true", "factors": str(LARGE)})], 1000).bad
    assert not validate_batch([InputRow(1, str(LARGE), {claim: "true"})], 1000).bad


def test_lines_that_are_not_texts_are_reported():
    batch = [
        InputRow(1, True),
        InputRow(2, 1.5),
        InputRow(3, ""),
        InputRow(4, 10**30),
        InputRow(5, "0"),
        InputRow(6, "9^9^9"),
    ]
    assert [(bad.line, bad.reason) for bad in validate_batch(batch, 1000).bad] == [
        (1, "invalid"),
        (2, "invalid"),
        (3, "malformed_number"),
        (5, "not_positive"),
        (6, "number_too_large"),
    ]
