"""`agent work` from its first lease to its last, against a server that behaves and one that does not."""

import json
import threading
import time

import pytest
from click.testing import CliRunner
from fake_coordinator import NUMBER, RESET, fake_coordinator, problem
from slow_ecm import slow_ecm, until

from agent import lease_heartbeat, lease_source, retrying, spool, worker_pool
from agent.cli import agent
from agent.retrying import Delays


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(retrying, "LEASE_DELAYS", Delays(0.05, 120.0))
    monkeypatch.setattr(retrying, "CALL_DELAYS", Delays(0.05, 60.0))
    monkeypatch.setattr(lease_source, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(lease_heartbeat, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(lease_heartbeat, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(worker_pool, "FAILURE_PAUSE", 0.01)


@pytest.fixture
def server():
    with fake_coordinator() as coordinator:
        yield coordinator


@pytest.fixture
def call(tmp_path, server):
    def call(*options, ecm=None):
        given = ["--ecm", str(ecm)] if ecm else []
        common = ["work", "--server", server.address, "--name", "me", "--spool", str(tmp_path / "spool")]
        return CliRunner().invoke(agent, [*common, "--threads", "1", "--patience", "30", *given, *options])

    return call


def spooled(tmp_path):
    return [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]


def test_a_lease_with_the_real_program(call, server, tmp_path):
    work_id = server.offer(20, b1=300, b2=5000)
    result = call("--once")
    assert result.exit_code == 0, result.output
    (sent,) = server.results.values()
    assert (sent["work_id"], sent["client_id"], sent["composite"]) == (work_id, "me", NUMBER)
    assert sent["results"]["curves_completed"] == 20
    assert sent["parameters"] | {"sigma": None} == {
        "b1": 300,
        "b2": 5000,
        "curves": 20,
        "parametrization": 1,
        "sigma": None,
    }
    assert server.leases[work_id]["status"] == "completed"
    assert server.called("/start")
    assert server.closings() == []  # its results close it
    assert spooled(tmp_path) == []


def test_what_is_asked_for(call, server):
    options = ["--work-type", "best", "--min-digits", "30", "--max-digits", "90", "--project", "a b"]
    assert call("--once", *options).exit_code == 5
    (path,) = server.called("ecm-work")
    for part in ("client_id=me", "shared=1", "work_type=best", "min_digits=30", "max_digits=90", "project=a+b"):
        assert part in path


def test_a_factor_ends_the_run_and_completes_the_lease(call, server, tmp_path):
    ecm = slow_ecm(tmp_path / "ecm", factor_at=4, factor=str(2**61 - 1))
    work_id = server.offer(50)
    result = call("--once", ecm=ecm)
    assert result.exit_code == 0, result.output
    (sent,) = server.results.values()
    assert [found["factor"] for found in sent["results"]["factors_found"]] == [str(2**61 - 1)]
    assert f"{2**61 - 1}  prime, sigma" in result.stdout
    # The result first: a completed lease could count as one that did nothing.
    methods = [path.rsplit("/", 1)[1].split("?")[0] for _, path in server.calls]
    assert methods.index("submit_result") < methods.index("complete")
    assert server.leases[work_id]["status"] == "completed"
    assert server.counted(work_id) == 4


def test_a_long_run_is_sent_in_parts(call, server, tmp_path, monkeypatch):
    monkeypatch.setattr(worker_pool, "CHUNK_SECONDS", 0.05)
    work_id = server.offer(12)
    result = call("--once", ecm=slow_ecm(tmp_path / "ecm", 0.03))
    assert result.exit_code == 0, result.output
    assert len(server.results) >= 3
    assert server.counted(work_id) == 12
    sigmas = [sent["parameters"]["sigma"] for sent in server.results.values()]
    assert len(set(sigmas)) == len(sigmas)


def test_several_threads_share_what_there_is(call, server, tmp_path):
    leases = [server.offer(4) for _ in range(7)]
    result = call("--threads", "3", "--max-leases", "5", ecm=slow_ecm(tmp_path / "ecm", 0.02))
    assert result.exit_code == 0, result.output
    assert [server.counted(work_id) for work_id in leases] == [4] * 5 + [0, 0]
    assert list(server.leases) == leases[:5]
    assert spooled(tmp_path) == []
    assert len((tmp_path / "ecm.pids").read_text().split()) == 5


def test_no_work_with_once(call, server):
    result = call("--once")
    assert result.exit_code == 5
    assert "No matching work right now" in result.output
    assert "ask again" not in result.output


def test_no_work_is_asked_for_again(call, server, tmp_path):
    def offer_after_three_questions():
        until(lambda: len(server.called("ecm-work")) >= 3)
        with server.lock:
            for _ in range(4):
                server.offer(1)

    thread = threading.Thread(target=offer_after_three_questions)
    started = time.monotonic()
    thread.start()
    result = call("--threads", "4", "--max-leases", "4", ecm=slow_ecm(tmp_path / "ecm"))
    thread.join()
    assert result.exit_code == 0, result.output
    # One thread asks for all, and not before the server's `retry_after`; then each of the four leases was asked for.
    without_work = len(server.called("ecm-work")) - 4
    assert 3 <= without_work <= 1 + (time.monotonic() - started) / server.retry_after
    assert result.output.count("No matching work right now") == 1


def test_a_busy_server_s_retry_after_is_honoured(call, server, tmp_path):
    server.fail("ecm-work", problem(503, "database_away", Retry_After="1"))
    server.offer(2)
    started = time.monotonic()
    assert call("--once", ecm=slow_ecm(tmp_path / "ecm")).exit_code == 0
    assert time.monotonic() - started >= 1.0


@pytest.mark.parametrize(
    "page", [(200, {}, "<html>hotel</html>"), (404, {}, "<html>nginx</html>"), (200, {}, [1]), RESET]
)
def test_a_page_that_is_no_answer_changes_nothing(call, server, tmp_path, page):
    for part in ("work/status", "ecm-work", "/start", "/progress", "submit_result"):
        server.fail(part, page, times=2)
    work_id = server.offer(6)
    result = call("--once", ecm=slow_ecm(tmp_path / "ecm", 0.1))
    assert result.exit_code == 0, result.output
    assert server.counted(work_id) == 6
    assert server.leases[work_id]["status"] == "completed"
    assert spooled(tmp_path) == []


def test_nobody_there_with_once(call, server):
    server.away = True
    result = call("--once", "--patience", "0.2")
    assert result.exit_code == 5
    assert "no answer from" in result.output


def test_a_question_that_the_server_refuses(call, server):
    server.fail("ecm-work", problem(422, "malformed"))
    result = call()
    assert result.exit_code == 2
    assert "malformed it is" in result.output


def test_the_curves_go_on_while_the_server_is_away(call, server, tmp_path, monkeypatch):
    monkeypatch.setattr(worker_pool, "CHUNK_SECONDS", 0.05)
    work_id = server.offer(15)

    def outage():
        until(lambda: server.results)
        server.away = True
        # It comes back when all curves are in the spool.
        pending = tmp_path / "spool" / "pending"
        until(lambda: sum(map(curves_in, pending.glob("*.json"))) + server.counted(work_id) >= 15)
        server.away = False

    thread = threading.Thread(target=outage)
    thread.start()
    result = call("--once", ecm=slow_ecm(tmp_path / "ecm", 0.03))
    thread.join()
    assert result.exit_code == 0, result.output
    assert server.counted(work_id) == 15
    assert "until they can be sent" in result.output
    assert spooled(tmp_path) == []


def curves_in(path):
    try:
        return json.loads(path.read_text())["payload"]["results"]["curves_completed"]
    except FileNotFoundError:
        return 0


def test_results_stay_when_the_server_does_not_come_back(call, server, tmp_path):
    work_id = server.offer(3)
    server.fail("submit_result", problem(503, "database_away"), times=1000)
    result = call("--once", "--patience", "0.3", ecm=slow_ecm(tmp_path / "ecm"))
    assert result.exit_code == 3, result.output
    # Nothing of it is run again though the server lists it as open, and the next start sends it and does other work.
    server.stop_failing()
    server.fail("submit_result", problem(503, "database_away"))
    other = server.offer(2)
    result = call("--once", ecm=slow_ecm(tmp_path / "ecm"))
    assert result.exit_code == 0, result.output
    assert (server.counted(work_id), server.counted(other)) == (3, 2)
    assert len((tmp_path / "ecm.pids").read_text().split()) == 2
    assert call("--once").exit_code == 5
    assert spooled(tmp_path) == []


@pytest.mark.parametrize("status", ["completed", "failed", "timeout", "gone"])
def test_a_lease_that_is_over_ends_its_run(call, server, tmp_path, status):
    ended, after = server.offer(1000), server.offer(2)

    def close():
        until(lambda: server.leases.get(ended, {}).get("curves_completed"))
        if status == "gone":
            server.leases[ended]["client_id"] = "somebody else"
        else:
            server.leases[ended] |= {"status": status, "message": "the number is fully factored"}

    thread = threading.Thread(target=close)
    thread.start()
    result = call("--max-leases", "2", ecm=slow_ecm(tmp_path / "ecm", 0.02))
    thread.join()
    assert result.exit_code == 0, result.output
    assert 1 <= server.counted(ended) < 1000  # late results still count
    assert server.counted(after) == 2
    assert server.closings() == []
    assert "The server closed the lease" in result.output
    assert spooled(tmp_path) == []


def test_a_broken_program_gives_its_leases_back_and_ends_the_agent(call, server, tmp_path):
    leases = [server.offer(5) for _ in range(6)]
    result = call(ecm=slow_ecm(tmp_path / "ecm", then="kill -SEGV $$", seconds=0))
    assert result.exit_code == 1
    assert "ended with status -11 after 5 completed curves" in result.output
    # What was completed counts; the lease is returned with the end of GMP-ECM's output.
    assert [server.counted(work_id) for work_id in leases[:3]] == [5, 5, 5]
    assert len(server.leases) == 3


def test_a_program_that_does_nothing(call, server, tmp_path):
    ecm = tmp_path / "ecm"
    ecm.write_text("#!/bin/sh\necho 'GMP-ECM 7.0.7 [ECM]'\n")
    ecm.chmod(0o755)
    leases = [server.offer(5) for _ in range(6)]
    result = call(ecm=ecm)
    assert result.exit_code == 1
    assert [server.leases[work_id]["message"] for work_id in leases[:3]] == ["GMP-ECM completed no curve"] * 3
    assert len(server.leases) == 3


def test_one_failure_is_told_by_once(call, server, tmp_path):
    ecm = tmp_path / "ecm"
    ecm.write_text("#!/bin/sh\necho 'out of memory'\nexit 1\n")
    ecm.chmod(0o755)
    work_id = server.offer(5)
    result = call("--once", ecm=ecm)
    assert result.exit_code == 1
    assert "last output: out of memory" in server.leases[work_id]["message"]


def test_a_refused_result_gives_the_lease_back(call, server, tmp_path):
    server.fail("submit_result", problem(400, "factor_does_not_divide"), times=3)
    leases = [server.offer(2) for _ in range(6)]
    result = call(ecm=slow_ecm(tmp_path / "ecm"))
    assert result.exit_code == 4
    assert ["factor_does_not_divide" in server.leases[work_id]["message"] for work_id in leases[:3]] == [True] * 3
    assert len(server.leases) == 3
    assert len(list((tmp_path / "spool" / "rejected").iterdir())) == 3


def test_a_lease_whose_answer_was_lost_is_found_again(call, server, tmp_path):
    server.lose_answer("ecm-work")
    work_id, other = server.offer(3), server.offer(3)
    assert call("--once", ecm=slow_ecm(tmp_path / "ecm")).exit_code == 0
    assert (server.counted(work_id), server.counted(other)) == (3, 0)


def test_a_lease_that_the_spool_does_not_know_is_taken_up(call, server, tmp_path):
    work_id = server.offer(10)
    server.give_lease({"client_id": "me"})
    server.leases[work_id]["status"] = "running"
    server.results["another"] = {"work_id": work_id, "results": {"curves_completed": 7}}
    result = call("--once", ecm=slow_ecm(tmp_path / "ecm"))
    assert result.exit_code == 0, result.output
    assert server.counted(work_id) == 10
    assert server.called("ecm-work") == []


@pytest.mark.parametrize(
    "change",
    [{"shared": False, "curves": None}, {"method": "pm1"}, {"status": "completed"}, {"status": "timeout"}],
)
def test_a_lease_that_is_not_ours_to_run_is_left_alone(call, server, change):
    work_id = server.offer(10)
    server.give_lease({"client_id": "me"})
    server.leases[work_id] |= change
    assert call("--once").exit_code == 5
    assert server.results == {}


def test_a_full_disk_is_waited_out(call, server, tmp_path, monkeypatch):
    write, full = spool.write_durably, [True, True]

    def fill(path, content):
        if path.parent.name == "pending" and full:
            full.pop()
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(spool, "write_durably", fill)
    work_id, other = server.offer(5), server.offer(3)
    result = call("--max-leases", "2", ecm=slow_ecm(tmp_path / "ecm"))
    assert result.exit_code == 0, result.output
    assert "No space left on device" in result.output
    # Its journal was there all the time: one run for each lease, and none twice.
    assert (server.counted(work_id), server.counted(other)) == (5, 3)
    assert len((tmp_path / "ecm.pids").read_text().split()) == 2
    # When the agent ended the first lease's result was still on its way; the next start finds nothing left to do.
    assert call("--once").exit_code == 5
    assert spooled(tmp_path) == []


def test_it_ends_by_the_clock(call, server, tmp_path):
    work_id = server.offer(100000)
    result = call("--minutes", "0.05", ecm=slow_ecm(tmp_path / "ecm", 0.05))
    assert result.exit_code == 0, result.output
    assert 1 <= server.counted(work_id) < 100
    assert server.leases[work_id]["message"] == "the agent was stopped"


@pytest.mark.parametrize(
    "wrong",
    [
        ["--once", "--max-leases", "2"],
        ["--min-digits", "50", "--max-digits", "40"],
        ["--threads", "0"],
        ["--name", "a\tb"],
        ["--name", "x" * 300],
        ["--work-type", "easy"],
        ["--server", "localhost"],
    ],
)
def test_a_wrong_command_line_asks_for_nothing(call, server, wrong):
    assert call(*wrong).exit_code == 2
    assert server.calls == []


def test_the_reason_why_a_named_number_has_no_work_reaches_the_user(call, server):
    server.no_work_message = "2^1277-1 is paused: sieving begins."
    result = call("--once", "--composite", "2^1277-1")
    assert result.exit_code == 5
    assert "2^1277-1 is paused: sieving begins" in result.output
