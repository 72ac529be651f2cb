"""Running Flower: `python -P -m tasks.flower`, with what the settings say.

Flower remembers what it has seen in the home, saved every minute; without it a restart would empty its pages. A file
that it cannot read it moves aside by itself.
"""

import os
from pathlib import Path

import structlog

from config.logging import configure_logging
from config.search_path import put_working_directory_last
from config.settings import Settings, settings
from tasks.app import app

log = structlog.get_logger("flower")

SAVE_EVERY_MS = 60_000
# Saving stops its event loop: 10,000 tasks take some tenths of a second, and fill 600 pages.
MOST_TASKS = 10_000


def options(current: Settings, environment: dict[str, str]) -> dict[str, str]:
    """Flower's options, as the environment variables that it reads them from."""
    given = {name: value for name, value in environment.items() if name.startswith("FLOWER_") and value}
    chosen = {"FLOWER_ADDRESS": "127.0.0.1", "FLOWER_PORT": str(current.flower_port)}
    chosen |= {"FLOWER_MAX_TASKS": str(MOST_TASKS), "FLOWER_PURGE_OFFLINE_WORKERS": "3600"}
    password = current.flower_basic_auth.get_secret_value()
    if password:
        chosen["FLOWER_BASIC_AUTH"] = password
    directory = _memory(current.ecm_home / "flower")
    if directory is not None:
        chosen |= {"FLOWER_PERSISTENT": "true", "FLOWER_DB": str(directory / "tasks")}
        chosen["FLOWER_STATE_SAVE_INTERVAL"] = str(SAVE_EVERY_MS)
    return chosen | given


def _memory(directory: Path) -> Path | None:
    """A directory that only we can read (client names are in it, and what is loaded from it is trusted), or None."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        about = directory.lstat()
        if about.st_uid != os.geteuid() or about.st_mode & 0o022:
            raise PermissionError(f"{directory} can be written by others")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f"{directory} cannot be written")
    except OSError as error:
        log.warning("Flower will forget at its end: its directory in ECM_HOME cannot be used", error=str(error)[:200])
        return None
    return directory


def main() -> None:
    """Run Flower in the place of this process's own code."""
    put_working_directory_last()
    configure_logging(settings().log_format, settings().log_level)
    chosen = options(settings(), dict(os.environ))
    for name in [name for name in os.environ if name.startswith("FLOWER_")]:
        del os.environ[name]
    os.environ.update(chosen)
    app.start(["flower"])


if __name__ == "__main__":
    main()
