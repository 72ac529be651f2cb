"""`agent run` and `agent send` as a user calls them, processes and signals included."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_coordinator import APPLIED, problem, scripted_server

from agent.cli import agent
from agent.command_options import Bound

HERE = Path(__file__).parent
CAPTURED = HERE.parent / "data" / "gmp_ecm_output"


@pytest.fixture
def call(tmp_path):
    def call(*arguments):
        return CliRunner().invoke(agent, [*arguments, "--spool", str(tmp_path / "spool"), "--patience", "0"])

    return call


def files(tmp_path, directory):
    return sorted((tmp_path / "spool" / directory).glob("*"))


def test_a_real_run_to_its_factor(call, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")  # the wheel's program
    with scripted_server(APPLIED) as (address, requests):
        result = call(
            "run", "(2^67-1)*(10^39+3)", "--b1", "2e3", "--curves", "400", "--server", address, "--name", "me"
        )
    assert result.exit_code == 0, result.output
    ((_, _, _, body),) = requests
    assert (body["client_id"], body["composite"]) == ("me", "(2^67-1)*(10^39+3)")
    (found, *_) = body["results"]["factors_found"]
    assert (2**67 - 1) * (10**39 + 3) % int(found["factor"]) == 0
    assert 1 < int(found["factor"]) < (2**67 - 1) * (10**39 + 3)
    assert found["sigma"].startswith("1:")
    assert 1 <= body["results"]["curves_completed"] <= 400
    assert body["raw_output"].count("Using B1=2000") == body["results"]["curves_completed"]
    assert body["parameters"]["b2"] is None
    assert "B2=147396" in body["raw_output"]
    assert files(tmp_path, "pending") == files(tmp_path, "running") == []


def test_a_result_outlives_a_server_that_is_away(call, tmp_path):
    with scripted_server(problem(503, "database_away"), APPLIED) as (address, requests):
        result = call("run", "2^101-1", "--b1", "200", "--curves", "2", "--server", address)
        assert result.exit_code == 3
        assert len(files(tmp_path, "pending")) == 1
        result = call("send", "--server", address)
        assert result.exit_code == 0
        assert files(tmp_path, "pending") == []
        assert call("send", "--server", address).exit_code == 0  # nothing is left to send
    assert [headers["Idempotency-Key"] for _, _, headers, _ in requests] == [requests[0][2]["Idempotency-Key"]] * 2


def test_leftovers_go_first(call):
    with scripted_server(problem(503, "database_away"), APPLIED) as (address, requests):
        call("run", "2^101-1", "--b1", "200", "--curves", "2", "--server", address)
        result = call("run", "2^103-1", "--b1", "200", "--curves", "1", "--server", address + "/api/v1/")
    assert result.exit_code == 0
    assert [body["composite"] for *_, body in requests] == ["2^101-1", "2^101-1", "2^103-1"]


def test_a_refused_result_is_kept_and_told(call, tmp_path):
    with scripted_server(problem(400, "number_is_prime")) as (address, _):
        result = call("run", "2^101-1", "--b1", "200", "--curves", "1", "--server", address)
    assert result.exit_code == 4
    assert "number_is_prime" in result.output
    (kept,) = files(tmp_path, "rejected")
    assert json.loads(kept.read_text())["answer"]["reason"] == "number_is_prime"
    assert files(tmp_path, "pending") == []


def test_gmp_ecm_s_own_words_when_it_fails(call, tmp_path):
    with scripted_server(APPLIED) as (address, requests):
        result = call("run", "9^9^", "--b1", "200", "--curves", "1", "--server", address)
    assert result.exit_code == 1
    assert "Error - invalid number" in result.output
    assert requests == []
    assert files(tmp_path, "pending") == files(tmp_path, "running") == []


def test_curves_completed_before_a_failure_are_sent(call, tmp_path):
    ecm = tmp_path / "ecm"
    ecm.write_text(f"#!/bin/sh\nread n\ncat {shlex.quote(str(CAPTURED / 'param3_curves.txt'))}\nkill -SEGV $$\n")
    ecm.chmod(0o755)
    with scripted_server(APPLIED) as (address, requests):
        result = call("run", "2^101-1", "--b1", "200", "--curves", "9", "--server", address, "--ecm", str(ecm))
    assert result.exit_code == 1
    assert "status -11 after 3 completed curves" in result.output
    assert [body["results"]["curves_completed"] for *_, body in requests] == [3]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--b1", "1.5"],
        ["--b1", "1e99999999"],
        ["--b1", "nan"],
        ["--b1", "1"],
        ["--curves", "0"],
        ["--server", "localhost:8000"],
        ["--parametrization", "4"],
        ["--sigma", "1:7", "--curves", "2"],
        ["--sigma", "x", "--curves", "1"],
        ["--name", "a\tb"],
    ],
)
def test_a_wrong_command_line_runs_nothing(call, wrong, tmp_path):
    result = call("run", "2^101-1", "--b1", "200", "--curves", "1", "--server", "http://127.0.0.1:1", *wrong)
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize(("text", "value"), [("50000", 50000), ("11e6", 11_000_000), ("2.5e4", 25000), ("-1", -1)])
def test_bounds_as_people_write_them(text, value):
    assert Bound().convert(text, None, None) == value


@pytest.fixture
def slow_run(tmp_path):
    """Start `agent run` on a GMP-ECM that does three curves and then takes for ever over the fourth."""
    ecm, pid = tmp_path / "ecm", tmp_path / "pid"
    printed = shlex.quote(str(CAPTURED / "param3_curves.txt"))
    ecm.write_text(f"#!/bin/sh\nread n\ncat {printed}\necho $$ > {shlex.quote(str(pid))}\nexec sleep 60\n")
    ecm.chmod(0o755)
    started = []

    def start(address):
        command = [sys.executable, "-c", "from agent.cli import agent; agent()", "run", "2^101-1", "--b1", "200"]
        command += ["--curves", "9", "--server", address, "--ecm", str(ecm), "--spool", str(tmp_path / "spool")]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent.parent)}
        process = subprocess.Popen(
            [*command, "--patience", "30"], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        until = time.monotonic() + 60
        while not (pid.exists() and pid.read_text().strip()):
            assert time.monotonic() < until
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        # The three curves are on their way through the pipe; the journal has them when its line says so.
        (journal,) = (tmp_path / "spool" / "running").glob("*.jsonl")
        while journal.read_text().count("Step 2 took") < 3:
            assert time.monotonic() < until
            time.sleep(0.01)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    if pid.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_sends_what_it_completed(slow_run, number, tmp_path):
    with scripted_server(APPLIED) as (address, requests):
        process = slow_run(address)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert [body["results"]["curves_completed"] for *_, body in requests] == [3]
    assert files(tmp_path, "pending") == files(tmp_path, "running") == []


def test_a_killed_agent_s_curves_are_sent_at_the_next_start(slow_run, call):
    with scripted_server(APPLIED) as (address, requests):
        process = slow_run(address)
        assert call("send", "--server", address).exit_code == 0  # while it lives, its run is its own
        assert requests == []
        process.kill()
        process.wait()
        result = call("send", "--server", address)
        assert result.exit_code == 0, result.output
        call("send", "--server", address)
    assert [body["results"]["curves_completed"] for *_, body in requests] == [3]
