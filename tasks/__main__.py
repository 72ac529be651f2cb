"""Running Celery with our application: `python -P -m tasks worker ...`, as `celery --app tasks.app worker ...`.

Celery's own command would let a `tasks.py` or `config.py` of the working directory take the place of our packages.
"""

import sys

from config.garbage import no_collection
from config.logging import configure_logging
from config.search_path import put_working_directory_last
from config.settings import settings


def main() -> None:
    """Run the command of Celery that the arguments name, in this process."""
    put_working_directory_last()
    # Celery warns before it asks for our logging.
    configure_logging(settings().log_format, settings().log_level)
    with no_collection():
        from celery.bin.celery import main as run

        from tasks.app import app

        command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
        if command == "beat":
            # Beat publishes tasks by their names: it needs none of them, and none of what they import.
            app.conf.imports = ()
        elif command == "worker":
            app.loader.import_default_modules()
    sys.argv[1:] = ["--app", "tasks.app", *sys.argv[1:]]
    sys.exit(run())


if __name__ == "__main__":
    main()
