"""Logging never fails what it reports on."""

import json
import os
import subprocess
import sys

import pytest

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
