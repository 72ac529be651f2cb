"""The Celery application that worker, beat and Flower run, and that intake rings through."""

from typing import Any

from celery import Celery
from celery.signals import setup_logging
from sqlalchemy import Engine

from config.logging import configure_logging
from config.settings import settings
from models.engine import process_engine
from tasks.heartbeats import WorkerHeartbeat

app = Celery("ecm-coordinator", config_source="celeryconfig")
app.steps["worker"].add(WorkerHeartbeat)


@setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    # Celery asks whoever answers this signal, and leaves logging alone then.
    configure_logging(settings().log_format, settings().log_level)


def engine() -> Engine:
    """This process's engine; a worker's child makes its own, for connections do not survive a fork."""
    return process_engine(settings().database_url)
