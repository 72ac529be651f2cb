"""The demo's numbers are what their comments say."""

import re

import gmpy2
import pytest

from bench.demo import cofactor_state, read_composites

FORMS = (
    (r"2\^(\d+)-1", lambda n: 2**n - 1),
    (r"2\^(\d+)\+1", lambda n: 2**n + 1),
    (r"\(10\^(\d+)-1\)/9", lambda n: (10**n - 1) // 9),
    (r"F\((\d+)\)", gmpy2.fib),
)


def value(source):
    for form, of in FORMS:
        if match := re.fullmatch(form, source):
            return of(int(match[1]))
    raise ValueError(source)


def test_there_are_a_dozen_of_every_kind():
    sources = [source for _, source in read_composites()]
    assert len(sources) == len(set(sources)) == 12
    assert all(any(re.fullmatch(form, source) for source in sources) for form, _ in FORMS)


@pytest.mark.parametrize(("number", "source"), read_composites(), ids=[source for _, source in read_composites()])
def test_a_composite_cofactor_without_small_factors(number, source):
    assert 35 <= len(number) <= 70
    assert value(source) % int(number) == 0
    assert not gmpy2.is_prime(int(number))
    assert gmpy2.gcd(int(number), gmpy2.primorial(10**6)) == 1


@pytest.mark.parametrize(
    ("stats", "state"),
    [
        ({"status": "fully_factored", "factors_found": ["3", "5"]}, "2 primes"),
        ({"status": "composite", "current_composite": "9" * 50}, "C50"),
        ({}, "unknown"),
    ],
)
def test_cofactor_states(stats, state):
    assert cofactor_state(stats) == state
