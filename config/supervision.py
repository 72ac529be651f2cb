"""Keeping the programs of one machine running: supervisord's configuration, and what it starts each program through.

supervisord restarts what ends (honcho ends everything when one program ends, and a restarter of our own would be one
more thing to get right). It does not do three things that a machine left alone for months needs, and that are here:

- before a program starts, what is left of its last incarnation is killed (`python -m config.supervision`, below);
- everything ends with its parent: supervisord with `up`, every program with supervisord;
- a program that supervisord gave up on is started again (`revive`), so that hours without a disk or a database
  end by themselves.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.home import HomeError, own_directory, remembered, socket_directory
from config.processes import MARK, Lair, clear, die_with_parent, end, mark, remains

SERVERS = ("postgres", "valkey")
# Who stops first; each group only when the one before it has ended. A program in no group stops with `web`.
_GROUPS = {"clocks": ("beat", "flower"), "intake": ("web",), "work": ("worker", "analysis"), "servers": SERVERS}
# Seconds to end in peace before SIGKILL. Their sum over the groups stays below 10 (the waiting requests go first, while
# there is still somebody to settle them); nothing that was acknowledged is
# lost by a kill: results are committed before they are answered, and a task that dies is delivered again.
_PATIENCE = {"clocks": 1, "intake": 2, "work": 3, "servers": 2}
_SIGNALS = {"postgres": "INT"}
# supervisord waits a second longer before each try, then gives up and `revive` begins again: no pause exceeds this.
RETRIES = 8


def find_procfile() -> Path:
    """The Procfile: beside the packages in a checkout, else where the installation put it. Raises HomeError."""
    places = [
        Path(__file__).resolve().parent.parent / "Procfile",
        Path(sys.prefix) / "share" / "ecm-coordinator" / "Procfile",
        Path(sysconfig.get_path("data")) / "share" / "ecm-coordinator" / "Procfile",
    ]
    for place in places:
        if place.is_file():
            return place
    raise HomeError(f"no Procfile in {', '.join(map(str, places))}; install ecm-coordinator again")


def read_procfile(path: Path) -> dict[str, str]:
    """The programs of a Procfile: name -> shell command. Raises HomeError for a line that is neither."""
    programs = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = re.fullmatch(r"([A-Za-z0-9_-]+):\s*(.+)", line.strip())
        if not found:
            raise HomeError(f"{path}:{number} is not `name: command`: {line}")
        programs[found[1]] = found[2]
    return programs


def child_environment() -> dict[str, str]:
    """This environment, such that programs find this installation's commands and, in a checkout, its packages."""
    environment = dict(os.environ)
    # Not resolved: a virtual environment's python is a link, and its commands are beside the link.
    commands = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    environment["PATH"] = os.pathsep.join([*dict.fromkeys(commands), environment.get("PATH", os.defpath)])
    root = Path(__file__).resolve().parent.parent
    if (root / "setup.cfg").exists():
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH", "")]))
    return environment


def configuration(home: Path, programs: dict[str, str], servers: tuple[str, ...]) -> str:
    """supervisord's configuration for `programs` (name -> shell command) and the embedded `servers` of `home`.

    Only the servers start at once: the programs wait for the migrations. Secrets travel in the environment, not here.
    """
    control = control_socket(home)
    password = remembered(home, "supervisor")["password"]
    lines = [
        *("[supervisord]", "nodaemon=true", "silent=true", f"directory={_quoted(home / 'run')}"),
        *(f"logfile={_quoted(home / 'logs' / 'supervisord.log')}", "logfile_maxbytes=5MB", "logfile_backups=2"),
        *(f"pidfile={_quoted(home / 'run' / 'supervisord.pid')}", f"childlogdir={_quoted(home / 'logs')}"),
        *(["user=root"] if os.geteuid() == 0 else []),
        *("[unix_http_server]", f"file={_quoted(control)}", "chmod=0600", "username=up", f"password={password}"),
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
    ]
    launcher = shlex.join([sys.executable, "-m", "config.supervision", str(home)])
    for name in (*servers, *programs):
        command = f"{launcher} {name}"
        if name in programs:
            command += " " + shlex.quote(programs[name])
        lines += [
            *(f"[program:{name}]", f"command={_quoted(command)}"),
            f"autostart={'true' if name in servers else 'false'}",
            *("autorestart=true", "startsecs=3", f"startretries={RETRIES}"),
            *(f"stopsignal={_SIGNALS.get(name, 'TERM')}", f"stopwaitsecs={_PATIENCE[_group_of(name)]}"),
            *("killasgroup=true", "redirect_stderr=true"),
            f"stdout_logfile={_quoted(home / 'logs' / (name + '.log'))}",
            *("stdout_logfile_maxbytes=10MB", "stdout_logfile_backups=3"),
        ]
    for position, group in enumerate(_GROUPS):
        members = [name for name in (*servers, *programs) if _group_of(name) == group]
        if members:
            # supervisord starts the lowest priority first and stops it last.
            lines += [f"[group:{group}]", f"programs={','.join(members)}", f"priority={900 - 100 * position}"]
    return "\n".join(lines) + "\n"


def _group_of(name: str) -> str:
    return next((group for group, members in _GROUPS.items() if name in members), "intake")


def _quoted(value: object) -> str:
    """A value in supervisord's configuration, where % introduces an expansion and ` ;` a comment."""
    return str(value).replace("%", "%%").replace(" ;", " \\;")


def control_socket(home: Path) -> Path:
    """Where supervisord listens for `up`, in a directory that is ours alone."""
    # supervisord binds a temporary name that is longer by its process id before it moves it into place.
    return socket_directory(home, "supervisor", "control.1234567890", None) / "control"


