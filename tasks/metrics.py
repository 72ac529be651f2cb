"""What workers and database pools are counted by, and the metrics of all processes that share a directory.

Each process writes files of its own into PROMETHEUS_MULTIPROC_DIR, and whoever is asked adds them up: `up` gives all
its processes one directory, and then /metrics of the web process has everything. A worker on a machine without a web
process answers Prometheus itself, on WORKER_METRICS_PORT.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import structlog
from celery import bootsteps
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import Engine, event

log = structlog.get_logger("metrics")

TASK_SECONDS = Histogram(
    "ecm_task_seconds",
    "Time a task took",
    ["task", "state"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
# A round settles many results, but each has a task of its own, which finds it settled and says how.
SETTLED = Counter("ecm_results_settled_total", "Results settled, by the state that their tasks reported", ["state"])
LEASES_EXPIRED = Counter("ecm_leases_expired_total", "Leases that ran out")
REPUBLISHED = Counter("ecm_republished_total", "Submissions and jobs that waited too long and were rung for again")
PUBLISH_FAILURES = Counter("ecm_publish_failures_total", "Times that the broker did not take a message")
CONNECTIONS = Gauge("ecm_database_connections", "Database connections of the pools in use", multiprocess_mode="livesum")
MAX_CONNECTIONS = Gauge(
    "ecm_database_connections_limit", "Database connections that the pools may open", multiprocess_mode="livesum"
)

_SETTLED_STATES = ("applied", "duplicate", "rejected", "failed")
for _state in _SETTLED_STATES:
    SETTLED.labels(_state)  # there from the start: a rate of something that was never seen is no number


def observe_task(name: str, state: str, outcome: Any, seconds: float) -> None:
    """Count a task that ended in Celery's `state` after `seconds`; `outcome` is what it returned."""
    TASK_SECONDS.labels(name, state).observe(seconds)
    if state != "SUCCESS":
        return
    if name == "tasks.results.apply_result" and outcome in _SETTLED_STATES:
        SETTLED.labels(outcome).inc()
    elif name == "tasks.housekeeping.expire_leases":
        LEASES_EXPIRED.inc(outcome or 0)
    elif name == "tasks.housekeeping.republish_stale":
        REPUBLISHED.inc(outcome or 0)


# The database pool --------------------------------------------------------------------------------------------------


def watch_pool(engine: Engine) -> None:
    """Count this engine's connections among those of its process; once, however often it is called."""
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
    # One that could not be made is checked in, too, and was never checked out. One that is detached never comes back,
    # and the pool may open another in its place.
    if record.record_info.pop("counted", False):
        CONNECTIONS.dec()


# All processes ------------------------------------------------------------------------------------------------------


class AllProcesses(Collector):
    """A collector of what all processes, also those that have ended, have written into a directory.

    A busy worker's processes are replaced every few minutes, so the files of those that ended are merged into one.
    """

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)

    def collect(self) -> Iterable[Metric]:
        """Every metric, summed over the processes."""
        # Nobody may look while a merged file and those that it was made of are both there: that would be a jump.
        with self._locked():
            self._forget_the_dead()
            return _sums(self._directory.glob("*.db"))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._directory / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _forget_the_dead(self) -> None:
        dead: dict[str, list[Path]] = {}
        for path in self._directory.glob("*_*.db"):
            kind, _, process = path.stem.rpartition("_")
            if process.isdigit() and not psutil.pid_exists(int(process)):
                dead.setdefault(kind, []).append(path)
        for kind, paths in dead.items():
            if not kind.startswith("gauge"):
                self._merge(paths, self._directory / f"{kind}_ended.db")
            for path in paths:
                path.unlink(missing_ok=True)

    def _merge(self, paths: list[Path], into: Path) -> None:
        """Add the counters of `paths` to those of `into`, which appears whole or not at all."""
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
    # A file is empty for a moment before it gets its size, and for good if its process died in that moment. gunicorn
    # removes the gauges of its dead without asking for the lock.
    written = []
    for path in paths:
        with suppress(FileNotFoundError):
            written += [str(path)] if path.stat().st_size else []
    summed: Iterable[Metric] = MultiProcessCollector.merge(written, accumulate=accumulate)
    return summed


class MetricsServer(bootsteps.StartStopStep):
    """Answers Prometheus in the worker's main process, where WORKER_METRICS_PORT says so."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:
        self.port = os.environ.get("WORKER_METRICS_PORT", "")

    def include_if(self, worker: Any) -> bool:
        """Whether there is anything to answer on."""
        return bool(self.port)

    def start(self, worker: Any) -> None:
        """Listen on WORKER_METRICS_ADDRESS (127.0.0.1); a worker that cannot still works."""
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
        address = os.environ.get("WORKER_METRICS_ADDRESS", "127.0.0.1")
        registry = CollectorRegistry()
        try:
            if not Path(directory).is_dir() or not directory:
                raise OSError("PROMETHEUS_MULTIPROC_DIR should name a directory, empty at the start")
            registry.register(AllProcesses(directory))
            start_http_server(int(self.port), address, registry)
        except (OSError, OverflowError, ValueError) as error:
            log.error("No metrics: cannot answer on WORKER_METRICS_PORT", port=self.port, error=str(error)[:200])
