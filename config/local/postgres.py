"""The embedded PostgreSQL: a cluster in HOME/postgres/data, which we create and run.

The start-up code of the wheel is not used: its server survives a killed parent, it waits only 10 s for crash recovery,
and it loosens permissions for root. Clients need the password in HOME/servers.json: they authenticate by SCRAM, over a
socket in a private directory, and over TCP (127.0.0.1) only if a port is given.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

import psutil

from config.local.accounts import ServerAccount, can_enter, choose_server_account, make_private_directory
from config.local.binaries import postgres_installation, version_of
from config.local.home import HomeError
from config.local.launch import Launch, Server
from config.local.server_records import (
    ensure_server_record,
    read_server_record,
    read_server_records,
    update_server_record,
)
from config.local.sockets import make_socket_directory, socket_directory
from config.settings import Settings

_SOCKET_PORT = 5432  # part of the socket's file name; nothing listens on this port
_FILENAME = f".s.PGSQL.{_SOCKET_PORT}"
_SETTINGS = {
    "shared_buffers": "512MB",  # the indexes of a million numbers fit
    "max_wal_size": "4GB",
    "wal_compression": "on",
    "jit": "off",  # all statements are short: compiling one takes longer than it saves
    "autovacuum_naptime": "15s",  # rows of the inbox and of the jobs change all the time
    "log_checkpoints": "off",
}
# For tests: a power cut could lose data, a killed server loses none (synchronous_commit=off would lose some).
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}


def data_directory(home: Path) -> Path:
    """Return where the cluster of `home` is, or will be."""
    return home / "postgres" / "data"


def postgres_url(home: Path, port: int | None = None) -> str:
    """Return the SQLAlchemy URL of the embedded database of `home`, by its socket or by TCP at `port`.

    Nothing is written. Raises HomeError if the server was never started.
    """
    password = read_server_record(home, "postgres")["password"]
    if port:
        return f"postgresql+psycopg2://ecm:{password}@127.0.0.1:{port}/ecm"
    where = quote(str(socket_directory(home, "postgres")), safe="/")
    return f"postgresql+psycopg2://ecm:{password}@/ecm?host={where}&port={_SOCKET_PORT}"


def prepare_postgres(home: Path, port: int | None = None, durable: bool = True) -> Launch:
    """Prepare the start of the server of `home` and create its cluster if there is none; return how to start it.

    Raises HomeError if another major version made the cluster, or if PostgreSQL cannot be run at all.
    """
    data = data_directory(home)
    account = choose_server_account(data)
    root = postgres_installation(home, account)
    ensure_server_record(home, "postgres")
    if data.exists():
        _check_version(data, root)
    else:
        _make_cluster(home, root, account, durable)
    _remove_stale_lock(home)
    program = root / "bin" / "postgres"
    update_server_record(home, "postgres", program=os.path.realpath(program))
    settings = dict(_SETTINGS, unix_socket_permissions="0700", listen_addresses="127.0.0.1" if port else "")
    settings["unix_socket_directories"] = str(_make_sockets(home, account))
    # Room for every connection that the settings allow, and never less than tests and an operator's tools need.
    settings["max_connections"] = str(max(200, Settings().connections))
    if not durable:
        settings.update(_NOT_DURABLE)
    argv = [str(program), "-D", _path_for(account, data), "-p", str(port or _SOCKET_PORT)]
    argv += [f"--{name}={value}" for name, value in settings.items()]
    # SIGINT is PostgreSQL's fast shutdown, which ends sessions and does not wait for them.
    return Launch(argv, data, account, signal.SIGINT)


def start_postgres(home: Path, port: int | None = None, durable: bool = True) -> Server:
    """Start the embedded PostgreSQL of `home` and wait until it answers. A new home gets a new cluster.

    The role `ecm` owns the database `ecm` and may create databases. `durable=False` is for tests.
    """
    home.mkdir(parents=True, exist_ok=True)
    ensure_server_record(home, "postgres")
    socket = _make_sockets(home, choose_server_account(data_directory(home)))
    url = postgres_url(home, port)
    (home / "logs").mkdir(mode=0o700, exist_ok=True)
    server = Server(
        "PostgreSQL",
        url,
        home / "logs" / "postgres.log",
        lambda: postgres_answers(url),
        lambda: prepare_postgres(home, port, durable),
        socket=socket,
    )
    server.start()
    return server


def postgres_answers(url: str) -> bool:
    """Return whether the database at `url` accepts a connection within 5 s."""
    import psycopg2

    try:
        psycopg2.connect(libpq_url(url), connect_timeout=5).close()
    except psycopg2.OperationalError:
        return False
    return True


def libpq_url(url: str) -> str:
    """Return a SQLAlchemy URL without the name of its driver, as libpq and its programs read it."""
    scheme, _, rest = url.partition("://")
    return f"{scheme.split('+')[0]}://{rest}"


def _make_sockets(home: Path, account: ServerAccount | None) -> Path:
    """Create the directory of the server's socket; return it."""
    return make_socket_directory(home, "postgres", _FILENAME, account)


