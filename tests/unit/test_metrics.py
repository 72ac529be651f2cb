"""Metrics of many processes: none is lost or counted twice when a process ends, and gauges end with their process."""

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from sqlalchemy import create_engine, event
from sqlalchemy.pool import QueuePool

from config.local.ports import free_port
from tasks import metrics

# A worker's child: it settles results, holds a connection, and waits for the end of its input.
CHILD = """
import sys
from tasks import metrics
for state in sys.argv[1:]:
    metrics.observe_results({state: 1}, 0.03)
metrics.CONNECTIONS.inc()
print("counted", flush=True)
sys.stdin.read()
"""


class Children:
    """Processes that count into one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.live: list[subprocess.Popen[bytes]] = []

    def start(self, *states: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, *states],
            env=environment | {"PROMETHEUS_MULTIPROC_DIR": str(self.directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout.readline() == b"counted\n"
        self.live.append(child)

    def end_all(self) -> None:
        for child in self.live:
            child.kill()
            child.communicate()
        self.live.clear()

    def sums(self) -> dict[str, float]:
        registry = CollectorRegistry()
        registry.register(metrics.AllProcesses(str(self.directory)))
        lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def files(self, kind: str) -> list[str]:
        return sorted(path.stem for path in self.directory.glob(f"{kind}_*.db"))


@pytest.fixture
def children(tmp_path):
    some = Children(tmp_path)
    yield some
    some.end_all()


APPLIED = 'ecm_results_settled_total{state="applied"}'
TASKS = 'ecm_task_seconds_{}{{{}state="SUCCESS",task="tasks.results.apply_result"}}'


def test_counters_outlive_their_process_and_gauges_do_not(children):
    children.start("applied", "applied", "rejected")
    children.start("applied")
    alive = children.sums()
    assert (alive[APPLIED], alive["ecm_database_connections"]) == (3, 2)
    children.end_all()
    for _ in range(2):  # the first sum merges the files of ended processes, and the second reads the merged file
        ended = children.sums()
        assert "ecm_database_connections" not in ended
        assert {name: value for name, value in ended.items() if name in alive} == {
            name: value for name, value in alive.items() if "connections" not in name
        }
        assert children.files("counter") == ["counter_ended"]
        assert children.files("histogram") == ["histogram_ended"]
        assert children.files("gauge") == []


def test_new_processes_add_to_the_counts_of_ended_ones(children):
    for count in (1, 2, 3):
        children.start("applied", "failed")
        sums = children.sums()
        assert sums[APPLIED] == sums['ecm_results_settled_total{state="failed"}'] == count
        assert sums[TASKS.format("count", "")] == 2 * count
        assert sums[TASKS.format("sum", "")] == pytest.approx(0.06 * count)
        assert sums[TASKS.format("bucket", 'le="0.025",')] == 0
        assert sums[TASKS.format("bucket", 'le="0.05",')] == 2 * count
        children.end_all()


def test_an_interrupted_merge_is_repeated(children, monkeypatch):
    children.start("applied")
    children.end_all()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space"):
            children.sums()
    assert len(list(children.directory.glob("*.new"))) == 1
    assert children.sums()[APPLIED] == 1
    assert list(children.directory.glob("*.new")) == []


@pytest.mark.parametrize("process", ["alive", "dead"])
def test_an_empty_new_file_does_no_harm(children, process):
    children.start("applied")
    if process == "dead":
        children.end_all()
    for kind in ("counter", "histogram", "gauge_livesum"):
        (children.directory / f"{kind}_{os.getpid() if process == 'alive' else 2**22 + 1}.db").touch()
    assert children.sums()[APPLIED] == 1
    assert children.sums()[APPLIED] == 1


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("state", ["applied", "duplicate", "rejected", "failed"])
def test_results_are_counted_by_state(state):
    before = value("ecm_results_settled_total", state=state)
    metrics.observe_results({state: 3, "received": 2}, 0.1)
    metrics.observe_task("tasks.analysis.run_job", "SUCCESS", state, 0.1)
    assert value("ecm_results_settled_total", state=state) == before + 3


def test_housekeeping_counts_what_it_did_and_not_what_a_fault_prevented():
    names = {
        "tasks.housekeeping.expire_leases": "ecm_leases_expired_total",
        "tasks.housekeeping.republish_stale": "ecm_republished_total",
    }
    for task, name in names.items():
        before = value(name)
        metrics.observe_task(task, "SUCCESS", 3, 0.1)
        metrics.observe_task(task, "SUCCESS", None, 0.1)  # a transient fault: nothing was returned
        metrics.observe_task(task, "FAILURE", ValueError("a bug"), 0.1)
        assert value(name) == before + 3
        assert value("ecm_task_seconds_count", task=task, state="FAILURE") >= 1


def test_connections_in_use_are_the_checked_out_ones():
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=3, max_overflow=0)
    limit, before = value("ecm_database_connections_limit"), value("ecm_database_connections")

    def in_use() -> float:
        return value("ecm_database_connections") - before

    metrics.watch_pool(engine)
    metrics.watch_pool(engine)
    assert value("ecm_database_connections_limit") == limit + 3
    with engine.connect(), engine.connect() as second:
        assert in_use() == 2
        second.invalidate()  # the server went away
        assert in_use() == 2 - 1
    assert in_use() == 0
    with engine.connect() as alone:
        alone.detach()  # it has left the pool, which may open another one
        assert in_use() == 0
    assert in_use() == 0
    engine.dispose()

    def refuse(*_):
        raise ConnectionError("nobody listens")

    event.listen(engine, "do_connect", refuse)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            engine.connect()
    assert in_use() == 0


def test_a_worker_without_a_web_process_answers_prometheus_itself(children, monkeypatch):
    children.start("applied", "applied")
    port = free_port()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(children.directory))
    monkeypatch.setenv("WORKER_METRICS_PORT", str(port))
    server = metrics.MetricsServer(SimpleNamespace())
    assert server.include_if(SimpleNamespace())
    server.start(SimpleNamespace())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert re.search(r'^ecm_results_settled_total\{state="applied"\} 2\.0$', answer.read().decode(), re.MULTILINE)
    # A second worker of the same machine finds the port taken, logs that, and works.
    metrics.MetricsServer(SimpleNamespace()).start(SimpleNamespace())


@pytest.mark.parametrize(("port", "directory"), [("", "x"), ("none", "/tmp"), ("9101", ""), ("99999999", "/tmp")])
def test_a_worker_that_cannot_listen_works_without_metrics(monkeypatch, port, directory):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", directory)
    monkeypatch.setenv("WORKER_METRICS_PORT", port)
    server = metrics.MetricsServer(SimpleNamespace())
    assert server.include_if(SimpleNamespace()) == bool(port)
    if port:
        server.start(SimpleNamespace())
        assert not [one for one in psutil.Process().net_connections("tcp") if one.laddr.port == 9101]
