"""Two agents work while one of them and then the server are killed and restarted: the outcome is the same."""

import os
import signal
import subprocess
import sys

import pytest
import requests
from stacks import wait_until

from ingest.commands.demo import read_composites, stop_agent

pytestmark = pytest.mark.stack


@pytest.fixture
def agents(tmp_path):
    """Starts `agent work` under a name, with its own spool; all agents stop after the test."""
    started = {}

    def start(stack, name):
        with (tmp_path / f"{name}.log").open("ab") as log:
            program = "from ingest.cli import main; main()"
            started[name] = subprocess.Popen(
                [
                    *(sys.executable, "-c", program, "agent", "work", "--server", stack.url, "--name", name),
                    *("--threads", "1", "--spool", str(tmp_path / name), "--work-type", "progressive"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"NO_COLOR": "1"},
            )
        return started[name]

    def stop():
        for agent in started.values():
            if agent.poll() is None:
                stop_agent(agent)

    start.log, start.stop = lambda name: (tmp_path / f"{name}.log").read_text(), stop
    yield start
    stop()


def count_finished(stack):
    return stack.scalar("SELECT count(*) FROM composites WHERE is_fully_factored")


def test_a_killed_agent_and_a_restarted_server_lose_no_curve_and_count_none_twice(make_stack, agents):
    stack = make_stack("--no-flower", LEASE_TARGET_MINUTES="0.02")
    numbers = [number for number, _ in read_composites()]
    for number in numbers:
        body = {"client_id": "demo", "composite": number, "parameters": {"b1": 100, "curves": 0}}
        assert stack.submit(body).status_code == 200
    ada, bob = agents(stack, "ada"), agents(stack, "bob")

    wait_until(lambda: count_finished(stack) >= 2, 60)
    ada.send_signal(signal.SIGKILL)
    ada.wait()
    # Ada will resume her own work; meanwhile the whole server dies.
    stack.process.send_signal(signal.SIGKILL)
    stack.process.wait()
    with pytest.raises(requests.ConnectionError):
        wait_until(lambda: not stack.get("/health"), 20)
    agents(stack, "ada")
    stack.start()
    wait_until(lambda: count_finished(stack) == len(numbers), 120)
    assert bob.poll() is None, agents.log("bob")
    agents.stop()  # their last results may still wait in the inbox

    # A curve may find the product of two factors: factors that were split are left out.
    primes = stack.rows(
        "SELECT c.number, f.factor FROM factors f JOIN composites c ON c.id = f.composite_id"
        " WHERE NOT EXISTS (SELECT FROM factors below WHERE below.split_from_id = f.id)"
    )
    product = dict.fromkeys(numbers, 1)
    for number, factor in primes:
        product[number] *= int(factor)
    assert all(product[number] == int(number) for number in numbers)
    wait_until(lambda: stack.unsettled() == 0)
    sent = stack.rows("SELECT state, count(*) FROM submissions GROUP BY state")
    assert [state for state, _ in sent] == ["applied"], sent
    # No curve is counted twice, and no curve that was sent is lost.
    counted = stack.scalar("SELECT sum(curves) FROM value_effort")
    assert counted == stack.scalar(
        "SELECT sum(coalesce((payload->'results'->>'curves_completed')::int, 0)) FROM submissions"
    )
    sigmas = stack.rows("SELECT composite_id, sigma FROM ecm_attempts WHERE sigma IS NOT NULL")
    assert len(sigmas) == len(set(sigmas))
    stack.assert_sound()
