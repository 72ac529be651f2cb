"""Primality, powers, multiplicity and small factorizations, against plain Python and numbers known from the tables."""

import math

import gmpy2
import pytest
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.numbers import arithmetic
from coordinator.numbers.arithmetic import (
    SPLIT_AS_JOB_DIGITS,
    digit_count,
    factorize,
    is_probable_prime,
    multiplicity,
    perfect_power,
)

FIRST_PRIMES = [p for p in range(2, 2000) if all(p % d for d in range(2, math.isqrt(p) + 1))]


@settings(deadline=None)
@given(st.integers(1, 10**60))
def test_digit_count_is_the_length(n):
    assert digit_count(mpz(n)) == len(str(n))


@pytest.mark.parametrize("digits", [1, 2, 3, 17, 18, 19, 20, 100, 4301, 50_000])
def test_digit_count_is_exact_around_powers_of_ten(digits):
    power = mpz(10) ** (digits - 1)
    assert [digit_count(power), digit_count(10 * power - 1), digit_count(10 * power)] == [digits, digits, digits + 1]


def test_small_primes():
    assert [n for n in range(-5, 2000) if is_probable_prime(mpz(n))] == FIRST_PRIMES


@pytest.mark.parametrize(
    ("number", "prime"),
    [
        (mpz(2) ** 1279 - 1, True),
        (mpz(2) ** 1277 - 1, False),
        ((mpz(10) ** 317 - 1) // 9, True),
        (mpz(2) ** 128 + 1, False),
        (mpz(561), False),  # Carmichael
        (mpz(3215031751), False),  # strong pseudoprime to the bases 2, 3, 5 and 7
        (mpz(3317044064679887385961981), False),  # ... to the first thirteen prime bases
        (mpz(5459), False),  # strong Lucas pseudoprime
    ],
)
def test_known_primes_and_pseudoprimes(number, prime):
    assert is_probable_prime(mpz(number)) is prime


@settings(deadline=None)
@given(st.integers(2, 10**25), st.integers(1, 12))
def test_perfect_power_has_the_largest_exponent(base, exponent):
    n = mpz(base) ** exponent
    found = perfect_power(n)
    largest = max(k for k in range(1, n.bit_length() + 1) if gmpy2.iroot(n, k)[1])
    assert found == (None if largest == 1 else (gmpy2.iroot(n, largest)[0], largest))


@pytest.mark.parametrize(
    ("base", "exponent"),
    [(2, 64), (6, 30), (7, 97), (3, 2 * 4999), (2, 160_000), (mpz(10) ** 2000 + 4561, 2), (1009 * 1013, 2 * 3 * 5)],
)
def test_perfect_powers(base, exponent):
    assert perfect_power(mpz(base) ** exponent) == (base, exponent)


def test_no_perfect_power():
    assert perfect_power(mpz(2)) is None
    assert perfect_power(mpz(2) ** 1277 - 1) is None
    assert perfect_power(mpz(2) ** 10 * 3) is None


@settings(deadline=None)
@given(st.integers(2, 10**20), st.integers(0, 9), st.integers(1, 10**40))
def test_multiplicity(factor, power, rest):
    n = rest * factor**power
    count, left = multiplicity(mpz(n), mpz(factor))
    assert left * factor**count == n
    assert left % factor != 0
    assert count >= power


@pytest.mark.parametrize(
    ("number", "factors"),
    [
        (1, {}),
        (97, {97: 1}),
        (123456789012345678901234567890123456789, {3: 2, 3607: 1, 3803: 1}),
        (2**67 - 1, {193707721: 1, 761838257287: 1}),
        (2**128 + 1, {59649589127497217: 1, 5704689200685129054721: 1}),
        (3**40 * 10007**3, {3: 40, 10007: 3}),
        (2**127 - 1, {2**127 - 1: 1}),
    ],
)
def test_factorize(number, factors):
    found = factorize(mpz(number))
    assert math.prod(prime**count for prime, count in found.items()) == number
    assert factors.items() <= found.items()
    assert all(isinstance(prime, mpz) and isinstance(count, int) for prime, count in found.items())


@settings(deadline=None)
@given(st.integers(1, 10**24))
def test_factorize_returns_primes_with_the_right_product(n):
    found = factorize(mpz(n))
    assert math.prod(prime**count for prime, count in found.items()) == n
    assert all(gmpy2.is_prime(prime) for prime in found)


@pytest.mark.parametrize("number", [0, -6, 10**SPLIT_AS_JOB_DIGITS])
def test_factorize_refuses_numbers_that_take_too_long(number):
    with pytest.raises(ValueError, match="at most 75"):
        factorize(mpz(number))


class _Liar:
    def __init__(self, answer):
        self.answer = answer

    def factor(self):
        return self.answer


@pytest.mark.parametrize("answer", [[(3, 1)], [(15, 1)], [(3, 1), (5, 2)], []])
def test_factorize_verifies_flints_answer(monkeypatch, answer):
    monkeypatch.setattr(arithmetic, "fmpz", lambda n: _Liar(answer))
    with pytest.raises(ArithmeticError, match="15"):
        factorize(mpz(15))
