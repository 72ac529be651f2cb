"""Starting a private coordinator on free ports, as the demo, the benchmarks and the tests do."""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config.local.ports import free_port
from config.local.procfile import child_environment

START_TIMEOUT = 120.0  # seconds; a cold machine unpacks and initializes PostgreSQL
STOP_TIMEOUT = 30.0
# Our own command, whatever the working directory contains and whether the console script is installed or not.
COMMAND = (sys.executable, "-P", "-c", "from ingest.cli import main; main()")
# With these settings the private coordinator would use servers, data or ports of another one.
FOREIGN_SETTINGS = ("DATABASE_URL", "REDIS_URL", "ADMIN_API_KEY", "ECM_HOME", "HOST", "PORT", "FLOWER_PORT")


class StackError(Exception):
    """The private coordinator did not become ready."""


def private_environment(**settings: str) -> dict[str, str]:
    """Return our environment without the settings that name another coordinator, and with `settings`."""
    environment = child_environment()
    return {name: value for name, value in environment.items() if name not in FOREIGN_SETTINGS} | settings


def start_coordinator(home: Path, log: Path, *arguments: str, **settings: str) -> "subprocess.Popen[bytes]":
    """Start `up` on `home` with `arguments`; its output goes to the file `log`."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [*COMMAND, "up", "--home", str(home), *arguments],
            env=private_environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C is for the process that started this one, which then stops it in order.
            start_new_session=True,
        )


def wait_until_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Return the address that `up` prints. Raises StackError with the end of the log if `up` ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("ready: "):
                return line.removeprefix("ready: ").strip()
        if process.poll() is not None:
            break
        time.sleep(0.1)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise StackError(f"the coordinator did not become ready:\n{end}")


def stop_coordinator(process: "subprocess.Popen[bytes]") -> None:
    """Stop `up` and everything that it started."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"the coordinator did not stop within {STOP_TIMEOUT:.0f} s and was killed")


@contextmanager
def private_stack(*arguments: str, **settings: str) -> Iterator[tuple[str, Path]]:
    """Run a coordinator in a temporary directory, and yield (address, home); stop and remove it at the end.

    `arguments` are arguments of `up`, `settings` are added to its environment. After a failure the directory stays,
    since it has the logs. Raises StackError if the coordinator does not become ready.
    """
    home = Path(tempfile.mkdtemp(prefix="ecm-demo-"))
    log = home / "up.log"
    process = start_coordinator(home, log, "--port", str(free_port()), *(arguments or ["--no-flower"]), **settings)
    try:
        yield wait_until_ready(process, log), home
    except BaseException:
        print(f"the coordinator's logs are in {home}")
        stop_coordinator(process)
        raise
    stop_coordinator(process)
    shutil.rmtree(home, ignore_errors=True)
