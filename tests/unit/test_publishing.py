"""The doorbell: what it says to workers, and that a broker in trouble costs little and breaks nothing."""

import os
import signal
import subprocess
import sys

import pytest
from kombu.exceptions import OperationalError
from prometheus_client import REGISTRY
from redis.exceptions import TimeoutError as RedisTimeout

from config.local.valkey import start_valkey
from coordinator.base.jobs import JobRef
from tasks import broker_circuit, publishing


@pytest.fixture
def sent(monkeypatch):
    """What was published instead of reaching a broker; while `sent.fault` is set, publishing raises it."""

    class Sent(list):
        fault = None

        def send_task(self, name, **options):
            if self.fault is not None:
                raise self.fault
            self.append((name, options))

    sent = Sent()
    monkeypatch.setattr(publishing.app, "send_task", sent.send_task)
    monkeypatch.setattr(broker_circuit, "_open_until", 0.0)
    return sent


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told."""
    now = [1000.0]
    monkeypatch.setattr(broker_circuit, "monotonic", lambda: now[0])
    return now


def test_a_submission_is_rung_for_in_words_that_can_be_read(sent):
    assert publishing.publish_submission(7, "c" * 60, "1" * 5000)
    ((task, options),) = sent
    assert (task, options["queue"]) == ("tasks.results.apply_result", "results")
    composite = "1" * 18 + "..." + "1" * 18
    assert options["kwargs"] == {"submission_id": 7, "client": "c" * 40, "composite": composite}
    assert options["kwargsrepr"] == repr(options["kwargs"])


def test_every_job_is_rung_for_also_after_one_failed(sent, clock):
    assert publishing.publish_jobs([JobRef(1, "split_factor"), JobRef(2, "test_factor")])
    assert [options["kwargs"] for _, options in sent] == [
        {"job_id": 1, "kind": "split_factor"},
        {"job_id": 2, "kind": "test_factor"},
    ]
    assert {options["queue"] for _, options in sent} == {"analysis"}
    assert publishing.publish_jobs([])
    sent.fault = OperationalError("away")
    assert not publishing.publish_jobs([JobRef(3, "split_factor")])


def failures():
    return REGISTRY.get_sample_value("ecm_publish_failures_total")


@pytest.mark.parametrize("fault", [OperationalError("away"), RedisTimeout("frozen"), ConnectionResetError("gone")])
def test_after_a_failure_the_bell_is_left_alone_for_a_moment(sent, clock, fault):
    sent.fault = fault
    before = failures()
    assert not publishing.publish_submission(1, "alice", "15")
    sent.fault = None
    clock[0] += broker_circuit.OPEN_SECONDS - 0.01
    assert not publishing.publish_submission(2, "alice", "15")
    assert sent == []
    assert failures() == before + 2  # each of them waits for upkeep
    clock[0] += 0.01
    assert publishing.publish_submission(3, "alice", "15")
    assert len(sent) == 1


def test_a_mistake_of_ours_is_not_taken_for_a_broker_that_is_away(sent):
    sent.fault = TypeError("not JSON")
    with pytest.raises(TypeError):
        publishing.publish_submission(1, "alice", "15")


# Many requests at once: none may wait for its turn behind others that wait for the broker.
RING_MANY = """
import sys, threading
from time import monotonic
from config.logging import configure_logging
from tasks import broker_circuit, publishing
configure_logging("console", "INFO")
publishing.use_short_timeouts()
print(publishing.publish_submission(1, "alice", "15"), flush=True)
for line in sys.stdin:
    answers, waits = [], []
    def ring():
        began = monotonic()
        answers.append(publishing.publish_submission(1, "alice", "15"))
        waits.append(monotonic() - began)
    broker_circuit._open_until = 0.0
    threads = [threading.Thread(target=ring) for _ in range(48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(answers), max(waits), flush=True)
"""


@pytest.fixture
def valkey(tmp_path):
    server = start_valkey(tmp_path / "home")
    yield server
    server.stop()


def test_a_frozen_broker_costs_none_of_many_requests_more_than_a_second_and_a_dead_one_nothing(valkey):
    with subprocess.Popen(
        [sys.executable, "-c", RING_MANY],
        env={**os.environ, "REDIS_URL": valkey.url, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:

        def ring_many():
            process.stdin.write("\n")
            process.stdin.flush()
            rung, longest = process.stdout.readline().split()
            return int(rung), float(longest)

        assert process.stdout.readline() == "True\n"
        assert ring_many()[0] == 48
        valkey.process.send_signal(signal.SIGSTOP)
        rung, longest = ring_many()
        assert rung == 0
        assert longest < 1.0
        valkey.kill()
        rung, longest = ring_many()
        assert rung == 0
        assert longest < 0.5
        valkey.start()
        assert ring_many()[0] == 48
        process.stdin.close()
