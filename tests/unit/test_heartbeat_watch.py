"""A program that is frozen is told from one that could not be heard, because the broker did not answer."""

from ingest.commands.up import FROZEN_AFTER, HeartbeatWatch


def status(*, broker=True, worker=1.0, beat=1.0, elsewhere=1.0):
    """/status of a host called here; heartbeats by their age in seconds."""
    workers = [
        {"role": "worker", "name": "worker@here", "age": worker},
        {"role": "worker", "name": "worker@there", "age": elsewhere},
    ]
    beats = [{"role": "beat", "name": "here", "age": beat}]
    return {"broker": {"ok": broker}, "workers": {"heartbeats": workers}, "beat": {"heartbeats": beats}}


def watched(*looks):
    """What a watch says at the last of some looks (seconds, status)."""
    watch = HeartbeatWatch("here")
    for moment, seen in looks[:-1]:
        watch.frozen_programs(seen, moment)
    return watch.frozen_programs(looks[-1][1], looks[-1][0])


def test_who_is_silent_while_the_broker_answers_is_frozen():
    assert watched((0, status(worker=FROZEN_AFTER + 1))) == ["worker"]
    assert watched((0, status()), (5, status(beat=FROZEN_AFTER + 1))) == ["beat"]
    assert watched((0, status()), (5, status(worker=FROZEN_AFTER + 1, beat=FROZEN_AFTER + 1))) == ["beat", "worker"]


def test_who_was_heard_of_lately_or_is_another_hosts_is_not():
    assert watched((0, status()), (100, status(worker=FROZEN_AFTER, beat=FROZEN_AFTER, elsewhere=1000))) == []


def test_nobody_is_frozen_while_the_broker_is_away_or_nothing_is_known():
    assert watched((0, status()), (100, status(broker=False, worker=1000))) == []
    assert watched((0, status()), (100, {})) == []


def test_after_the_broker_came_back_everybody_gets_the_time_to_be_heard():
    silent = status(worker=1000, beat=1000)
    looks = [(0, status()), (50, status(broker=False)), (100, silent)]
    assert watched(*looks) == []
    assert watched(*looks, (100 + FROZEN_AFTER - 1, silent)) == []
    assert watched(*looks, (100 + FROZEN_AFTER, silent)) == ["beat", "worker"]
