"""The account that embedded servers run as, and directories that it can enter.

PostgreSQL refuses to run as root. If we are root, both servers run as an unprivileged account. This account often
cannot enter the directories that we can: a checkout below /root, for instance, or the home.
"""

import contextlib
import os
import pwd
import subprocess
from pathlib import Path
from typing import NamedTuple

from config.local.home import HomeError

# A dedicated account comes first. Packages of PostgreSQL create `postgres`; every machine has `nobody`.
SERVER_ACCOUNTS = ("ecm-coordinator", "postgres", "nobody")


class ServerAccount(NamedTuple):
    """The account that the embedded servers run as if we are root."""

    uid: int
    gid: int
    name: str


def choose_server_account(data: Path) -> ServerAccount | None:
    """Return the account for a server whose data is in `data`; None stands for our own account, which is not root.

    Existing data keeps its owner. Raises HomeError if the machine has none of SERVER_ACCOUNTS.
    """
    if os.geteuid() != 0:
        return None
    if data.exists() and (uid := data.stat().st_uid) != 0:
        account = pwd.getpwuid(uid)
        return ServerAccount(account.pw_uid, account.pw_gid, account.pw_name)
    for name in SERVER_ACCOUNTS:
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            return ServerAccount(account.pw_uid, account.pw_gid, account.pw_name)
    raise HomeError(
        "PostgreSQL does not run as root, and this machine has none of the accounts "
        f"{', '.join(SERVER_ACCOUNTS)}; create one with `useradd --system ecm-coordinator`"
    )


def can_enter(account: ServerAccount | None, directory: Path) -> bool:
    """Return whether `account` can reach `directory` and list it. The kernel answers, not a reading of mode bits."""
    if account is None:
        return os.access(directory, os.R_OK | os.X_OK)
    return _succeeds(account, 'cd -- "$1" && [ -r . ]', directory)


def can_run(account: ServerAccount | None, program: Path) -> bool:
    """Return whether `account` can reach the file `program` and execute it."""
    if account is None:
        return os.access(program, os.X_OK)
    return _succeeds(account, '[ -x "$1" ]', program)


def _succeeds(account: ServerAccount, script: str, argument: Path) -> bool:
    """Return whether a shell script with one argument succeeds as `account`."""
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(argument)],
        cwd="/",
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def make_private_directory(directory: Path, account: ServerAccount | None) -> Path:
    """Create `directory`, which only `account` can enter; return it. A missing parent is created, too."""
    if not directory.parent.exists():
        directory.parent.mkdir(parents=True)
        directory.parent.chmod(0o700 if account is None else 0o711)
    directory.mkdir(mode=0o700, exist_ok=True)
    if account is not None:
        os.chown(directory, account.uid, account.gid)
    return directory
