"""What is received once: keys, their windows, their reuse; and numbers that are loaded later."""

import threading

import pytest
from pipeline import SETTINGS, assert_sound, counts, receive, result, rows, run_sql, scalar, submit
from primes import prime, product

from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import registry
from coordinator.results import applying, inbox
from coordinator.results.inbox import IdempotencyKeyReusedError
from models.wire.results import SubmitResult

NUMBER = str(product(prime(20), prime(40), prime(80)))


def age(engine, hours):
    run_sql(engine, "UPDATE submissions SET created_at = created_at - make_interval(hours => :hours)", hours=hours)


@pytest.mark.parametrize("key", ["run-17", None])
def test_a_result_sent_again_is_a_replay_however_late(engine, key):
    body = result(NUMBER, str(prime(20)), sigma="1:5")
    first = submit(engine, body, key)
    age(engine, 1000)
    again = receive(engine, body, key)
    assert (again.submission_id, again.attempt_id, again.replay) == (first.id, first.attempt_id, True)
    assert again.settled is not None
    assert again.settled.outcome["factor_status"] == "new_factor"
    assert counts(engine, ("submissions", "ecm_attempts")) == {"submissions": 1, "ecm_attempts": 1}


def test_a_replay_of_an_unsettled_result_names_its_submission(engine):
    first = receive(engine, result(NUMBER))
    again = receive(engine, result(NUMBER))
    assert (again.submission_id, again.replay, again.settled) == (first.submission_id, True, None)


def test_without_sigma_and_key_a_payload_is_the_key_for_a_day(engine):
    first = submit(engine, result(NUMBER))
    age(engine, 23)
    assert receive(engine, result(NUMBER)).submission_id == first.id
    age(engine, 2)
    second = submit(engine, result(NUMBER))
    assert (second.id != first.id, second.state) == (True, "applied")
    assert scalar(engine, "SELECT attempt_count FROM composites") == 2
    # The second speaks for its own day; the first has kept its row.
    assert receive(engine, result(NUMBER)).submission_id == second.id
    age(engine, 25)
    assert submit(engine, result(NUMBER)).state == "applied"
    assert counts(engine, ("submissions",)) == {"submissions": 3}
    assert_sound(engine)


def test_a_key_is_kept_for_ever_also_without_sigma(engine):
    first = submit(engine, result(NUMBER), "mine")
    age(engine, 1000)
    assert receive(engine, result(NUMBER), "mine").submission_id == first.id


def test_eight_results_at_the_end_of_the_window_are_stored_once(engine):
    submit(engine, result(NUMBER))
    age(engine, 25)
    receipts, start = [], threading.Barrier(8)

    def send():
        start.wait()
        receipts.append(receive(engine, result(NUMBER)))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({receipt.submission_id for receipt in receipts}) == 1
    assert sorted(receipt.replay for receipt in receipts) == [False] + [True] * 7


def test_a_key_reused_for_something_else_is_refused_and_stores_nothing(engine):
    submit(engine, result(NUMBER, curves=1), "mine")
    with pytest.raises(IdempotencyKeyReusedError):
        receive(engine, result(NUMBER, curves=2), "mine")
    # Another client's keys are its own.
    assert not receive(engine, result(NUMBER, curves=2, client="bob"), "mine").replay
    assert counts(engine, ("submissions",)) == {"submissions": 2}


def test_a_rejected_result_stays_rejected_when_sent_again(engine):
    first = submit(engine, result(NUMBER, "999"))
    again = receive(engine, result(NUMBER, "999"))
    assert again.replay
    assert again.settled.state == first.state == "rejected"
    assert again.settled.reason == "factor_does_not_divide"


def test_a_result_of_an_unknown_composite_is_rejected_and_applied_once_it_is_loaded(engine):
    closed = SETTINGS.model_copy(update={"accept_unknown_composites": False})
    receipt = receive(engine, result(NUMBER))
    assert applying.apply_result(engine, receipt.submission_id, closed).state == "rejected"
    row = inbox.submission_row(engine, receipt.submission_id)
    assert row.reason == "unknown_composite"
    assert counts(engine, ("composites", "ecm_attempts")) == {"composites": 0, "ecm_attempts": 0}
    with unit_of_work(engine, "load") as connection:
        registry.register(connection, NUMBER, int(NUMBER), is_prime=False)
    again = receive(engine, result(NUMBER))
    assert (again.submission_id, again.replay) == (receipt.submission_id, False)
    assert applying.apply_result(engine, receipt.submission_id, closed).state == "applied"
    assert_sound(engine)


