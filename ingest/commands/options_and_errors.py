"""What commands of administration share: refusals as sentences, and numbers named by value or id."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from config.settings import settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
YES_OPTION = click.option("--yes", is_flag=True, help="Do not ask.")


@contextlib.contextmanager
def domain_errors_end_command() -> Iterator[None]:
    """What is refused ends the command with exit code 1 and the reason."""
    from coordinator.base.errors import DomainError
    from coordinator.numbers.expressions import ExpressionError

    try:
        yield
    except DomainError as error:
        raise click.ClickException(f"{error}") from error
    except ExpressionError as error:
        raise click.ClickException(error.detail) from error


def identify(engine: "Engine", number: str) -> int:
    """The id of the number with this value or id; to be called within `domain_errors_end_command`."""
    from coordinator.leases import reservations

    return reservations.identify(engine, number.strip(), settings().max_digits)
