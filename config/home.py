"""The home of a one-machine installation: its layout on disk, its lock, and the few secrets it keeps.

    HOME/admin.key       the key for /api/v1/admin (0600)
    HOME/servers.json    passwords, ports and socket directories of the embedded servers (0600)
    HOME/postgres/data   the database cluster;  HOME/postgres/socket  its socket
    HOME/valkey          the broker's working directory (it keeps nothing there)
    HOME/software        copies of the server binaries, only where the servers' user cannot enter the environment
    HOME/residues        uploaded residue files
    HOME/logs, HOME/run  logs; what `up` needs while it runs

Nothing embedded is imported here: a machine that uses servers of its own has this layout too.
"""

import contextlib
import fcntl
import json
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# A socket's path must fit sockaddr_un: 108 bytes with its final NUL on Linux, 104 on BSD and macOS.
LONGEST_SOCKET_PATH = 103
# A dedicated account first; `postgres` exists for this very purpose; `nobody` is everywhere.
SERVER_ACCOUNTS = ("ecm-coordinator", "postgres", "nobody")


class HomeError(Exception):
    """Something about the home that a person has to settle; the message says what and how."""


class Owner(NamedTuple):
    """The account that the embedded servers run as when we are root."""

    uid: int
    gid: int
    name: str


def prepare_home(home: Path) -> Path:
    """Make `home` and its directories; returns its absolute path. Raises HomeError when that is not possible."""
    home = Path(os.path.realpath(home))
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Root's servers run as another user who must pass through; what is private is closed one level further down.
        if os.geteuid() == 0:
            home.chmod(stat.S_IMODE(home.stat().st_mode) | 0o111)
        for name in ("logs", "run", "residues"):
            (home / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HomeError(f"cannot use {home} as the home ({error.strerror}); choose another with --home") from error
    return home


@contextlib.contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """Hold `home` for this process alone; the kernel lets go when the process dies, however it dies.

    Raises HomeError when another process holds it.
    """
    with (home / "run" / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise HomeError(f"{home} is in use by another ecm-coordinator (process {holder}); stop it first") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text`, whole or not at all, readable by its owner only."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)


def remembered(home: Path, server: str) -> dict[str, Any]:
    """What `home` remembers of an embedded server; its password is made at the first look."""
    path = home / "servers.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if server not in known:
        known[server] = {"password": secrets.token_hex(24)}
        write_private(path, json.dumps(known, indent=1))
    return dict(known[server])


def remember(home: Path, server: str, **facts: Any) -> None:
    """Keep `facts` about an embedded server, so that its URL stays the same when it restarts."""
    path = home / "servers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    entry = known.setdefault(server, {})
    if any(entry.get(name) != value for name, value in facts.items()):
        entry.update(facts)
        write_private(path, json.dumps(known, indent=1))


def admin_key(home: Path) -> str:
    """The admin key kept in `home`, generated at first use."""
    path = home / "admin.key"
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32) + "\n")
    return path.read_text().strip()


def server_owner(data: Path) -> Owner | None:
    """The account to run a server with data in `data` as: None for our own, which is never root.

    The owner of existing data stays its owner. Raises HomeError when the machine has no account to use.
    """
    if os.geteuid() != 0:
        return None
    if data.exists() and (uid := data.stat().st_uid) != 0:
        account = pwd.getpwuid(uid)
        return Owner(account.pw_uid, account.pw_gid, account.pw_name)
    for name in SERVER_ACCOUNTS:
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            return Owner(account.pw_uid, account.pw_gid, account.pw_name)
    raise HomeError(
        "PostgreSQL does not run as root, and this machine has none of the accounts "
        f"{', '.join(SERVER_ACCOUNTS)}; create one with `useradd --system ecm-coordinator`"
    )


def can_enter(owner: Owner | None, directory: Path) -> bool:
    """Whether `owner` can pass through every directory down to `directory` and read it (asked of the kernel)."""
    if owner is None:
        return os.access(directory, os.R_OK | os.X_OK)
    question = subprocess.run(
        ["/bin/sh", "-c", 'cd -- "$1" && [ -r . ]', "sh", str(directory)],
        cwd="/",
        user=owner.uid,
        group=owner.gid,
        extra_groups=[],
        capture_output=True,
        check=False,
    )
    return question.returncode == 0


def own_directory(directory: Path, owner: Owner | None) -> Path:
    """Make `directory`, private to `owner`."""
    if not directory.parent.exists():
        directory.parent.mkdir(parents=True)
        directory.parent.chmod(0o700 if owner is None else 0o711)
    directory.mkdir(mode=0o700, exist_ok=True)
    if owner is not None:
        os.chown(directory, owner.uid, owner.gid)
    return directory


def socket_directory(home: Path, server: str, filename: str, owner: Owner | None) -> Path:
    """A private directory for a socket called `filename`: in `home`, or a short one elsewhere that `home` remembers.

    Elsewhere when the path would be too long, holds characters that a server's configuration would need quoted, or
    when `owner` cannot pass through to `home`.
    """
    inside = home / server / "socket"
    plain = all(c.isalnum() or c in "/._-" for c in str(inside))
    if plain and len(os.fsencode(inside / filename)) <= LONGEST_SOCKET_PATH:
        own_directory(inside, owner)
        if can_enter(owner, inside):
            return inside
    uid = os.geteuid() if owner is None else owner.uid
    if known := remembered(home, server).get("socket"):
        outside = Path(known)
        with contextlib.suppress(FileExistsError):
            own_directory(outside, owner)
        found = outside.lstat()
        # Directories beneath /tmp can be squatted on: only one that is still ours and closed will do.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == uid and stat.S_IMODE(found.st_mode) == 0o700:
            return outside
    base = "/run" if os.geteuid() == 0 and os.access("/run", os.W_OK) else os.environ.get("XDG_RUNTIME_DIR", "/tmp")
    outside = Path(tempfile.mkdtemp(prefix="ecm-", dir=base if Path(base).is_dir() else "/tmp"))
    own_directory(outside, owner)
    remember(home, server, socket=str(outside))
    return outside


def drop_outside_sockets(home: Path) -> None:
    """Remove the socket directories that `home` has elsewhere, once nothing uses them; they are made anew on demand."""
    path = home / "servers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for facts in known.values():
        if "socket" in facts:
            shutil.rmtree(facts["socket"], ignore_errors=True)
