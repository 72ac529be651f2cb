"""Factors that have factors: splits at once, as jobs, as composites of their own; numbers that share a part."""

import threading

import pytest
from gmpy2 import mpz
from pipeline import (
    SETTINGS,
    assert_sound,
    composite,
    counts,
    lease,
    leaves,
    receive,
    result,
    rows,
    run_jobs,
    scalar,
    submit,
)
from primes import prime, product

from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import families, registry
from coordinator.composites.families import Divisor
from coordinator.housekeeping import job_runner
from coordinator.numbers.factor_tree import SUBMITTED
from coordinator.results import applying

P40, Q40, R42, S41 = prime(40), prime(40, 1), prime(42), prime(41)
P80, Q80 = prime(80), prime(80, 1)


def counting(engine, composite):
    """Return the number of curves that count for the target of a composite, by B1."""
    return dict(
        rows(
            engine,
            "SELECT b1, sum(curves + prior_curves)::int FROM value_effort JOIN target_sources USING (value_id)"
            " WHERE target_id = :id GROUP BY b1",
            id=composite.target_id,
        )
    )


CHILDREN = "SELECT * FROM composites WHERE parent_id IS NOT NULL ORDER BY id"


def texts(*numbers):
    return sorted(map(str, numbers), key=lambda text: (len(text), text))


def leaf_values(engine, number):
    return [value for value, _ in leaves(engine, str(number))]


def test_a_composite_factor_of_60_digits_is_split_by_a_job(engine):
    small, large = prime(12), prime(49)
    number = product(small, large, P80, Q80)
    row = submit(engine, result(str(number), str(small * large)))
    assert row.outcome["factor_status"] == "new_factor"
    assert leaves(engine, str(number)) == [(str(small * large), False)]
    assert rows(engine, "SELECT kind, state FROM jobs") == [("split_factor", "waiting")]
    assert_sound(engine)
    run_jobs(engine)
    assert leaves(engine, str(number)) == [(str(small), True), (str(large), True)]
    assert scalar(engine, "SELECT count(*) FROM factors WHERE split_from_id IS NOT NULL AND client_id = 'alice'") == 2
    assert rows(engine, CHILDREN) == []
    assert_sound(engine)


def test_a_composite_factor_of_83_digits_becomes_a_composite_that_inherits_all_curves(engine):
    number = product(P40, R42, S41, P80)
    submit(engine, result(str(number), curves=7, sigma="1:1"))
    submit(engine, result(str(number), str(P40 * R42), curves=30, sigma="1:2", b1=11_000))
    (child,) = rows(engine, CHILDREN)
    assert (child.number, child.parent_id) == (str(P40 * R42), composite(engine, str(number)).id)
    # The curves that found it also count for its factors.
    assert counting(engine, child) == {11_000: 30, 50_000: 7}
    assert_sound(engine)

    before = child.current_t_level
    row = submit(engine, result(child.number, str(P40), client="bob", curves=11))
    assert (row.composite_id, row.outcome["factor_status"]) == (child.id, "new_factor")
    assert row.outcome["current_t_level"] > before
    # The factors of the child are also in the tree of the root, with the client that found them.
    assert leaves(engine, str(number)) == [(str(P40), True), (str(R42), True)]
    finders = rows(engine, "SELECT DISTINCT client_id FROM factors WHERE factor IN (:p, :r)", p=str(P40), r=str(R42))
    assert finders == [("bob",)]
    (child,) = rows(engine, CHILDREN)
    assert child.is_fully_factored
    assert composite(engine, str(number)).current_composite == str(S41 * P80)
    assert_sound(engine)


def test_the_cofactor_of_a_child_stays_the_work_of_that_child(engine):
    """A cofactor of a child that is still too large to be split does not become a second composite."""
    small = prime(9)
    part = product(small, P40, R42)
    number = product(part, P80, Q80)
    submit(engine, result(str(number), str(part)))
    submit(engine, result(str(number), str(small)))
    (child,) = rows(engine, CHILDREN)
    assert child.current_composite == str(P40 * R42)
    unsplit = rows(engine, "SELECT child_composite_id FROM factors WHERE factor = :value", value=str(P40 * R42))
    assert (child.id,) in unsplit
    assert_sound(engine)


