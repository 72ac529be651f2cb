"""Running the web process: `python -P -m ingest.serve [GUNICORN OPTION...]`.

gunicorn itself would let a `config.py` or `tasks.py` of the working directory take the place of our packages.
"""

import sys

from gunicorn.app.wsgiapp import run

from config.search_path import put_working_directory_last


def main() -> None:
    """Run gunicorn with our settings in this process."""
    put_working_directory_last()
    sys.argv[1:] = ["--config", "python:ingest.gunicorn_settings", *sys.argv[1:], "ingest.app:create_app()"]
    run()


if __name__ == "__main__":
    main()
