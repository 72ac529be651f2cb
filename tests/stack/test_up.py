"""`ecm-coordinator up` starts its programs and servers, restarts them, and stops them.

The programs are small stand-ins here, because those start and stop quickly; the servers are real.
"""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from contextlib import closing

import psutil
import psycopg2
import pytest

from config.local import supervisord
from config.local.ports import free_port
from config.local.postgres import libpq_url, start_postgres
from config.local.procfile import child_environment
from config.local.sockets import remove_outside_sockets
from config.local.strays import find_processes, stop_strays

pytestmark = pytest.mark.stack

# A server whose child shares its listening socket, as gunicorn's workers do: an orphan would keep the port.
WEB = """
import http.server, json, os, pathlib, time
class Status(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        file = pathlib.Path(os.environ["ECM_HOME"], "status.json")
        body = json.loads(file.read_text()) if file.exists() else {}
        urls = [os.environ["DATABASE_URL"], os.environ["REDIS_URL"]]
        facts = {"web": os.getpid(), "urls": urls, "broker": {"ok": True}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({**facts, **body}).encode())
    def log_message(self, *arguments):
        pass
server = http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Status)
if os.fork() == 0:
    time.sleep(600)
server.serve_forever()
"""
SLEEPER = "import os, time; os.fork(); time.sleep(600)"


class Up:
    """One running `up`."""

    def __init__(self, home, *, port=None):
        self.home, self.port = home, port or free_port()
        scripts = home.parent / "programs"
        scripts.mkdir(exist_ok=True)
        (scripts / "web.py").write_text(WEB)
        (scripts / "sleeper.py").write_text(SLEEPER)
        procfile = scripts / "Procfile"
        procfile.write_text(f"web: python {scripts}/web.py\nworker: python {scripts}/sleeper.py\n")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from ingest.cli import main; main()", "up", "--home", str(home)),
                *("--port", str(self.port), "--no-flower", "--procfile", str(procfile)),
            ],
            env={**child_environment(), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self):
        line = self.process.stdout.readline()
        assert line == f"ready: http://127.0.0.1:{self.port}\n", self.process.communicate(timeout=20)
        return self

    def status(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status", timeout=5) as answer:
            return json.load(answer)

    def running(self):
        names = ("supervisord", "web", "worker", "postgres", "valkey")
        return {name: {p.pid for p in find_processes(self.home, name)} for name in names}

    def stop(self, signum=signal.SIGTERM):
        """Stop it; returns its exit status, the seconds that it took, and its output."""
        began = time.monotonic()
        self.process.send_signal(signum)
        output = self.process.communicate(timeout=30)
        return self.process.returncode, time.monotonic() - began, "".join(output)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def start(home):
    """Starts `up` on the home; whatever still runs at the end is stopped."""
    started = []

    def start(**options):
        started.append(Up(home, **options))
        return started[-1]

    yield start
    for up in started:
        if up.process.poll() is None:
            up.stop()
        up.process.communicate()
    stop_strays(home.resolve(), ["web", "worker"])
    remove_outside_sockets(home)


def wait_until(condition, timeout=20.0):
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.05)
    return value


def nothing_runs(running):
    return not any(running.values())


def one_server_of_each(up):
    """Whether exactly one of everything runs: the servers' leaders have parents outside of their own kind."""
    for pids in up.running().values():
        try:
            parents = [psutil.Process(pid).ppid() for pid in pids]
        except psutil.NoSuchProcess:
            return False  # one of the old ones, which was still there a moment ago
        if sum(parent not in pids for parent in parents) != 1:
            return False
    return True


def test_up_says_ready_once_refuses_a_second_and_stops_within_ten_seconds(start, home):
    up = start().ready()
    key = home / "admin.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_text().strip()) >= 32
    wait_until(lambda: one_server_of_each(up), 10)  # a helper of PostgreSQL's may just have ended

    second = start()
    output = second.process.communicate(timeout=20)
    assert second.process.returncode == 1
    assert f"in use by another ecm-coordinator (process {up.process.pid})" in output[1]

    code, seconds, output = up.stop(signal.SIGINT)
    assert (code, "ready:" in output) == (0, False)
    assert str(key) in output
    assert seconds < 10
    assert nothing_runs(up.running())

    server = start_postgres(home)
    try:
        with closing(psycopg2.connect(libpq_url(server.url))) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM alembic_version")
            assert cursor.fetchone() == (1,)
    finally:
        server.stop()


