"""Publishing: the messages for workers, and that a broker in trouble costs little time and breaks nothing."""

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
from ingest import rate_limits
from tasks import broker_circuit, publishing


@pytest.fixture
def sent(monkeypatch):
    """The published messages, which reach no broker; while `sent.fault` is set, publishing raises it."""

    class Sent(list):
        fault = None

        def send_task(self, name, **options):
            if self.fault is not None:
                raise self.fault
            self.append((name, options))

    sent = Sent()
    monkeypatch.setattr(publishing.app, "send_task", sent.send_task)
    # The apps of other tests in this process go on to count requests, and would open the circuit.
    monkeypatch.setattr(rate_limits.Counters, "settle", lambda *_: None)
    monkeypatch.setattr(broker_circuit, "_open_until", 0.0)
    return sent


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [1000.0]
    monkeypatch.setattr(broker_circuit, "monotonic", lambda: now[0])
    return now


def test_the_message_for_submissions_is_short_and_readable(sent):
    assert publishing.publish_submissions([(7, "c" * 60, "1" * 5000), (8, "bob", "15")])
    ((task, options),) = sent
    assert (task, options["queue"]) == ("tasks.results.apply_result", "results")
    composite = "1" * 18 + "..." + "1" * 18
    assert options["kwargs"] == {"submissions": [(7, "c" * 40, composite), (8, "bob", "15")]}
    assert options["kwargsrepr"] == repr(options["kwargs"])


def test_every_job_is_published_to_the_analysis_queue(sent, clock):
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
def test_after_a_failure_nothing_is_published_for_a_moment(sent, clock, fault):
    sent.fault = fault
    before = failures()
    assert not publishing.publish_submissions([(1, "alice", "15")])
    sent.fault = None
    clock[0] += broker_circuit.OPEN_SECONDS - 0.01
    assert not publishing.publish_submissions([(2, "alice", "15")])
    assert sent == []
    assert failures() == before + 2  # housekeeping publishes each of them
    clock[0] += 0.01
    assert publishing.publish_submissions([(3, "alice", "15")])
    assert len(sent) == 1


def test_an_error_in_our_code_is_not_treated_as_a_missing_broker(sent):
    sent.fault = TypeError("not JSON")
    with pytest.raises(TypeError):
        publishing.publish_submissions([(1, "alice", "15")])


# Many requests at once: none may wait for its turn behind others that wait for the broker. It prints how many messages
# the broker took, how many threads asked it, and the longest wait in seconds.
PUBLISH_MANY = """
import sys, threading
from time import monotonic
from config.logging import configure_logging
from tasks import broker_circuit, publishing
configure_logging("console", "INFO")
publishing.use_short_timeouts()
send_task, asked = publishing.app.send_task, []
def counted(*arguments, **options):
    asked.append(1)
    return send_task(*arguments, **options)
publishing.app.send_task = counted
print(publishing.publish_submissions([(1, "alice", "15")]), flush=True)
for line in sys.stdin:
    answers, waits = [], []
    asked.clear()
    def publish():
        began = monotonic()
        answers.append(publishing.publish_submissions([(1, "alice", "15")]))
        waits.append(monotonic() - began)
    broker_circuit._open_until = 0.0
    threads = [threading.Thread(target=publish) for _ in range(48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(answers), len(asked), max(waits), flush=True)
"""


# A request waits for half a second, and longer on a loaded machine; without short timeouts it would be 20 s or more.
LONGEST_WAIT = 8.0


@pytest.fixture
def valkey(tmp_path):
    server = start_valkey(tmp_path / "home")
    yield server
    server.stop()


def test_at_most_one_request_per_connection_waits_for_a_frozen_or_dead_broker(valkey):
    with subprocess.Popen(
        [sys.executable, "-c", PUBLISH_MANY],
        env={**os.environ, "REDIS_URL": valkey.url, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:

        def publish_many():
            process.stdin.write("\n")
            process.stdin.flush()
            taken, asked, longest = process.stdout.readline().split()
            assert float(longest) < LONGEST_WAIT
            return int(taken), int(asked)

        assert process.stdout.readline() == "True\n"
        assert publish_many() == (48, 48)
        valkey.process.send_signal(signal.SIGSTOP)
        taken, asked = publish_many()
        assert taken == 0
        assert 1 <= asked <= publishing.app.conf.broker_pool_limit
        valkey.kill()
        taken, asked = publish_many()
        assert taken == 0
        assert 1 <= asked <= publishing.app.conf.broker_pool_limit
        valkey.start()
        assert publish_many() == (48, 48)
        process.stdin.close()
