"""The embedded PostgreSQL: a cluster under HOME/postgres/data, made and run by us.

The wheel's own start-up code is not used: it leaves the server running after a killed owner, gives crash recovery
10 s and loosens permissions for root. Only people who know the password in HOME/servers.json get in: clients
authenticate by SCRAM, over a socket in a private directory, and over TCP (127.0.0.1) only where a port is given.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

import psutil

from config.embedded.launch import Launch, Server
from config.embedded.software import postgres_installation, version_of
from config.home import HomeError, Owner, can_enter, own_directory, remembered, server_owner, socket_directory
from config.settings import Settings

_SOCKET_PORT = 5432  # names the socket file; nothing listens there
_FILENAME = f".s.PGSQL.{_SOCKET_PORT}"
_SETTINGS = {
    "shared_buffers": "512MB",  # the indexes that a million numbers are found by
    "max_wal_size": "4GB",
    "wal_compression": "on",
    "jit": "off",  # short statements only: compiling them costs more than it gives
    "autovacuum_naptime": "15s",  # the inbox and the queues of jobs churn
    "log_checkpoints": "off",
}
# Loses what a power cut would, but nothing that a killed server would have kept (as synchronous_commit=off does).
_CARELESS = {"fsync": "off", "full_page_writes": "off"}


def data_directory(home: Path) -> Path:
    """Where the cluster of `home` is (or will be)."""
    return home / "postgres" / "data"


def postgres_url(home: Path, port: int | None = None) -> str:
    """The SQLAlchemy URL of the embedded database of `home`: by its socket, or by TCP at `port`."""
    known = remembered(home, "postgres")
    if port:
        return f"postgresql+psycopg2://ecm:{known['password']}@127.0.0.1:{port}/ecm"
    where = quote(str(_sockets(home)), safe="/")
    return f"postgresql+psycopg2://ecm:{known['password']}@/ecm?host={where}&port={_SOCKET_PORT}"


def postgres_launch(home: Path, port: int | None = None, durable: bool = True) -> Launch:
    """Make everything ready for the server of `home` to start, a new cluster included; returns how to start it.

    Raises HomeError for a cluster of another major version, or where PostgreSQL cannot be run at all.
    """
    data = data_directory(home)
    owner = server_owner(data)
    root = postgres_installation(home, owner)
    if data.exists():
        _check_version(data, root)
    else:
        _make_cluster(home, root, owner, durable)
    _drop_stale_lock(data)
    settings = dict(_SETTINGS, unix_socket_permissions="0700", listen_addresses="127.0.0.1" if port else "")
    settings["unix_socket_directories"] = str(_sockets(home))
    # Every pool that the settings allow fits, and at least what tests and an operator's tools may want besides.
    settings["max_connections"] = str(max(200, Settings().connections))
    if not durable:
        settings.update(_CARELESS)
    argv = [str(root / "bin" / "postgres"), "-D", _path_for(owner, data), "-p", str(port or _SOCKET_PORT)]
    argv += [f"--{name}={value}" for name, value in settings.items()]
    # SIGINT is PostgreSQL's fast shutdown: it ends sessions instead of waiting for them.
    return Launch(argv, data, owner, signal.SIGINT)


def start_postgres(home: Path, port: int | None = None, durable: bool = True) -> Server:
    """Start the embedded PostgreSQL of `home` (made if it is new) and wait until it answers.

    Its database `ecm` belongs to its role `ecm`, who may also create databases. `durable=False` is for tests.
    """
    home.mkdir(parents=True, exist_ok=True)
    url = postgres_url(home, port)
    (home / "logs").mkdir(mode=0o700, exist_ok=True)
    server = Server(
        "PostgreSQL",
        url,
        home / "logs" / "postgres.log",
        lambda: postgres_answers(url),
        lambda: postgres_launch(home, port, durable),
        socket=_sockets(home),
    )
    server.start()
    return server


def postgres_answers(url: str) -> bool:
    """Whether the database at `url` takes a connection within 5 s."""
    import psycopg2

    try:
        psycopg2.connect(libpq_url(url), connect_timeout=5).close()
    except psycopg2.OperationalError:
        return False
    return True


def libpq_url(url: str) -> str:
    """A SQLAlchemy URL as libpq's own programs read it: without the driver's name."""
    scheme, _, rest = url.partition("://")
    return f"{scheme.split('+')[0]}://{rest}"


def _sockets(home: Path) -> Path:
    """Where the server of `home` has its socket."""
    return socket_directory(home, "postgres", _FILENAME, server_owner(data_directory(home)))


def _path_for(owner: Owner | None, directory: Path) -> str:
    """A path to `directory` that works for a process of `owner` which starts in it.

    Below a directory that is closed to `owner` (such as /root) no name leads there, but the kernel's own link does.
    """
    if can_enter(owner, directory):
        return str(directory)
    if Path("/proc/self/cwd").exists():
        return "/proc/self/cwd"
    raise HomeError(f"the account {owner.name if owner else ''} cannot enter {directory}; choose another home")


def _check_version(data: Path, root: Path) -> None:
    """Refuse a cluster that another major version made: PostgreSQL itself could not read it."""
    made_by, ours = (data / "PG_VERSION").read_text().strip(), version_of(root / "bin" / "postgres").split(".")[0]
    if made_by != ours:
        raise HomeError(
            f"{data} was made by PostgreSQL {made_by}, and this installation carries PostgreSQL {ours}. To upgrade: "
            f"install the ecm-coordinator that carried PostgreSQL {made_by} again, run `ecm-coordinator backup FILE` "
            f"with it, move {data} away, install this one, and run `ecm-coordinator restore FILE`"
        )


def _make_cluster(home: Path, root: Path, owner: Owner | None, durable: bool) -> None:
    """Make the cluster beside its place and move it there once it is complete, so that a half-made one is never used.

    The role `ecm` owns the database and is no superuser: a superuser could run programs through SQL. The superuser
    cannot log in at all; whoever may read the data directory has PostgreSQL's single-user mode.
    """
    data = data_directory(home)
    part = data.with_name("data.new")
    if part.exists():
        shutil.rmtree(part)
    own_directory(part, owner)
    password = remembered(home, "postgres")["password"]
    path = _path_for(owner, part)
    initdb = [
        *(str(root / "bin" / "initdb"), "-D", path, "--username=postgres", "--auth=reject", "--encoding=UTF8"),
        *("--locale=C", "--no-instructions", "--no-sync"),
    ]
    _run_in(part, owner, initdb, "")
    (part / "pg_hba.conf").write_text("local all ecm scram-sha-256\nhost all ecm 127.0.0.1/32 scram-sha-256\n")
    statements = (
        f"CREATE ROLE ecm LOGIN CREATEDB PASSWORD '{password}'\nCREATE DATABASE ecm OWNER ecm TEMPLATE template0\n"
    )
    single = [str(root / "bin" / "postgres"), "--single", "-D", path, *(f"--{k}={v}" for k, v in _CARELESS.items())]
    _run_in(part, owner, [*single, "postgres"], statements)
    if durable:
        # All of it was written without waiting for the disk; one sync is far quicker than a thousand.
        os.sync()
    part.rename(data)


def _run_in(directory: Path, owner: Owner | None, argv: list[str], stdin: str) -> None:
    """Run one of PostgreSQL's programs as `owner` in `directory`. Raises HomeError with what it said when it fails."""
    done = subprocess.run(
        argv,
        cwd=directory,
        input=stdin,
        text=True,
        capture_output=True,
        check=False,
        user=owner.uid if owner else None,
        group=owner.gid if owner else None,
        extra_groups=[] if owner else None,
    )
    # In single-user mode a failed statement is reported, but does not change the exit status.
    if done.returncode != 0 or "ERROR:" in done.stderr:
        raise HomeError(f"{Path(argv[0]).name} failed with status {done.returncode}: {done.stderr or done.stdout}")


def _drop_stale_lock(data: Path) -> None:
    """Remove a lock file whose process is no server of this cluster.

    PostgreSQL only asks whether a process of that number exists, and where numbers start anew with every boot
    or container, another of our processes often has it: the server would then refuse to start for ever.
    """
    lock = data / "postmaster.pid"
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int(lock.read_text().splitlines()[0])
        try:
            process = psutil.Process(pid)
            alive = process.name() == "postgres" and Path(process.cwd()).samefile(data)
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            lock.unlink()
