"""Counting requests in several processes: without round trips, with a broker that fails, and with bounded memory."""

import socket
from itertools import count
from time import monotonic, sleep

import pytest
import redis

from config.local.valkey import start_valkey
from config.settings import Settings
from ingest import rate_limits
from ingest.rate_limits import SETTLE_SECONDS, TIMEOUT, Counters
from tasks import broker_circuit, publishing

_names = count()


@pytest.fixture(autouse=True)
def circuit(monkeypatch):
    """A closed circuit, and a clock that stands still for windows, so that none ends meanwhile."""
    monkeypatch.setattr(broker_circuit, "_open_until", 0.0)
    monkeypatch.setattr(rate_limits, "time", lambda: 1_000_000.0)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    server = start_valkey(tmp_path_factory.mktemp("home"))
    yield server
    server.stop()


@pytest.fixture
def frozen():
    """The URL of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


@pytest.fixture
def name():
    return f"client-{next(_names)}"


def counters(url, limit="60/minute", processes=1, **settings):
    """The counters of one web process of several; its settling thread does not run unless a test starts it."""
    made = Counters(Settings(redis_url=url, rate_limit_per_client=limit, web_processes=processes, **settings))
    made._is_pending.set()
    return made


def take(counters, name, times=1, kind="client"):
    return counters.count(kind, name, times).left >= 0


def total(url, kind, name):
    with redis.Redis.from_url(url) as client:
        keys = client.keys(f"{rate_limits.PREFIX}{kind}:*:{name}")
        return sum(int(client.get(key)) for key in keys)


def counted_round_trips(counters, monkeypatch):
    sent = []
    send = counters._send
    monkeypatch.setattr(counters, "_send", lambda chosen: sent.append(len(chosen)) or send(chosen))
    return sent


# Over all processes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize("limit", [5, 60, 1000])
def test_all_processes_together_hold_a_limit(valkey, name, processes, limit):
    web = [counters(valkey.url, f"{limit}/minute", processes) for _ in range(processes)]
    taken = sum(take(web[turn % processes], name) for turn in range(3 * limit))
    # Each process but the last may have counted one share that the others do not know of.
    assert limit <= taken <= limit + (processes - 1) * (limit // (10 * processes))
    for one in web:
        one.settle()
    assert total(valkey.url, "client", name) >= limit
    assert not any(take(one, name) for one in web)


def test_a_process_learns_what_the_others_counted(valkey, name):
    first, second = (counters(valkey.url, "100/minute", 2) for _ in range(2))
    assert all(take(first, name) for _ in range(40))
    first.settle()
    assert second.count("client", name).left == 99  # as far as it knows
    second.settle()
    assert second.count("client", name).left == 58


def test_a_thread_settles_by_itself(valkey, name):
    first, second = (counters(valkey.url, "100/minute", 2) for _ in range(2))
    first._is_pending.clear()
    assert take(first, name, 7)
    deadline = monotonic() + 20 * SETTLE_SECONDS
    while total(valkey.url, "client", name) != 7 and monotonic() < deadline:
        sleep(0.05)
    assert total(valkey.url, "client", name) == 7
    second.count("client", name)
    second.settle()
    assert second.count("client", name).left == 91


def test_requests_far_from_a_limit_wait_for_nothing(valkey, name, monkeypatch):
    web = counters(valkey.url, "1000/minute", 2)
    sent = counted_round_trips(web, monkeypatch)
    assert all(take(web, name) for _ in range(50))
    assert sent == []
    assert take(web, name)  # more than its share: the other process may have counted as many
    assert sent == [1]


def test_requests_beyond_a_limit_wait_for_nothing(valkey, name, monkeypatch):
    web = counters(valkey.url, "4/minute", 2)
    for _ in range(5):
        take(web, name)
    sent = counted_round_trips(web, monkeypatch)
    assert [take(web, name) for _ in range(100)] == [False] * 100
    assert sent == []


def test_attempts_to_log_in_are_counted_exactly(valkey, name):
    web = [counters(valkey.url, processes=3) for _ in range(3)]
    taken = [take(web[turn % 3], name, kind="login") for turn in range(30)]
    assert taken == [True] * rate_limits.LOGINS.most + [False] * (30 - rate_limits.LOGINS.most)


def test_a_batch_counts_its_results_and_has_room_as_a_whole_or_not_at_all(valkey, name):
    web = counters(valkey.url, "10/minute")
    assert [take(web, name, 4), take(web, name, 4), take(web, name, 4), take(web, name, 2)] == [True, True, False, True]
    assert not take(web, name)
    assert not take(web, f"{name}-other", 11)
    assert take(web, f"{name}-other", 10)


def test_a_new_window_begins_from_nothing(valkey, name, monkeypatch):
    web = counters(valkey.url, "5/minute")
    assert [take(web, name) for _ in range(6)] == [True] * 5 + [False]
    monkeypatch.setattr(rate_limits, "time", lambda: 1_000_060.0)
    assert [take(web, name) for _ in range(6)] == [True] * 5 + [False]
    web.settle()
    assert len(web._counted) == 1


# Without the broker ---------------------------------------------------------------------------------------------------


def test_limits_hold_in_each_process_while_the_broker_is_away(frozen, name):
    web = counters(frozen, "50/minute", 2)
    began = monotonic()
    assert sum(take(web, name) for _ in range(200)) == 50
    # One request has asked a broker that does not answer; then the circuit is open, also for publishing.
    assert TIMEOUT <= monotonic() - began < 2 * TIMEOUT
    assert broker_circuit.is_open()


def test_a_request_that_waited_for_the_broker_does_not_wait_again_to_publish(frozen, name, monkeypatch):
    monkeypatch.setattr(publishing.app, "send_task", lambda *_, **__: pytest.fail("the broker was asked again"))
    web = counters(frozen, "4/minute", 4)
    assert take(web, name)
    assert take(web, name)
    assert not publishing.publish_submissions([(1, "alice", "15")])


def test_what_was_counted_without_a_broker_is_added_when_it_is_back(valkey, frozen, name, monkeypatch):
    web = counters(frozen, "100/minute", 2)
    assert all(take(web, name) for _ in range(70))
    assert broker_circuit.is_open()
    monkeypatch.setattr(broker_circuit, "_open_until", 0.0)
    web._redis = redis.Redis.from_url(valkey.url)
    web.settle()
    assert total(valkey.url, "client", name) == 70


def test_a_broker_that_forgot_everything_does_not_lift_a_limit(valkey, name):
    web = counters(valkey.url, "10/minute", 2)
    assert all(take(web, name) for _ in range(8))
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    assert [take(web, name) for _ in range(4)] == [True, True, False, False]


# Memory --------------------------------------------------------------------------------------------------------------


def test_a_flood_of_names_takes_a_bounded_part_of_memory(valkey, name, monkeypatch):
    monkeypatch.setattr(rate_limits, "MOST_NAMES", 100)
    web = counters(valkey.url, "10/minute")
    assert all(take(web, name) for _ in range(9))
    for one in range(1000):
        assert take(web, f"{name}-{one}")
        assert len(web._counted) <= 100
    # What counts most is remembered, and what was forgotten is in the broker.
    assert [take(web, name), take(web, name)] == [True, False]
    web.settle()
    for one in range(1000, 2000):
        take(web, f"{name}-{one}", 10)
    take(web, name)
    web.settle()
    assert not take(web, name)


def test_a_long_name_is_counted_by_its_beginning(valkey, name):
    web = counters(valkey.url, "5/minute")
    assert [take(web, name + "x" * (300 + turn)) for turn in range(6)] == [True] * 5 + [False]


def test_ended_windows_are_forgotten(valkey, name, monkeypatch):
    web = counters(valkey.url)
    take(web, name)
    web.settle()
    monkeypatch.setattr(rate_limits, "time", lambda: 1_000_061.0)
    web.settle()
    assert web._counted == {}
