"""`agent stage1` and `stage2` on a running coordinator, with GMP-ECM: each curve counts once, even if they die."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from leasing import register_number, unique_name
from stacks import wait_until
from traffic import prime

from agent import stage_session, stage_task
from coordinator import effort

pytestmark = pytest.mark.stack

B1 = 2000


@pytest.fixture
def run(stack, tmp_path):
    """Starts a command of the agent with this test's spool; all commands end with the test."""
    started = []

    def begin(stage, client, *arguments, wait=True):
        command = [sys.executable, "-c", "from ingest.cli import main; main()", "agent", stage, *map(str, arguments)]
        command += ["--server", stack.url, "--name", client, "--spool", str(tmp_path / "spool"), "--patience", "20"]
        output = (tmp_path / f"{len(started)}.log").open("wb")
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        process.log = tmp_path / f"{len(started)}.log"
        started.append(process)
        if wait:
            assert process.wait(60) == 0, process.log.read_text()
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()


def curves_of(stack, number):
    """Return {(b1, b2, parametrization): counted curves}."""
    rows = stack.rows(
        "SELECT b1, b2, parametrization, sum(curves) AS n FROM value_effort JOIN target_sources USING (value_id)"
        " JOIN composites USING (target_id) WHERE number = :number GROUP BY 1, 2, 3 HAVING sum(curves) > 0",
        number=number,
    )
    return {(row.b1, int(row.b2), row.parametrization): int(row.n) for row in rows}


def hard():
    return str(prime(45) * prime(50))


def test_stage_1_on_one_machine_and_stage_2_on_another(stack, run):
    number, project = hard(), unique_name("both")
    register_number(stack, number, project=project)
    before = curves_of(stack, number)
    run("stage1", unique_name("gpu"), number, "--b1", B1, "--curves", 7, "--parametrization", 3, "--threads", 2)
    assert curves_of(stack, number) == {**before, (B1, 0, 3): 7}
    run("stage2", unique_name("cpu"), "--once", "--project", project, "--threads", 2)
    assert curves_of(stack, number) == {**before, (B1, -1, 3): 7}
    expected = effort.effort_of([(50_000, -1, 1, 1), (B1, -1, 3, 7)])
    assert stack.get(f"/stats/{number}").json()["current_t_level"] == pytest.approx(effort.t_level(expected))


def test_a_lease_of_stage_1_and_a_factor_in_stage_2(stack, run):
    small = prime(13)
    number, project = str(small * prime(55)), unique_name("leased")
    register_number(stack, number, project=project)
    # Chance decides whether a curve finds the factor; stage 1 alone may find it. Each attempt most likely does.
    printed = ""
    for _ in range(12):
        printed += run(
            "stage1", unique_name("gpu"), "--once", "--project", project, "--b1", B1, "--curves", 5
        ).log.read_text()
        if str(small) in printed:
            break
        assert any(b2 == 0 for _, b2, _ in curves_of(stack, number))
        printed += run("stage2", unique_name("cpu"), "--once", "--project", project, "--b2", "1e7").log.read_text()
        if str(small) in printed:
            break
    assert stack.get(f"/stats/{number}").json()["factors_found"][0] == str(small)


def test_with_once_the_exit_status_says_that_there_is_no_work(run):
    for stage in ("stage1", "stage2"):
        process = run(stage, unique_name("idle"), "--once", "--project", unique_name("nowhere"), wait=False)
        assert process.wait(60) == 5, process.log.read_text()


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_next_agent_resumes_a_killed_one_and_counts_nothing_twice(stack, run, tmp_path, stage):
    number, project, client = hard(), unique_name("killed"), unique_name("victim")
    register_number(stack, number, project=project)
    before = curves_of(stack, number)
    most = 12 if stage == "stage2" else 200  # more than it can run before the test kills it
    first = (number, "--b1", 100_000, "--curves", most, "--parametrization", 1, "--threads", 2)
    second = ("--once", "--project", project, "--threads", 2)
    if stage == "stage2":
        run("stage1", unique_name("gpu"), *first)
    victim = run(stage, client, *(first if stage == "stage1" else second), wait=False)
    outputs = tmp_path / "spool" / stage_task.RESIDUES
    step = b"Step 1 took" if stage == "stage1" else b"Step 2 took"
    wait_until(lambda: any(step in file.read_bytes() for file in outputs.glob("*/*.out")), 40)
    children = psutil.Process(victim.pid).children()
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert children
    again = run(stage, client, *(second if stage == "stage2" else (hard(), "--b1", 100, "--curves", 1)))
    psutil.wait_procs(children, 10)
    assert not any(child.is_running() and child.status() != "zombie" for child in children)
    assert list(outputs.iterdir()) == [], again.log.read_text()
    if stage == "stage2":
        assert curves_of(stack, number) == {**before, (100_000, -1, 1): 12}
        return
    done = curves_of(stack, number)[100_000, 0, 1]
    assert 1 <= done < most
    assert stack.scalar(
        "SELECT r.curve_count FROM ecm_residues r JOIN composites c ON c.id = r.composite_id WHERE c.number = :number",
        number=number,
    ) in (done, done - 1)  # the line of the last curve may be incomplete


