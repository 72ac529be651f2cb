"""Many clients at once: bounds hold at every moment, nothing finished is leased, and who asks gets work."""

import threading
from collections import Counter
from time import perf_counter

import pytest
from pipeline import SETTINGS, assert_sound, result, rows, scalar
from primes import prime, product
from sqlalchemy import text

from bench import storm
from coordinator.base.unit_of_work import is_transient, unit_of_work
from coordinator.composites import lease_lifecycle, registry
from coordinator.leases import claims
from coordinator.leases.claims import Claim, NoWork, WorkRequest
from coordinator.reading import invariants
from coordinator.results import batches, inbox
from models.engine import make_engine
from models.wire.results import SubmitResult


def test_a_storm_of_claims_keeps_every_bound_at_every_moment(engine, database_url):
    crowd = make_engine(database_url, pool_size=16, pool_timeout=60)
    factors = storm.load_numbers(engine, 40, seed=7)
    over, broken, looks = threading.Event(), [], []

    def look_on():
        while not over.wait(0.2):
            broken.extend(invariants.violations(engine, max_digits=1000))
            looks.append(1)

    onlooker = threading.Thread(target=look_on)
    onlooker.start()
    try:
        report = storm.storm(crowd, factors, claimers=16, amount=400, seed=7)
    finally:
        over.set()
        onlooker.join()
        crowd.dispose()
    assert report.errors == []
    assert looks
    assert broken == []
    assert_sound(engine)
    assert set(report.happened) >= set(storm.FATES), "not everything happened"
    assert scalar(engine, "SELECT count(*) FROM composites WHERE is_fully_factored") > 0


def test_who_asks_gets_work_while_results_rain_on_the_only_number(engine, database_url):
    number = product(prime(80), prime(101))
    with unit_of_work(engine, "load") as connection:
        only = registry.register_new(connection, str(number), number, is_prime=False)
    over, raised, applied, answers = threading.Event(), [], Counter(), []
    crowd = make_engine(database_url, pool_size=8, pool_timeout=60)
    settings = SETTINGS.model_copy(update={"lease_target_minutes": 1})

    def rain(name):
        for n in range(10_000):
            if over.is_set():
                return
            body = result(str(number), client=name, curves=1, raw_output=str(n))
            try:
                receipt = inbox.receive(
                    crowd, SubmitResult.model_validate(body), key=None, max_raw_output=100, implicit_key_window=0
                )
                batches.apply_result(crowd, receipt.submission_id, settings)
                applied[name] += 1
            except Exception as error:
                if not is_transient(error):
                    raised.append(error)

    def ask(name):
        try:
            for _ in range(15):
                answers.append(claims.claim(crowd, WorkRequest(name, shared=True), settings))
                lease_lifecycle.complete(crowd, answers[-1].work_id, name)
        except Exception as error:
            raised.append(error)

    raining = [threading.Thread(target=rain, args=(f"rain-{n}",)) for n in range(3)]
    asking = [threading.Thread(target=ask, args=(f"ask-{n}",)) for n in range(4)]
    for thread in raining + asking:
        thread.start()
    for thread in asking:
        thread.join()
    over.set()
    for thread in raining:
        thread.join()
    crowd.dispose()
    assert raised == []
    assert min(applied.values()) > 0
    assert [type(answer) for answer in answers] == [Claim] * 60
    assert {answer.composite.id for answer in answers} == {only}
    assert_sound(engine)


def test_one_clients_claims_at_once_stop_at_its_limit(engine, database_url):
    storm.load_numbers(engine, 20, seed=3)
    crowd = make_engine(database_url, pool_size=8, pool_timeout=60)
    settings = SETTINGS.model_copy(update={"max_work_per_client": 5})
    answers = []

    def ask():
        for _ in range(2):
            answers.append(claims.claim(crowd, WorkRequest("greedy"), settings))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    crowd.dispose()
    assert Counter(map(type, answers)) == {Claim: 5, NoWork: 11}
    assert len({answer.composite.id for answer in answers if isinstance(answer, Claim)}) == 5
    assert all("5 leases" in answer.message for answer in answers if isinstance(answer, NoWork))
    assert len(rows(engine, "SELECT FROM work_assignments")) == 5


def test_numbers_that_something_long_holds_are_passed_over(engine, database_url, monkeypatch):
    monkeypatch.setattr(claims, "CLAIM_TIMEOUT", 0.5)
    factors = storm.load_numbers(engine, 8, seed=5)
    standard = [row.id for row in rows(engine, "SELECT id FROM composites ORDER BY digit_length, id")]
    held, free = standard[:5], standard[5]
    began = perf_counter()
    with engine.begin() as connection:
        connection.execute(text("SELECT FROM composites WHERE id = ANY(:ids) FOR NO KEY UPDATE"), {"ids": held})
        crowd = make_engine(database_url, pool_size=1)
        made = claims.claim(crowd, WorkRequest("alice", shared=True), SETTINGS)
        named = rows(engine, "SELECT number FROM composites WHERE id = :id", id=held[0])[0].number
        with pytest.raises(claims.ContendedError):
            claims.claim(crowd, WorkRequest("alice", composite=named), SETTINGS)
        crowd.dispose()
    assert made.composite.id == free
    # One wait for the first, none for the others; two and more for the one that was asked for by name.
    assert perf_counter() - began < 10
    assert set(standard) == set(factors)


def test_many_claims_of_one_client_at_once_all_get_work(engine, database_url):
    storm.load_numbers(engine, 4, seed=11)
    crowd = make_engine(database_url, pool_size=20, pool_timeout=60)
    settings = SETTINGS.model_copy(update={"lease_target_minutes": 0.02})
    answers, raised = [], []

    def ask():
        try:
            answers.append(claims.claim(crowd, WorkRequest("farm", shared=True), settings))
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    crowd.dispose()
    assert raised == []
    assert [type(answer) for answer in answers] == [Claim] * 40
    assert_sound(engine)