def _path_for(account: ServerAccount | None, directory: Path) -> str:
    """Return a path to `directory` that a process of `account` can use if it starts in `directory`.

    If a parent is closed to `account` (/root, for instance), no path by name works, but the kernel's link does.
    """
    if can_enter(account, directory):
        return str(directory)
    if Path("/proc/self/cwd").exists():
        return "/proc/self/cwd"
    raise HomeError(f"the account {account.name if account else ''} cannot enter {directory}; choose another home")


def _check_version(data: Path, root: Path) -> None:
    """Raise HomeError if another major version made the cluster: this one could not read it."""
    made_by, ours = (data / "PG_VERSION").read_text().strip(), version_of(root / "bin" / "postgres").split(".")[0]
    if made_by != ours:
        raise HomeError(
            f"{data} was made by PostgreSQL {made_by}, and this installation carries PostgreSQL {ours}. To upgrade: "
            f"install the ecm-coordinator that carried PostgreSQL {made_by} again, run `ecm-coordinator backup FILE` "
            f"with it, move {data} away, install this one, and run `ecm-coordinator restore FILE`"
        )


def _make_cluster(home: Path, root: Path, account: ServerAccount | None, durable: bool) -> None:
    """Create the cluster beside its place and move it there when it is complete, so that no incomplete one is used.

    The role `ecm` owns the database and is no superuser: a superuser could run programs through SQL. The superuser
    cannot log in; an administrator who can read the data directory may use PostgreSQL's single-user mode.
    """
    data = data_directory(home)
    part = data.with_name("data.new")
    if part.exists():
        shutil.rmtree(part)
    make_private_directory(part, account)
    password = ensure_server_record(home, "postgres")["password"]
    path = _path_for(account, part)
    initdb = [
        *(str(root / "bin" / "initdb"), "-D", path, "--username=postgres", "--auth=reject", "--encoding=UTF8"),
        *("--locale=C", "--no-instructions", "--no-sync"),
    ]
    _run_in(part, account, initdb, "")
    (part / "pg_hba.conf").write_text("local all ecm scram-sha-256\nhost all ecm 127.0.0.1/32 scram-sha-256\n")
    statements = (
        f"CREATE ROLE ecm LOGIN CREATEDB PASSWORD '{password}'\nCREATE DATABASE ecm OWNER ecm TEMPLATE template0\n"
    )
    single = [str(root / "bin" / "postgres"), "--single", "-D", path, *(f"--{k}={v}" for k, v in _NOT_DURABLE.items())]
    _run_in(part, account, [*single, "postgres"], statements)
    if durable:
        # Nothing has waited for the disk so far: one sync is far quicker than a thousand.
        os.sync()
    part.rename(data)


def _run_in(directory: Path, account: ServerAccount | None, argv: list[str], stdin: str) -> None:
    """Run one of PostgreSQL's programs as `account` in `directory`. Raises HomeError with its output if it fails."""
    done = subprocess.run(
        argv,
        cwd=directory,
        input=stdin,
        text=True,
        capture_output=True,
        check=False,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
    # In single-user mode PostgreSQL reports a failed statement, but still exits with status 0.
    if done.returncode != 0 or "ERROR:" in done.stderr:
        raise HomeError(f"{Path(argv[0]).name} failed with status {done.returncode}: {done.stderr or done.stdout}")


def _remove_stale_lock(home: Path) -> None:
    """Remove the cluster's lock file if the process that it names is no server of this cluster.

    PostgreSQL only asks whether a process of that number exists. After a boot, or in a new container, numbers start
    from 1 again, and another of our processes often has that number: the server would never start again.
    """
    lock = data_directory(home) / "postmaster.pid"
    with contextlib.suppress(OSError, ValueError, IndexError):
        if not _is_server(home, int(lock.read_text().splitlines()[0])):
            lock.unlink()


def _is_server(home: Path, pid: int) -> bool:
    """Return whether the process `pid` may be a server of this cluster; True in case of doubt.

    The program of a server may be any installation or copy, so its working directory decides.
    """
    data = data_directory(home)
    try:
        process = psutil.Process(pid)
        if process.uids().real != data.stat().st_uid:
            return False
        try:
            return Path(process.cwd()).samefile(data)
        except psutil.AccessDenied:  # root of a container without CAP_SYS_PTRACE
            program = read_server_records(home).get("postgres", {}).get("program")
            return [program] == [os.path.realpath(word) for word in process.cmdline()[:1]]
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
