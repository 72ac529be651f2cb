"""gunicorn with our worker: threads that stay with their connections for a moment, and hold up nobody."""

import json
import os
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from config.local.ports import free_port
from ingest.web_worker import STAY_MS

ROOT = Path(__file__).resolve().parents[2]
THREADS = 4
APP = """
import threading
def app(environ, start_response):
    if environ["PATH_INFO"] != "/":
        body = f'{environ["SCRIPT_NAME"]} {environ["PATH_INFO"]}'.encode()
    else:
        body = str(threading.get_ident()).encode()
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("app")
    (directory / "tiny.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--config", "python:ingest.gunicorn_settings", "tiny:app"]
    settings = {"PORT": str(port), "WEB_PROCESSES": "1", "WEB_THREADS": str(THREADS)}
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join((str(ROOT), str(directory)))}
    process = subprocess.Popen(command, env=environment, cwd=directory)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            ask(connect(port))
            break
        except OSError:
            time.sleep(0.1)
    yield process, port
    if process.poll() is None:
        process.terminate()
        process.wait(30)


def connect(port):
    return HTTPConnection("127.0.0.1", port, timeout=10)


def ask(connection, body=None):
    connection.request("POST" if body else "GET", "/", body)
    return connection.getresponse().read()


def test_requests_in_a_row_are_answered_by_the_same_thread(server):
    connection = connect(server[1])
    first = ask(connection)
    for length in (0, 1, 1000, 100_000):
        assert ask(connection, json.dumps("x" * length)) == first


def test_requests_that_were_sent_together_are_all_answered(server):
    connection = connect(server[1])
    connection.connect()
    connection.sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
    received = b""
    while received.count(b"HTTP/1.1 200 OK") < 5:
        received += connection.sock.recv(65536)
    time.sleep(2 * STAY_MS / 1000)
    assert ask(connect(server[1]))


def test_a_connection_is_kept_after_its_thread_has_left(server):
    connection = connect(server[1])
    ask(connection)
    time.sleep(3 * STAY_MS / 1000)
    assert ask(connection)


def test_threads_that_stay_hold_up_no_other_connection(server):
    _, port = server
    kept = [connect(port) for _ in range(10 * THREADS)]
    for connection in kept:
        ask(connection)
    began = time.monotonic()
    for _ in range(3 * THREADS):
        for connection in kept[:THREADS]:
            ask(connection)
        ask(connect(port))
    # Staying in vain takes STAY_MS; half of the threads never stay, so nobody waits for one that does.
    assert time.monotonic() - began < 15 * THREADS * STAY_MS / 1000


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "script_name", "PATH_INFO", "SCRIPT-NAME"])
@pytest.mark.parametrize("value", ["/x", "//evil.example"])
def test_a_header_does_not_change_the_path(server, name, value):
    connection = connect(server[1])
    connection.request("GET", f"{value}/metrics", headers={name: value})
    assert connection.getresponse().read().decode() == f" {value}/metrics"


def test_a_process_that_is_told_to_stop_does_not_wait_for_threads_that_stay(server):
    process, port = server
    busy = connect(port)
    ask(busy)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    process.wait(20)
    assert time.monotonic() - began < 6
