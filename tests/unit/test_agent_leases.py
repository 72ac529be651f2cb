"""Offers are checked before they are run, requests are fit to send, and a pool is shown on the terminal."""

import io
import time

import pytest
import requests
from fake_coordinator import NUMBER, FakeCoordinator, problem, scripted_server
from rich.console import Console

from agent import lease_api, offers, terminal, work_display, worker_pool
from agent.lease_api import LeaseRequest, read_lease
from agent.local_lease import store_lease
from agent.spool import prepare_spool


def offered(**changes):
    coordinator = FakeCoordinator()
    coordinator.offer(20, **changes)
    return coordinator.offers[0] | {"retry_after": None, "message": "leased"}


@pytest.mark.parametrize(
    ("changes", "b2", "parametrization"),
    [({}, None, 1), ({"b2": 0}, 0, 1), ({"b2": 10**9, "parametrization": None}, 10**9, None)],
)
def test_an_offer_is_read(changes, b2, parametrization):
    body = offered(**changes)
    lease = read_lease(body)
    assert (lease.work_id, lease.composite, lease.b1, lease.curves) == (body["work_id"], NUMBER, 200, 20)
    assert (lease.b2, lease.parametrization, lease.t_level, lease.target_t_level) == (b2, parametrization, 3.5, 12.0)


@pytest.mark.parametrize(
    "change",
    [
        {"work_id": "../../../etc/cron.d/x"},
        {"composite": "15\n21"},
        {"composite": "2^67-1"},
        {"composite": "\uff11\uff15"},
        {"composite": None},
        {"b1": "200"},
        {"b1": True},
        {"b1": 1},
        {"b1": 10**15},
        {"b2": -1},
        {"curves": 0},
        {"curves": None},
        {"curves": 1.5},
        {"parametrization": 4},
        {"current_t_level": "much"},
    ],
)
def test_an_offer_that_cannot_be_run_is_no_lease(change):
    with scripted_server((200, {}, offered() | change)) as (address, _):
        offer = lease_api.request_lease(requests.Session(), address, "me", LeaseRequest())
    assert (offer.thing, offer.verdict) == (None, "unclear")
    assert "cannot be run" in offer.message


@pytest.mark.parametrize("value", [None, "soon", -1, 0, 10**9, float("inf")])
def test_a_pause_that_is_none_is_a_minute(value):
    assert offers.read_pause(value) == 60.0


def test_a_reason_is_short_and_printable():
    with scripted_server((200, {}, {"status": "failed"})) as (address, requests_seen):
        standing = lease_api.abandon_lease(requests.Session(), address, "a b/c", "7", "x\n\ty\u2028z " + "w" * 5000)
    ((method, path, _, _),) = requests_seen
    assert method == "DELETE"
    assert "client_id=a+b%2Fc" in path
    assert "reason=x+y+z+www" in path
    assert len(path) < 300
    assert standing.state == "over"


def test_a_name_with_a_slash_stays_one_step_of_the_path():
    with scripted_server((200, {}, {"assignments": []})) as (address, seen):
        assert lease_api.list_open_leases(requests.Session(), address, "a/b c?") == []
    assert seen[0][1] == "/api/v1/work/status/a%2Fb%20c%3F"


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ((200, {}, {"status": "running"}), "open"),
        ((200, {}, {"status": "timeout", "message": "ran out"}), "over"),
        (problem(404, "unknown_work"), "over"),
        (problem(404, "not_found"), "unclear"),  # a wrong address is not the lease's fault
        (problem(429, "too_many_requests"), "unclear"),
        ((200, {}, "<html>"), "unclear"),
    ],
)
def test_how_a_lease_stands(answer, state):
    with scripted_server(answer) as (address, _):
        assert lease_api.report_progress(requests.Session(), address, "me", "7", 3).state == state


