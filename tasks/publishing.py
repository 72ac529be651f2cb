"""Publishing: wake-up messages for workers, about rows that wait in the database.

Publishing may fail, and then costs at most half a second. The row exists already, so nothing is lost: housekeeping
publishes rows again that have waited too long. After a failure the circuit is open for a few seconds
(`tasks.broker_circuit`), and nothing is published.
"""

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from tasks import broker_circuit, metrics, tracing
from tasks.app import app

if TYPE_CHECKING:
    from coordinator.base.jobs import JobRef

log = structlog.get_logger("publishing")

SHORT_TIMEOUTS = {"socket_connect_timeout": 0.5, "socket_timeout": 0.5}

# One for each connection of the pool: another thread would wait for a connection first and then for the broker.
_slots = threading.BoundedSemaphore(app.conf.broker_pool_limit)


def use_short_timeouts() -> None:
    """Make this process wait at most half a second for the broker. Call it before anything is published."""
    app.conf.broker_transport_options = app.conf.broker_transport_options | SHORT_TIMEOUTS


def publish_submission(submission_id: int, client: str, composite: str) -> bool:
    """Publish that a submission waits to be applied; returns whether the broker accepted the message."""
    return _publish(
        "tasks.results.apply_result",
        "results",
        {"submission_id": submission_id, "client": client[:40], "composite": _shorten(composite)},
    )


def publish_jobs(to_publish: Iterable["JobRef"]) -> bool:
    """Publish that these jobs wait; returns whether the broker accepted all of the messages."""
    accepted = [
        _publish("tasks.analysis.run_job", "analysis", {"job_id": job.job_id, "kind": job.kind}) for job in to_publish
    ]
    return all(accepted)


def _publish(task: str, queue: str, arguments: dict[str, Any]) -> bool:
    if broker_circuit.is_open():
        return _count_failure()
    with _slots:
        # While this thread waited for its turn, a message of another one may have failed.
        if broker_circuit.is_open():
            return _count_failure()
        try:
            # argsrepr and kwargsrepr are what Flower shows: Celery's own computation of them costs as much as sending.
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
            log.warning("The broker does not answer; housekeeping will publish this later", error=str(error)[:200])
            return _count_failure()
    return True


def _count_failure() -> bool:
    metrics.PUBLISH_FAILURES.inc()
    return False


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
