"""The database of commands that work on it directly, whether the coordinator runs or not."""

import contextlib
import getpass
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from config.logging import configure_logging
from config.settings import default_home, settings
from models.wire.common import printable

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.exc import OperationalError

    from coordinator.base.audit import Actor


def one_line(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Return `value` if it is one line of printable UTF-8; raises BadParameter."""
    try:
        return value and printable(value.encode().decode())
    except UnicodeEncodeError:
        raise click.BadParameter("should be UTF-8") from None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def operator() -> "Actor":
    """Return the account that runs this command as the actor for the audit log."""
    from coordinator.base.audit import Actor

    try:
        return Actor(getpass.getuser())
    except (OSError, KeyError):  # a container's account without a name
        return Actor(f"uid {os.getuid()}")


@contextlib.contextmanager
def database(home: Path | None) -> Iterator["Engine"]:
    """Yield an engine for the database; its faults end the command with one sentence."""
    from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError

    from models.engine import make_engine

    # Log lines of transactions would only disturb, and must not mix with JSON output.
    configure_logging(settings().log_format, "WARNING")
    url = settings().database_url or _embedded_url(home or default_home())
    try:
        engine = make_engine(url)
    except ArgumentError as error:
        raise click.ClickException("DATABASE_URL should be like postgresql://user:password@host/database") from error
    try:
        yield engine
    except OperationalError as error:
        raise click.ClickException(describe_fault(error)) from error
    except ProgrammingError as error:
        raise click.ClickException(
            f"the database's schema is not this version's ({str(error.orig).splitlines()[0]});"
            " run `ecm-coordinator migrate`"
        ) from error
    finally:
        engine.dispose()


def describe_fault(error: "OperationalError") -> str:
    """Return a sentence for a database that cannot be used."""
    from models.sessions import SharedSessionsError

    if isinstance(error.orig, SharedSessionsError):
        return str(error.orig)
    return f"the database does not answer: {str(error.orig).strip()}"


def _embedded_url(home: Path) -> str:
    from config.local import postgres
    from config.local.home import HomeError

    if not postgres.data_directory(home).exists():
        raise click.ClickException(
            f"DATABASE_URL is not set, and {home} has no database; name the home of `up` with --home"
        )
    try:
        return postgres.postgres_url(home)
    except HomeError as error:
        raise click.ClickException(str(error)) from error
