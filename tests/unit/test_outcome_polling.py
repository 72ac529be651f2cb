"""The poller: requests that wait get their outcome, whatever happens to it meanwhile."""

import threading
from time import monotonic, sleep
from types import SimpleNamespace

import pytest

from coordinator.results import inbox
from ingest.outcome_polling import LONGEST_PAUSE, OutcomePoller


@pytest.fixture
def answers(monkeypatch):
    """What the database says, one call after another: rows to give or errors to raise; the times of the calls."""
    given, times = [], []

    def settled(engine, wanted):
        times.append(monotonic())
        answer = given.pop(0) if given else [SimpleNamespace(id=one) for one in wanted]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(inbox, "settled_rows", settled)
    return SimpleNamespace(given=given, times=times)


@pytest.mark.parametrize(
    "fault", [RuntimeError("a bug"), MemoryError(), KeyError("id"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "")]
)
def test_the_poller_survives_every_fault_and_goes_on_after_its_longest_pause(answers, fault):
    answers.given += [fault, fault]
    assert OutcomePoller(None, 4).wait(7, 5).id == 7
    first, second, third = answers.times
    assert min(second - first, third - second) >= LONGEST_PAUSE


def test_a_row_that_cannot_be_handed_over_ends_nothing(answers):
    answers.given.append([object()])
    assert OutcomePoller(None, 4).wait(7, 5).id == 7


def test_no_more_than_allowed_wait(answers):
    answers.given += [[]] * 1000
    poller = OutcomePoller(None, 2)
    threads = [threading.Thread(target=poller.wait, args=(one, 0.5)) for one in range(2)]
    for thread in threads:
        thread.start()
    while len(poller._waiters) < 2:
        sleep(0.001)
    began = monotonic()
    assert poller.wait(3, 5) is None
    assert monotonic() - began < 0.2
    for thread in threads:
        thread.join()
    answers.given.clear()
    assert poller.wait(3, 5).id == 3


def test_without_a_thread_to_poll_nobody_waits_and_the_next_one_tries_again(answers, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    poller = OutcomePoller(None, 1)
    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", refuse)
        assert poller.wait(1, 5) is None
    assert poller.wait(2, 5).id == 2