# The agent dies after a step is done and before it is recorded.
UPLOADED, SETTLED, COMPLETED = (
    "\n".join(
        (
            "import os",
            "from agent import residue_transfer as r",
            "from agent.stage_task import StageTask",
            "from ingest.cli import main",
            dying,
            "main()",
        )
    )
    for dying in (
        "upload = r.upload_residue\nr.upload_residue = lambda *a: (upload(*a), os._exit(9))",
        "s = StageTask.save\nStageTask.save = lambda self, **c: os._exit(9) if 'attempt_id' in c else s(self, **c)",
        "complete = r.complete_residue\nr.complete_residue = lambda *a: (complete(*a), os._exit(9))",
    )
)


def test_deaths_between_the_steps_of_sending_count_nothing_twice(stack, run, tmp_path):
    number, project, gpu, cpu = hard(), unique_name("steps"), unique_name("gpu"), unique_name("cpu")
    register_number(stack, number, project=project)
    before = curves_of(stack, number)
    options = ["--server", stack.url, "--spool", str(tmp_path / "spool"), "--patience", "20"]
    first = ["agent", "stage1", number, "--b1", str(B1), "--curves", "3", "--parametrization", "1", "--name", gpu]
    second = ["agent", "stage2", "--once", "--project", project, "--name", cpu]
    nothing_new = ["--once", "--project", unique_name("none"), "--name"]
    for program, command, takes_up in (
        (SETTLED, first, None),
        (UPLOADED, ["agent", "stage1", *nothing_new, gpu], ("stage1", gpu)),
        (SETTLED, second, None),
        (COMPLETED, ["agent", "stage2", *nothing_new, cpu], ("stage2", cpu)),
    ):
        died = subprocess.run(
            [sys.executable, "-c", program, *command, *options], check=False, capture_output=True, timeout=60
        )
        assert died.returncode == 9, died.stderr.decode()
        if takes_up:
            run(takes_up[0], takes_up[1], *nothing_new[:-1], wait=False).wait(60)
    assert list((tmp_path / "spool" / stage_task.RESIDUES).iterdir()) == []
    assert curves_of(stack, number) == {**before, (B1, -1, 1): 3}
    assert stack.scalar("SELECT count(*) FROM ecm_residues WHERE client_id = :gpu", gpu=gpu) == 1


def test_ctrl_c_gives_the_residue_back(stack, run, tmp_path):
    number, project = hard(), unique_name("ctrl-c")
    register_number(stack, number, project=project)
    run("stage1", unique_name("gpu"), number, "--b1", 100_000, "--curves", 8, "--parametrization", 1, "--threads", 2)
    cpu = unique_name("cpu")
    agent = run("stage2", cpu, "--once", "--project", project, "--threads", 1, "--b2", "2e9", wait=False)
    files = tmp_path / "spool" / stage_task.RESIDUES
    wait_until(lambda: any("processes" in json.loads(file.read_bytes()) for file in files.glob("*/task.json")), 40)
    agent.send_signal(signal.SIGINT)
    assert agent.wait(30) == 0, agent.log.read_text()
    assert "is returned after" in agent.log.read_text()
    status = "SELECT status FROM ecm_residues r JOIN composites c ON c.id = r.composite_id WHERE c.number = :number"
    assert stack.scalar(status, number=number) == "available"


def test_an_incomplete_record_is_not_a_curve(tmp_path):
    file = tmp_path / "half.save"
    file.write_text("METHOD=ECM; SIGMA=1;\n# a comment\nMETHOD=ECM;\nSIGMA=2;\nMETHOD=ECM; SIG")
    assert stage_session.read_save_records(file) == ["METHOD=ECM; SIGMA=1;\n", "METHOD=ECM;\nSIGMA=2;\n"]
