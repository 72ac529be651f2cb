"""Running Celery with our application: `python -P -m tasks worker ...`, as `celery --app tasks.app worker ...`.

Celery's own command would let a `tasks.py` or `config.py` of the working directory take the place of our packages.
"""

import sys

from celery.__main__ import main as run

from config.logging import configure_logging
from config.search_path import put_working_directory_last
from config.settings import settings


def main() -> None:
    """Run the command of Celery that the arguments name, in this process."""
    put_working_directory_last()
    # Celery warns before it asks for our logging.
    configure_logging(settings().log_format, settings().log_level)
    sys.argv[1:] = ["--app", "tasks.app", *sys.argv[1:]]
    run()


if __name__ == "__main__":
    main()