def test_what_is_killed_comes_back_at_the_same_place_with_nothing_left_of_the_old(start):
    up = start().ready()
    before, urls = all_running(up), up.status()["urls"]
    web, child = sorted(before["web"])
    os.kill(web, signal.SIGKILL)
    wait_until(lambda: (now := up.running()["web"]) and not now & {web, child} and status_or_none(up))
    for name in ("postgres", "valkey", "worker"):
        leader = next(pid for pid in before[name] if psutil.Process(pid).ppid() not in before[name])
        os.kill(leader, signal.SIGKILL)
        wait_until(lambda name=name: (now := up.running()[name]) and not now & before[name])
    wait_until(lambda: one_server_of_each(up))
    assert up.status()["urls"] == urls
    database = libpq_url(urls[0])
    wait_until(lambda: can_connect(database))


def all_running(up):
    # `up` is ready when the web process answers; supervisord may start the worker later.
    return wait_until(lambda: all((now := up.running()).values()) and len(now["web"]) == 2 and now)


def status_or_none(up):
    try:
        return up.status()
    except OSError:
        return None


def can_connect(url):
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True


def supervisord_of(up):
    # A program that supervisord is about to start is a second supervisord for a moment.
    (pid,) = wait_until(lambda: len(found := up.running()["supervisord"]) == 1 and found)
    return pid


@pytest.mark.parametrize("victims", [["up"], ["up", "supervisord"]])
def test_after_a_kill_the_next_up_starts_and_nothing_runs_twice(start, victims):
    first = start().ready()
    supervisord = supervisord_of(first)
    for victim in victims:
        os.kill({"up": first.process.pid, "supervisord": supervisord}[victim], signal.SIGKILL)
    first.process.wait()
    second = start().ready()
    wait_until(lambda: one_server_of_each(second), 10)
    assert supervisord not in second.running()["supervisord"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_everything_ends_by_itself_when_up_is_killed(start):
    up = start().ready()
    up.process.kill()
    # The stand-ins' children stay, for they do not watch their parents as gunicorn's and Celery's do.
    wait_until(
        lambda: not any(pids for name, pids in up.running().items() if name not in {"web", "worker"}), timeout=15
    )


def test_supervisord_itself_is_started_again(start):
    up = start().ready()
    old = supervisord_of(up)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: (now := up.running())["supervisord"] and old not in now["supervisord"] and status_or_none(up))
    wait_until(lambda: one_server_of_each(up))


def test_a_program_whose_heartbeat_is_old_is_restarted_but_not_while_the_broker_is_away(start, home):
    up = start().ready()
    before = up.running()["worker"]
    beats = [
        {"role": "worker", "name": f"worker@{socket.gethostname()}", "age": 31.0},
        {"role": "worker", "name": "web@elsewhere", "age": 500.0},
    ]
    web = up.running()["web"]
    (home / "status.json").write_text(json.dumps({"broker": {"ok": True}, "workers": {"heartbeats": beats}}))
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: (now := up.running()["worker"]) and not now & before)
    assert up.running()["web"] == web


def test_a_port_that_is_in_use_is_named_before_anything_starts(start, home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = start(port=port)
        output = up.process.communicate(timeout=20)
    assert up.process.returncode == 1
    assert f"cannot listen on port {port} of 127.0.0.1" in output[1]
    assert "--port" in output[1]
    assert not (home / "postgres").exists()


def test_a_program_that_supervisord_gave_up_on_is_started_again(home, monkeypatch):
    home.mkdir()
    for name in ("run", "logs"):
        (home / name).mkdir()
    monkeypatch.setattr(supervisord, "RETRIES", 0)
    fixed = home / "fixed"
    program = {"worker": f"sh -c 'test -e {fixed} && exec sleep 600'"}
    supervisor = supervisord.Supervisor(home, program, (), child_environment())
    supervisor.start()
    try:
        supervisor.start_programs()
        wait_until(lambda: supervisor.states() == {"worker": "FATAL"})
        fixed.touch()
        assert supervisor.start_failed() == ["worker"]
        wait_until(lambda: supervisor.states() == {"worker": "RUNNING"})
        assert supervisor.start_failed() == []
    finally:
        supervisor.stop()
        remove_outside_sockets(home)
    assert find_processes(home, "worker") == []
