"""`agent stage1` and `agent stage2` against a server that behaves, one that is away, and deaths in between."""

import hashlib
import json
import os
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner

from agent import asking, gmp_ecm, parallel, residues, stage_commands, stages, tasks
from agent.cli import agent
from agent.parallel import shares

LARGE = 10**39 + 3
NUMBER = str((2**89 - 1) * LARGE)  # nothing that a few curves at B1 = 200 would find


class Coordinator:
    """Results by key, residues by checksum, as api.md has them. `faults`: {part of a path: answers it gets first}."""

    def __init__(self):
        self.results, self.residues, self.calls, self.faults = {}, [], [], {}
        self.finished = False

    def answer(self, method, path, headers, body):
        url = urlsplit(path)
        self.calls.append((method, url.path))
        for part, answers in self.faults.items():
            if part in url.path and answers:
                return answers.pop(0)
        steps = url.path.removeprefix("/api/v1/").split("/")
        if steps[0] == "submit_result":
            key = headers["Idempotency-Key"]
            self.results.setdefault(key, json.loads(body))
            return 200, {"status": "success", "attempt_id": list(self.results).index(key) + 1, "message": "applied"}
        if steps[0] == "ecm-work" or steps[1] == "work":
            return self.work(steps)
        if steps[1] == "upload":
            return self.upload(int(parse_qs(url.query)["stage1_attempt_id"][0]), headers, body)
        residue = self.residues[int(steps[1])]
        if steps[2] == "download":
            return 200, residue["file"]
        residue["status"] = {"complete": "completed", "claim": "available"}[steps[2]]
        return 200, {"residue_id": int(steps[1]), "message": residue["status"]}

    def work(self, steps):
        for number, residue in enumerate(self.residues if steps[0] == "residues" else []):
            if residue["status"] == "available":
                residue["status"] = "claimed"
                return 200, residue["offer"] | {"residue_id": number, "retry_after": None}
        return 200, {"residue_id": None, "work_id": None, "retry_after": 1, "message": "nothing that fits"}

    def upload(self, attempt, headers, body):
        boundary = headers["Content-Type"].split("boundary=")[1].encode()
        file = body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--" + boundary, 1)[0]
        checksum = hashlib.sha256(file).hexdigest()
        if self.finished:
            return 400, {"reason": "composite_finished", "detail": "is finished"}
        for number, residue in enumerate(self.residues):
            if residue["offer"]["checksum"] == checksum:
                detail = f"Duplicate residue (checksum matches residue ID {number})"
                return 400, {"reason": "duplicate_residue", "detail": detail}
        return self.store(file, attempt)

    def store(self, file, attempt):
        first = dict(tag.strip().split("=", 1) for tag in file.decode().split("\n")[0].split(";") if "=" in tag)
        offer = {"composite": first["N"], "b1": int(first["B1"]), "parametrization": int(first["PARAM"])}
        offer |= {"curve_count": file.count(b"METHOD="), "checksum": hashlib.sha256(file).hexdigest()}
        self.residues.append({"file": file, "offer": offer, "attempt": attempt, "status": "available"})
        return 200, {"residue_id": len(self.residues) - 1, "message": "stored"}


