"""Random families of numbers with shared parts, against an oracle that recomputes everything from the list of attempts.

The oracle knows the primes of every number, so it needs no database: it keeps the numbers, the factors known of each,
and every attempt that counts, with the value that it was run on. After each step it says which curves count for each
unfinished part: those run on the part, or on a value that the part divides and that one of its numbers has had.
"""

import contextlib
import os
import random
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline import (
    SETTINGS,
    apply_in_batches,
    assert_sound,
    empty,
    leaves,
    receive,
    result,
    rows,
    run_jobs,
    scalar,
    submit,
)
from primes import prime, product

from coordinator.administration import deletions, edits
from coordinator.base.audit import Actor
from coordinator.base.errors import DomainError
from coordinator.base.unit_of_work import is_transient, unit_of_work
from coordinator.composites import registry
from coordinator.leases import claims
from coordinator.leases.work_request import Claim, WorkRequest
from coordinator.results import applying

ACTOR = Actor("alice")
# Small primes are found and split off; products of two large ones are too large to be split here.
SMALL = [prime(20), prime(22), prime(24)]
LARGE = [prime(50), prime(51), prime(52), prime(53)]
NUMBERS = [
    product(SMALL[0], LARGE[0], LARGE[1]),
    product(SMALL[1], LARGE[0], LARGE[1]),  # shares its cofactor with the first
    product(LARGE[0], LARGE[1]),  # is the cofactor of both
    product(SMALL[0], SMALL[1], LARGE[0], LARGE[1]),  # shares at the second depth
    product(SMALL[2], *LARGE),  # its cofactor splits into two parts, and one is the cofactor of the others
    product(SMALL[0], SMALL[2], *LARGE),
    product(LARGE[2], LARGE[3]),
]
PRIMES = [*SMALL, *LARGE]
# TARGET_EXAMPLES=5000 with --hypothesis-profile=default searches for hours.
EXAMPLES = int(os.environ.get("TARGET_EXAMPLES", "150"))
APPLY = {"one by one": applying.apply_result, "in batches": apply_in_batches}


class Oracle:
    """What should be in the database: `known` has the primes that are known of each number, by its value."""

    def __init__(self):
        self.attempts = {}  # id: (value, curves)

    def curves_for(self, part, related):
        """Return the number of curves that count for an unfinished part; `related` are the values of its numbers."""
        return sum(curves for value, curves in self.attempts.values() if value % part == 0 and value in related)


numbers = st.integers(0, len(NUMBERS) - 1)
steps = st.one_of(
    st.tuples(st.just("register"), numbers, st.none()),
    st.tuples(st.just("run"), numbers, st.sampled_from(["number", "cofactor", "former"])),
    st.tuples(st.just("run on lease"), numbers, st.sampled_from(["number", "cofactor"])),
    st.tuples(st.just("same curves"), numbers, st.sampled_from(["number", "cofactor"])),
    st.tuples(st.just("find"), numbers, st.integers(0, len(PRIMES) - 1)),
    st.tuples(st.just("find composite"), numbers, st.sampled_from([(3, 4), (5, 6), (3, 5), (0, 3), (0, 1)])),
    st.tuples(st.just("know"), numbers, st.integers(0, len(PRIMES) - 1)),
    st.tuples(st.just("void"), st.integers(0, 1), st.none()),
    st.tuples(st.just("delete attempt"), st.integers(0, 9), st.none()),
    st.tuples(st.just("delete number"), numbers, st.none()),
    st.tuples(st.just("jobs"), st.none(), st.none()),
)


def of_number(engine, number):
    found = rows(engine, "SELECT * FROM composites WHERE number = :number", number=str(number))
    return found[0] if found else None


def spelled(engine, number, how):
    """The value that a client names: the number, its cofactor, or a cofactor that it has had."""
    row = of_number(engine, number)
    if how == "number" or row.current_composite == "1":
        return str(number)
    if how == "cofactor":
        return row.current_composite
    had = rows(engine, "SELECT value FROM worked_values ORDER BY id")
    fitting = [value for (value,) in had if number % int(value) == 0 and int(value) % int(row.current_composite) == 0]
    return fitting[0] if fitting else row.current_composite


