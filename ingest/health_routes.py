"""Routes for load balancers, operators and Prometheus: health, ready, status, metrics."""

import os
from collections.abc import Iterator
from time import time
from typing import Any

import orjson
import redis
import structlog
from flask import Response, current_app
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import REGISTRY, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from coordinator.base import clock
from coordinator.reading import health_queries, metrics_queries
from ingest import openapi, security_headers
from ingest.problems import RETRY, ProblemError, database_away
from ingest.view_context import engine
from models.migrate import newest_revision
from models.wire.reading import Health, InstallationStatus, Readiness
from tasks import heartbeats
from tasks.metrics import AllProcesses, watch_pool

log = structlog.get_logger("operations")

operations = openapi.operations_blueprint("operations", openapi.OPERATIONS)

operations.record(lambda made: watch_pool(made.app.config["ENGINE"]))
# For every answer of the application, not only for those of this blueprint.
operations.after_app_request(security_headers.add_headers)

# Seconds; longer than housekeeping takes to publish results again.
LAG_LIMIT = 120.0
QUEUES = ("results", "analysis", "housekeeping")


@operations.get("/health", operation_id="health", responses={200: Health})
def health() -> Response:
    """Return that the process is up."""
    return _json({"status": "ok"}, 200)


@operations.get(f"{openapi.API}/health", operation_id="api_health", responses={200: Health})
def api_health() -> Response:
    """Return that the process is up, as `/health` does, for clients that know this address."""
    return _json({"status": "ok"}, 200)


@operations.get(
    "/ready",
    operation_id="ready",
    responses={200: Readiness, 503: openapi.problem("`database_away` or `schema_outdated`")},
)
def ready() -> Response:
    """Return whether results can be received: the database answers, and its schema is that of this version."""
    try:
        revision = health_queries.schema_revision(engine())
    except SQLAlchemyError as error:
        _log_no_answer("database", error)
        raise database_away() from error
    if revision != newest_revision():
        detail = f"The schema is at {revision}, this version needs {newest_revision()}: run `ecm-coordinator migrate`."
        raise ProblemError(503, "schema_outdated", detail, headers=RETRY)
    return _json({"status": "ready"}, 200)


@operations.get("/status", operation_id="status", responses={200: InstallationStatus, 503: InstallationStatus})
def status() -> Response:
    """Return the state of every component of the installation; 503 if one is down."""
    parts = read_components()
    ok = all(part["ok"] for part in parts.values())
    # Not a problem document: operators and `ecm-coordinator up` read the parts.
    answer = _json({"status": "ok" if ok else "degraded", **parts}, 200 if ok else 503)
    if not ok:
        answer.headers.update(RETRY)
    return answer


def read_components() -> dict[str, dict[str, Any]]:
    """Return the state of every component of the installation; `ok` says whether it does its work."""
    return {"database": _database(), **_broker_and_processes()}