def test_a_composite_part_of_a_child_becomes_the_roots_child(engine):
    whole = product(P40, R42, S41, Q40)
    number = product(whole, P80, Q80)
    submit(engine, result(str(number), str(whole)))
    submit(engine, result(str(whole), str(P40 * R42), curves=5))
    root = composite(engine, str(number))
    children = rows(engine, CHILDREN)
    assert [(child.current_composite, child.parent_id) for child in children] == [
        (str(S41 * Q40), root.id),
        (str(P40 * R42), root.id),
    ]
    # It inherits from the child, which has had more curves than the root.
    assert children[1].current_t_level == pytest.approx(children[0].current_t_level)
    submit(engine, result(str(number), str(S41)))
    submit(engine, result(str(number), str(P40)))
    assert all(child.is_fully_factored for child in rows(engine, CHILDREN))
    assert leaf_values(engine, number) == texts(P40, Q40, S41, R42)
    assert_sound(engine)


def test_a_child_registered_while_a_result_waits_for_its_family_gets_the_factor(engine):
    """The lock of a family includes the members that were committed while it waited."""
    small = prime(9)
    part = product(small, P40, R42)
    number = str(product(part, P80, Q80))
    submit(engine, result(number, client="first"))
    root_id = composite(engine, number).id
    second = receive(engine, result(number, str(small)))
    third = receive(engine, result(number, str(part), client="third"))
    applied = threading.Thread(target=applying.apply_result, args=(engine, second.submission_id, SETTINGS))
    with unit_of_work(engine, "hold") as connection:
        registry.lock_family(connection, root_id)
        applied.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        while not scalar(engine, waiting):
            pass
        # `second` waits for this transaction, which changes the family like the application of `third`.
        members = families.load_family(connection, [root_id], SETTINGS.max_digits)
        families.use_divisors(connection, members, [Divisor(mpz(part), SUBMITTED)])
    applied.join()
    applying.apply_result(engine, third.submission_id, SETTINGS)
    run_jobs(engine)
    (child,) = rows(engine, CHILDREN)
    assert child.current_composite == str(P40 * R42)
    assert_sound(engine)


def test_two_numbers_that_share_a_cofactor_share_their_factors(engine):
    """As with F(2n) = F(n) L(n): clients would find the factor twice if each number were alone."""
    a, b = prime(9), prime(10)
    shared = product(P40, Q80)
    first, second = str(a * shared), str(b * shared)
    submit(engine, result(first, str(a)))
    submit(engine, result(second, str(b)))
    run_jobs(engine)
    # The result is applied to the oldest composite with the value that both have.
    row = submit(engine, result(str(shared), str(P40), client="bob"))
    assert row.composite_id == composite(engine, first).id
    for number, own in ((first, a), (second, b)):
        assert leaf_values(engine, number) == texts(own, P40, Q80)
        assert composite(engine, number).is_fully_factored
    assert_sound(engine)


def test_the_number_that_requests_the_sharing_gets_factors_too(engine):
    a, b = prime(9), prime(10)
    shared = product(P40, S41, Q80)
    first, second = str(a * shared), str(b * shared)
    submit(engine, result(first, str(a)))
    submit(engine, result(first, str(P40)))
    run_jobs(engine)
    # The second number gets the alias of the first one's old cofactor only now.
    submit(engine, result(second, str(b)))
    run_jobs(engine)
    assert leaf_values(engine, second) == texts(b, P40)
    assert composite(engine, second).current_composite == composite(engine, first).current_composite
    assert_sound(engine)


def test_a_child_can_be_a_number_that_is_known_already(engine):
    part = str(P40 * R42)
    submit(engine, result(part, curves=1))
    number = str(product(P40, R42, P80, Q80))
    submit(engine, result(number, part))
    assert rows(engine, CHILDREN) == []
    known = composite(engine, part)
    assert scalar(engine, "SELECT child_composite_id FROM factors WHERE composite_id <> :id", id=known.id) == known.id
    assert_sound(engine)
    run_jobs(engine)
    submit(engine, result(part, str(P40), curves=2))
    run_jobs(engine)
    assert leaves(engine, number) == [(str(P40), True), (str(R42), True)]
    assert_sound(engine)


