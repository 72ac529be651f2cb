"""A whole coordinator of one's own, on free ports and in a temporary directory, for the demo and the benchmarks."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_PATIENCE = 120.0  # seconds; a cold machine unpacks and initializes PostgreSQL
STOP_PATIENCE = 30.0
# Settings that would make the private stack use somebody's servers or data.
OUTSIDE = ("DATABASE_URL", "REDIS_URL", "ADMIN_API_KEY", "ECM_HOME", "HOST", "PORT", "FLOWER_PORT")


class StackError(Exception):
    """The private stack did not get ready."""


@contextmanager
def private_stack(*arguments: str, **settings: str) -> Iterator[tuple[str, Path]]:
    """A coordinator of our own, (address, home), stopped and removed at the end.

    `arguments` go to `up`, `settings` into its environment. After a failure its directory stays, for its logs. Raises
    StackError if it does not get ready.
    """
    home = Path(tempfile.mkdtemp(prefix="ecm-demo-"))
    log = home / "up.log"
    environment = {name: value for name, value in os.environ.items() if name not in OUTSIDE} | settings
    main = "from ingest.cli import main; main()"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                main,
                "up",
                "--home",
                str(home),
                "--port",
                str(free_port()),
                *(arguments or ["--no-flower"]),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C is for whoever runs this, who then stops the stack in its own order.
            start_new_session=True,
        )
    try:
        yield wait_ready(process, log), home
    except BaseException:
        print(f"the coordinator's logs are in {home}")
        stop_stack(process)
        raise
    stop_stack(process)
    shutil.rmtree(home, ignore_errors=True)


def wait_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address that `up` announces. Raises StackError with the log's end if it ends or takes too long."""
    until = time.monotonic() + START_PATIENCE
    while time.monotonic() < until:
        lines = log.read_text(errors="replace").splitlines()
        for line in lines:
            if line.startswith("ready: "):
                return line.removeprefix("ready: ").strip()
        if process.poll() is not None:
            break
        time.sleep(0.1)
    said = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise StackError(f"the coordinator did not get ready:\n{said}")


def stop_stack(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"the coordinator did not stop within {STOP_PATIENCE:.0f} s and was killed")


def free_port() -> int:
    """A port of this machine that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
