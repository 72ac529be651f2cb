"""`agent work` through Ctrl-C, SIGTERM, kill -9 at any step, beside another agent: no curve is lost or run twice."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from fake_coordinator import fake_coordinator, problem
from slow_ecm import slow_ecm, until

from agent import lease_api, lease_source, local_lease, spool
from agent.cli import agent

ROOT = Path(__file__).parent.parent.parent
PROGRAM = "from agent.cli import agent; agent()"


@pytest.fixture
def server():
    with fake_coordinator() as coordinator:
        yield coordinator


@pytest.fixture
def begin(tmp_path, server):
    """Start `agent work` as a process; all are killed in the end, and so is what they run."""
    started = []

    def begin(*options, ecm, **how):
        command = [sys.executable, "-c", PROGRAM, "work", "--server", server.address, "--name", "me", "--ecm", str(ecm)]
        command += ["--spool", str(tmp_path / "spool"), "--threads", "1", "--patience", "30", *options]
        how = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE} | how
        started.append(
            subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
                **how,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()
    for pid in pids(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pids(tmp_path):
    path = tmp_path / "ecm.pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def curves_of_each_run(tmp_path):
    """The curves in the journal of each run in progress."""
    journals = (tmp_path / "spool" / "running").glob("*.jsonl")
    return [journal.read_text().count("Step 2 took") for journal in journals]


def curves_done(tmp_path):
    return sum(curves_of_each_run(tmp_path))


def list_of(tmp_path, directory):
    return list((tmp_path / "spool" / directory).glob("*.json*"))


def spooled(tmp_path):
    # A half-written file that nobody could name is swept up a day later.
    return [path for path in (tmp_path / "spool").rglob("*") if path.is_file() and path.suffix != ".new"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_sends_what_is_done_and_gives_the_rest_back(begin, server, tmp_path, number):
    leases = [server.offer(1000), server.offer(1000)]
    process = begin("--threads", "2", ecm=slow_ecm(tmp_path / "ecm", 0.05))
    until(lambda: len(pids(tmp_path)) == 2 and sum(n >= 2 for n in curves_of_each_run(tmp_path)) == 2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    for work_id in leases:
        assert 1 <= server.counted(work_id) < 1000
        assert (server.leases[work_id]["status"], server.leases[work_id]["message"]) == (
            "failed",
            "the agent was stopped",
        )
        result = next(i for i, (_, path) in enumerate(server.calls) if "submit_result" in path)
        assert result < server.calls.index(("DELETE", server.called(f"{work_id}?client_id=me&reason")[0]))
    assert spooled(tmp_path) == []


def test_an_interrupt_in_vain_leaves_the_lease_for_the_next_start(begin, server, tmp_path):
    work_id = server.offer(30)
    process = begin("--patience", "0", ecm=slow_ecm(tmp_path / "ecm", 0.05))
    until(lambda: curves_done(tmp_path) >= 3)
    server.away = True
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3, stderr
    assert "the next start returns it" in stderr
    server.away = False
    process = begin("--once", ecm=slow_ecm(tmp_path / "ecm"))
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert server.counted(work_id) == 30
    assert len(server.results) == 2
    assert len(pids(tmp_path)) == 2


def test_a_second_interrupt_ends_it_at_once(begin, server, tmp_path):
    work_id = server.offer(30)
    process = begin("--patience", "600", ecm=slow_ecm(tmp_path / "ecm", 0.05))
    until(lambda: curves_done(tmp_path) >= 3)
    server.away = True
    process.send_signal(signal.SIGINT)
    until(lambda: list_of(tmp_path, "pending"))
    process.send_signal(signal.SIGINT)
    process.wait(60)  # a tenth of what it would go on trying for
    assert process.returncode == -signal.SIGINT
    server.away = False
    process = begin("--once", ecm=slow_ecm(tmp_path / "ecm"))
    process.communicate(timeout=60)
    assert server.counted(work_id) == 30


def test_a_killed_agent_s_lease_goes_on_where_it_stopped(begin, server, tmp_path):
    work_id, after = server.offer(40), server.offer(2)
    process = begin(ecm=slow_ecm(tmp_path / "ecm", 0.05))
    until(lambda: curves_done(tmp_path) >= 5)
    process.kill()
    process.wait()
    process = begin("--max-leases", "2", ecm=slow_ecm(tmp_path / "ecm"))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "Resuming a lease" in stderr
    assert (server.counted(work_id), server.counted(after)) == (40, 2)
    assert len(server.results) == 3
    # A lease that runs already is not started again.
    assert len(server.called(f"{work_id}/start")) == 1


def test_what_a_killed_agent_left_running_is_ended(begin, server, tmp_path):
    server.offer(40)
    ecm = tmp_path / "ecm"
    # Like a GMP-ECM in the middle of a long stage 1.
    ecm.write_text(f"#!/bin/sh\nread number\necho $$ >> {ecm}.pids\nexec sleep 600\n")
    ecm.chmod(0o755)
    process = begin(ecm=ecm)
    (pid,) = until(lambda: pids(tmp_path))
    until(lambda: list_of(tmp_path, "running"))
    process.kill()
    process.wait()
    assert psutil.pid_exists(pid)
    server.leases.clear()
    process = begin("--once", ecm=ecm)
    process.communicate(timeout=60)
    # Whoever adopted it may not have buried it yet.
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_killed_agent_s_lease_is_over_by_now(begin, server, tmp_path):
    work_id = server.offer(40)
    process = begin(ecm=slow_ecm(tmp_path / "ecm", 0.05))
    until(lambda: curves_done(tmp_path) >= 5)
    process.kill()
    process.wait()
    server.leases[work_id] |= {"status": "timeout", "message": "ran out"}
    after = server.offer(2)
    process = begin("--max-leases", "2", ecm=slow_ecm(tmp_path / "ecm"))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert 5 <= server.counted(work_id) < 40  # late results still count
    assert server.counted(after) == 2
    assert len(pids(tmp_path)) == 2
    assert spooled(tmp_path) == []


def test_two_agents_of_one_name_share_a_spool(begin, server, tmp_path):
    first = server.offer(25)
    one = begin("--once", ecm=slow_ecm(tmp_path / "ecm", 0.05))
    until(lambda: curves_done(tmp_path) >= 1)
    second = server.offer(5)
    two = begin("--once", ecm=slow_ecm(tmp_path / "ecm", 0.05))
    for process in (two, one):
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
    assert (server.counted(first), server.counted(second)) == (25, 5)
    assert len(pids(tmp_path)) == 2
    assert spooled(tmp_path) == []


def test_nobody_reads_what_it_says(begin, server, tmp_path):
    leases = [server.offer(3) for _ in range(3)]
    read, write = os.pipe()
    os.close(read)
    process = begin("--max-leases", "3", ecm=slow_ecm(tmp_path / "ecm"), stdout=write, stderr=write)
    os.close(write)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert [server.counted(work_id) for work_id in leases] == [3, 3, 3]


def test_without_any_of_the_standard_files(server, tmp_path):
    work_id = server.offer(3)
    command = [sys.executable, "-c", PROGRAM, "work", "--server", server.address, "--spool", str(tmp_path / "spool")]
    command += ["--once", "--threads", "1", "--ecm", str(slow_ecm(tmp_path / "ecm"))]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
    done = subprocess.run(closed, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60, check=False)
    assert done.returncode == 0
    assert server.counted(work_id) == 3


def work_once(server, tmp_path, ecm, die_at=None):
    """In a child: `agent work --once`, dead without a trace at the `die_at`-th write. Its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        count = 0

        def mortal(function):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == die_at:
                    os._exit(9)
                return function(*args, **kwargs)

            return call

        lease_source.TICK_SECONDS = 0.01
        os.fsync, os.fdopen = mortal(os.fsync), mortal(os.fdopen)
        Path.rename, Path.unlink = mortal(Path.rename), mortal(Path.unlink)
        Path.hardlink_to = mortal(Path.hardlink_to)
        spool.Journal.append = mortal(spool.Journal.append)
        lease_api.request_lease = mortal(lease_api.request_lease)
        options = ["--server", server.address, "--name", "me", "--spool", str(tmp_path / "spool"), "--threads", "1"]
        result = CliRunner().invoke(agent, ["work", "--once", *options, "--patience", "30", "--ecm", str(ecm)])
        status = result.exit_code
    finally:
        os._exit(status)


