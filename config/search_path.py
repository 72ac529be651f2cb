"""Keeping modules of the working directory from taking the place of ours.

gunicorn and Celery put the working directory at the front of `sys.path`, unless it is somewhere in it already. A
`config.py` or `tasks.py` that lies there would then be imported instead of our package of that name.
"""

import os
import sys
from contextlib import suppress


def put_working_directory_last() -> None:
    """Append the working directory to `sys.path`, and have Python processes that this one starts leave it out.

    A process started with `python -P` calls this before it calls gunicorn or Celery.
    """
    with suppress(FileNotFoundError):  # the directory was removed
        if os.getcwd() not in sys.path:  # noqa: PTH109 - compared as gunicorn and Celery compare it
            sys.path.append(os.getcwd())  # noqa: PTH109
    os.environ["PYTHONSAFEPATH"] = "1"
