"""The option `--home` of every command that works on a home."""

from pathlib import Path

import click

# Absolute from here on, however the process or one of its children changes its working directory.
HOME_OPTION = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help="The directory with the data (default: $ECM_HOME, else /var/lib/ecm-coordinator for root, the user's data "
    "directory for others).",
)
