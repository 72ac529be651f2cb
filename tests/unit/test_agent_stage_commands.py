"""`agent stage1` and `agent stage2` against a server that behaves, one that is away, and deaths in between."""

import os
import subprocess

import pytest
from click.testing import CliRunner
from fake_coordinator import fake_coordinator, problem

from agent import gmp_ecm, parallel_ecm, residue_transfer, result_delivery, retrying, spool, stage_session, stage_task
from agent.cli import agent
from agent.parallel_ecm import split_curves
from agent.retrying import Delays

LARGE = 10**39 + 3
NUMBER = str((2**89 - 1) * LARGE)  # nothing that a few curves at B1 = 200 would find


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(retrying, "CALL_DELAYS", Delays(0.02, 60.0))
    monkeypatch.setattr(retrying, "STAGE_WORK_DELAY", 0.02)
    monkeypatch.setattr(parallel_ecm, "POLL_SECONDS", 0.02)
    with fake_coordinator() as coordinator:
        yield coordinator


@pytest.fixture
def call(tmp_path, server):
    def call(stage, *options, timeout=30):
        common = ["--server", server.address, "--name", "me", "--spool", str(tmp_path / "spool"), "--threads", "2"]
        return CliRunner().invoke(agent, [stage, *common, "--patience", str(timeout), *map(str, options)])

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
    command = gmp_ecm.curves_command(
        gmp_ecm.find_ecm(), b1=2000, b2=0, curves=1, parametrization=1, sigma=sigma, save=saved
    )
    subprocess.run(command, input=f"{number}\n", text=True, check=True, capture_output=True)
    server.store_residue(saved.read_bytes(), attempt=1)
    result = call("stage2", "--once")
    assert result.exit_code == 0, result.output
    sent = list(server.results.values())[-1]
    assert sent["results"]["factors_found"] == [{"factor": "193707721", "sigma": sigma}]
    assert f"193707721  prime, sigma {sigma}" in result.output
    assert server.residues[0]["status"] == "completed"


@pytest.mark.parametrize("part", ["submit_result", "upload"])
def test_a_server_that_is_away_loses_nothing(call, server, tmp_path, part):
    server.fail(part, problem(503, "database_away"), times=100)
    assert call("stage1", *ONE, timeout=0.1).exit_code == 3
    assert left(tmp_path)
    server.stop_failing()
    result = call("stage1", "--once")
    assert result.exit_code == 0, result.output
    assert len(server.results) == len(server.residues) == 1
    assert left(tmp_path) == []


def test_a_second_upload_is_a_success(call, server, tmp_path):
    take = server.take_residue

    def store_and_answer_with_a_gateways_error(*arguments):
        take(*arguments)
        server.take_residue = take
        return (502, {}, "<html>gateway</html>")

    server.take_residue = store_and_answer_with_a_gateways_error
    result = call("stage1", *ONE)
    assert result.exit_code == 0, result.output
    assert "already has it" in result.output
    assert len(server.residues) == 1
    assert left(tmp_path) == []


def test_a_finished_number_needs_no_residue(call, server, tmp_path):
    server.finished = True
    result = call("stage1", *ONE)
    assert result.exit_code == 0, result.output
    assert "not needed" in result.output
    assert left(tmp_path) == []


def test_a_refused_residue_is_kept(call, server, tmp_path):
    server.fail("upload", problem(400, "bad_residue", "line 1"))
    assert call("stage1", *ONE).exit_code == 4
    (kept,) = (tmp_path / "spool" / "rejected").glob("*.save")
    assert kept.read_text().count("METHOD=ECM") == 5


def test_a_damaged_download_is_fetched_again_and_never_run(call, server):
    call("stage1", *ONE)
    whole = server.residues[0]["file"]
    server.fail("download", (200, {}, whole[:-7]), (200, {}, whole.replace(b"X=0x", b"X=0x1", 1)))
    assert call("stage2", "--once").exit_code == 0
    assert len([path for _, path in server.calls if path.endswith("download")]) == 3
    assert len(server.results) == 2


def test_too_few_curves_in_the_file_are_given_back(call, server, tmp_path):
    call("stage1", *ONE)
    server.residues[0]["offer"]["curve_count"] = 9
    result = call("stage2", "--once")
    assert "5 curves and not the offered 9" in result.output
    assert len(server.results) == 1
    assert server.residues[0]["status"] == "available"
    assert left(tmp_path) == []


def test_results_that_waited_are_sent_while_the_agent_goes_on(call, server, tmp_path):
    for _ in range(2):
        call("stage1", *ONE)
    server.fail("complete", problem(503, "database_away"))
    result = call("stage2", "--max-residues", 2, timeout=0)
    assert result.exit_code == 0, result.output
    assert [residue["status"] for residue in server.residues] == ["completed", "completed"]
    assert left(tmp_path) == []


@pytest.mark.parametrize(("stage", "part"), [("stage1", "ecm-work"), ("stage2", "residues/work")])
def test_no_work_silence_and_refusal_with_once(call, server, stage, part):
    assert call(stage, "--once").exit_code == 5
    server.fail(part, (502, {}, "<html>"), times=2)
    assert call(stage, "--once").exit_code == 5
    assert len([path for _, path in server.calls if part in path]) == 4  # silence is no answer, so asked again
    server.fail(part, problem(422, "malformed"))
    assert call(stage, "--once").exit_code == 2


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_death_at_any_step_counts_nothing_twice(call, server, tmp_path, stage, monkeypatch):
    monkeypatch.setattr(spool, "STALE_SECONDS", -1.0)
    for step in range(1, 60):
        server.results.clear()
        server.residues.clear()
        if stage == "stage2":
            call("stage1", *ONE)
        status = dies_at(step, lambda: call(stage, *(ONE if stage == "stage1" else ["--once"])))
        if status == 0:
            break
        assert status == 9
        begun = list((tmp_path / "spool" / stage_task.RESIDUES).glob("*/task.json"))
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
            (stage_task.StageTask, "save"),
            (residue_transfer, "upload_residue"),
            (residue_transfer, "download_residue"),
            (residue_transfer, "complete_residue"),
            (residue_transfer, "request_residue"),
            (result_delivery, "deliver"),
            (spool, "add_entry"),
            (spool, "remove_durably"),
        ):
            setattr(place, name, mortal(getattr(place, name)))
        status = action().exit_code
    finally:
        os._exit(status)


def test_shares_leave_no_process_idle():
    assert split_curves(7, 3) == [3, 2, 2]
    assert split_curves(2, 8) == [1, 1]


def test_half_a_line_is_no_curve(tmp_path):
    file = tmp_path / "half.save"
    file.write_text("METHOD=ECM; SIGMA=1;\n# said\nMETHOD=ECM;\nSIGMA=2;\nMETHOD=ECM; SIG")
    assert stage_session.read_save_records(file) == ["METHOD=ECM; SIGMA=1;\n", "METHOD=ECM;\nSIGMA=2;\n"]
