"""The intake: results that come in together are stored by one statement, and no result harms another."""

import threading
from time import monotonic, sleep

import pytest
from pipeline import SETTINGS, counts, result, rows, run_sql
from primes import prime, product
from sqlalchemy.exc import DataError, OperationalError

from coordinator.results import inbox, intake
from coordinator.results.inbox import IdempotencyKeyReusedError
from coordinator.results.intake import Intake
from models.wire.results import SubmitResult

NUMBER = str(product(prime(20), prime(40), prime(80)))


class Published(list):
    """What was published: one entry for each message."""

    accepts = True

    def __call__(self, stored):
        self.append(stored)
        return self.accepts


@pytest.fixture
def published():
    return Published()


@pytest.fixture
def statements(monkeypatch):
    """How many results each statement stored; `gate` holds them up."""
    sizes = []
    receive_new = inbox.receive_new
    gate = threading.Event()
    gate.set()

    def counted(engine, together):
        sizes.append(len(together))
        gate.wait(10)
        return receive_new(engine, together)

    monkeypatch.setattr(inbox, "receive_new", counted)
    counted.sizes, counted.gate = sizes, gate
    return counted


def send(into, body, key=None):
    return into.receive(
        SubmitResult.model_validate(body),
        key=key,
        max_raw_output=SETTINGS.max_raw_output,
        implicit_key_window=SETTINGS.implicit_key_window,
        request_id="trace",
    )


def send_at_once(into, bodies, keys=None):
    """Send each in a thread of its own; returns receipts or errors, in order."""
    answers = [None] * len(bodies)

    def client(index):
        try:
            answers[index] = send(into, bodies[index], keys[index] if keys else None)
        except Exception as error:
            answers[index] = error

    threads = [threading.Thread(target=client, args=(index,)) for index in range(len(bodies))]
    for thread in threads:
        thread.start()
    return threads, answers


def join(threads):
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_a_result_alone_waits_for_nobody(engine, published, statements):
    into = Intake(engine, published)
    receipt = send(into, result(NUMBER))
    assert statements.sizes == [1]
    assert published == [[(receipt.submission_id, "alice", NUMBER)]]
    assert (receipt.replay, receipt.is_published) == (False, True)
    (row,) = rows(engine, "SELECT * FROM submissions")
    stored = inbox.submission_values(
        SubmitResult.model_validate(result(NUMBER)),
        key=None,
        max_raw_output=SETTINGS.max_raw_output,
        request_id="trace",
    )
    assert {name: getattr(row, name) for name in stored if name != "payload_sha256"} | {
        "payload_sha256": bytes(row.payload_sha256)
    } == stored


def test_those_that_come_in_meanwhile_share_one_statement_and_one_message(engine, published, statements, monkeypatch):
    monkeypatch.setattr(intake, "PATIENCE_SECONDS", 10)
    into = Intake(engine, published)
    statements.gate.clear()
    threads, answers = send_at_once(into, [result(NUMBER, curves=curves) for curves in range(20)])
    while len(into._waiting) < 19:
        sleep(0.01)
    statements.gate.set()
    join(threads)
    assert statements.sizes == [1, 19]
    assert [len(message) for message in published] == [1, 19]
    assert len({answer.submission_id for answer in answers}) == 20
    for curves, answer in enumerate(answers):
        (row,) = rows(engine, "SELECT payload FROM submissions WHERE id = :id", id=answer.submission_id)
        assert row.payload["parameters"]["curves"] == curves


def test_nobody_waits_for_long_behind_a_statement_that_is_held_up(engine, published, monkeypatch):
    into, receive_new, gate = Intake(engine, published), inbox.receive_new, threading.Event()

    def held_up(engine, together):
        if any(row["client_id"] == "slow" for row in together):
            gate.wait(10)
        return receive_new(engine, together)

    monkeypatch.setattr(inbox, "receive_new", held_up)
    slow, _ = send_at_once(into, [result(NUMBER, client="slow")])
    sleep(0.1)
    began = monotonic()
    fast, answers = send_at_once(into, [result(NUMBER, curves=curves) for curves in range(5)])
    join(fast)
    assert monotonic() - began < 2
    assert all(answer.is_published for answer in answers)
    gate.set()
    join(slow)
    assert counts(engine, ("submissions",)) == {"submissions": 6}


