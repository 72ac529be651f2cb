"""The home of a one-machine installation: its layout on disk, its lock, and its admin key.

    HOME/admin.key       the key for /api/v1/admin (mode 0600)
    HOME/servers.json    passwords, ports, programs and socket directories of the embedded servers (mode 0600)
    HOME/postgres/data   the database cluster; HOME/postgres/socket holds its socket
    HOME/valkey          the working directory of the broker, which stores nothing there
    HOME/software        copies of the servers' programs, where the servers' account cannot enter the environment
    HOME/residues        uploaded residue files
    HOME/logs            logs
    HOME/run             files that `up` needs while it runs

An installation with servers of its own has this layout, too; nothing of the embedded servers is imported here.
"""

import contextlib
import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path


class HomeError(Exception):
    """An operator has to correct something about the home or the servers; the message says what and how."""


def prepare_home(home: Path) -> Path:
    """Create `home` and its directories; return its absolute path. Raises HomeError if that is not possible."""
    home = Path(os.path.realpath(home))
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Root's servers run as another user, who must pass through. Private files have private directories below.
        if os.geteuid() == 0:
            home.chmod(stat.S_IMODE(home.stat().st_mode) | 0o111)
        for name in ("logs", "run", "residues"):
            (home / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HomeError(f"cannot use {home} as the home ({error.strerror}); choose another with --home") from error
    return home


@contextlib.contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """Lock `home` for this process. The kernel releases the lock when the process dies, however it dies.

    Raises HomeError if another process holds the lock.
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
    """Replace the file `path` by `text` in one step. Only its owner can read it."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)


def admin_key(home: Path) -> str:
    """Return the admin key of `home`. The first call generates it."""
    path = home / "admin.key"
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32) + "\n")
    return path.read_text().strip()
