"""Random streams of results: whatever clients send, in whatever order and however concurrently, every invariant holds.

Numbers are made from known primes, so it is known beforehand which claims of a result are true.
"""

import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from math import gcd

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline import (
    SETTINGS,
    apply_in_batches,
    assert_sound,
    empty,
    lease,
    leaves,
    receive,
    result,
    rows,
    run_jobs,
    scalar,
)
from primes import prime, product
from sqlalchemy import select

from coordinator import effort
from coordinator.base.unit_of_work import is_transient
from coordinator.results import applying, inbox
from models.tables import Composite, Target

# Any product of the small ones is split at once; any part with a large one has more than 75 digits and is not. So the
# final parts of a number do not depend on the order in which its factors arrive.
SMALL = [prime(9), prime(9, 1), prime(10), prime(11)]
LARGE = [prime(77), prime(78), prime(79)]
MIDDLE = [prime(11, 1), prime(12), prime(41)]  # FLINT splits their products in no time


@dataclass(frozen=True)
class SpelledNumber:
    """A number, and several texts for it."""

    primes: tuple[int, ...]
    texts: tuple[str, ...] = field(default=())

    @property
    def value(self) -> int:
        return product(*self.primes)

    def spelled(self, which: int) -> str:
        texts = (str(self.value), f"{self.value - 1}+1", *self.texts)
        return texts[which % len(texts)]


NUMBERS = [
    SpelledNumber((SMALL[0], SMALL[1], LARGE[0], LARGE[1])),
    SpelledNumber((SMALL[2], SMALL[2], SMALL[3], LARGE[0], LARGE[2])),  # a repeated factor, and a part in common
    SpelledNumber((SMALL[0], MIDDLE[0], MIDDLE[1], MIDDLE[2])),
    SpelledNumber((MIDDLE[2], MIDDLE[2], LARGE[1])),
    SpelledNumber((SMALL[1], SMALL[3])),
]

runs = st.fixed_dictionaries(
    {
        "b1": st.sampled_from([2_000, 11_000, 50_000]),
        "b2": st.sampled_from([None, -1, 0, 10**7]),
        "curves": st.integers(0, 3),
        "sigma": st.sampled_from([None, "7", "1:7", "3:7", ["1:7", "1:8"], "0:" + "9" * 30]),
        "parametrization": st.sampled_from([None, None, 1, 3]),
        "client": st.sampled_from(["alice", "bob"]),
        "method": st.sampled_from(["ecm", "ecm", "ecm", "pm1", "qs"]),
    }
)


@st.composite
def bodies(draw):
    """(body, whether each of its claimed factors divides the number)."""
    number = draw(st.sampled_from(NUMBERS))
    kind = draw(st.sampled_from(["none", "prime", "composite", "own", "expression", "bad", "several", "cofactor"]))
    one = draw(st.sampled_from(number.primes))
    some = product(*draw(st.lists(st.sampled_from(sorted(set(number.primes))), min_size=1, max_size=2, unique=True)))
    claims = {
        "none": [],
        "prime": [str(one)],
        "composite": [str(some)],
        "own": [str(number.value), "1"],
        "expression": [f"({one}*6)/3-{one}"],
        "bad": [str(one), str(draw(st.sampled_from([999, one + 1, number.value * 2])))],
        "several": [str(one), str(some), f"{one}"],
        "cofactor": [],
    }[kind]
    text = number.spelled(draw(st.integers(0, 3)))
    if kind == "cofactor":
        text = str(number.value // one)  # known or not, old or current: the server has to accept it
        if text == "1" or number.value // one in number.primes:
            text = number.spelled(0)
    run = draw(runs)
    if run["method"] == "qs":
        run["b1"] = draw(st.sampled_from([None, 2_000]))
    body = result(text, *claims, **run)
    if draw(st.booleans()):
        body["work_id"] = draw(st.sampled_from(["LEASE", "11111111-1111-4111-8111-111111111111", "nonsense"]))
    return body, kind != "bad"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), bodies(), st.sampled_from([None, "k1", "k2", "k3"])),
        st.tuples(st.just("jobs"), st.none(), st.none()),
        st.tuples(st.just("replay"), st.integers(0, 20), st.none()),
    ),
    min_size=3,
    max_size=12,
)