def test_look_up_prefers_the_exact_number_then_a_current_cofactor_then_the_oldest(engine):
    a, b, c = prime(9), prime(10), prime(11)
    shared = product(P40, S41, Q80)
    first, second = str(a * shared), str(b * shared)
    submit(engine, result(first, str(a)))
    submit(engine, result(second, str(b)))
    ids = [composite(engine, number).id for number in (first, second)]

    def named(value):
        with engine.connect() as connection:
            return registry.find(connection, str(value), SETTINGS.max_digits).id

    assert named(shared) == ids[0]
    submit(engine, result(second, str(P40)))
    assert named(shared) == ids[0]
    assert named(S41 * Q80) == ids[0]
    with unit_of_work(engine, "register") as connection:
        exact = registry.register(connection, str(shared), shared, is_prime=False)
    assert named(shared) == exact
    with engine.connect() as connection:
        assert registry.find(connection, str(c), SETTINGS.max_digits) is None


def test_losing_the_race_for_a_child_counts_the_curves_of_both(engine, monkeypatch):
    """Two families register the same part at once: the curves on both numbers count for it, each once."""
    part = P40 * R42
    first, second = str(part * prime(80, 2)), str(part * prime(80, 3))
    submit(engine, result(first, str(part), curves=3))
    (child,) = rows(engine, CHILDREN)
    find = registry.find
    # The second family read this before the first one committed.
    monkeypatch.setattr(registry, "find", lambda *args: None if args[1] == str(part) else find(*args))
    submit(engine, result(second, str(part), curves=4, b1=11_000))
    monkeypatch.undo()
    assert_sound(engine)
    (child,) = rows(engine, CHILDREN)
    assert counting(engine, child) == {50_000: 3, 11_000: 4}


@pytest.mark.parametrize("is_prime", [True, False])
def test_a_cofactor_of_2500_digits_is_tested_by_a_job(engine, is_prime):
    # A Mersenne prime of 2,917 digits, and a number beside it.
    cofactor = "2^9689-1" if is_prime else "(2^9689+15)"
    factor = prime(30)
    number = f"({cofactor})*{factor}"
    submit(engine, result(number, str(factor)))
    row = composite(engine, number)
    assert (row.is_prime, row.is_fully_factored) == (None, False)
    assert_sound(engine)
    run_jobs(engine)
    row = composite(engine, number)
    if is_prime:
        assert (row.is_fully_factored, row.current_composite) == (True, "1")
        assert len(leaf_values(engine, number)) == 2
    else:
        assert (row.is_prime, row.is_fully_factored, row.digit_length) == (False, False, 2917)
    assert_sound(engine)


def test_a_number_of_2917_digits_turns_out_to_be_prime(engine):
    number = "2^9689-1"
    assert submit(engine, result(number)).state == "applied"
    assert scalar(engine, "SELECT is_prime FROM composites") is None
    lease(engine, composite(engine, number).id)
    run_jobs(engine)
    row = composite(engine, number)
    assert (row.is_prime, row.is_fully_factored) == (True, True)
    assert scalar(engine, "SELECT status FROM work_assignments") == "completed"
    refused = submit(engine, result(number, curves=5))
    assert (refused.state, refused.reason) == ("rejected", "composite_is_prime")
    assert_sound(engine)


def test_a_large_prime_factor_of_a_child_is_recorded_in_the_whole_family(engine):
    """A leaf of the root and the cofactor of the child are the same large number, and one test is enough."""
    mersenne = 2**9689 - 1
    small = prime(30)
    number = f"(2^9689-1)*{small}*{P40}*{P80}"
    submit(engine, result(number, f"(2^9689-1)*{small}"))
    assert [kind for (kind,) in rows(engine, "SELECT kind FROM jobs WHERE state = 'waiting'")] == ["test_factor"]
    run_jobs(engine)
    (child,) = rows(engine, CHILDREN)
    lease(engine, child.id)
    submit(engine, result(str(mersenne * small), str(small), client="bob"))
    # One test settles it on either row.
    job = rows(engine, "SELECT id FROM jobs WHERE state = 'waiting' ORDER BY id")[0]
    job_runner.run_job(engine, job.id, max_deliveries=5, max_digits=SETTINGS.max_digits)
    (child,) = rows(engine, CHILDREN)
    assert child.is_fully_factored
    assert scalar(engine, "SELECT status FROM work_assignments") == "completed"
    assert [is_prime for _, is_prime in leaves(engine, number)] == [True, True]
    assert_sound(engine)
    run_jobs(engine)
    assert_sound(engine)