@contextmanager
def serving(coordinator):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def act(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = coordinator.answer(self.command, self.path, self.headers, body)
            text = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_DELETE = act

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(asking, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(parallel, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(stage_commands, "SILENCE", 0.02)
    coordinator = Coordinator()
    with serving(coordinator) as coordinator.address:
        yield coordinator


@pytest.fixture
def call(tmp_path, server):
    def call(stage, *options, patience=5):
        common = ["--server", server.address, "--name", "me", "--spool", str(tmp_path / "spool"), "--threads", "2"]
        return CliRunner().invoke(agent, [stage, *common, "--patience", str(patience), *map(str, options)])

    return call


def left(tmp_path):
    return [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]


ONE = (NUMBER, "--b1", 200, "--curves", 5, "--parametrization", 1)


def test_stage_1_then_stage_2(call, server, tmp_path):
    result = call("stage1", *ONE)
    assert result.exit_code == 0, result.output
    ((_, first),) = server.results.items()
    assert (first["parameters"]["b2"], first["results"]["curves_completed"]) == (0, 5)
    assert len(set(first["parameters"]["sigma"])) == 5
    assert server.residues[0]["offer"]["curve_count"] == 5
    result = call("stage2", "--once")
    assert result.exit_code == 0, result.output
    second = list(server.results.values())[1]
    assert (second["residue_id"], second["residue_checksum"]) == (0, server.residues[0]["offer"]["checksum"])
    assert (second["parameters"]["b1"], second["parameters"]["b2"]) == (200, None)
    assert sorted(second["parameters"]["sigma"]) == sorted(first["parameters"]["sigma"])
    assert server.residues[0]["status"] == "completed"
    assert left(tmp_path) == []


def test_a_factor_of_stage_2_has_the_sigma_of_its_curve(call, server, tmp_path):
    number, sigma = 193707721 * LARGE, "1:426840277"  # found in step 2, as tests/data/gmp_ecm_output has it
    saved = tmp_path / "one.save"
    command = gmp_ecm.command(gmp_ecm.find_ecm(), b1=2000, b2=0, curves=1, parametrization=1, sigma=sigma, save=saved)
    subprocess.run(command, input=f"{number}\n", text=True, check=True, capture_output=True)
    server.store(saved.read_bytes(), attempt=1)
    result = call("stage2", "--once")
    assert result.exit_code == 0, result.output
    sent = list(server.results.values())[-1]
    assert sent["results"]["factors_found"] == [{"factor": "193707721", "sigma": sigma}]
    assert f"193707721  prime, sigma {sigma}" in result.output
    assert server.residues[0]["status"] == "completed"


@pytest.mark.parametrize("part", ["submit_result", "upload"])
def test_a_server_that_is_away_loses_nothing(call, server, tmp_path, part):
    server.faults[part] = [(503, {"reason": "database_away"})] * 100
    assert call("stage1", *ONE, patience=0.1).exit_code == 3
    assert left(tmp_path)
    server.faults.clear()
    result = call("stage1", "--once")
    assert result.exit_code == 0, result.output
    assert len(server.results) == len(server.residues) == 1
    assert left(tmp_path) == []


def test_a_second_upload_is_a_success(call, server, tmp_path):
    upload = server.upload
    # It is stored, and its answer is lost.
    server.upload = lambda *a: (upload(*a), setattr(server, "upload", upload), (502, b"<html>gateway</html>"))[-1]
    result = call("stage1", *ONE)
    assert result.exit_code == 0, result.output
    assert "has it already" in result.output
    assert len(server.residues) == 1
    assert left(tmp_path) == []


def test_a_finished_number_needs_no_residue(call, server, tmp_path):
    server.finished = True
    result = call("stage1", *ONE)
    assert result.exit_code == 0, result.output
    assert "not needed" in result.output
    assert left(tmp_path) == []


def test_a_refused_residue_is_kept(call, server, tmp_path):
    server.faults["upload"] = [(400, {"reason": "bad_residue", "detail": "line 1"})]
    assert call("stage1", *ONE).exit_code == 4
    (kept,) = (tmp_path / "spool" / "rejected").glob("*.save")
    assert kept.read_text().count("METHOD=ECM") == 5


def test_a_damaged_download_is_fetched_again_and_never_run(call, server):
    call("stage1", *ONE)
    whole = server.residues[0]["file"]
    server.faults["download"] = [(200, whole[:-7]), (200, whole.replace(b"X=0x", b"X=0x1", 1))]
    assert call("stage2", "--once").exit_code == 0
    assert len([path for _, path in server.calls if path.endswith("download")]) == 3
    assert len(server.results) == 2


def test_too_few_curves_in_the_file_are_given_back(call, server, tmp_path):
    call("stage1", *ONE)
    server.residues[0]["offer"]["curve_count"] = 9
    result = call("stage2", "--once")
    assert "has not the 9 curves" in result.output
    assert len(server.results) == 1
    assert server.residues[0]["status"] == "available"
    assert left(tmp_path) == []


def test_results_that_waited_are_sent_while_the_agent_goes_on(call, server, tmp_path):
    for _ in range(2):
        call("stage1", *ONE)
    server.faults["complete"] = [(503, {"reason": "database_away"})]
    result = call("stage2", "--max-residues", 2, patience=0)
    assert result.exit_code == 0, result.output
    assert [residue["status"] for residue in server.residues] == ["completed", "completed"]
    assert left(tmp_path) == []


@pytest.mark.parametrize(("stage", "part"), [("stage1", "ecm-work"), ("stage2", "residues/work")])
def test_no_work_silence_and_refusal_with_once(call, server, stage, part):
    assert call(stage, "--once").exit_code == 5
    server.faults[part] = [(502, b"<html>")] * 2
    assert call(stage, "--once").exit_code == 5
    assert len([path for _, path in server.calls if part in path]) == 4  # silence is no answer, so asked again
    server.faults[part] = [(422, {"reason": "malformed"})]
    assert call(stage, "--once").exit_code == 2


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_death_at_any_step_counts_nothing_twice(call, server, tmp_path, stage, monkeypatch):
    monkeypatch.setattr(stages.spool, "STALE", -1.0)
    for step in range(1, 60):
        server.results.clear()
        server.residues.clear()
        if stage == "stage2":
            call("stage1", *ONE)
        status = dies_at(step, lambda: call(stage, *(ONE if stage == "stage1" else ["--once"])))
        if status == 0:
            break
        assert status == 9
        begun = list((tmp_path / "spool" / tasks.RESIDUES).glob("*/task.json"))
        again = call(stage, "--once")
        assert again.exit_code in (0, 5), again.output
        # One result of each stage and one residue, or none where nobody had begun.
        assert len(server.results) <= 1 + (stage == "stage2")
        assert len(server.residues) <= 1
        if stage == "stage2" and begun:
            assert [sent["results"]["curves_completed"] for sent in server.results.values()] == [5, 5]
            assert server.residues[0]["status"] == "completed"
        assert left(tmp_path) == [], step
    assert step > 5


def dies_at(step, action):
    """In a child: `action`, dead without a trace after its `step`-th note, call or removal. The child's status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        count = 0

        def mortal(function):
            def act(*arguments, **named):
                nonlocal count
                done = function(*arguments, **named)
                count += 1
                if count == step:
                    os._exit(9)
                return done

            return act

        for place, name in (
            (tasks.Task, "save"),
            (residues, "upload"),
            (residues, "download"),
            (residues, "complete"),
            (residues, "ask"),
            (stages.client, "deliver"),
            (stages.spool, "put"),
            (stages.spool, "remove_durably"),
        ):
            setattr(place, name, mortal(getattr(place, name)))
        status = action().exit_code
    finally:
        os._exit(status)


def test_shares_leave_no_process_idle():
    assert shares(7, 3) == [3, 2, 2]
    assert shares(2, 8) == [1, 1]


def test_half_a_line_is_no_curve(tmp_path):
    file = tmp_path / "half.save"
    file.write_text("METHOD=ECM; SIGMA=1;\n# said\nMETHOD=ECM;\nSIGMA=2;\nMETHOD=ECM; SIG")
    assert stages.records(file) == ["METHOD=ECM; SIGMA=1;\n", "METHOD=ECM;\nSIGMA=2;\n"]
