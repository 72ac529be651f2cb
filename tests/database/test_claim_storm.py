"""Many clients at once: every bound holds at every moment, no finished number is leased, every claim gets work."""

import threading
from collections import Counter

import pytest
from pipeline import SETTINGS, apply_in_batches, assert_sound, result, rows, scalar
from primes import prime, product
from sqlalchemy import event, text

from bench import storm
from coordinator.base.unit_of_work import is_transient, unit_of_work
from coordinator.composites import lease_lifecycle, registry
from coordinator.leases import claims
from coordinator.leases.candidate_locks import LOCK_NOT_AVAILABLE
from coordinator.leases.work_request import Claim, NoWork, WorkRequest
from coordinator.reading import invariants
from coordinator.results import inbox
from models.engine import make_engine
from models.wire.results import SubmitResult


def test_a_storm_of_claims_keeps_every_bound_at_every_moment(engine, database_url):
    crowd = make_engine(database_url, pool_size=16, pool_timeout=60)
    factors = storm.load_numbers(engine, 40, seed=7)
    over, broken, checks = threading.Event(), [], []

    def check_invariants():
        while not over.wait(0.2):
            broken.extend(invariants.violations(engine, max_digits=1000))
            checks.append(1)

    checker = threading.Thread(target=check_invariants)
    checker.start()
    try:
        report = storm.storm(crowd, factors, claimers=16, amount=400, seed=7)
    finally:
        over.set()
        checker.join()
        crowd.dispose()
    assert report.errors == []
    assert checks
    assert broken == []
    assert_sound(engine)
    assert set(report.happened) >= set(storm.FATES), "not everything happened"
    assert scalar(engine, "SELECT count(*) FROM composites WHERE is_fully_factored") > 0


def test_every_claim_gets_work_while_results_arrive_for_the_only_number(engine, database_url, monkeypatch):
    # A loaded machine may need longer; the claims still have to get work in the end.
    monkeypatch.setattr(claims, "CLAIM_TIMEOUT", 60)
    number = product(prime(80), prime(101))
    with unit_of_work(engine, "load") as connection:
        only = registry.register_new(connection, str(number), number, is_prime=False)
    over, raised, applied, answers = threading.Event(), [], Counter(), []
    crowd = make_engine(database_url, pool_size=8, pool_timeout=60)
    settings = SETTINGS.model_copy(update={"lease_target_minutes": 1})

    def send_results(name):
        for n in range(10_000):
            if over.is_set():
                return
            body = result(str(number), client=name, curves=1, raw_output=str(n))
            try:
                receipt = inbox.receive(
                    crowd, SubmitResult.model_validate(body), key=None, max_raw_output=100, implicit_key_window=0
                )
                apply_in_batches(crowd, receipt.submission_id, settings)
                applied[name] += 1
            except Exception as error:
                if not is_transient(error):
                    raised.append(error)

    def claim_work(name):
        try:
            for _ in range(15):
                answers.append(claims.claim(crowd, WorkRequest(name, shared=True), settings))
                lease_lifecycle.complete(crowd, answers[-1].work_id, name)
        except Exception as error:
            raised.append(error)

    senders = [threading.Thread(target=send_results, args=(f"sender-{n}",)) for n in range(3)]
    claimers = [threading.Thread(target=claim_work, args=(f"claimer-{n}",)) for n in range(4)]
    for thread in senders + claimers:
        thread.start()
    for thread in claimers:
        thread.join()
    over.set()
    for thread in senders:
        thread.join()
    crowd.dispose()
    assert raised == []
    assert min(applied.values()) > 0
    assert [type(answer) for answer in answers] == [Claim] * 60
    assert {answer.composite.id for answer in answers} == {only}
    assert_sound(engine)


def test_simultaneous_claims_of_one_client_stop_at_its_limit(engine, database_url):
    storm.load_numbers(engine, 20, seed=3)
    crowd = make_engine(database_url, pool_size=8, pool_timeout=60)
    settings = SETTINGS.model_copy(update={"max_work_per_client": 5})
    answers = []

    def claim_work():
        for _ in range(2):
            answers.append(claims.claim(crowd, WorkRequest("greedy"), settings))

    threads = [threading.Thread(target=claim_work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    crowd.dispose()
    assert Counter(map(type, answers)) == {Claim: 5, NoWork: 11}
    assert len({answer.composite.id for answer in answers if isinstance(answer, Claim)}) == 5
    assert all("5 leases" in answer.message for answer in answers if isinstance(answer, NoWork))
    assert len(rows(engine, "SELECT FROM work_assignments")) == 5


def test_a_claim_passes_over_numbers_that_a_long_transaction_locks(engine, database_url, monkeypatch):
    monkeypatch.setattr(claims, "CLAIM_TIMEOUT", 0.5)
    factors = storm.load_numbers(engine, 8, seed=5)
    standard = [row.id for row in rows(engine, "SELECT id FROM composites ORDER BY digit_length, id")]
    held, free = standard[:5], standard[5]
    timed_out = []
    with engine.begin() as connection:
        lock = (
            "SELECT FROM targets WHERE id IN (SELECT target_id FROM composites WHERE id = ANY(:ids)) FOR NO KEY UPDATE"
        )
        connection.execute(text(lock), {"ids": held})
        crowd = make_engine(database_url, pool_size=1)
        event.listen(crowd, "handle_error", lambda context: timed_out.append(context.original_exception.pgcode))
        made = claims.claim(crowd, WorkRequest("alice", shared=True), SETTINGS)
        # One wait for the first, none for the others.
        assert timed_out == [LOCK_NOT_AVAILABLE]
        named = rows(engine, "SELECT number FROM composites WHERE id = :id", id=held[0])[0].number
        with pytest.raises(claims.ContendedError):
            claims.claim(crowd, WorkRequest("alice", composite=named), SETTINGS)
        crowd.dispose()
    assert made.composite.id == free
    # At least one more wait for the number that the client names.
    assert set(timed_out) == {LOCK_NOT_AVAILABLE}
    assert len(timed_out) >= 2
    assert set(standard) == set(factors)


def test_simultaneous_claims_of_one_client_all_get_work(engine, database_url):
    storm.load_numbers(engine, 4, seed=11)
    crowd = make_engine(database_url, pool_size=20, pool_timeout=60)
    settings = SETTINGS.model_copy(update={"lease_target_minutes": 0.02})
    answers, raised = [], []

    def claim_work():
        try:
            answers.append(claims.claim(crowd, WorkRequest("farm", shared=True), settings))
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=claim_work) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    crowd.dispose()
    assert raised == []
    assert [type(answer) for answer in answers] == [Claim] * 40
    assert_sound(engine)
