"""Hostile results beside an honest client (E1, E3): they cost seconds, and the honest results do not wait for them."""

from time import monotonic

import gmpy2
import pytest
from bodies import claiming, plain
from gmpy2 import mpz
from stacks import wait_until

pytestmark = pytest.mark.stack
CLIENT_JOB_SECONDS = 10


@pytest.fixture(scope="module")
def stack(make_stack):
    return make_stack("--no-flower", MAX_DIGITS_UNKNOWN="50000", CLIENT_JOB_SECONDS=str(CLIENT_JOB_SECONDS))


def semiprimes(count, first):
    value, number, parts = mpz(first) * mpz(10) ** 20, mpz(1), []
    for _ in range(count):
        prime = gmpy2.next_prime(value)
        value = gmpy2.next_prime(prime + 10**12) + 10**12
        parts.append(prime * gmpy2.next_prime(prime + 10**12))
        number *= parts[-1]
    return str(number), parts


def state_of(stack, submission_id):
    return stack.get(f"/submissions/{submission_id}").json()


def test_two_results_with_a_thousand_factors_do_not_hold_up_the_others(stack):
    hostile = []
    for first in (20, 30):
        number, parts = semiprimes(1000, first)
        hostile.append(claiming(plain(number, client_id="mallory"), *parts))
    started = monotonic()
    ids = [stack.submit(body, Prefer="respond-async").json()["submission_id"] for body in hostile]
    waits, honest = [], []
    while any(state_of(stack, one)["state"] == "received" for one in ids):
        assert monotonic() - started < 90
        sent = monotonic()
        honest.append(stack.submit(plain(client_id="alice"), Prefer="wait=20").json()["submission_id"])
        waits.append(monotonic() - sent)
    print(f"both settled after {monotonic() - started:.1f} s; honest results waited {max(waits):.1f} s at most")
    assert {state_of(stack, one)["state"] for one in ids} == {"applied"}
    assert [state_of(stack, one)["tries"] for one in ids] == [1, 1]
    wait_until(lambda: {state_of(stack, one)["state"] for one in honest} == {"applied"})
    assert stack.submit(hostile[0]).json()["submission_id"] == ids[0]
    assert stack.status()["status"] == "ok"


def test_the_test_of_a_large_prime_ends_and_other_numbers_come_first(stack):
    prime = "2^132049-1"
    body = {"client_id": "eve", "composite": prime, "parameters": {"b1": 11_000, "curves": 1}}
    assert stack.submit(body, Prefer="respond-async").status_code == 202
    state = (
        "SELECT state FROM jobs j JOIN composites c ON c.id = j.target_id AND kind = 'test_cofactor' WHERE number = :n"
    )
    wait_until(lambda: stack.rows(state, n=prime), 60)
    started = monotonic()
    assert stack.submit(plain("10^2300+1", client_id="alice"), Prefer="wait=20").status_code == 200
    wait_until(lambda: stack.scalar("SELECT is_prime FROM composites WHERE number = '10^2300+1'") is False, 120)
    print(f"alice's number was tested after {monotonic() - started:.1f} s")
    wait_until(lambda: stack.scalar(state, n=prime) == "unknown", 120)
    print(f"the test of the prime ended after {monotonic() - started:.1f} s")
    assert stack.scalar("SELECT is_prime FROM composites WHERE number = :n", n=prime) is None
    assert stack.scalar("SELECT tries FROM jobs WHERE state = 'unknown'") == 1