def test_a_composite_of_5000_digits_with_a_factor(engine):
    row = submit(engine, result("10^5000-1", "11111", curves=1))
    assert (row.state, row.outcome["factor_status"]) == ("applied", "new_factor")
    assert [kind for (kind,) in rows(engine, "SELECT kind FROM jobs")] == ["test_cofactor"]
    # The same number written out, beyond the 4,300 digits that Python's int() reads.
    again = submit(engine, result("9" * 5000, "11111", client="bob", curves=2))
    assert (again.composite_id, again.outcome["factor_status"]) == (row.composite_id, "known_factor")
    assert_sound(engine)


@pytest.mark.parametrize(
    ("base", "power", "claim"),
    [
        (prime(50), 2, None),
        (prime(50) * prime(51), 2, prime(50)),
        (prime(30), 5, prime(30) ** 2),
        (prime(700), 3, None),
    ],
)
def test_perfect_powers(engine, base, power, claim):
    number = str(base**power * P80)
    submit(engine, result(number, *([str(claim)] if claim else [str(base**power)])))
    run_jobs(engine)
    assert composite(engine, number).is_fully_factored or claim == prime(50)
    assert_sound(engine)
    values = leaf_values(engine, number)
    assert product(*map(int, values)) * int(composite(engine, number).current_composite) == int(number)


def test_a_claim_that_is_a_multiple_of_the_cofactor_splits_it(engine):
    number = P40**2 * P80**2
    submit(engine, result(str(number)))  # the square of P40 * P80, which is too large to split
    assert submit(engine, result(str(number), str(P40 * P80**2))).state == "applied"
    assert leaf_values(engine, number) == texts(P40, P40, P80, P80)
    assert_sound(engine)


def test_a_factor_found_by_two_clients_at_once(engine):
    number = str(product(prime(20), P40, Q80))
    submit(engine, result(number, client="first"))
    receipts = [receive(engine, result(number, str(prime(20)), client=f"client-{n}", sigma=str(n))) for n in range(8)]
    start = threading.Barrier(8)

    def apply(receipt):
        start.wait()
        applying.apply_result(engine, receipt.submission_id, SETTINGS)

    threads = [threading.Thread(target=apply, args=(receipt,)) for receipt in receipts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(row.status for row in rows(engine, "SELECT outcome->>'factor_status' AS status FROM submissions"))
    assert statuses == ["known_factor"] * 7 + ["new_factor", "no_factor"]
    assert counts(engine, ("factors", "ecm_attempts")) == {"factors": 1, "ecm_attempts": 9}
    credited = scalar(engine, "SELECT s.outcome->>'factor_status' FROM factors f JOIN submissions s USING (attempt_id)")
    assert credited == "new_factor"
    assert_sound(engine)


def test_a_factor_that_was_divided_out_is_known_under_any_value(engine):
    p, q, r = prime(20), prime(21), prime(22)
    number = product(p, q, r, P40, Q80)
    submit(engine, result(str(number), str(p)))
    old = number // p
    submit(engine, result(str(old), str(q)))
    assert submit(engine, result(str(old), str(p), client="bob")).outcome["factor_status"] == "known_factor"
    # A claim of P*R on the old value still splits off R.
    row = submit(engine, result(str(old), str(q * r), client="carol"))
    assert row.outcome["factor_status"] == "new_factor"
    assert leaf_values(engine, number) == texts(p, q, r)
    assert_sound(engine)


def test_one_and_the_number_itself_are_no_factors_and_no_error(engine):
    number = str(product(P40, P80))
    row = submit(engine, result(number, number, "1"))
    assert (row.state, row.outcome["factor_status"]) == ("applied", "no_factor")
    assert "left out" in row.outcome["message"]
    assert counts(engine, ("factors",)) == {"factors": 0}
    assert_sound(engine)
