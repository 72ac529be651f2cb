"""Starting an embedded server as the right user, and holding on to one that runs."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from config.home import HomeError, Owner
from config.processes import MARK, die_with_parent


@dataclass(frozen=True)
class Launch:
    """How to start one server: what to run, where, as whom, and which signal ends it quickly and cleanly."""

    argv: list[str]
    directory: Path
    owner: Owner | None
    stop_signal: signal.Signals
    stdin: Path | None = None

    def become(self) -> None:
        """Turn this process into the server; never returns."""
        # Directory and file are opened while we may still open them.
        os.chdir(self.directory)
        source = os.open(self.stdin or os.devnull, os.O_RDONLY)
        os.dup2(source, 0)
        os.close(source)
        if self.owner is not None:
            os.setgroups([])
            os.setgid(self.owner.gid)
            os.setuid(self.owner.uid)
        die_with_parent(self.stop_signal)
        # Not the whole environment: it holds keys that the server's account must not see.
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "TZ", MARK}}
        os.execve(self.argv[0], self.argv, kept)

    def spawn(self, log: Path) -> "subprocess.Popen[bytes]":
        """Start the server as a child, in a process group of its own, which ends when this process does."""
        owner = self.owner
        with log.open("ab") as output, (self.stdin or Path(os.devnull)).open("rb") as source:
            return subprocess.Popen(
                self.argv,
                cwd=self.directory,
                stdin=source,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
                user=owner.uid if owner else None,
                group=owner.gid if owner else None,
                extra_groups=[] if owner else None,
                # One system call: safe beside threads in practice, and nothing else can ask the kernel for this.
                preexec_fn=lambda: die_with_parent(self.stop_signal),  # noqa: PLW1509
            )


@dataclass
class Server:
    """A running embedded server. Its URL stays the same through `kill`, `stop` and `start`."""

    name: str
    url: str
    log: Path
    answers: Callable[[], bool]
    prepare: Callable[[], Launch]
    socket: Path | None = None
    process: "subprocess.Popen[bytes]" = field(init=False)
    _launch: Launch = field(init=False)

    def start(self) -> None:
        """Start it and wait until it answers, however long recovery takes. Raises HomeError when it ends instead."""
        self._launch = self.prepare()
        begin = self.log.stat().st_size if self.log.exists() else 0
        self.process = self._launch.spawn(self.log)
        while not self.answers():
            if self.process.poll() is not None:
                with self.log.open("rb") as file:
                    file.seek(begin)
                    said = file.read()[-2000:].decode(errors="replace")
                raise HomeError(f"{self.name} ended with status {self.process.returncode} while starting:\n{said}")
            time.sleep(0.02)

    def stop(self, patience: float = 30.0) -> None:
        """End it cleanly; kill it when it takes longer than `patience` seconds."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(self._launch.stop_signal)
            self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
        if self.socket is not None:
            # A short directory outside of the home would otherwise stay behind when the home is thrown away.
            with contextlib.suppress(OSError):
                self.socket.rmdir()

    def kill(self) -> None:
        """SIGKILL it, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Stop it cleanly and start it again at the same URL."""
        self.stop()
        self.start()

    @property
    def pid(self) -> int:
        """Its process id now (another one after a restart)."""
        return self.process.pid
