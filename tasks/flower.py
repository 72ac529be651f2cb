"""Runs Flower with the options of the settings: `python -P -m tasks.flower`.

Flower saves the tasks that it has seen in ECM_HOME every minute; otherwise its pages would be empty after a restart. It
moves a file that it cannot read aside.
"""

import os
from pathlib import Path

import structlog

from config.garbage import no_collection
from config.logging import configure_logging
from config.search_path import put_working_directory_last
from config.settings import Settings, settings
from tasks.app import app

log = structlog.get_logger("flower")

SAVE_EVERY_MS = 60_000
# Flower's event loop stands still while it saves: some tenths of a second for 10,000 tasks, which fill 600 pages.
MAX_TASKS = 10_000


def options(current: Settings, environment: dict[str, str]) -> dict[str, str]:
    """Flower's options as environment variables; a FLOWER_... variable of `environment` overrides ours."""
    overrides = {name: value for name, value in environment.items() if name.startswith("FLOWER_") and value}
    chosen = {"FLOWER_ADDRESS": "127.0.0.1", "FLOWER_PORT": str(current.flower_port)}
    chosen |= {"FLOWER_MAX_TASKS": str(MAX_TASKS), "FLOWER_PURGE_OFFLINE_WORKERS": "3600"}
    password = current.flower_basic_auth.get_secret_value()
    if password:
        chosen["FLOWER_BASIC_AUTH"] = password
    directory = _private_directory(current.ecm_home / "flower")
    if directory is not None:
        chosen |= {"FLOWER_PERSISTENT": "true", "FLOWER_DB": str(directory / "tasks")}
        chosen["FLOWER_STATE_SAVE_INTERVAL"] = str(SAVE_EVERY_MS)
    return chosen | overrides


def _private_directory(directory: Path) -> Path | None:
    """Return a directory, created if missing, that only this user can read; None if that is not possible.

    It has client names in it, and Flower trusts the files that it loads.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError(f"other users can write to {directory}")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f"this user cannot write to {directory}")
    except OSError as error:
        log.warning("Flower cannot save its tasks: its directory in ECM_HOME is not usable", error=str(error)[:200])
        return None
    return directory


def main() -> None:
    """Configure logging and the environment, and run Flower in this process."""
    put_working_directory_last()
    configure_logging(settings().log_format, settings().log_level)
    chosen = options(settings(), dict(os.environ))
    for name in [name for name in os.environ if name.startswith("FLOWER_")]:
        del os.environ[name]
    os.environ.update(chosen)
    with no_collection():
        import celery.bin.celery  # noqa: F401 - with its plugins, of which Flower is one

        app.loader.import_default_modules()
    app.start(["flower"])


if __name__ == "__main__":
    main()
