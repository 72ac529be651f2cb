"""Hosts in network namespaces: they leave nothing behind, and one that vanishes keeps no lock for long."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from bench.hosts import start_database
from bench.namespaces import NotAllowedError, network
from config.local.postgres import postgres_url
from models.engine import make_engine

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
# PostgreSQL notices within about 10 s that a host has vanished; the rest is for a loaded machine.
NOTICED_SECONDS = 25.0


@pytest.fixture
def hosts():
    """A network of hosts, or the reason why there can be none."""
    made = network()
    try:
        opened = made.__enter__()
    except NotAllowedError as error:
        pytest.skip(f"network namespaces are not allowed here: {error}")
    try:
        yield opened
    finally:
        made.__exit__(None, None, None)


def traces(run):
    """What there is of a run of hosts: namespaces, cgroups."""
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    cgroups = [
        path.name for parent in ("/sys/fs/cgroup", "/sys/fs/cgroup/cpu") for path in Path(parent).glob(f"{run}*")
    ]
    return [name for name in namespaces if name.startswith(run)] + cgroups


def test_hosts_are_removed_after_an_error_with_all_that_runs_on_them(hosts, tmp_path):
    started = []

    def fail():
        with network() as made:
            host = made.add_host("worker1")
            host.limit(0.5)
            stubborn = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('on', flush=True); "
            program = [sys.executable, "-c", f"import os; os.fork(); {stubborn} time.sleep(600)"]
            host.spawn(program, ENVIRONMENT, tmp_path / "log")
            deadline = time.monotonic() + 20
            while (tmp_path / "log").read_text().count("on") < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            started.append((made.run, host.programs[0].pid, psutil.Process(host.programs[0].pid).children()))
            assert len(traces(made.run)) >= 2
            raise KeyboardInterrupt

    before = psutil.net_if_addrs().keys()
    with pytest.raises(KeyboardInterrupt):
        fail()
    ((run, pid, children),) = started
    assert traces(run) == []
    assert not psutil.pid_exists(pid)
    assert len(children) == 1
    assert not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE
    assert psutil.net_if_addrs().keys() == before


def test_packets_vanish_while_a_cable_is_pulled(hosts):
    one, other = hosts.add_host("one"), hosts.add_host("other")
    with other.call(socket.create_server, (other.address, 4000)):

        def connect(seconds):
            one.call(lambda: socket.create_connection((other.address, 4000), seconds).close())

        connect(10)
        other.pull_cable()
        with pytest.raises(TimeoutError):
            connect(1)
        other.plug_in()
        connect(10)


def test_postgresql_releases_the_locks_of_a_host_that_vanished(hosts, tmp_path):
    """A worker's host loses its power in the middle of a transaction: results for its number wait for seconds only."""
    tmp_path.chmod(0o711)
    (tmp_path / "home").mkdir(mode=0o711)
    database, worker = hosts.add_host("database"), hosts.add_host("worker")
    by_network = start_database(database, tmp_path / "home")
    here = make_engine(postgres_url(tmp_path / "home"))
    with here.begin() as connection:
        connection.execute(text("CREATE TABLE numbers AS SELECT 1 AS id"))
    engine = make_engine(by_network)
    held = worker.call(engine.connect)
    worker.call(held.execute, text("SELECT FROM numbers FOR UPDATE"))
    worker.pull_cable()
    began = time.monotonic()
    with here.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{NOTICED_SECONDS:.0f}s'"))
        connection.execute(text("SELECT FROM numbers FOR UPDATE"))
    assert time.monotonic() - began < NOTICED_SECONDS
    here.dispose()
    held.invalidate()
