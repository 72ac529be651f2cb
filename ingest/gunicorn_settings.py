"""gunicorn's settings: threads, timeouts and pools that fit together (config/settings.py), each with its reason."""

import atexit
import os
import shutil
import tempfile
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger

from config.logging import configure_logging
from config.settings import settings

_settings = settings()

bind = f"{_settings.host}:{_settings.port}"
workers = _settings.web_processes
# Threads, with problems instead of HTML for requests that never reach the application.
worker_class = "ingest.web_worker.ProblemWorker"
threads = _settings.web_threads
# A thread may wait for an outcome, and hold a request while the database is away; neither is a hung worker.
timeout = int(_settings.database_timeout + 20) + 15
graceful_timeout = 8
keepalive = 30
# Connections beyond the threads wait in the kernel's queue rather than being refused.
backlog = 1024
# Engine, poller and broker connections belong to one process each, so the app is made after the fork. What it imports
# is imported before, once for all processes (`on_starting`).
preload_app = False
limit_request_line = 8190
# By default gunicorn takes SCRIPT_NAME and PATH_INFO from headers, and whoever sends them gets around a proxy's rules.
forwarder_headers = ""
accesslog = None
loglevel = "warning"


class _Logger(Logger):
    """gunicorn's own messages, as lines like all others."""

    def setup(self, cfg: Config) -> None:
        """Have the root logger write what gunicorn logs, instead of handlers of gunicorn's own."""
        super().setup(cfg)
        configure_logging(_settings.log_format, _settings.log_level)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


logger_class = _Logger

# Each web process writes its own metrics files here; a scrape of either sums them up.
if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="ecm-metrics-")
    _owner = os.getpid()

    def _remove_metrics(directory: str = os.environ["PROMETHEUS_MULTIPROC_DIR"]) -> None:
        # Forked children inherit the registration, not the directory.
        if os.getpid() == _owner:
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(_remove_metrics)


def on_starting(server: Any) -> None:
    """Import the application, so that a web process starts in a moment, also in the place of one that died."""
    from config.garbage import no_collection

    with no_collection():
        import ingest.app  # noqa: F401 - for the processes that are forked


def post_worker_init(worker: Any) -> None:
    """Exclude the loaded application from garbage collection."""
    from ingest.app import freeze_loaded_objects

    freeze_loaded_objects()


def child_exit(server: Any, worker: Any) -> None:
    """Merge the counters of an ended process, and delete its gauges."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)
