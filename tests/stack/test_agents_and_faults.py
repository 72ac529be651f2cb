"""Two agents at work while one is killed and the server dies and comes back: the outcome is the same."""

import os
import signal
import subprocess
import sys

import pytest
import requests
from stacks import until

from ingest.commands.demo import read_composites, stop_agent

pytestmark = pytest.mark.stack


@pytest.fixture
def agents(tmp_path):
    """Starts `agent work` under a name, with a spool of its own; all are stopped in the end."""
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


def finished(stack):
    return stack.scalar("SELECT count(*) FROM composites WHERE is_fully_factored")


def test_a_killed_agent_and_a_server_that_comes_back_change_nothing(make_stack, agents):
    stack = make_stack("--no-flower", LEASE_TARGET_MINUTES="0.02")
    numbers = [number for number, _ in read_composites()]
    for number in numbers:
        body = {"client_id": "demo", "composite": number, "parameters": {"b1": 100, "curves": 0}}
        assert stack.submit(body).status_code == 200
    ada, bob = agents(stack, "ada"), agents(stack, "bob")

    until(lambda: finished(stack) >= 2, 60)
    ada.send_signal(signal.SIGKILL)
    ada.wait()
    # What ada had under way is hers to take up; meanwhile the whole server dies.
    stack.process.send_signal(signal.SIGKILL)
    stack.process.wait()
    with pytest.raises(requests.ConnectionError):
        until(lambda: not stack.get("/health"), 20)
    agents(stack, "ada")
    stack.start()
    until(lambda: finished(stack) == len(numbers), 120)
    assert bob.poll() is None, agents.log("bob")
    agents.stop()  # whose last results may still be on their way

    # A curve may find two at once: those that were split into others are left out.
    primes = stack.rows(
        "SELECT c.number, f.factor FROM factors f JOIN composites c ON c.id = f.composite_id"
        " WHERE NOT EXISTS (SELECT FROM factors below WHERE below.split_from_id = f.id)"
    )
    product = dict.fromkeys(numbers, 1)
    for number, factor in primes:
        product[number] *= int(factor)
    assert all(product[number] == int(number) for number in numbers)
    until(lambda: stack.unsettled() == 0)
    sent = stack.rows("SELECT state, count(*) FROM submissions GROUP BY state")
    assert [state for state, _ in sent] == ["applied"], sent
    # No curve is counted twice, none of those that were sent is lost.
    counted = stack.scalar("SELECT sum(curves) FROM composite_effort")
    assert counted == stack.scalar(
        "SELECT sum(coalesce((payload->'results'->>'curves_completed')::int, 0)) FROM submissions"
    )
    sigmas = stack.rows("SELECT composite_id, sigma FROM ecm_attempts WHERE sigma IS NOT NULL")
    assert len(sigmas) == len(set(sigmas))
    stack.assert_sound()
