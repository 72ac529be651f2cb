"""The options that the agent's commands share, and the kinds of values they take."""

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

from agent import client, gmp_ecm

# Where a field of a result comes from on the command line.
OPTIONS = {"client_id": "--name", "composite": "NUMBER"}


@contextmanager
def said_before_anything_runs(root: Path) -> Iterator[None]:
    """What cannot work (an order, GMP-ECM, the spool at `root`) ends the command with a sentence."""
    try:
        yield
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise click.UsageError(f"{OPTIONS.get(where, where)}: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except gmp_ecm.EcmMissing as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"the spool {root} cannot be written: {error}") from error


class Bound(click.ParamType[int]):
    """A bound as people write it: 50000, 11e6."""

    name = "bound"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = Decimal(value)
        except (InvalidOperation, TypeError):
            number = Decimal("NaN")
        # The exponent is looked at before the number is written out.
        if not number.is_finite() or number.adjusted() > 30 or number != number.to_integral_value():
            self.fail(f"{str(value)[:60]!r} is not a whole number such as 50000 or 11e6", param, ctx)
        return int(number)


class Server(click.ParamType[str]):
    """The coordinator's address, without the API's path."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        url = str(value).rstrip("/").removesuffix("/api/v1")
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            self.fail(f"{value!r} is not an address such as http://127.0.0.1:8000", param, ctx)
        return url


def _use_key(_context: click.Context, _parameter: click.Parameter, key: str | None) -> None:
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise click.BadParameter("should be one word, as `clients add` printed it")
    client.use_key(key)


_address_option = click.option(
    "--server", type=Server(), required=True, envvar="ECM_SERVER", show_envvar=True, help="the coordinator's address"
)
_key_option = click.option(
    "--key",
    envvar="ECM_KEY",
    show_envvar=True,
    expose_value=False,
    callback=_use_key,
    help="the client's key, if the server asks for one; others on this machine can read it in a command line",
)


def server_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--server`, and the key that goes with it."""
    return _address_option(_key_option(command))


spool_option = click.option(
    "--spool",
    "root",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: Path(platformdirs.user_state_dir("ecm-coordinator")) / "spool",
    envvar="ECM_SPOOL",
    show_envvar=True,
    show_default="the platform's state directory",
    help="where results stay until they are settled; agents may share it",
)
patience_option = click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="seconds to try before a result is left in the spool",
)
name_option = click.option("--name", default=platform.node, show_default="this host's name", help="the client's name")
ecm_option = click.option(
    "--ecm",
    type=click.Path(dir_okay=False, path_type=Path),
    help="the GMP-ECM program  [default: ecm on the PATH, else the installed wheel's]",
)
