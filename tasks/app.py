"""The Celery application that worker, beat and Flower run, and that intake to_publish through."""

from typing import Any

from celery import Celery
from celery.signals import setup_logging
from sqlalchemy import Engine

from config.logging import configure_logging
from config.settings import settings
from models.engine import process_engine
from tasks import metrics, tracing
from tasks.heartbeats import WorkerHeartbeat

app = Celery("ecm-coordinator", config_source="celeryconfig")
app.steps["worker"].update((WorkerHeartbeat, metrics.MetricsServer))
tracing.follow()


@setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    # Celery asks whoever answers this signal, and leaves logging alone then.
    configure_logging(settings().log_format, settings().log_level)


def engine(soft_time_limit: float | None = None) -> Engine:
    """This process's engine for tasks of that soft time limit (seconds; None: the one that tasks have by default).

    A worker's child makes its own, for connections do not survive a fork. A statement may take nine tenths of its
    task's soft limit: no signal ends one that waits for the server, so a task that meets a frozen database would be
    killed at its hard limit, as if it were to blame.
    """
    limit = app.conf.task_soft_time_limit if soft_time_limit is None else soft_time_limit
    made = process_engine(settings().database_url, statement_timeout_ms=round(900 * limit))
    metrics.watch_pool(made)
    return made
