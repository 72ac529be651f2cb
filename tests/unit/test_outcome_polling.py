"""The poller: waiting requests get their outcome, even after errors of the poller."""

import threading
from time import monotonic, sleep
from types import SimpleNamespace

import pytest

from coordinator.results import inbox
from ingest.outcome_polling import LONGEST_PAUSE, OutcomePoller


@pytest.fixture
def answers(monkeypatch):
    """Answers of the database, one for each call: rows to return or errors to raise; and the times of the calls."""
    queued, times = [], []

    def settled_rows(engine, ids):
        times.append(monotonic())
        answer = queued.pop(0) if queued else [SimpleNamespace(id=row_id) for row_id in ids]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(inbox, "settled_rows", settled_rows)
    return SimpleNamespace(queued=queued, times=times)


@pytest.mark.parametrize(
    "fault", [RuntimeError("a bug"), MemoryError(), KeyError("id"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "")]
)
def test_the_poller_survives_every_error_and_continues_after_its_longest_pause(answers, fault):
    answers.queued += [fault, fault]
    assert OutcomePoller(None, 4).wait(7, 5).id == 7
    first, second, third = answers.times
    assert min(second - first, third - second) >= LONGEST_PAUSE


def test_a_malformed_row_does_not_end_the_poller(answers):
    answers.queued.append([object()])
    assert OutcomePoller(None, 4).wait(7, 5).id == 7


def test_no_more_requests_wait_than_allowed(answers):
    answers.queued += [[]] * 1000
    poller = OutcomePoller(None, 2)
    threads = [threading.Thread(target=poller.wait, args=(row_id, 0.5)) for row_id in range(2)]
    for thread in threads:
        thread.start()
    while len(poller._waiters) < 2:
        sleep(0.001)
    began = monotonic()
    assert poller.wait(3, 5) is None
    assert monotonic() - began < 0.2
    for thread in threads:
        thread.join()
    answers.queued.clear()
    assert poller.wait(3, 5).id == 3


def test_if_the_polling_thread_cannot_start_nobody_waits_and_the_next_request_tries_again(answers, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    poller = OutcomePoller(None, 1)
    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", refuse)
        assert poller.wait(1, 5) is None
    assert poller.wait(2, 5).id == 2