def test_one_that_cannot_be_stored_harms_no_other(engine, published, monkeypatch):
    monkeypatch.setattr(intake, "PATIENCE_SECONDS", 10)
    into, receive_new, gate = Intake(engine, published), inbox.receive_new, threading.Event()

    def check(rows_of):
        if any(row["client_id"] == "poison" for row in rows_of):
            raise DataError("INSERT", {}, Exception("a value that the database refuses"))

    def guarded(engine, together):
        gate.wait(10)
        check(together)
        return receive_new(engine, together)

    receive_row = inbox.receive_row

    def guarded_alone(engine, row, **options):
        check([row])
        return receive_row(engine, row, **options)

    monkeypatch.setattr(inbox, "receive_new", guarded)
    monkeypatch.setattr(inbox, "receive_row", guarded_alone)
    clients = ["alice", "poison", "bob", "carl"]
    threads, answers = send_at_once(into, [result(NUMBER, client=client) for client in clients])
    sleep(0.2)
    gate.set()
    join(threads)
    assert [isinstance(answer, DataError) for answer in answers] == [False, True, False, False]
    assert counts(engine, ("submissions",)) == {"submissions": 3}
    assert sorted(client for message in published for _, client, _ in message) == ["alice", "bob", "carl"]


def test_while_the_database_is_away_everyone_gets_the_error_and_nobody_hangs(engine, published, monkeypatch):
    into = Intake(engine, published)

    def away(*_):
        sleep(0.05)
        raise OperationalError("INSERT", {}, Exception("server closed the connection unexpectedly"))

    with monkeypatch.context() as broken:
        broken.setattr(inbox, "receive_new", away)
        threads, answers = send_at_once(into, [result(NUMBER, curves=curves) for curves in range(10)])
        join(threads)
    assert all(isinstance(answer, OperationalError) for answer in answers)
    assert published == []
    assert send(into, result(NUMBER)).is_published


def test_the_same_result_many_times_at_once_is_stored_once(engine, published):
    into = Intake(engine, published)
    threads, answers = send_at_once(into, [result(NUMBER, sigma="1:17")] * 12)
    join(threads)
    assert {answer.submission_id for answer in answers} == {answers[0].submission_id}
    assert sum(not answer.replay for answer in answers) == 1
    assert counts(engine, ("submissions",)) == {"submissions": 1}


def test_a_key_that_was_used_for_another_result_is_refused_beside_others(engine, published):
    into = Intake(engine, published)
    first = send(into, result(NUMBER), key="one")
    bodies = [result(NUMBER, curves=5), result(NUMBER, curves=6), result(NUMBER)]
    threads, answers = send_at_once(into, bodies, keys=["one", "two", "one"])
    join(threads)
    refused, stored, replayed = answers
    assert isinstance(refused, IdempotencyKeyReusedError)
    assert not stored.replay
    assert (replayed.submission_id, replayed.replay, replayed.is_published) == (first.submission_id, True, True)


def test_a_replay_of_a_settled_result_has_its_row_and_is_not_published(engine, published):
    into = Intake(engine, published)
    first = send(into, result(NUMBER, sigma="1:17"))
    run_sql(engine, "UPDATE submissions SET state = 'applied', settled_at = now()")
    published.clear()
    again = send(into, result(NUMBER, sigma="1:17"))
    assert (again.submission_id, again.settled.state, published) == (first.submission_id, "applied", [])


def test_a_large_result_is_stored_by_itself(engine, published, statements):
    into = Intake(engine, published)
    receipt = send(into, result(NUMBER, raw_output="x" * (intake.LARGE + 1)))
    assert statements.sizes == ([1] if SETTINGS.max_raw_output <= intake.LARGE else [])
    assert receipt.is_published


def test_what_the_broker_did_not_take_is_stored_and_says_so(engine, published):
    published.accepts = False
    assert not send(Intake(engine, published), result(NUMBER)).is_published
    assert counts(engine, ("submissions",)) == {"submissions": 1}
