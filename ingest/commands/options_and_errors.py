"""What commands share: options, errors of the rules as sentences, and numbers named by value or id."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from config.settings import settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
YES_OPTION = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


@contextlib.contextmanager
def domain_errors_end_command() -> Iterator[None]:
    """End the command with exit status 1 and the reason if a rule refuses what it asks for."""
    from coordinator.base.errors import DomainError
    from coordinator.numbers.expressions import ExpressionError

    try:
        yield
    except DomainError as error:
        raise click.ClickException(f"{error}") from error
    except ExpressionError as error:
        raise click.ClickException(error.detail) from error


def identify(engine: "Engine", number: str) -> int:
    """Return the id of the number with this value or id. Call it within `domain_errors_end_command`."""
    from coordinator.reading import lookup

    return lookup.identify_composite(engine, number.strip(), settings().max_digits)