@operations.get(
    "/metrics",
    operation_id="metrics",
    responses={
        200: {"description": "Prometheus's text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
def prometheus() -> Response:
    """Return the counters of all processes, and gauges read now from the database and the broker."""
    now = CollectorRegistry()
    now.register(_CurrentMetrics())
    return Response(_counted() + generate_latest(now), 200, content_type=CONTENT_TYPE_LATEST)


def _counted() -> bytes:
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not directory:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    registry.register(AllProcesses(directory))
    try:
        return generate_latest(registry)
    except OSError as error:
        # What the gauges say, an operator needs on that day more than ever.
        log.warning("Cannot read what the processes have counted", error=str(error)[:200])
        return b""


def _database() -> dict[str, Any]:
    try:
        inbox = health_queries.inbox_state(engine())
        revision = health_queries.schema_revision(engine())
        ahead = round(time() - clock.now(engine()).timestamp())
    except SQLAlchemyError as error:
        _log_no_answer("database", error)
        return {"ok": False, "detail": "the database does not answer"}
    current = revision == newest_revision()
    state = {"ok": current and inbox["oldest_waiting_seconds"] < LAG_LIMIT, "schema": revision, "inbox": inbox}
    if abs(ahead) > heartbeats.CLOCK_TOLERANCE:
        # The database's clock decides everything; only what the logs of this process say about times is wrong.
        log.warning("This machine's clock differs from the database's; set one of them right", ahead=ahead)
        state["clock_ahead"] = ahead
    return state


def _broker_and_processes() -> dict[str, dict[str, Any]]:
    client: redis.Redis = current_app.config["BROKER"]
    try:
        beats = heartbeats.read(client)
        queues = {queue: client.llen(f"ecm:{queue}") for queue in QUEUES}
    except redis.RedisError as error:
        away = {"ok": False, "detail": "unknown: the broker does not answer"}
        _log_no_answer("broker", error)
        return {"broker": {"ok": False, "detail": "the broker does not answer"}, "workers": away, "beat": away}
    workers = [beat for beat in beats if beat["role"] == "worker"]
    schedulers = [beat for beat in beats if beat["role"] == "beat"]
    served = {queue for worker in workers if not worker["stale"] for queue in worker.get("queues", [])}
    missing = sorted(set(queues) - served)
    return {
        "broker": {"ok": True, "queues": queues},
        "workers": {"ok": not missing, "unserved_queues": missing, "heartbeats": workers},
        "beat": {"ok": any(not beat["stale"] for beat in schedulers), "heartbeats": schedulers},
    }


class _CurrentMetrics(Collector):
    """Collects the current metrics of the database and the broker; for one that does not answer, only `ecm_*_up` 0."""

    def collect(self) -> Iterator[Metric]:
        """Read everything, once for each scrape."""
        try:
            read = list(_database_metrics())
        except SQLAlchemyError as error:
            _log_no_answer("database", error)
            read = []
        yield GaugeMetricFamily("ecm_database_up", "Whether the database answers", bool(read))
        yield from read
        try:
            read = list(_broker_metrics())
        except redis.RedisError as error:
            _log_no_answer("broker", error)
            read = []
        yield GaugeMetricFamily("ecm_broker_up", "Whether the broker answers", bool(read))
        yield from read


def _database_metrics() -> Iterator[Metric]:
    inbox = health_queries.inbox_state(engine())
    open_leases, overdue = metrics_queries.count_open_leases(engine())
    yield GaugeMetricFamily("ecm_submissions_waiting", "Submissions not settled yet", inbox["waiting"])
    yield GaugeMetricFamily("ecm_oldest_waiting_seconds", "Age of the oldest of them", inbox["oldest_waiting_seconds"])
    yield GaugeMetricFamily("ecm_dead_letters", "Submissions that failed", inbox["failed"])
    yield GaugeMetricFamily("ecm_jobs_waiting", "Jobs not done yet", inbox["jobs_waiting"])
    yield GaugeMetricFamily("ecm_jobs_failed", "Jobs that failed", inbox["jobs_failed"])
    leases = GaugeMetricFamily("ecm_leases_open", "Open leases", labels=["method", "status"])
    for (method, status), count in open_leases.items():
        leases.add_metric([method, status], count)
    yield leases
    yield GaugeMetricFamily("ecm_leases_overdue", "Open leases whose time has run out", overdue)


def _broker_metrics() -> Iterator[Metric]:
    client: redis.Redis = current_app.config["BROKER"]
    queues = GaugeMetricFamily("ecm_queue_messages", "Messages that no worker has taken yet", labels=["queue"])
    for queue in QUEUES:
        queues.add_metric([queue], client.llen(f"ecm:{queue}"))
    yield queues
    beats = heartbeats.read(client)
    ages = GaugeMetricFamily("ecm_heartbeat_age_seconds", "Age of the last heartbeat", labels=["role", "name"])
    for beat in beats:
        ages.add_metric([beat["role"], beat["name"]], beat["age"])
    yield ages
    takers = GaugeMetricFamily("ecm_queue_workers", "Live workers that take from a queue", labels=["queue"])
    for queue in QUEUES:
        takers.add_metric([queue], sum(not beat["stale"] and queue in beat.get("queues", ()) for beat in beats))
    yield takers


def _log_no_answer(part: str, error: Exception) -> None:
    """Log the error of a server that does not answer; answers of these public routes must not show its address."""
    log.warning("A server does not answer", part=part, error=str(error)[:200])


def _json(body: dict[str, Any], status_code: int) -> Response:
    return Response(orjson.dumps(body), status_code, content_type="application/json")
