"""Publishing: wake-up messages for workers, about rows that wait in the database.

Publishing may fail, and then costs at most half a second. The row exists already, so nothing is lost: housekeeping
publishes rows again that have waited too long. After a failure the circuit is open for a few seconds
(`tasks.broker_circuit`), and nothing is published.
"""

import json
import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from config.settings import settings
from tasks import broker_circuit, heartbeats, metrics
from tasks.app import app

if TYPE_CHECKING:
    from redis import Redis

    from coordinator.base.jobs import JobRef

log = structlog.get_logger("publishing")

# Web processes listen here for the ids of submissions that have been settled.
SETTLED_CHANNEL = "ecm:settled"
SHORT_TIMEOUTS = {"socket_connect_timeout": 0.5, "socket_timeout": 0.5}

# One for each connection of the pool: another thread would wait for a connection first and then for the broker.
_slots = threading.BoundedSemaphore(app.conf.broker_pool_limit)


def use_short_timeouts() -> None:
    """Make this process wait at most half a second for the broker. Call it before anything is published."""
    app.conf.broker_transport_options = app.conf.broker_transport_options | SHORT_TIMEOUTS


def publish_submissions(submissions: Iterable[tuple[int, str, str]]) -> bool:
    """Publish, in one message, that these submissions (id, client, composite) wait to be applied.

    Returns whether the broker accepted the message. What a worker applies is in the database: the message wakes it up,
    and tells Flower what came in.
    """
    told = [(submission_id, client[:40], shorten(composite)) for submission_id, client, composite in submissions]
    if not told:
        return True
    return _publish("tasks.results.apply_result", "results", {"submissions": told})


WOKEN = {"results": "tasks.results.apply_result", "analysis": "tasks.analysis.run_job"}


def wake_up(queue: str) -> bool:
    """Wake up a worker of this queue, to take what waits; returns whether the broker accepted the message."""
    return _publish(WOKEN[queue], queue, {})


def publish_settled(submission_ids: list[int]) -> None:
    """Tell the web processes that submissions are settled; if that fails, they find out by polling."""
    if broker_circuit.is_open():
        return
    try:
        _client().publish(SETTLED_CHANNEL, json.dumps(submission_ids))
    except (RedisError, OSError) as error:
        broker_circuit.open_circuit()
        log.warning("The broker does not answer; waiting requests poll", error=str(error)[:200])


@lru_cache
def _client() -> "Redis":
    return heartbeats.connect(settings().redis_url)


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
            )
        except (OperationalError, RedisError, OSError) as error:
            broker_circuit.open_circuit()
            log.warning("The broker does not answer; housekeeping will publish this later", error=str(error)[:200])
            return _count_failure()
    return True


def _count_failure() -> bool:
    metrics.PUBLISH_FAILURES.inc()
    return False


def shorten(text: str) -> str:
    """Return a text of at most 40 characters for a number; shortens one that is shortened already no further."""
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
