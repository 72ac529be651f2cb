"""Random sequences of what operators take back: every invariant holds after each step."""

import contextlib
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline import SETTINGS, assert_sound, empty, result, rows, run_jobs, submit
from primes import prime, product
from sqlalchemy import select

from coordinator.administration import deletions
from coordinator.base.audit import Actor
from coordinator.base.errors import DomainError
from models.tables import Composite, EcmAttempt, Factor

ACTOR = Actor("alice")
PRIMES = [prime(9), prime(12), prime(25), prime(40), prime(42), prime(60)]
NUMBERS = [
    product(*PRIMES),
    product(PRIMES[0], PRIMES[0], PRIMES[3], PRIMES[5]),
    product(PRIMES[3], PRIMES[4], prime(61)),
]

factors_of = st.lists(st.integers(0, len(PRIMES) - 1), min_size=1, max_size=3, unique=True)
steps = st.one_of(
    st.tuples(st.just("send"), st.integers(0, len(NUMBERS) - 1), factors_of),
    st.tuples(st.just("send to part"), st.integers(0, 3), factors_of),
    st.tuples(st.just("delete factor"), st.integers(0, 9), st.none()),
    st.tuples(st.just("delete attempt"), st.integers(0, 9), st.none()),
    st.tuples(st.just("void"), st.integers(0, 1), st.none()),
    st.tuples(st.just("delete composite"), st.integers(0, 4), st.none()),
    st.tuples(st.just("jobs"), st.none(), st.none()),
)


def take(engine, step, number):
    """Run one step; an operator's step may be refused."""
    kind, which, chosen = step
    client = f"client-{number % 2}"
    if kind == "send":
        of = NUMBERS[which]
        claimed = product(*(PRIMES[index] for index in chosen))
        factors = [str(claimed)] if of % claimed == 0 and claimed != of else []
        submit(engine, result(str(of), *factors, client=client, curves=1 + number, sigma=f"1:{number % 5}"))
        return
    if kind == "jobs":
        run_jobs(engine)
        return
    if kind == "void":
        until = datetime.now(UTC) + timedelta(hours=1)
        since = datetime(2020, 1, 1, tzinfo=UTC)
        deletions.void_attempts(
            engine, ACTOR, f"client-{which}", since=since, until=until, program=None, reason="broken"
        )
        return
    tables = {"delete factor": Factor, "delete attempt": EcmAttempt}
    table = tables.get(kind, Composite).__table__
    found = rows(engine, select(table).order_by(table.c.id))
    if not found:
        return
    row = found[which % len(found)]
    if kind == "send to part":
        claimed = product(*(PRIMES[index] for index in chosen))
        part = int(row.current_composite)
        factors = [str(claimed)] if part % claimed == 0 and claimed != part else []
        submit(engine, result(str(part), *factors, client=client, curves=2)) if part > 1 else None
    elif kind == "delete factor":
        deletions.delete_factor(engine, ACTOR, row.id, SETTINGS.max_digits)
    elif kind == "delete attempt":
        deletions.delete_attempt(engine, ACTOR, row.id, None)
    else:
        deletions.delete_composite(engine, ACTOR, row.id, SETTINGS.max_digits)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(steps, min_size=3, max_size=10))
def test_invariants_hold_after_each_step(engine, sequence):
    empty(engine)
    for number, step in enumerate(sequence):
        with contextlib.suppress(DomainError):
            take(engine, step, number)
        assert_sound(engine)
    run_jobs(engine)
    assert_sound(engine)