def take(engine, oracle, step, number, apply):
    kind, which, how = step
    client = f"client-{number % 2}"
    if kind == "jobs":
        run_jobs(engine)
        return
    if kind == "void":
        hour = timedelta(hours=1)
        deletions.void_attempts(
            engine,
            ACTOR,
            f"client-{which}",
            since=datetime.now(UTC) - hour,
            until=datetime.now(UTC) + hour,
            program=None,
            reason="broken",
        )
        return
    if kind == "delete attempt":
        attempts = rows(engine, "SELECT id FROM ecm_attempts ORDER BY id")
        if attempts:
            deletions.delete_attempt(engine, ACTOR, attempts[which % len(attempts)].id, None)
        return
    value = NUMBERS[which]
    if kind == "register":
        with unit_of_work(engine, "register") as connection:
            registry.register(connection, str(value), value, is_prime=False)
        run_jobs(engine)
        return
    row = of_number(engine, value)
    if row is None:
        return
    if kind == "delete number":
        deletions.delete_composite(engine, ACTOR, row.id, SETTINGS.max_digits)
    elif kind == "know":
        edits.add_known_factors(
            engine, ACTOR, str(value), [str(PRIMES[how])], edits.Provenance(None, None), max_digits=SETTINGS.max_digits
        )
    elif kind in ("find", "find composite"):
        claimed = PRIMES[how] if kind == "find" else product(*(PRIMES[index] for index in how))
        if value % claimed == 0 and claimed != value:
            send(engine, oracle, result(str(value), str(claimed), client=client, curves=2, b1=11_000), apply)
    elif kind == "run on lease":
        made = claims.claim(engine, WorkRequest(client, composite=str(value), shared=True), SETTINGS)
        if isinstance(made, Claim):
            text = spelled(engine, value, how)
            run = {"b1": made.plan.b1, "curves": made.plan.curves, "parametrization": made.plan.parametrization}
            answer = send(engine, oracle, result(text, client=client, work_id=str(made.work_id), **run), apply)
            assert answer.outcome["composite_id"] == row.id
            assert "without it" not in answer.outcome["message"]
            status = scalar(engine, "SELECT status FROM work_assignments WHERE id = :id", id=made.work_id)
            assert status == "completed"
    else:
        sigma = "1:5" if kind == "same curves" else None
        text = spelled(engine, value, how)
        send(engine, oracle, result(text, client=client, curves=1 + number % 7, sigma=sigma), apply)


def send(engine, oracle, body, apply):
    answer = submit(engine, body, key=f"{len(oracle.attempts)}-{random.random()}", apply=apply)
    if answer.state == "applied":
        oracle.attempts[answer.attempt_id] = (int(body["composite"]), body["parameters"]["curves"])
    return answer


def check(engine, oracle):
    """Compare every target with the oracle, which sums the attempts that still count."""
    counting = {
        row.id: row.value_id for row in rows(engine, "SELECT id, value_id FROM ecm_attempts WHERE voided_at IS NULL")
    }
    kept = {attempt: run for attempt, run in oracle.attempts.items() if attempt in counting}
    oracle.attempts = kept
    assert set(kept) == set(counting)
    values = dict(rows(engine, "SELECT id, value FROM worked_values"))
    assert {attempt: int(values[value_id]) for attempt, value_id in counting.items()} == {
        attempt: value for attempt, (value, _) in kept.items()
    }
    sums = dict(
        rows(
            engine,
            "SELECT target_id, sum(curves)::int FROM target_sources JOIN value_effort USING (value_id) GROUP BY 1",
        )
    )
    linked = rows(engine, "SELECT target_id, value FROM target_sources JOIN worked_values v ON v.id = value_id")
    by_target = Counter()
    had = {}
    for composite in rows(engine, "SELECT * FROM composites"):
        family = {composite.id, composite.parent_id}
        texts = {
            int(row.value)
            for row in rows(
                engine,
                "SELECT value FROM worked_values v JOIN composite_aliases a ON a.value_sha256 = v.value_sha256"
                " WHERE a.composite_id = ANY(:ids)",
                ids=[one for one in family if one],
            )
        }
        had.setdefault(composite.target_id, set()).update(texts)
    for row in linked:  # curves of a deleted number stay with the numbers that shared its target
        had.setdefault(row.target_id, set()).add(int(row.value))
    for target in rows(
        engine,
        "SELECT DISTINCT t.id, c.current_composite FROM targets t JOIN composites c ON c.target_id = t.id"
        " WHERE NOT t.is_finished",
    ):
        part = int(target.current_composite)
        expected = oracle.curves_for(part, had[target.id])
        assert sums.get(target.id, 0) == expected, (target, expected)
        by_target[target.id] += 1
    assert all(count == 1 for count in by_target.values())
    levels = "SELECT target_id FROM composites WHERE target_id IS NOT NULL GROUP BY 1"
    assert rows(engine, levels + " HAVING count(DISTINCT current_t_level) > 1") == []


