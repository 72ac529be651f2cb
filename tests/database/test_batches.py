"""Rounds that hold something they cannot apply, or meet a fault: the single way goes on where they stop."""

from pipeline import SETTINGS, assert_sound, receive, result, scalar, submit
from primes import prime, product
from structlog.testing import CapturingLogger

from coordinator.base.unit_of_work import unit_of_work
from coordinator.results import batches, inbox

NUMBER = str(product(prime(20), prime(40), prime(80)))


def test_a_batch_of_only_a_repeat_applies_nothing_and_is_no_fault(engine):
    submit(engine, result(NUMBER, sigma="1:17"))
    repeat = receive(engine, result(NUMBER, sigma="1:17", client="bob")).submission_id
    with unit_of_work(engine, "batch") as connection:
        assert batches._apply(connection, [repeat]) == set()
    assert batches.apply_result(engine, repeat, SETTINGS).state == "duplicate"
    assert scalar(engine, "SELECT attempt_count FROM composites") == 1
    assert_sound(engine)


def test_a_batch_in_which_a_unique_value_is_always_taken_is_applied_one_by_one(engine, monkeypatch):
    submit(engine, result(NUMBER, client="first"))
    receipts = [receive(engine, result(NUMBER, curves=curves)) for curves in (1, 2)]

    def taken(connection, *_):
        connection.exec_driver_sql("INSERT INTO projects (name) VALUES ('x'), ('x')")

    monkeypatch.setattr(batches, "_add_effort", taken)
    for receipt in receipts:
        assert batches.apply_result(engine, receipt.submission_id, SETTINGS).state == "applied"
        assert inbox.submission_row(engine, receipt.submission_id).tries == 1
    assert_sound(engine)


def test_a_batch_names_the_requests_whose_results_it_applies(engine, monkeypatch):
    submit(engine, result(NUMBER, client="first"))
    receipts = [
        receive(engine, result(NUMBER, curves=curves), request_id=trace)
        for curves, trace in ((1, "trace-b"), (2, "trace-a"), (3, None))
    ]
    log = CapturingLogger()
    monkeypatch.setattr("coordinator.base.unit_of_work.log", log)
    assert batches.apply_result(engine, receipts[0].submission_id, SETTINGS).state == "applied"
    (committed,) = [call for call in log.calls if call.kwargs["unit"] == "apply_batch"]
    assert committed.args == ("Transaction committed",)
    assert committed.kwargs["requests"] == ["trace-a", "trace-b"]
    assert all(inbox.submission_row(engine, receipt.submission_id).state == "applied" for receipt in receipts)
