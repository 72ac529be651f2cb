"""Metrics of workers and database pools, and the sum of the metrics of all processes that share a directory.

Each process writes files of its own into PROMETHEUS_MULTIPROC_DIR, and the process that answers Prometheus adds them
up. `up` gives all its processes one directory, so /metrics of the web process has everything. On a machine without a
web process a worker answers Prometheus itself, on WORKER_METRICS_PORT.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import structlog
from celery import bootsteps
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = structlog.get_logger("metrics")

TASK_SECONDS = Histogram(
    "ecm_task_seconds",
    "Duration of tasks",
    ["task", "state"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
SETTLED = Counter("ecm_results_settled_total", "Results settled, by their state", ["state"])
LEASES_EXPIRED = Counter("ecm_leases_expired_total", "Leases that expired")
REPUBLISHED = Counter("ecm_republished_total", "Submissions and jobs that waited too long and were published again")
PUBLISH_FAILURES = Counter("ecm_publish_failures_total", "Messages that the broker did not accept")
CONNECTIONS = Gauge("ecm_database_connections", "Database connections in use", multiprocess_mode="livesum")
MAX_CONNECTIONS = Gauge(
    "ecm_database_connections_limit",
    "Database connections that the pools may open at most",
    multiprocess_mode="livesum",
)

_SETTLED_STATES = ("applied", "duplicate", "rejected", "failed")
for _state in _SETTLED_STATES:
    SETTLED.labels(_state)  # from the start, because Prometheus computes no rate of a series without samples


def observe_task(name: str, state: str, outcome: Any, seconds: float) -> None:
    """Count a task that ended in Celery's `state` after `seconds`; `outcome` is what it returned."""
    TASK_SECONDS.labels(name, state).observe(seconds)
    if state != "SUCCESS":
        return
    if name == "tasks.housekeeping.expire_leases":
        LEASES_EXPIRED.inc(outcome or 0)
    elif name == "tasks.housekeeping.republish_stale":
        REPUBLISHED.inc(outcome or 0)


def observe_results(counted: Mapping[str, int], seconds: float) -> None:
    """Count a run of a worker that took `seconds`, and the results that it settled, by their state."""
    TASK_SECONDS.labels("tasks.results.apply_result", "SUCCESS").observe(seconds)
    for state in _SETTLED_STATES:
        if counted.get(state):
            SETTLED.labels(state).inc(counted[state])


# The database pool --------------------------------------------------------------------------------------------------


def watch_pool(engine: "Engine") -> None:
    """Count the connections of this engine in its process's metrics. Idempotent."""
    from sqlalchemy import event

    if event.contains(engine, "checkout", _on_checkout):
        return
    event.listen(engine, "checkout", _on_checkout)
    for end in ("checkin", "detach"):
        event.listen(engine, end, _on_checkin)
    MAX_CONNECTIONS.inc(engine.pool.size())  # type: ignore[attr-defined]


def _on_checkout(_: Any, record: Any, __: Any) -> None:
    record.record_info["counted"] = True
    CONNECTIONS.inc()


def _on_checkin(_: Any, record: Any) -> None:
    # The pool also checks in a connection that it failed to make and never checked out. It never checks in a detached
    # one, and may open another in its place.
    if record.record_info.pop("counted", False):
        CONNECTIONS.dec()


# All processes ------------------------------------------------------------------------------------------------------


class AllProcesses(Collector):
    """Collects the metrics of all processes that write into a directory, also of those that have ended.

    A busy worker replaces its processes every few minutes, so the files of ended processes are merged into one.
    """

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)

    def collect(self) -> Iterable[Metric]:
        """Return every metric, summed over the processes."""
        # While a merged file and its sources both exist, a sum would count them twice.
        with self._locked():
            self._merge_ended()
            return _sums(self._directory.glob("*.db"))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._directory / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _merge_ended(self) -> None:
        ended: dict[str, list[Path]] = {}
        for path in self._directory.glob("*_*.db"):
            kind, _, process = path.stem.rpartition("_")
            if process.isdigit() and not psutil.pid_exists(int(process)):
                ended.setdefault(kind, []).append(path)
        for kind, paths in ended.items():
            if not kind.startswith("gauge"):
                self._merge(paths, self._directory / f"{kind}_ended.db")
            for path in paths:
                path.unlink(missing_ok=True)

    def _merge(self, paths: list[Path], into: Path) -> None:
        """Add the counters of `paths` to those of `into`, and replace that file atomically."""
        new = into.with_suffix(".new")
        new.unlink(missing_ok=True)
        old = [into] if into.exists() else []
        merged = MmapedDict(str(new))
        for metric in _sums([*old, *paths], accumulate=False):
            for sample in metric.samples:
                names, values = list(sample.labels), list(sample.labels.values())
                key = mmap_key(metric.name, sample.name, names, values, metric.documentation)
                merged.write_value(key, sample.value, 0.0)
        merged.close()
        new.replace(into)


def _sums(paths: Iterable[Path], *, accumulate: bool = True) -> Iterable[Metric]:
    # A new file is empty for a moment, and stays empty if its process dies in that moment. gunicorn deletes the gauges
    # of its ended processes without the lock.
    files = []
    for path in paths:
        with suppress(FileNotFoundError):
            files += [str(path)] if path.stat().st_size else []
    summed: Iterable[Metric] = MultiProcessCollector.merge(files, accumulate=accumulate)
    return summed


class MetricsServer(bootsteps.StartStopStep):
    """Answers Prometheus in the worker's main process, if WORKER_METRICS_PORT is set."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:
        self.port = os.environ.get("WORKER_METRICS_PORT", "")

    def include_if(self, worker: Any) -> bool:
        """Whether there is a port to answer on."""
        return bool(self.port)

    def start(self, worker: Any) -> None:
        """Listen on WORKER_METRICS_ADDRESS (127.0.0.1). A failure is logged; the worker works without metrics."""
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
        address = os.environ.get("WORKER_METRICS_ADDRESS", "127.0.0.1")
        registry = CollectorRegistry()
        try:
            if not Path(directory).is_dir() or not directory:
                raise OSError("PROMETHEUS_MULTIPROC_DIR should name a directory, empty at the start")
            registry.register(AllProcesses(directory))
            start_http_server(int(self.port), address, registry)
        except (OSError, OverflowError, ValueError) as error:
            log.error("No metrics: cannot listen on WORKER_METRICS_PORT", port=self.port, error=str(error)[:200])