def test_a_closing_that_is_refused_is_not_asked_again():
    with scripted_server(problem(422, "malformed")) as (address, _):
        assert lease_api.complete_lease(requests.Session(), address, "me", "7").state == "over"
        assert lease_api.report_progress(requests.Session(), address, "me", "7", 3).state == "unclear"


@pytest.fixture
def pool(tmp_path):
    prepare_spool(tmp_path)
    pool = worker_pool.create_pool(
        "http://127.0.0.1:1",
        "me",
        ecm=tmp_path / "ecm",
        root=tmp_path,
        threads=20,
        wanted=LeaseRequest(),
        max_leases=None,
        once=False,
        timeout=0,
        report=print,
        on_factor=lambda number, output: None,
    )
    for worker in pool.workers[:18]:
        worker.lease = store_lease(tmp_path, pool.server, "me", read_lease(offered(b1=11_000_000)))
        worker.lease.curves_running, worker.t_level = 7, 3.5
    pool.curves, pool.factors = 1234, 1
    return pool


def test_a_pool_in_a_line(pool):
    line = work_display.format_line(pool, work_display.CurveRate())
    assert "1234 curves" in line
    assert "1 factor found, 0 leases done" in line
    assert "C46 B1=1.1e7 7/20 t3.50 of 12.00" in line
    assert line.endswith("and 16 more")


def test_a_pool_on_a_terminal(pool, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, height=40)
    monkeypatch.setattr(work_display, "console", console)
    with work_display.show_pool(pool) as update:
        update()
    drawn = screen.getvalue()
    assert drawn.count("B1=1.1e7") >= work_display.MAX_TABLE_ROWS
    assert "and 2 more" in drawn
    assert "1234 curves" in drawn
    assert drawn.rstrip("\r\n").endswith(("\x1b[2K", "\x1b[?25h"))  # it cleans up after itself


def test_the_rate_is_that_of_the_last_minute(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rate = work_display.CurveRate()
    for second in range(300):
        now[0] = 1000.0 + second
        # Ten a second at first, two a second for the last 200 seconds.
        seen = rate.update(10 * min(second, 100) + 2 * max(0, second - 100))
    assert seen == pytest.approx(2.0)


def test_a_line_that_cannot_be_printed_is_ignored(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(terminal, "console", Console(file=Gone()))
    terminal.print_line("hello")


def test_a_thread_s_own_fault_ends_the_pool(pool):
    worker_pool.start_thread(pool, lambda: {}["a fault of ours"]).join()
    assert pool.stop_requested
    assert "KeyError: 'a fault of ours'" in pool.crash


def test_one_worker_s_success_is_not_held_up_by_another_s_failure(pool, monkeypatch):
    # The other worker fails while this one runs its lease.
    worker = pool.workers[0]
    lease, worker.lease = worker.lease, None
    given = [lease]
    monkeypatch.setattr(pool.source, "next_lease", lambda session: given.pop() if given else None)
    monkeypatch.setattr(
        worker_pool,
        "process_lease",
        lambda *_: worker_pool.count_failure(pool, pool.workers[1], "ecm is broken"),
    )
    waits = []
    monkeypatch.setattr(worker_pool.WorkerPool, "wait", lambda self, seconds: waits.append(seconds))
    worker_pool.run_worker(pool, worker)
    assert (waits, pool.failures, pool.failure) == ([], 0, "")


def test_failures_in_a_row_end_the_pool(pool):
    for _ in range(worker_pool.MAX_FAILURES):
        assert not pool.stop_requested
        worker_pool.count_failure(pool, pool.workers[0], "ecm is broken")
    assert pool.stop_requested
    assert pool.failure == "ecm is broken"


def test_the_timeout_counts_from_whichever_end_came_first(pool):
    pool.timeout = 10.0
    assert pool.deadline(100.0) == 110.0
    pool.stop_requested_at = 95.0
    assert pool.deadline(100.0) == 105.0
    assert pool.deadline(90.0) == 100.0
