"""Hosts on one machine: each is a network namespace with a name and an address of its own, and its cable can be pulled.

The hosts of a network are connected by a bridge, which is in a namespace of its own as well: nothing appears among the
machine's own interfaces, and no address can be in conflict with one of them. Processor time is limited by a cgroup for
each host, where that is allowed.
"""

import ctypes
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from config.local.accounts import ServerAccount

Value = TypeVar("Value")

BRIDGE = "bridge"
SUBNET = "10.77.0"
STOP_SECONDS = 8.0
# Where cgroups of version 2 and of version 1 limit processor time, and the files that say how much of it.
CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu"))
PERIOD_US = 100_000
_CLONE_NEWNET = 1 << 30


class NotAllowedError(Exception):
    """This process may not make network namespaces; the message says why."""


@dataclass
class Host:
    """A host of a network: what runs on it is run by `spawn`, and this process acts as one of its clients by `call`."""

    name: str
    address: str
    namespace: str
    bridge_namespace: str
    programs: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    cgroup: Path | None = None

    def spawn(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        log: Path,
        *,
        directory: Path | None = None,
        account: ServerAccount | None = None,
        stdin: Path | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Start a program on this host, as `account` (None: as root); its output goes to the file `log`.

        Its parent is this process, and it leads a process group of its own.
        """
        become = [] if account is None else ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}"]
        become += ["--clear-groups"] if become else []
        join = f"echo $$ > {self.cgroup}/cgroup.procs; " if self.cgroup else ""
        named = ["sh", "-c", f'{join}echo "$0" > /proc/sys/kernel/hostname; exec "$@"', self.name]
        inside = ["nsenter", f"--net={_path(self.namespace)}", "unshare", "--uts"]
        with log.open("ab") as output, (stdin or Path(os.devnull)).open("rb") as source:
            program = subprocess.Popen(
                [*inside, *named, *become, *command],
                env=environment,
                cwd=directory,
                stdin=source,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        self.programs.append(program)
        return program

    def call(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Return `function(*arguments)`, called by a thread that is on this host, as are all threads that it starts."""
        answer: list[Value] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                _enter(self.namespace)
                answer.append(function(*arguments))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, name=self.name, daemon=True)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return answer[0]

    def pull_cable(self) -> None:
        """Let every packet to and from this host vanish; nobody is told that a connection has ended."""
        _ip("-n", self.bridge_namespace, "link", "set", self.name, "down")

    def plug_in(self) -> None:
        """Let packets pass again."""
        _ip("-n", self.bridge_namespace, "link", "set", self.name, "up")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let no process of this host run until the block ends."""
        stopped = _processes(self.namespace)
        for process in stopped:
            process.suspend()
        try:
            yield
        finally:
            for process in stopped:
                process.resume()

    def limit(self, cores: float | None) -> bool:
        """Limit the processor time of what is started from now on, and of what was (None: no limit).

        Returns whether that is possible here. The first call must come before the first `spawn`.
        """
        if self.cgroup is None and not self.programs:
            self.cgroup = _make_cgroup(self.namespace)
        if self.cgroup is None:
            return False
        share = None if cores is None else round(cores * PERIOD_US)
        if (self.cgroup / "cpu.max").exists():
            (self.cgroup / "cpu.max").write_text(f"{'max' if share is None else share} {PERIOD_US}")
        else:
            (self.cgroup / "cpu.cfs_quota_us").write_text(str(-1 if share is None else share))
        return True

    def processor_ms(self) -> float:
        """Return the processor time of the processes of this host so far, with that of their ended children."""
        total = 0.0
        for process in _processes(self.namespace):
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return 1000 * total

    def begin_stop(self) -> None:
        """Ask all programs of this host to end."""
        for program in self.programs:
            program.send_signal(signal.SIGINT)

    def stop(self, deadline: float) -> None:
        """End all processes of this host. What has not ended at `deadline` (of the monotonic clock) is killed."""
        for program in self.programs:
            with suppress(subprocess.TimeoutExpired):
                program.wait(max(0.0, deadline - time.monotonic()))
        left = _processes(self.namespace)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        for program in self.programs:
            program.wait()
        psutil.wait_procs(left, STOP_SECONDS)
        if self.cgroup is not None:
            _remove_cgroup(self.cgroup)


@dataclass
class Network:
    """Hosts that reach one another by a bridge."""

    run: str
    hosts: list[Host] = field(default_factory=list)

    @property
    def bridge_namespace(self) -> str:
        return f"{self.run}-{BRIDGE}"

    def add_host(self, name: str) -> Host:
        """Make a host, whose name (at most 15 characters) is new in this network."""
        address = f"{SUBNET}.{len(self.hosts) + 1}"
        host = Host(name, address, f"{self.run}-{name}", self.bridge_namespace)
        _ip("netns", "add", host.namespace)
        self.hosts.append(host)
        inside, bridge = ("-n", host.namespace), ("-n", self.bridge_namespace)
        _ip(*inside, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", self.bridge_namespace)
        _ip(*bridge, "link", "set", name, "master", BRIDGE)
        _ip(*bridge, "link", "set", name, "up")
        _ip(*inside, "address", "add", f"{address}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "link", "set", "lo", "up")
        return host

    def remove(self) -> None:
        """End everything that runs on the hosts, and remove them."""
        for host in self.hosts:
            host.begin_stop()
        deadline = time.monotonic() + STOP_SECONDS
        for host in self.hosts:
            host.stop(deadline)
        for namespace in [*(host.namespace for host in self.hosts), self.bridge_namespace]:
            with suppress(NotAllowedError):  # it was never made
                _ip("netns", "delete", namespace)


@contextmanager
def network() -> Iterator[Network]:
    """Make a network without hosts, and remove it with all of its hosts and processes at the end.

    Raises NotAllowedError if this process may not.
    """
    made = Network(f"ecm{uuid.uuid4().hex[:6]}")
    try:
        _ip("netns", "add", made.bridge_namespace)
        _ip("-n", made.bridge_namespace, "link", "add", BRIDGE, "type", "bridge")
        _ip("-n", made.bridge_namespace, "link", "set", BRIDGE, "up")
        yield made
    finally:
        made.remove()


def _ip(*words: str) -> None:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NotAllowedError("the command `ip` (iproute2) is not installed") from None
    if done.returncode != 0:
        raise NotAllowedError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _path(namespace: str) -> Path:
    return Path("/run/netns", namespace)


def _enter(namespace: str) -> None:
    """Move this thread into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns exists since Python 3.12
    with _path(namespace).open("rb") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise NotAllowedError(f"cannot enter {namespace}: {os.strerror(ctypes.get_errno())}")


def _processes(namespace: str) -> list[psutil.Process]:
    """Return the processes in a network namespace; this one is in none, although some of its threads may be."""
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False).stdout
    found = []
    for pid in map(int, listed.split()):
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return [process for process in found if process.pid != os.getpid()]


def _make_cgroup(name: str) -> Path | None:
    for parent in CGROUPS:
        made = parent / name
        with suppress(OSError):
            made.mkdir()
            if (made / "cpu.max").exists() or (made / "cpu.cfs_quota_us").exists():
                return made
            made.rmdir()
    return None


def _remove_cgroup(cgroup: Path) -> None:
    """Remove a cgroup whose processes have ended; the kernel may need a moment to notice."""
    deadline = time.monotonic() + STOP_SECONDS
    while cgroup.exists():
        try:
            cgroup.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