def test_death_at_any_step_loses_no_curve_and_runs_none_twice(server, tmp_path):
    ecm = slow_ecm(tmp_path / "ecm")
    for step in range(1, 100):
        server.offers.clear()
        work_id = server.offer(4)
        server.results.clear()
        status = work_once(server, tmp_path, ecm, die_at=step)
        assert status in (0, 9), status
        if status == 0:
            break
        # While the server takes no result, only the spool knows what is done.
        server.stop_failing()
        if list_of(tmp_path, "pending"):
            server.fail("submit_result", problem(503, "database_away"))
        # The next start has the lease to finish; when that was never asked for, or is all done, the offer or nothing.
        assert work_once(server, tmp_path, ecm) in (0, 5)
        assert server.counted(work_id) == 4, step
        assert server.leases[work_id]["status"] == "completed"
        sigmas = [result["parameters"]["sigma"] for result in server.results.values()]
        assert len(set(sigmas)) == len(sigmas)
        if spooled(tmp_path):  # the result was still on its way when the second one ended
            assert work_once(server, tmp_path, ecm) == 5
        assert spooled(tmp_path) == []
    assert step > 20


def test_a_torn_line_says_nothing_and_spoils_no_other(tmp_path):
    spool.prepare_spool(tmp_path)
    lease = lease_api.Lease("00000000-0000-0000-0000-000000000001", "15", 200, None, 9, 1, 0.0, 0.0)
    mine = local_lease.store_lease(tmp_path, "http://a", "me", lease)
    local_lease.append_line(mine.path, {"key": "k1", "curves": 2, "factors": 0})
    with mine.path.open("ab") as file:
        file.write(b'\n{"key": "k2", "cur')
    local_lease.append_line(mine.path, {"key": "k3", "curves": 3, "factors": 0})
    local_lease.append_line(mine.path, {"key": "k3", "curves": 3, "factors": 0})
    assert local_lease.store_lease(tmp_path, "http://a", "me", lease) is None
    assert list(local_lease.lock_stored_leases(tmp_path, "http://a", "me")) == []
    mine.release()
    assert list(local_lease.lock_stored_leases(tmp_path, "http://a", "you")) == []
    (again,) = local_lease.lock_stored_leases(tmp_path, "http://a", "me")
    again.read_runs()
    assert (again.lease, again.runs, again.curves_left) == (lease, {"k1": 2, "k3": 3}, 4)
    again.remove()
    assert list(tmp_path.glob("leases/*")) == []
