"""The Celery application that worker, beat and Flower run, and with which the web process publishes."""

from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.signals import setup_logging

from config.logging import configure_logging
from config.settings import settings
from tasks import metrics, tracing
from tasks.heartbeats import WorkerHeartbeat

if TYPE_CHECKING:
    from sqlalchemy import Engine

app = Celery("ecm-coordinator", config_source="celeryconfig", amqp="tasks.consumer:AMQP")
app.steps["worker"].update((WorkerHeartbeat, metrics.MetricsServer))
tracing.connect_signals()


@setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    # Celery configures no logging of its own when this signal has a receiver.
    configure_logging(settings().log_format, settings().log_level)


def engine(soft_time_limit: float | None = None) -> "Engine":
    """Return this process's engine for tasks with this soft time limit (seconds; None: the default of all tasks).

    Each child of a worker makes its own engine, because connections do not survive a fork. Statements time out after
    nine tenths of the soft limit: a signal does not interrupt a statement that waits for the server, so Celery would
    kill a task on a frozen database at its hard limit, and count that as a delivery attempt.
    """
    from models.engine import process_engine  # beat and Flower have no database

    limit = app.conf.task_soft_time_limit if soft_time_limit is None else soft_time_limit
    process_wide = process_engine(settings().database_url, statement_timeout_ms=round(900 * limit))
    metrics.watch_pool(process_wide)
    return process_wide
