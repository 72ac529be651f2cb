"""Starting an embedded server as the right account, and controlling one that runs."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from config.local.accounts import ServerAccount
from config.local.home import HomeError
from config.local.processes import TAG, die_with_parent


@dataclass(frozen=True)
class Launch:
    """How to start one server: its command, working directory and account, and the signal that stops it quickly."""

    argv: list[str]
    directory: Path
    account: ServerAccount | None
    stop_signal: signal.Signals
    stdin: Path | None = None

    def become(self) -> None:
        """Replace this process by the server; never returns."""
        # Before the change of account: the server's account may not be able to open them.
        os.chdir(self.directory)
        source = os.open(self.stdin or os.devnull, os.O_RDONLY)
        os.dup2(source, 0)
        os.close(source)
        if self.account is not None:
            os.setgroups([])
            os.setgid(self.account.gid)
            os.setuid(self.account.uid)
        die_with_parent(self.stop_signal)
        # The rest of the environment holds keys that the server's account must not see.
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "TZ", TAG}}
        os.execve(self.argv[0], self.argv, kept)

    def spawn(self, log: Path) -> "subprocess.Popen[bytes]":
        """Start the server as a child in a process group of its own; it ends when this process does."""
        account = self.account
        with log.open("ab") as output, (self.stdin or Path(os.devnull)).open("rb") as source:
            return subprocess.Popen(
                self.argv,
                cwd=self.directory,
                stdin=source,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
                # It makes one system call, which is safe beside threads, and subprocess has no option for it.
                preexec_fn=lambda: die_with_parent(self.stop_signal),  # noqa: PLW1509
            )


@dataclass
class Server:
    """A running embedded server. Its URL stays the same after `kill`, `stop` and `start`."""

    name: str
    url: str
    log: Path
    answers: Callable[[], bool]
    prepare: Callable[[], Launch]
    socket: Path | None = None
    process: "subprocess.Popen[bytes]" = field(init=False)
    _launch: Launch = field(init=False)

    def start(self) -> None:
        """Start it and wait until it answers, however long its recovery takes. Raises HomeError if it ends instead."""
        self._launch = self.prepare()
        begin = self.log.stat().st_size if self.log.exists() else 0
        self.process = self._launch.spawn(self.log)
        while not self.answers():
            if self.process.poll() is not None:
                with self.log.open("rb") as file:
                    file.seek(begin)
                    output = file.read()[-2000:].decode(errors="replace")
                raise HomeError(f"{self.name} ended with status {self.process.returncode} while starting:\n{output}")
            time.sleep(0.02)

    def stop(self, timeout: float = 30.0) -> None:
        """Stop it; kill it if that takes longer than `timeout` seconds."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(self._launch.stop_signal)
            self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        if self.socket is not None:
            # A directory outside of the home would stay when the home is deleted.
            with contextlib.suppress(OSError):
                self.socket.rmdir()

    def kill(self) -> None:
        """Kill it (SIGKILL), as a power cut would end it."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Stop it and start it again at the same URL."""
        self.stop()
        self.start()

    @property
    def pid(self) -> int:
        """Return its process id, which is another one after each start."""
        return self.process.pid
