"""What is retried, for how long, and with which pauses."""

from typing import NamedTuple

import pytest

from agent import retrying
from agent.retrying import BackOff, Delays, call_until_answered


class FakeReply(NamedTuple):
    is_final: bool
    retry_after: float = 0.0


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves, and pauses that are not shortened at random."""

    class Clock:
        now = 1000.0

        def sleep(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(retrying.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(retrying.time, "sleep", clock.sleep)
    monkeypatch.setattr(retrying, "spread", lambda seconds, low, high: seconds * high)
    return clock


def call(_clock, *replies, deadline=2000.0):
    """Return (last reply, the pauses before the attempts); the last of `replies` repeats."""
    left, pauses = list(replies), []
    reply = call_until_answered(
        lambda: left.pop(0) if len(left) > 1 else left[0],
        lambda: deadline,
        back_off=BackOff(Delays(1.0, 8.0)),
        on_wait=lambda reply, seconds: pauses.append(seconds),
    )
    return reply, pauses


def test_a_final_reply_ends_it_at_once(clock):
    assert call(clock, FakeReply(True)) == (FakeReply(True), [])


def test_pauses_double_up_to_the_longest(clock):
    again = FakeReply(False)
    assert call(clock, *[again] * 6, FakeReply(True)) == (FakeReply(True), [1.0, 2.0, 4.0, 8.0, 8.0, 8.0])
    assert clock.now == 1031.0


def test_no_pause_is_shorter_than_retry_after(clock):
    assert call(clock, FakeReply(False, 30.0), FakeReply(False), FakeReply(True))[1] == [30.0, 2.0]


def test_a_pause_beyond_the_deadline_is_not_begun(clock):
    assert call(clock, FakeReply(False), deadline=1007.5) == (FakeReply(False), [1.0, 2.0, 4.0])
    assert clock.now == 1007.0
    assert call(clock, FakeReply(False, 3600.0)) == (FakeReply(False, 3600.0), [])


def test_the_deadline_may_move_meanwhile(clock):
    reply = call_until_answered(lambda: FakeReply(False), lambda: 1100.0 if clock.now < 1010.0 else clock.now)
    assert reply == FakeReply(False)
    assert 1010.0 <= clock.now < 1020.0


def test_an_exception_is_raised_unchanged(clock):
    def fail():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        call_until_answered(fail, lambda: 2000.0)
    assert clock.now == 1000.0


def test_a_reset_starts_again_with_the_first_delay(clock):
    back_off = BackOff(Delays(1.0, 8.0))
    assert [back_off.next_pause() for _ in range(3)] == [1.0, 2.0, 4.0]
    back_off.reset()
    assert back_off.next_pause() == 1.0


def test_pauses_are_shortened_by_up_to_half():
    pauses = [BackOff(Delays(10.0, 80.0)).next_pause() for _ in range(200)]
    assert 5.0 <= min(pauses) < 6.5
    assert 8.5 < max(pauses) <= 10.0
