"""A submission is settled once: delivered twice, eight times at once, or killing whoever applies it."""

import os
import subprocess
import sys
import threading

import pytest
from pipeline import SETTINGS, apply_in_batches, assert_sound, counts, receive, result, rows, submit
from primes import prime, product
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError

from coordinator.base.unit_of_work import unit_of_work
from coordinator.results import applying, inbox

NUMBER = str(product(prime(20), prime(40), prime(80)))
THREE = SETTINGS.model_copy(update={"max_deliveries": 3})
APPLIERS = [applying.apply_result, apply_in_batches]


def at_once(times, call):
    """Call it `times` times at once; what was raised, if anything."""
    start, raised = threading.Barrier(times), []

    def run():
        start.wait()
        try:
            call()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=run) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize("apply", APPLIERS)
def test_delivered_twice(engine, apply):
    receipt = receive(engine, result(NUMBER, str(prime(20))))
    first = apply(engine, receipt.submission_id, SETTINGS)
    before = rows(engine, "SELECT * FROM submissions")
    second = apply(engine, receipt.submission_id, SETTINGS)
    assert (first.state, second.state, second.to_publish) == ("applied", "applied", [])
    assert rows(engine, "SELECT * FROM submissions") == before
    assert counts(engine, ("ecm_attempts", "factors")) == {"ecm_attempts": 1, "factors": 1}
    assert_sound(engine)


def test_delivered_eight_times_at_once(engine):
    """More often than MAX_DELIVERIES, and yet it is no fault of the submission."""
    submit(engine, result(NUMBER, client="first"))
    for n in range(3):
        receipt = receive(engine, result(NUMBER, curves=10 + n))
        raised = at_once(8, lambda receipt=receipt: apply_in_batches(engine, receipt.submission_id, THREE))
        assert raised == []
        assert inbox.submission_row(engine, receipt.submission_id).state == "applied", f"time {n}"
    assert counts(engine, ("ecm_attempts",)) == {"ecm_attempts": 4}
    assert_sound(engine)


def test_a_submission_that_does_not_exist(engine):
    assert applying.apply_result(engine, 17, SETTINGS) is None
    assert apply_in_batches(engine, 17, SETTINGS) is None


def test_a_result_that_fails_every_time_ends_as_failed_and_only_an_operator_sends_it_again(engine, monkeypatch):
    apply = applying.apply_result
    receipt = receive(engine, result(NUMBER, str(prime(20))))

    def broken(*_, **__):
        raise ZeroDivisionError("a bug in arithmetic")

    monkeypatch.setattr(applying, "_record_attempt", broken)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            apply(engine, receipt.submission_id, THREE)
        assert inbox.submission_row(engine, receipt.submission_id).state == "received"
    assert apply(engine, receipt.submission_id, THREE).state == "failed"
    row = inbox.submission_row(engine, receipt.submission_id)
    assert (row.state, row.tries) == ("failed", 3)
    assert "a bug in arithmetic" in row.detail
    assert counts(engine, ("composites", "ecm_attempts")) == {"composites": 0, "ecm_attempts": 0}
    assert_sound(engine)
    monkeypatch.undo()
    # The client sends the same again: it is told how the first one ended, and no worker is held by it again.
    again = receive(engine, result(NUMBER, str(prime(20))))
    assert (again.submission_id, again.replay, again.settled.state) == (receipt.submission_id, True, "failed")
    assert apply(engine, receipt.submission_id, THREE).state == "failed"
    with unit_of_work(engine, "retry") as connection:
        inbox.requeue(connection, receipt.submission_id)
    assert apply(engine, receipt.submission_id, THREE).state == "applied"
    row = inbox.submission_row(engine, receipt.submission_id)
    assert (row.detail, row.reason, row.tries) == (None, None, 1)
    assert_sound(engine)


