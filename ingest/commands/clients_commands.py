"""`ecm-coordinator clients`: the keys that clients authenticate with, in the database directly."""

from pathlib import Path

import click

from ingest.commands.database import database, one_line, operator
from ingest.commands.home import HOME_OPTION


@click.group()
def clients() -> None:
    """Add, list and revoke the keys of clients.

    A server with REQUIRE_CLIENT_KEYS accepts results and leases work only with a key, and only under the key's name.

    Works on the database of DATABASE_URL, or on the embedded database in --home, also while `up` runs.
    """


def _name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from ingest.problems import ProblemError, checked_name

    try:
        return checked_name("NAME", one_line(context, parameter, value) or "")
    except ProblemError as problem:
        raise click.BadParameter(problem.detail) from None


@clients.command(short_help="Create a key for a client and print it.")
@click.argument("name", callback=_name)
@HOME_OPTION
def add(name: str, home: Path | None) -> None:
    """Create a key for the client NAME and print it; it is not shown again. A revoked key is replaced.

    \b
    Exit status:
      0  the key is on standard output
      1  the client has a key already
    """
    from coordinator.administration import client_keys

    with database(home) as engine:
        try:
            key = client_keys.add_key(engine, name, operator())
        except client_keys.InvalidKeyError as error:
            raise click.ClickException(str(error)) from None
    click.echo(key)
    click.echo(f"This is {name}'s key; it is not shown again. The agent takes it as ECM_KEY.", err=True)


@clients.command(short_help="Revoke the key of a client.")
@click.argument("name", callback=_name)
@HOME_OPTION
def revoke(name: str, home: Path | None) -> None:
    """Revoke the key of the client NAME; it stops working within 5 seconds.

    \b
    Exit status:
      0  the key is revoked
      1  the client has no key in use
    """
    from coordinator.administration import client_keys

    with database(home) as engine:
        try:
            client_keys.revoke_key(engine, name, operator())
        except client_keys.InvalidKeyError as error:
            raise click.ClickException(str(error)) from None
    click.echo(f"the key of {name} is revoked")


@clients.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@HOME_OPTION
def ls(*, as_json: bool, home: Path | None) -> None:
    """List the clients that have a key, with the state of the key."""
    from coordinator.administration import client_keys

    with database(home) as engine:
        rows = client_keys.all_keys(engine)
    if as_json:
        import orjson

        click.echo(orjson.dumps([row._asdict() for row in rows], option=orjson.OPT_INDENT_2))
        return
    for row in rows:
        state = f"revoked {row.revoked_at:%Y-%m-%d %H:%M} UTC" if row.revoked_at else "in use"
        click.echo(f"{row.name}  created {row.created_at:%Y-%m-%d %H:%M} UTC, {state}")
    if not rows:
        click.echo("No client has a key.")
