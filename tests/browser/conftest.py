"""A real browser, Debian's chromium, and a coordinator with the results of a real agent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bodies import SCRIPT
from browsers import PROGRAM
from stacks import Stack, wait_until

from ingest.commands.demo import read_composites

WIDTHS = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
# The machine may be slow, because it also runs the other tests.
TIMEOUT_MS = 30_000


@pytest.fixture(scope="session")
def chromium():
    """The browser; one for all tests of a pytest process."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=TIMEOUT_MS)

    with sync_playwright() as playwright:
        # As root, chromium has no sandbox; /dev/shm is small in containers.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def stack(chromium, tmp_path_factory):
    """A coordinator with the demonstration's numbers, some factored by `agent work`, and results with hostile texts."""
    running = Stack(tmp_path_factory.mktemp("pages") / "home", "--no-flower", LEASE_TARGET_MINUTES="0.02")
    try:
        running.start()
        fill_with_results(running, tmp_path_factory.mktemp("spool"))
        yield running
    finally:
        running.stop()


def fill_with_results(stack: Stack, spool: Path) -> None:
    numbers = [number for number, _ in read_composites()]
    for number in numbers:
        body = {"client_id": SCRIPT, "composite": number, "parameters": {"b1": 100}, "project": "demonstration"}
        body |= {"results": {"curves_completed": 1}, "program": SCRIPT, "raw_output": SCRIPT}
        assert stack.submit(body).status_code == 200
    refused = {"client_id": SCRIPT, "composite": numbers[0], "parameters": {"b1": 100}}
    refused["results"] = {"factor_found": "999983", "curves_completed": 1}
    assert stack.submit(refused).status_code == 400
    program = "from ingest.cli import main; main()"
    agent = [sys.executable, "-c", program, "agent", "work", "--server", stack.url, "--name", "ada"]
    options = ["--threads", "2", "--spool", str(spool), "--max-leases", "4", "--work-type", "progressive"]
    finished = "SELECT count(*) FROM composites WHERE is_fully_factored"
    for _ in range(20):
        subprocess.run([*agent, *options], check=True, env=os.environ | {"NO_COLOR": "1"}, stdout=subprocess.DEVNULL)
        if stack.scalar(finished):
            break
    # Client statistics include only older results, so this moves all results an hour back.
    stack.run_sql("UPDATE ecm_attempts SET created_at = created_at - interval '1 hour'")
    stack.run_sql("UPDATE factors SET created_at = created_at - interval '1 hour'")
    stack.run_sql("DELETE FROM watermarks")
    wait_until(lambda: stack.scalar("SELECT sum(results) FROM client_hourly_stats") is not None, 30)


@pytest.fixture(params=WIDTHS)
def width(request):
    """The size of the window, on a desktop and on a phone."""
    return WIDTHS[request.param]


@pytest.fixture
def page(chromium, stack):
    """A window of desktop size; any error that the browser reports fails the test."""
    yield from open_window(chromium, stack, WIDTHS["desktop"])


@pytest.fixture
def any_page(chromium, stack, width):
    """A window, once of desktop and once of phone size."""
    yield from open_window(chromium, stack, width)


def open_window(chromium, stack, viewport):
    context = chromium.new_context(viewport=viewport, base_url=stack.url)
    context.set_default_timeout(TIMEOUT_MS)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened, complaints = context.new_page(), []
    opened.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    # Leaving a page aborts its requests; that is not an error.
    opened.on(
        "requestfailed", lambda lost: "ABORTED" in lost.failure or complaints.append(f"{lost.url}: {lost.failure}")
    )
    opened.expected = []
    yield opened
    unexpected = [complaint for complaint in complaints if not any(words in complaint for words in opened.expected)]
    context.close()
    assert unexpected == []