@pytest.mark.parametrize("apply", [applying.apply_result, apply_in_batches], ids=["one by one", "in batches"])
@settings(
    max_examples=20,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(stream=steps)
def test_every_invariant_holds_after_every_stream(engine, apply, stream):
    empty(engine)
    sent, states, kept = [], {}, {}
    lease_id = None
    for step, what, key in stream:
        if step == "jobs":
            run_jobs(engine)
        elif step == "replay" and sent:
            receipt = receive(engine, *sent[what % len(sent)])
            before = inbox.submission_row(engine, receipt.submission_id)
            apply(engine, receipt.submission_id, SETTINGS)
            assert inbox.submission_row(engine, receipt.submission_id) == before
        elif step == "send":
            body, divides = what
            if lease_id is None:
                lease_id = lease_some(engine)
            if body.get("work_id") == "LEASE":
                body = body | {"work_id": str(lease_id)}
            try:
                receipt = receive(engine, body, key)
            except inbox.IdempotencyKeyReusedError:
                assert kept[body["client_id"], key] != body
                continue
            if key:
                kept[body["client_id"], key] = body
            apply(engine, receipt.submission_id, SETTINGS)
            sent.append((body, key))
            row = inbox.submission_row(engine, receipt.submission_id)
            assert (row.state == "rejected") == (not divides), (row.reason, row.detail)
            states[receipt.submission_id] = row.state
    check_end(engine, sent, states)
    run_jobs(engine)
    check_end(engine, sent, states)


def lease_some(engine):
    """Insert a lease of five curves, or of as many as its number still needs; None if no number needs any."""
    first = select(Composite.id, Target.effort, Target.target_t_level).where(Target.ecm_eligible)
    first = first.join(Target, Target.id == Composite.target_id)
    with engine.connect() as connection:
        row = connection.execute(first.order_by(Composite.id).limit(1)).one_or_none()
    if row is None:
        return None
    needed = effort.curves_to_reach(row.effort, row.target_t_level, 50_000, -1, 1)
    return lease(engine, row.id, curves=min(5, needed))


def check_end(engine, sent, states):
    assert_sound(engine)
    assert dict(map(tuple, rows(engine, "SELECT id, state FROM submissions"))) == states
    applied = sum(state == "applied" for state in states.values())
    assert scalar(engine, "SELECT count(*) FROM ecm_attempts") == applied
    for number in NUMBERS:
        for text in {number.spelled(n) for n in range(3)}:
            parts = [int(value) for value, _ in leaves(engine, text)]
            claims = [
                eval_claim(claim["factor"])
                for submission_id, (body, _) in zip(states, unique(sent), strict=False)
                if states[submission_id] != "rejected" and body["composite"] == text
                for claim in body["results"]["factors_found"]
            ]
            for claim in claims:
                assert all(gcd(claim, part) in (1, part) for part in parts), f"{claim} still splits a part of {text}"


def unique(sent):
    """The bodies in the order of their submissions, each once, as the inbox stored them."""
    seen = []
    for one in sent:
        if one not in seen:
            seen.append(one)
    return seen


def eval_claim(text):
    return eval(text.replace("/", "//"))


# Eight threads ------------------------------------------------------------------------------------------------------

# Numbers without a common part, so that a cofactor belongs to the same number in any order.
ALONE = [
    SpelledNumber((SMALL[0], SMALL[1], LARGE[0], LARGE[1])),
    SpelledNumber((SMALL[2], SMALL[2], SMALL[3], prime(80), prime(81))),
    SpelledNumber((prime(8), prime(12), prime(12, 1), prime(82))),
]


def mixed_stream(seed, length=60):
    """Bodies with duplicates, bad factors, composite and repeated factors and old cofactors, from a seed."""
    dice = random.Random(seed)
    stream = []
    for n in range(length):
        number = dice.choice(ALONE)
        distinct = sorted(set(number.primes))
        claims = dice.choice(
            [
                [],
                [],
                [str(dice.choice(distinct))],
                [str(product(*dice.sample(distinct, 2)))],
                [str(dice.choice(distinct)), "999"],
            ]
        )
        # The cofactor without its smallest prime was known from the beginning: see `seeds`.
        text = dice.choice([number.spelled(0), number.spelled(1), str(number.value // number.primes[0])])
        body = result(
            text,
            *claims,
            client=f"client-{n % 5}",
            b1=dice.choice([2_000, 50_000]),
            curves=dice.randint(0, 50),
            sigma=dice.choice([None, f"1:{dice.randint(1, 9)}", f"{dice.randint(1, 9)}"]),
            raw_output=str(n),
        )
        stream.append(body)
        if dice.random() < 0.3:
            stream.append(body)  # an exact duplicate
    return stream


def seeds():
    return [result(one.spelled(0), str(one.primes[0]), client="first", curves=1, sigma="2:1") for one in ALONE]


def end_state(engine):
    """The results that do not depend on the order: parts, curve sums, attempts, states."""
    return {
        "leaves": {one.value: leaves_and_cofactor(engine, one) for one in ALONE},
        "sums": Counter(
            {
                tuple(row[:4]): row.curves
                for row in rows(
                    engine,
                    "SELECT v.value, e.b1, e.b2, e.parametrization, e.curves FROM value_effort e"
                    " JOIN worked_values v ON v.id = e.value_id",
                )
            }
        ),
        "attempts": sorted(
            map(
                tuple,
                rows(
                    engine,
                    "SELECT number, count(*) FROM ecm_attempts a JOIN composites c ON c.id = composite_id GROUP BY 1",
                ),
            )
        ),
        "states": Counter(state for (state,) in rows(engine, "SELECT state FROM submissions")),
        "finished": sorted(
            map(tuple, rows(engine, "SELECT number, is_fully_factored FROM composites WHERE parent_id IS NULL"))
        ),
    }


def leaves_and_cofactor(engine, number):
    parts = [value for value, _ in leaves(engine, number.spelled(0))]
    cofactor = scalar(engine, "SELECT current_composite FROM composites WHERE number = :n", n=number.spelled(0))
    return sorted(parts + ([cofactor] if cofactor != "1" else []))


@pytest.fixture(scope="module")
def ends():
    """The end states that one thread leads to, by seed: both ways of applying results must lead there."""
    return {}


def end_of_one_thread(engine, stream):
    for body in seeds() + stream:
        applying.apply_result(engine, receive(engine, body).submission_id, SETTINGS)
    run_jobs(engine)
    assert_sound(engine)
    end = end_state(engine)
    empty(engine)
    return end


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("apply", [applying.apply_result, apply_in_batches], ids=["one by one", "in batches"])
def test_eight_threads_end_where_one_does(engine, ends, apply, seed):
    stream = mixed_stream(seed)
    expected = ends[seed] = ends.get(seed) or end_of_one_thread(engine, stream)
    for body in seeds():
        applying.apply_result(engine, receive(engine, body).submission_id, SETTINGS)
    raised, start = [], threading.Barrier(8)

    def client(own):
        start.wait()
        for body in own:
            submission_id = receive(engine, body).submission_id
            for _ in range(10):
                try:
                    apply(engine, submission_id, SETTINGS)
                    break
                except Exception as error:
                    if not is_transient(error):
                        raised.append(error)
                        break

    random.Random(seed).shuffle(stream)
    threads = [threading.Thread(target=client, args=(stream[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == [], f"seed {seed}"
    run_jobs(engine)
    assert_sound(engine)
    assert end_state(engine) == expected, f"seed {seed}"
