"""The doorbell: telling workers that something waits in the database.

Ringing may fail, and then costs at most half a second: everything that is rung for is a row already, and housekeeping publishes
again for what has waited too long. After a failure the bell is left alone for a few seconds (`tasks.broker_circuit`).
"""

import threading
from collections.abc import Iterable
from typing import Any

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from coordinator.base.jobs import JobRef
from tasks import broker_circuit, metrics, tracing
from tasks.app import app

log = structlog.get_logger("publishing")

SHORT_TIMEOUTS = {"socket_connect_timeout": 0.5, "socket_timeout": 0.5}

# As many as there are connections to ring over: one more would wait for a connection first and then for the broker.
_slots = threading.BoundedSemaphore(app.conf.broker_pool_limit)


def use_short_timeouts() -> None:
    """For processes that must not stand still: give the broker half a second. To be called before the first ring."""
    app.conf.broker_transport_options = app.conf.broker_transport_options | SHORT_TIMEOUTS


def publish_submission(submission_id: int, client: str, composite: str) -> bool:
    """Ask a worker to apply a submission; whether the bell could be rung."""
    return _publish(
        "tasks.results.apply_result",
        "results",
        {"submission_id": submission_id, "client": client[:40], "composite": _short(composite)},
    )


def publish_jobs(to_publish: Iterable[JobRef]) -> bool:
    """Ask a worker to do these jobs; whether the bell could be rung for all of them."""
    rung = [
        _publish("tasks.analysis.run_job", "analysis", {"job_id": job.job_id, "kind": job.kind}) for job in to_publish
    ]
    return all(rung)


def _publish(task: str, queue: str, arguments: dict[str, Any]) -> bool:
    if broker_circuit.is_open():
        return _count_failure()
    with _slots:
        # Whoever had to wait for a turn may find that the broker has failed those before.
        if broker_circuit.is_open():
            return _count_failure()
        try:
            # Its own words for Flower are ready-made: Celery's way of shortening arguments costs as much as sending.
            app.send_task(
                task,
                kwargs=arguments,
                queue=queue,
                ignore_result=True,
                argsrepr="()",
                kwargsrepr=repr(arguments),
                headers=tracing.headers(),
            )
        except (OperationalError, RedisError, OSError) as error:
            broker_circuit.open_circuit()
            log.warning("The broker does not answer; upkeep will ring later", error=str(error)[:200])
            return _count_failure()
    return True


def _count_failure() -> bool:
    metrics.PUBLISH_FAILURES.inc()
    return False


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