def test_each_result_of_a_list_gets_its_own_answer(engine):
    submit(engine, result(NUMBER, curves=1), "taken")
    batch = [
        (SubmitResult.model_validate(result(NUMBER, curves=curves)), key)
        for curves, key in [(2, None), (2, None), (1, "taken"), (3, "taken"), (4, "new")]
    ]
    verdicts = inbox.receive_many(engine, batch, max_raw_output=100, implicit_key_window=60)
    assert [isinstance(verdict, IdempotencyKeyReusedError) or verdict.replay for verdict in verdicts] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert isinstance(verdicts[3], IdempotencyKeyReusedError)
    assert verdicts[0].submission_id == verdicts[1].submission_id
    assert counts(engine, ("submissions",)) == {"submissions": 3}


def test_two_lists_in_opposite_orders_do_not_deadlock(engine):
    bodies = [SubmitResult.model_validate(result(NUMBER, curves=curves)) for curves in range(60)]
    raised, start = [], threading.Barrier(4)

    def send(order):
        start.wait()
        try:
            inbox.receive_many(engine, [(body, None) for body in order], max_raw_output=0, implicit_key_window=60)
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=send, args=(order,)) for order in [bodies, bodies[::-1]] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    assert counts(engine, ("submissions",)) == {"submissions": 60}


def test_the_end_of_raw_output_is_kept(engine):
    body = SubmitResult.model_validate(result(NUMBER, raw_output="x" * 50 + "the end"))
    receipt = inbox.receive(engine, body, key=None, max_raw_output=7, implicit_key_window=60)
    kept = rows(engine, "SELECT raw_output, payload ? 'raw_output' AS twice FROM submissions")
    assert kept == [("the end", False)]
    # What was cut off still tells two payloads apart.
    other = SubmitResult.model_validate(result(NUMBER, raw_output="y" * 50 + "the end"))
    assert inbox.receive(engine, other, key=None, max_raw_output=7, implicit_key_window=60) != receipt


@pytest.mark.parametrize(
    ("first", "second", "duplicate"),
    [
        ({"sigma": "3:17"}, {"sigma": "17", "parametrization": 3}, True),
        ({"sigma": "17"}, {"sigma": "3:17"}, True),
        ({"sigma": "1:17"}, {"sigma": "1:017"}, True),
        ({"sigma": "3:17", "parametrization": 1}, {"sigma": "1:17"}, True),
        ({"sigma": ["1:5", "1:6"]}, {"sigma": ["1:6", "1:5"]}, True),
        ({"sigma": "1:17", "b2": -1}, {"sigma": "1:17", "b2": None}, True),
        ({"sigma": "1:17", "b2": 0}, {"sigma": "1:17", "b2": 50_000}, True),
        ({"sigma": "1:17"}, {"sigma": "0:17"}, False),
        ({"sigma": "1:17"}, {"sigma": "1:18"}, False),
        ({"sigma": "1:17"}, {"sigma": "1:17", "curves": 99}, False),
        ({"sigma": "1:17"}, {"sigma": "1:17", "b1": 11_000}, False),
        ({"sigma": "1:17"}, {"sigma": "1:17", "b2": 10**9}, False),
        ({"sigma": "1:17"}, {"sigma": "1:17", "method": "pp1"}, False),
        ({"sigma": None}, {"sigma": None}, False),
    ],
)
def test_the_same_curves_in_another_spelling_add_only_their_factors(engine, first, second, duplicate):
    submit(engine, result(NUMBER, **first))
    before = rows(engine, "SELECT b1, b2, parametrization, curves FROM value_effort")
    row = submit(engine, result(NUMBER, str(prime(20)), client="bob", **second))
    assert row.state == ("duplicate" if duplicate else "applied")
    assert row.outcome["factor_status"] == "new_factor"
    assert counts(engine, ("ecm_attempts",)) == {"ecm_attempts": 1 if duplicate else 2}
    if duplicate:
        assert rows(engine, "SELECT b1, b2, parametrization, curves FROM value_effort") == before
        again = submit(engine, result(NUMBER, client="carol", **second))
        assert again.outcome["factor_status"] == "duplicate"
        assert again.outcome["attempt_id"] == row.outcome["attempt_id"] == 1
    assert_sound(engine)