def test_a_transient_fault_does_not_count(engine, monkeypatch):
    receipt = receive(engine, result(NUMBER))

    def away(*_, **__):
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr(applying, "_record_attempt", away)
    for _ in range(5):
        with pytest.raises(OperationalError):
            applying.apply_result(engine, receipt.submission_id, THREE)
    assert (
        inbox.submission_row(engine, receipt.submission_id).state,
        inbox.submission_row(engine, receipt.submission_id).tries,
    ) == (
        "received",
        0,
    )
    monkeypatch.undo()
    assert applying.apply_result(engine, receipt.submission_id, THREE).state == "applied"


def test_the_public_message_of_a_fault_has_neither_sql_nor_parameters(engine, monkeypatch):
    receipt = receive(engine, result(NUMBER, client="a-secret-name"))

    def unfit(connection, *_, **__):
        values = {"name": "a-secret-name"}
        connection.execute(text("INSERT INTO value_effort (b1, b2) VALUES (1, length(:name))"), values)

    monkeypatch.setattr(applying, "_record_attempt", unfit)
    with pytest.raises(IntegrityError) as raised:
        applying.apply_result(engine, receipt.submission_id, THREE)
    detail = inbox.submission_row(engine, receipt.submission_id).detail
    unfit_value = 'null value in column "value_id" of relation "value_effort" violates not-null constraint'
    assert detail == f"IntegrityError: {unfit_value}"
    # Nor do the parameters reach the log.
    assert "a-secret-name" not in str(raised.value)


def test_a_unique_value_that_is_taken_every_time_is_no_race(engine, monkeypatch):
    """A lost race is tried again, but a race that is lost at every attempt has to end too."""
    receipt = receive(engine, result(NUMBER))

    def taken(connection, *_, **__):
        connection.exec_driver_sql("INSERT INTO projects (name) VALUES ('x'), ('x')")

    monkeypatch.setattr(applying, "_record_attempt", taken)
    for _ in range(3):
        with pytest.raises(IntegrityError):
            applying.apply_result(engine, receipt.submission_id, THREE)
    assert applying.apply_result(engine, receipt.submission_id, THREE).state == "failed"
    assert_sound(engine)


DYING = """
import os, sys
from coordinator.results import applying
from config.settings import Settings
from models.engine import make_engine
applying._record_attempt = lambda *_, **__: os._exit(7)
applying.apply_result(make_engine(os.environ["TEST_URL"]), int(sys.argv[1]), Settings(max_deliveries=2))
"""


def test_a_result_that_kills_its_process_every_time_ends_as_failed(engine, database_url):
    receipt = receive(engine, result(NUMBER, str(prime(20))))
    unharmed = receive(engine, result(NUMBER, client="bob"))

    def apply():
        program = [sys.executable, "-c", DYING, str(receipt.submission_id)]
        return subprocess.run(program, env=os.environ | {"TEST_URL": database_url}, check=False).returncode

    assert [apply(), apply(), apply()] == [7, 7, 0]
    row = inbox.submission_row(engine, receipt.submission_id)
    assert (row.state, row.reason, row.tries) == ("failed", "worker_died", 2)
    assert "died" in row.detail
    assert applying.apply_result(engine, unharmed.submission_id, SETTINGS).state == "applied"
    assert_sound(engine)
    # By hand, as an operator would.
    with unit_of_work(engine, "retry") as connection:
        inbox.requeue(connection, receipt.submission_id)
    assert applying.apply_result(engine, receipt.submission_id, SETTINGS).state == "applied"
    assert_sound(engine)


def test_a_settled_submission_is_not_sent_again(engine):
    row = submit(engine, result(NUMBER))
    with unit_of_work(engine, "retry") as connection:
        inbox.requeue(connection, row.id)
    assert inbox.submission_row(engine, row.id) == row


def test_a_base_exception_leaves_nothing_and_counts(engine, monkeypatch):
    receipt = receive(engine, result(NUMBER))

    def stop(*_):
        raise SystemExit

    monkeypatch.setattr(applying, "_add_effort", stop)
    with pytest.raises(SystemExit):
        applying.apply_result(engine, receipt.submission_id, THREE)
    assert counts(engine, ("composites", "ecm_attempts")) == {"composites": 0, "ecm_attempts": 0}
    assert inbox.submission_row(engine, receipt.submission_id).tries == 1
