"""Directories of Unix sockets: in the home where that is possible, else a short path outside of it."""

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from config.local.accounts import ServerAccount, can_enter, make_private_directory
from config.local.server_records import read_server_records, update_server_record

# A socket's path must fit sockaddr_un: 108 bytes with its final NUL on Linux, 104 on BSD and macOS.
LONGEST_SOCKET_PATH = 103


def socket_directory(home: Path, server: str) -> Path:
    """Return the directory of a server's socket, as the server's last start chose it. Nothing is written."""
    outside = read_server_records(home).get(server, {}).get("socket")
    return Path(outside) if outside else home / server / "socket"


def make_socket_directory(home: Path, server: str, filename: str, account: ServerAccount | None) -> Path:
    """Create and record a private directory for a server's socket `filename`; return it.

    It lies outside of `home` if the path would be too long, if it has characters that a server's configuration would
    have to quote, or if `account` cannot enter `home`.
    """
    inside = home / server / "socket"
    is_plain = all(c.isalnum() or c in "/._-" for c in str(inside))
    if is_plain and len(os.fsencode(inside / filename)) <= LONGEST_SOCKET_PATH:
        make_private_directory(inside, account)
        if can_enter(account, inside):
            update_server_record(home, server, socket=None)
            return inside
    uid = os.geteuid() if account is None else account.uid
    if recorded := read_server_records(home).get(server, {}).get("socket"):
        outside = Path(recorded)
        with contextlib.suppress(FileExistsError):
            make_private_directory(outside, account)
        found = outside.lstat()
        # Anybody can create a directory of that name in /tmp. Ours belongs to the account and is closed to others.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == uid and stat.S_IMODE(found.st_mode) == 0o700:
            return outside
    base = "/run" if os.geteuid() == 0 and os.access("/run", os.W_OK) else os.environ.get("XDG_RUNTIME_DIR", "/tmp")
    outside = Path(tempfile.mkdtemp(prefix="ecm-", dir=base if Path(base).is_dir() else "/tmp"))
    make_private_directory(outside, account)
    update_server_record(home, server, socket=str(outside))
    return outside


def remove_outside_sockets(home: Path) -> None:
    """Remove the socket directories outside of `home`, after its servers have ended. The next start makes new ones."""
    for record in read_server_records(home).values():
        if "socket" in record:
            shutil.rmtree(record["socket"], ignore_errors=True)
