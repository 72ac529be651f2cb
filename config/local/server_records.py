"""HOME/servers.json: what the starts of a server leave behind for the next start and for other commands.

For each server (`postgres`, `valkey`, `supervisor`) the file holds its password, and where they apply its port, the
file that it runs, and its socket's directory outside of the home. Only what starts servers writes the file; every
other command reads it.
"""

import json
import secrets
from pathlib import Path
from typing import Any

from config.local.home import HomeError, write_private


def _path(home: Path) -> Path:
    return home / "servers.json"


def read_server_records(home: Path) -> dict[str, dict[str, Any]]:
    """Return the records of all servers of `home` by their names; {} if it never started a server."""
    path = _path(home)
    records: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return records


def read_server_record(home: Path, server: str) -> dict[str, Any]:
    """Return the record of one server. Raises HomeError if `home` never started it."""
    try:
        return read_server_records(home)[server]
    except KeyError:
        raise HomeError(f"{_path(home)} does not name {server}: `ecm-coordinator up` never started it here") from None


def ensure_server_record(home: Path, server: str) -> dict[str, Any]:
    """Return the record of one server. The first call makes it, with a new password."""
    records = read_server_records(home)
    if server not in records:
        records[server] = {"password": secrets.token_hex(24)}
        write_private(_path(home), json.dumps(records, indent=1))
    return records[server]


def update_server_record(home: Path, server: str, **facts: Any) -> None:
    """Set `facts` in the record of one server; a fact of None is removed. An equal record is not written again."""
    records = read_server_records(home)
    old = records.get(server, {})
    new = {name: value for name, value in {**old, **facts}.items() if value is not None}
    if new != old:
        write_private(_path(home), json.dumps({**records, server: new}, indent=1))
