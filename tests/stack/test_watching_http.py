"""What operators watch, over the whole coordinator: metrics of all its processes, one id, Flower, and headers."""

import os
import re
import signal
import subprocess
import sys

import pytest
import requests
from bodies import claiming, plain
from ops_files import expressions, labels_in, metrics_in
from stacks import wait_until

from config.local.ports import free_port
from config.local.procfile import child_environment
from config.local.valkey import valkey_url

pytestmark = pytest.mark.stack

SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


def samples(stack) -> dict[str, float]:
    """Every sample of /metrics, by its name and labels as they stand there."""
    answer = stack.http.get(f"{stack.url}/metrics", timeout=20)
    assert answer.status_code == 200
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.fixture
def leased(stack):
    """An open lease, given back afterwards."""
    stack.submit(plain())
    lease = stack.get("/ecm-work", params={"client_id": "watched", "shared": "1"}).json()
    assert lease["work_id"]
    yield lease
    stack.http.delete(f"{stack.api}/work/{lease['work_id']}", timeout=20)


def test_what_dashboard_and_alerts_ask_for_is_there(stack, leased):
    labels_of: dict[str, set[str]] = {}
    for sample in wait_until(lambda: "ecm_heartbeat_age_seconds" in str(now := samples(stack)) and now):
        name, labels, _ = SAMPLE.fullmatch(f"{sample} 0").groups()
        labels_of.setdefault(name, set()).update(re.findall(r"(\w+)=", labels or ""))
    for expression in expressions():
        assert metrics_in(expression) - {"up"} <= set(labels_of), expression
        for metric, label in labels_in(expression):
            assert label in labels_of[metric], expression
        for label in re.findall(r"by \(([^)]*)\)", expression):
            (metric,) = metrics_in(expression)
            assert set(re.findall(r"\w+", label)) <= labels_of[metric], expression


def test_metrics_follow_a_result_from_intake_to_its_outcome(stack, leased):
    before = samples(stack)
    stack.submit(plain())
    stack.submit(claiming(plain(), 999))
    settled = {state: f'ecm_results_settled_total{{state="{state}"}}' for state in ("applied", "rejected")}

    def counted():
        now = samples(stack)
        return all(now[name] == before[name] + 1 for name in settled.values()) and now

    after = wait_until(counted)
    tasks = 'ecm_task_seconds_count{state="SUCCESS",task="tasks.results.apply_result"}'
    assert after[tasks] > before[tasks]
    assert sum(value for name, value in after.items() if name.startswith("ecm_leases_open{")) >= 1
    assert 0 <= after["ecm_database_connections"] <= after["ecm_database_connections_limit"]
    assert (after["ecm_database_up"], after["ecm_broker_up"], after["ecm_leases_overdue"]) == (1, 1, 0)
    assert all(after[f'ecm_queue_workers{{queue="{queue}"}}'] == 1 for queue in ("results", "analysis", "housekeeping"))


def test_a_lease_that_runs_out_is_counted(stack, leased):
    before = samples(stack)["ecm_leases_expired_total"]
    overdue = "UPDATE work_assignments SET expires_at = now() - interval '1 minute' WHERE id = CAST(:id AS uuid)"
    stack.run_sql(overdue, id=leased["work_id"])
    wait_until(lambda: samples(stack)["ecm_leases_expired_total"] >= before + 1)


@pytest.mark.parametrize("unit", ["apply_batch", "apply_result"])
def test_one_id_leads_from_a_request_to_its_transactions(stack, unit):
    known = plain()
    stack.submit(known)
    body = plain(known["composite"]) if unit == "apply_batch" else claiming(plain(), 999)
    trace = os.urandom(8).hex()
    answer = stack.submit(body, X_Request_ID=trace)
    assert answer.headers["X-Request-ID"] == trace
    submission = answer.json()["submission_id"]

    def lines(program):
        text = re.sub(r"\x1b\[[0-9;]*m", "", (stack.home / "logs" / f"{program}.log").read_text(errors="replace"))
        return [line for line in text.splitlines() if trace in line]

    worker = wait_until(lambda: "Transaction committed" in str(now := lines("worker")) and now)
    (stored,) = [line for line in lines("web") if "Transaction committed" in line]
    assert "unit=receive_results" in stored
    applied = worker[-1]
    assert f"unit={unit}" in applied
    assert re.search(r"\bms=[0-9.]+", applied)
    if unit == "apply_result":
        assert f"submission={submission}" in applied
    # All of them are of one run.
    assert len({re.search(r"batch=(\S+)", line)[1] for line in worker}) == 1


def test_flower_asks_for_its_password_and_remembers(stack, tmp_path):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    settings = {"ECM_HOME": str(tmp_path), "REDIS_URL": valkey_url(stack.home), "FLOWER_PORT": str(port)}
    environment = child_environment() | settings | {"FLOWER_BASIC_AUTH": "ann:secret"}
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)

    def shows(name):
        try:
            answer = requests.get(f"{address}/api/{name}", auth=("ann", "secret"), timeout=5)
        except requests.ConnectionError:
            return None
        return answer.ok and answer.json()

    sent = []

    def shows_one_of_ours():
        # Flower answers a moment before it receives events: it may never show the first of these.
        sent.append(f"'submission_id': {stack.submit(plain()).json()['submission_id']},")
        shown = str(shows("tasks"))
        return next((words for words in sent if words in shown), None)

    def run():
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tasks.flower"], env=environment, stderr=subprocess.DEVNULL
        )

    first = run()
    try:
        wait_until(lambda: shows("tasks") is not None, 30)
        assert requests.get(f"{address}/api/tasks", timeout=5).status_code == 401
        assert requests.get(f"{address}/tasks", auth=("ann", "guess"), timeout=5).status_code == 401
        wanted = wait_until(shows_one_of_ours, pause=0.5)
    finally:
        first.send_signal(signal.SIGTERM)
        first.wait(20)
    second = run()
    try:
        assert wanted in str(wait_until(lambda: shows("tasks"), 30))
    finally:
        second.kill()
        second.wait(20)


def test_browsers_are_told_what_they_may_do(stack):
    viewer = stack.http.get(f"{stack.url}/docs/swagger", timeout=20)
    (scripts,) = re.findall("script-src ([^;]*)", viewer.headers["Content-Security-Policy"])
    assert re.fullmatch(r"'self' 'sha256-[^']+'", scripts)
    assert viewer.text.count("<script>") == 1
    for path in ("/docs/swagger", "/health", "/nowhere", "/api/v1/stats/15", "/metrics"):
        headers = stack.http.get(stack.url + path, timeout=20).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
