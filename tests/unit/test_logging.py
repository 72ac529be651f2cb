"""Logging never fails what it reports on."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from config.logging import SafeStream

PROGRAM = """
import os
from config.logging import configure_logging
configure_logging("console", "INFO")
import structlog
log = structlog.get_logger("test")
log.info("Transaction committed", unit="before")
os.read(0, 1)
try:
    raise RuntimeError("a fault to report")
except RuntimeError:
    for _ in range(2000):
        log.exception("Transaction committed", unit="after")
os.write(1, b"went on")
"""


@pytest.mark.parametrize("gone", ["the reader", "the stream"])
def test_a_process_goes_on_when_nobody_reads_its_log(gone):
    program = PROGRAM if gone == "the reader" else PROGRAM.replace("os.read(0, 1)", "import sys; sys.stderr.close()")
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert b"Transaction committed" in process.stderr.readline()
        if gone == "the reader":
            process.stderr.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stdout.read() == b"went on"


LIBRARY = """
import logging
from config.logging import configure_logging
configure_logging("json", "INFO")
log = logging.getLogger("celery.beat")
log.info("chatter")
try:
    1 / 0
except ZeroDivisionError:
    log.error("Could not %s", "send", exc_info=True)
import structlog
structlog.get_logger("ours").info("Transaction committed", unit="receive")
"""


def test_what_libraries_log_has_the_same_form():
    said = subprocess.run(
        [sys.executable, "-c", LIBRARY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=True,
    ).stderr
    library, ours = map(json.loads, said.splitlines())
    assert (library["event"], library["logger"], library["level"]) == ("Could not send", "celery.beat", "error")
    assert "ZeroDivisionError" in library["exception"]
    assert library["timestamp"] <= ours["timestamp"]
    assert (ours["event"], ours["unit"]) == ("Transaction committed", "receive")


GUNICORN = """
import warnings
from gunicorn.config import Config
from ingest import gunicorn_settings
cfg = Config()
cfg.set("logger_class", gunicorn_settings.logger_class)
cfg.set("loglevel", gunicorn_settings.loglevel)
log = cfg.logger_class(cfg)
log.info("chatter")
log.error("Worker (pid:%s) was sent SIGKILL!", 7)
warnings.warn("an old way")
"""


def test_what_gunicorn_and_warnings_say_has_the_same_form():
    said = subprocess.run(
        [sys.executable, "-c", GUNICORN],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LOG_FORMAT": "json"},
        capture_output=True,
        check=True,
    ).stderr
    gunicorn, warning = map(json.loads, said.splitlines())
    assert (gunicorn["event"], gunicorn["logger"]) == ("Worker (pid:7) was sent SIGKILL!", "gunicorn.error")
    assert "an old way" in warning["event"]


# One process: half of the lines through structlog, half through `logging`; short ones, and some longer than PIPE_BUF.
# It forks once, so that two processes share what they opened.
WRITER = """
import logging, os, sys, threading
from config.logging import configure_logging
configure_logging("json", "INFO")
import structlog
child = os.fork()
library, ours = logging.getLogger("library"), structlog.get_logger("ours")

def write(first, step):
    for number in range(first, 3000, step):
        text = "x" * (12_000 if number % 50 == 0 else 6_000 if number % 20 == 0 else number % 300)
        if number % 2:
            library.error("Line", extra={}) if number % 4 == 1 else library.warning("%s", text)
        else:
            ours.info("Line", number=number, text=text)

threads = [threading.Thread(target=write, args=(first, 2)) for first in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def start_writer(program, stream):
    return subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stderr=stream
    )


@pytest.mark.parametrize("kind", ["pipe", "file", "blocked pipe"])
def test_lines_of_several_processes_do_not_run_into_one_another(kind, tmp_path):
    if kind == "file":
        # Two that share nothing but the file's name.
        with (tmp_path / "log").open("ab") as one, (tmp_path / "log").open("ab") as other:
            writers = [start_writer(WRITER, one), start_writer(WRITER, other)]
        assert [writer.wait(100) for writer in writers] == [0, 0]
        text = (tmp_path / "log").read_bytes()
    else:
        reading, writing = os.pipe()
        os.set_blocking(writing, kind == "pipe")
        writers = [start_writer(WRITER, writing) for _ in range(2)]
        os.close(writing)
        with open(reading, "rb") as pipe:
            text = pipe.read()
        assert [writer.wait(100) for writer in writers] == [0, 0]
    lines = text.splitlines()
    assert len(lines) == 4 * 3000
    assert {json.loads(line)["level"] for line in lines} == {"info", "warning", "error"}


STUCK = """
import fcntl, os, time
fcntl.lockf(2, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""
TIMED = """
import time
from config.logging import configure_logging
configure_logging("json", "INFO")
import structlog
log, began = structlog.get_logger(), time.monotonic()
for number in range(1000):
    log.info("Line", number=number)
print(time.monotonic() - began)
"""


def test_a_process_that_is_stuck_with_the_lock_slows_nobody_down():
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=writing) as stuck:
        assert stuck.stdout.readline() == b"locked\n"
        timed = subprocess.Popen(
            [sys.executable, "-c", TIMED],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=writing,
        )
        os.close(writing)
        stuck_until = threading.Timer(50, stuck.kill)
        stuck_until.start()
        lines = []
        with open(reading, "rb") as pipe:
            while len(lines) < 1000:
                lines.append(json.loads(pipe.readline())["number"])
            seconds = float(timed.communicate()[0])
            stuck_until.cancel()
            stuck.kill()
    assert lines == list(range(1000))
    assert seconds < 30  # half a second, and the machine's own time; a wait for each line would take 500 s


def test_nothing_is_raised_whatever_the_stream_is(tmp_path):
    with (tmp_path / "closed").open("w") as closed:
        pass
    with Path("/dev/full").open("w") as full, (tmp_path / "new").open("w") as new:
        for stream in (None, closed, io.StringIO(), full, new):
            safe = SafeStream(stream)
            assert safe.write("a line \udc80\n") == len("a line \udc80\n")
            safe.flush()
    assert (tmp_path / "new").read_bytes() == b"a line \\udc80\n"
