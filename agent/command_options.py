"""Options, value types and exit codes that the agent's commands share."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import platformdirs
from pydantic import ValidationError

from agent import gmp_ecm, http_client

EXIT_WAITING, EXIT_REFUSED, EXIT_NO_WORK = 3, 4, 5  # click itself exits with 1 and 2
# The command line's name of a field of a result.
FIELD_OPTIONS = {
    "client_id": "--name",
    "composite": "NUMBER",
    **{f"parameters.{name}": f"--{name}" for name in ("b1", "b2", "curves", "parametrization", "sigma")},
}
LIMIT_TEXTS = {"greater_than_equal": "must be at least {ge}", "less_than_equal": "must be at most {le}"}


@contextmanager
def fail_before_run(root: Path) -> Iterator[None]:
    """Turn errors of an order, of GMP-ECM or of the spool at `root` into one sentence and an exit code."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        limit = LIMIT_TEXTS.get(first["type"])
        fault = f" {limit.format(**first['ctx'])}" if limit else f": {first['msg']}"
        raise click.UsageError(f"{FIELD_OPTIONS.get(where, where)}{fault}") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except gmp_ecm.EcmMissingError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"the spool {root} cannot be written: {error}") from error


class Bound(click.ParamType[int]):
    """A whole number such as 50000 or 11e6."""

    name = "bound"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = Decimal(value)
        except (InvalidOperation, TypeError):
            number = Decimal("NaN")
        # The exponent is checked first: int() of 1e99999999 would take all memory.
        if not number.is_finite() or number.adjusted() > 30 or number != number.to_integral_value():
            self.fail(f"{str(value)[:60]!r} is not a whole number such as 50000 or 11e6", param, ctx)
        return int(number)


class ServerUrl(click.ParamType[str]):
    """The coordinator's address, without the path of its API."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        url = str(value).rstrip("/").removesuffix("/api/v1")
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            self.fail(f"{value!r} is not an address such as http://127.0.0.1:8000", param, ctx)
        return url


def count_usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _use_key(_context: click.Context, _parameter: click.Parameter, key: str | None) -> None:
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise click.BadParameter("must be one word, as `clients add` printed it")
    http_client.use_key(key)


_address_option = click.option(
    "--server", type=ServerUrl(), required=True, envvar="ECM_SERVER", show_envvar=True, help="Address of the server."
)
_key_option = click.option(
    "--key",
    envvar="ECM_KEY",
    show_envvar=True,
    expose_value=False,
    callback=_use_key,
    help="Key of this client, if the server asks for one. Other users can read a command line: prefer the variable.",
)


def server_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--server` and `--key`."""
    return _address_option(_key_option(command))


spool_option = click.option(
    "--spool",
    "root",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: Path(platformdirs.user_state_dir("ecm-coordinator")) / "spool",
    envvar="ECM_SPOOL",
    show_envvar=True,
    show_default="the platform's state directory",
    help="Directory that keeps results until the server confirms them; several agents may share it.",
)
timeout_option = click.option(
    "--patience",
    "timeout",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds to retry a request before its result is left in the spool.",
)
name_option = click.option(
    "--name", default=platform.node, show_default="this host's name", help="Name of this client."
)
ecm_option = click.option(
    "--ecm",
    type=click.Path(dir_okay=False, path_type=Path),
    help="GMP-ECM program.  [default: `ecm` on the PATH, else the one of the installed wheel]",
)