def lairs(home: Path, servers: tuple[str, ...]) -> dict[str, Lair]:
    """How the embedded `servers` of `home` are known among the machine's processes."""
    known = {}
    if "postgres" in servers:
        known["postgres"] = Lair(("postgres",), home / "postgres" / "data")
    if "valkey" in servers:
        known["valkey"] = Lair(("valkey-server", "redis-server"), home / "valkey")
    return known


def stop_orphans(home: Path, programs: list[str]) -> int:
    """End what an earlier `up` of `home` left running, in peace where it lasts; returns how many processes it was.

    Only for the holder of the home's lock. supervisord goes first, or it would restart the others.
    """
    count = 0
    if left := remains(home, "supervisord"):
        count += len(left)
        end(left, signal.SIGTERM, patience=10)
    known = lairs(home, SERVERS)
    for name in (*programs, *SERVERS):
        if left := remains(home, name, known.get(name)):
            count += len(left)
            # PostgreSQL's own processes end with their postmaster; a signal to each would only confuse it.
            leaders = [process for process in left if process.ppid() not in {other.pid for other in left}]
            end(leaders, signal.SIGINT if name == "postgres" else signal.SIGTERM, patience=5)
            count += clear(home, name, known.get(name))
    return count


@dataclass
class Supervisor:
    """A supervisord that is a child of ours, and the line to it."""

    home: Path
    programs: dict[str, str]
    servers: tuple[str, ...]
    environment: dict[str, str]
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start supervisord with the servers, and wait until it listens. Raises HomeError when it ends instead."""
        own_directory(self.home / "run", None)
        config = self.home / "run" / "supervisord.conf"
        config.unlink(missing_ok=True)
        config.touch(mode=0o600)
        config.write_text(configuration(self.home, self.programs, self.servers))
        control_socket(self.home).unlink(missing_ok=True)
        # A session of its own, so that Ctrl-C in a terminal reaches `up` alone, which then stops things in order.
        with (self.home / "logs" / "supervisord.err").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(config)],
                env={**self.environment, MARK: mark(self.home, "supervisord")},
                cwd=self.home / "run",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, and no thread runs yet
            )
        while not self.states():
            if self.has_ended():
                said = (self.home / "logs" / "supervisord.err").read_text(errors="replace")[-1000:]
                raise HomeError(f"supervisord ended while starting:\n{said}")
            time.sleep(0.05)

    def has_ended(self) -> bool:
        """Whether supervisord does not run (any more)."""
        return self.process is None or self.process.poll() is not None

    def call(self, method: str, *arguments: Any) -> Any:
        """One XML-RPC call. Raises OSError, xmlrpc.client.Error or http.client.HTTPException."""
        from supervisor.xmlrpc import SupervisorTransport

        password = remembered(self.home, "supervisor")["password"]
        transport = SupervisorTransport("up", password, f"unix://{control_socket(self.home)}")
        with contextlib.closing(transport):
            proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(proxy.supervisor, method)(*arguments)

    def states(self) -> dict[str, str]:
        """Every program's state in supervisord's words (RUNNING, BACKOFF, FATAL, ...); {} when it does not answer."""
        try:
            return {info["name"]: info["statename"] for info in self.call("getAllProcessInfo")}
        except Exception:  # a socket that is missing, refused, or half closed all mean the same: ask again later
            return {}

    def start_programs(self) -> None:
        """Start every program that is not a server; returns at once."""
        states = self.states()
        for name in self.programs:
            if states.get(name) not in {"STARTING", "RUNNING", "BACKOFF"}:
                self.call("startProcess", f"{_group_of(name)}:{name}", False)

    def revive(self) -> list[str]:
        """Start again what supervisord gave up on; returns the names."""
        fatal = [name for name, state in self.states().items() if state == "FATAL"]
        for name in fatal:
            self.call("startProcess", f"{_group_of(name)}:{name}", False)
        return fatal

    def restart(self, name: str) -> None:
        """Stop a program, by force if it does not listen, and start it."""
        full = f"{_group_of(name)}:{name}"
        with contextlib.suppress(xmlrpc.client.Fault):
            self.call("stopProcess", full, True)
        self.call("startProcess", full, False)

    def stop(self, patience: float = 8.5) -> None:
        """Stop everything in order within `patience` seconds, then what is left by force."""
        if self.process is not None:
            self.process.terminate()
        deadline = time.monotonic() + patience
        while not self.has_ended() and time.monotonic() < deadline:
            # supervisord looks around once a second, at each step of its order, unless it is asked something.
            self.states()
            time.sleep(0.05)
        known = lairs(self.home, self.servers)
        for name in ("supervisord", *self.programs, *self.servers):
            clear(self.home, name, known.get(name))


def main(arguments: list[str]) -> None:
    """`python -m config.supervision HOME NAME [COMMAND]`: clear what is left of the program NAME, then become it."""
    home, name = Path(arguments[0]), arguments[1]
    killed = clear(home, name, lairs(home, SERVERS).get(name))
    if killed:
        print(f"killed {killed} processes left over from the last {name}", flush=True)
    os.environ[MARK] = mark(home, name)
    if name == "postgres":
        from config.embedded.postgres import postgres_launch

        postgres_launch(home).become()
    elif name == "valkey":
        from config.embedded.valkey import valkey_launch

        valkey_launch(home).become()
    else:
        die_with_parent()
        os.execv("/bin/sh", ["/bin/sh", "-c", f"exec {arguments[2]}"])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except HomeError as error:
        sys.exit(str(error))
