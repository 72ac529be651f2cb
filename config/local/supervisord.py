"""supervisord, which keeps the programs and servers of one machine running: its configuration, and its control.

supervisord starts again what ends. Three things that a machine without an operator needs are added here:

- before a program starts, the strays of its last run are killed (`run_program`);
- everything ends with its parent: supervisord with `up`, every program with supervisord;
- a program that supervisord gave up on is started again (`start_failed`), so that hours without a disk or a database
  end without an operator.
"""

import contextlib
import os
import shlex
import subprocess
import sys
import time
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.local.accounts import make_private_directory
from config.local.home import HomeError
from config.local.processes import TAG, die_with_parent, kill_strays, program_tag
from config.local.server_records import ensure_server_record, read_server_record
from config.local.sockets import make_socket_directory, socket_directory
from config.local.strays import SERVERS, server_signatures

# These groups stop in this order, each when the one before has ended. A program in no group stops with `web`.
_GROUPS = {"clocks": ("beat", "flower"), "intake": ("web",), "work": ("worker", "analysis"), "servers": SERVERS}
# Seconds to end before SIGKILL. Their sum over the groups stays below 10. Waiting requests end first, while workers can
# still finish them. A kill loses nothing that was acknowledged: results are committed before they are answered, and
# the task of a dead worker is delivered again.
_TIMEOUTS = {"clocks": 1, "intake": 2, "work": 3, "servers": 2}
_SIGNALS = {"postgres": "INT"}
# supervisord waits a second longer before each of these tries, then gives up, and `start_failed` begins again.
RETRIES = 8
# supervisord binds its socket by a name that is longer by its process id, and renames it then.
_LONGEST_CONTROL_NAME = "control.1234567890"


def configuration(home: Path, programs: dict[str, str], servers: tuple[str, ...]) -> str:
    """Return supervisord's configuration for `programs` (name -> shell command) and the embedded `servers` of `home`.

    Only the servers start at once; the programs wait for the migrations. Secrets of programs are in the environment.
    """
    control = control_socket(home)
    password = read_server_record(home, "supervisor")["password"]
    lines = [
        *("[supervisord]", "nodaemon=true", "silent=true", f"directory={_quoted(home / 'run')}"),
        *(f"logfile={_quoted(home / 'logs' / 'supervisord.log')}", "logfile_maxbytes=5MB", "logfile_backups=2"),
        *(f"pidfile={_quoted(home / 'run' / 'supervisord.pid')}", f"childlogdir={_quoted(home / 'logs')}"),
        *(["user=root"] if os.geteuid() == 0 else []),
        *("[unix_http_server]", f"file={_quoted(control)}", "chmod=0600", "username=up", f"password={password}"),
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
    ]
    launcher = shlex.join([sys.executable, "-P", "-m", "config.local.run_program", str(home)])
    for name in (*servers, *programs):
        command = f"{launcher} {name}"
        if name in programs:
            command += " " + shlex.quote(programs[name])
        lines += [
            *(f"[program:{name}]", f"command={_quoted(command)}"),
            f"autostart={'true' if name in servers else 'false'}",
            *("autorestart=true", "startsecs=3", f"startretries={RETRIES}"),
            *(f"stopsignal={_SIGNALS.get(name, 'TERM')}", f"stopwaitsecs={_TIMEOUTS[_group_of(name)]}"),
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
    """Return a value for supervisord's configuration, where % starts an expansion and ` ;` a comment."""
    return str(value).replace("%", "%%").replace(" ;", " \\;")


def control_socket(home: Path) -> Path:
    """Return the path of supervisord's socket, in a directory that only we can enter."""
    return socket_directory(home, "supervisor") / "control"


@dataclass
class Supervisor:
    """A supervisord that is our child, and the connection to it."""

    home: Path
    programs: dict[str, str]
    servers: tuple[str, ...]
    environment: dict[str, str]
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start supervisord with the servers, and wait until it listens. Raises HomeError if it ends instead."""
        make_private_directory(self.home / "run", None)
        ensure_server_record(self.home, "supervisor")
        make_socket_directory(self.home, "supervisor", _LONGEST_CONTROL_NAME, None)
        config = self.home / "run" / "supervisord.conf"
        config.unlink(missing_ok=True)
        config.touch(mode=0o600)
        config.write_text(configuration(self.home, self.programs, self.servers))
        control_socket(self.home).unlink(missing_ok=True)
        # In a session of its own: Ctrl-C in a terminal reaches only `up`, which then stops everything in order.
        with (self.home / "logs" / "supervisord.err").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(config)],
                env={**self.environment, TAG: program_tag(self.home, "supervisord")},
                cwd=self.home / "run",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, and no thread runs yet
            )
        while not self.states():
            if self.has_ended():
                text = (self.home / "logs" / "supervisord.err").read_text(errors="replace")[-1000:]
                raise HomeError(f"supervisord ended while starting:\n{text}")
            time.sleep(0.05)

    def has_ended(self) -> bool:
        """Return whether supervisord does not run (any more)."""
        return self.process is None or self.process.poll() is not None

    def call(self, method: str, *arguments: Any) -> Any:
        """Make one XML-RPC call. Raises OSError, xmlrpc.client.Error or http.client.HTTPException."""
        from supervisor.xmlrpc import SupervisorTransport

        password = read_server_record(self.home, "supervisor")["password"]
        transport = SupervisorTransport("up", password, f"unix://{control_socket(self.home)}")
        with contextlib.closing(transport):
            proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(proxy.supervisor, method)(*arguments)

    def states(self) -> dict[str, str]:
        """Return the state of each program (RUNNING, FATAL, ...); {} if supervisord does not answer."""
        try:
            return {info["name"]: info["statename"] for info in self.call("getAllProcessInfo")}
        except Exception:  # the socket is missing, refused or half closed: the caller asks again later
            return {}

    def start_programs(self) -> None:
        """Start every program that is not a server, without waiting for it."""
        states = self.states()
        for name in self.programs:
            if states.get(name) not in {"STARTING", "RUNNING", "BACKOFF"}:
                self.call("startProcess", f"{_group_of(name)}:{name}", False)

    def start_failed(self) -> list[str]:
        """Start the programs again that supervisord gave up on; return their names."""
        fatal = [name for name, state in self.states().items() if state == "FATAL"]
        for name in fatal:
            self.call("startProcess", f"{_group_of(name)}:{name}", False)
        return fatal

    def restart(self, name: str) -> None:
        """Stop a program, with SIGKILL if it ignores its signal, and start it."""
        full = f"{_group_of(name)}:{name}"
        with contextlib.suppress(xmlrpc.client.Fault):
            self.call("stopProcess", full, True)
        self.call("startProcess", full, False)

    def stop(self, timeout: float = 8.5) -> None:
        """Stop everything in order within `timeout` seconds, then kill what still runs."""
        if self.process is not None:
            self.process.terminate()
        deadline = time.monotonic() + timeout
        while not self.has_ended() and time.monotonic() < deadline:
            # supervisord goes one step further once a second, or when it is asked something.
            self.states()
            time.sleep(0.05)
        signatures = server_signatures(self.home)
        for name in ("supervisord", *self.programs, *self.servers):
            kill_strays(self.home, name, signatures.get(name))