@pytest.mark.parametrize("apply", APPLY)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    registered=st.lists(numbers, min_size=2, max_size=4, unique=True), stream=st.lists(steps, min_size=3, max_size=14)
)
def test_every_target_has_the_union_of_the_attempts_that_count(engine, apply, registered, stream):
    empty(engine)
    oracle = Oracle()
    for place, step in enumerate([("register", number, None) for number in registered] + stream):
        with contextlib.suppress(DomainError):
            take(engine, oracle, step, place, APPLY[apply])
        check(engine, oracle)
    run_jobs(engine)
    check(engine, oracle)
    check_factors(engine)
    assert_sound(engine)


def check_factors(engine):
    """A factor that divides the unfinished part of a number is known of every number that shares it."""
    for row in rows(engine, "SELECT number, current_composite FROM composites WHERE parent_id IS NULL"):
        parts = product(*(int(value) for value, _ in leaves(engine, row.number)))
        assert parts * int(row.current_composite) == int(row.number)


@pytest.mark.parametrize("seed", range(3))
def test_concurrent_results_on_shared_numbers_end_as_sequential_ones(engine, seed):
    """Eight clients send curves, factors and repeated curves for numbers that share their parts, all at once."""
    dice = random.Random(seed)
    bodies = [
        result(
            str(dice.choice([NUMBERS[0], NUMBERS[1], NUMBERS[2], NUMBERS[4], NUMBERS[5]])),
            client=f"client-{n % 8}",
            curves=dice.randint(1, 9),
            b1=dice.choice([2_000, 11_000]),
            sigma=None if n % 3 else f"1:{n}",
        )
        for n in range(64)
    ]
    for number, factor in ((0, SMALL[0]), (1, SMALL[1]), (4, SMALL[2]), (5, SMALL[0]), (5, SMALL[2])):
        bodies.insert(dice.randrange(60), result(str(NUMBERS[number]), str(factor), curves=1))
    with unit_of_work(engine, "register") as connection:
        for value in NUMBERS:
            registry.register(connection, str(value), value, is_prime=False)
    ids = [receive(engine, body, key=str(place)).submission_id for place, body in enumerate(bodies)]
    raised = []

    def client(own):
        for submission_id in own:
            for _ in range(20):
                try:
                    (applying.apply_result if submission_id % 2 else apply_in_batches)(engine, submission_id, SETTINGS)
                    break
                except Exception as error:
                    if not is_transient(error):
                        raised.append(error)
                        break

    threads = [threading.Thread(target=client, args=(ids[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    run_jobs(engine)
    assert Counter(state for (state,) in rows(engine, "SELECT state FROM submissions")) == {"applied": len(bodies)}
    oracle = Oracle()
    for row in rows(
        engine, "SELECT a.id, v.value, a.curves FROM ecm_attempts a JOIN worked_values v ON v.id = value_id"
    ):
        oracle.attempts[row.id] = (int(row.value), row.curves)
    check(engine, oracle)
    assert_sound(engine)
    shared = {of_number(engine, NUMBERS[place]).target_id for place in (0, 1, 2)}
    assert len(shared) == 1
