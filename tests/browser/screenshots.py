"""`make screenshots`: the pictures in docs/screenshots, of the main pages on a desktop and on a phone.

The numbers and the agent's work are real; results are spread over two days, so that charts have something to show.
"""

import io
import random
import subprocess
import sys
from pathlib import Path

import pytest
from browsers import skip_without_browser
from conftest import WIDTHS
from PIL import Image
from stacks import Stack, wait_until

from ingest.commands.demo import read_composites

skip_without_browser()
PICTURES = Path(__file__).parents[2] / "docs" / "screenshots"
LARGE = ("2^1277-1", "10^323-1", "2^1619-1", "3^607-1", "7^373-1", "12^281-1", "5^457-1", "2^1237+1")
CLIENTS = ("ada", "bob", "grace", "heidi", "ivan")
COLOURS = 96


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A coordinator with results that are spread over two days."""
    chance = random.Random(1985)
    running = Stack(tmp_path_factory.mktemp("shown") / "home", "--no-flower", LEASE_TARGET_MINUTES="0.02")
    try:
        running.start()
        for number, _ in read_composites():
            body = {"client_id": "ada", "composite": number, "parameters": {"b1": 100}, "project": "demonstration"}
            assert running.submit(body | {"results": {"curves_completed": 1}}).status_code == 200
        for place in range(240):
            client, b1 = chance.choice(CLIENTS), chance.choice([250_000, 1_000_000, 3_000_000, 11_000_000])
            body = {"client_id": client, "composite": chance.choice(LARGE), "project": "Cunningham"}
            body |= {"parameters": {"b1": b1, "sigma": f"1:{place + 1000}"}, "program": "gmp-ecm"}
            body["results"] = {"curves_completed": chance.randrange(20, 400), "execution_time": b1 / 1000}
            assert running.submit(body | {"program_version": "7.0.7"}).status_code == 200
        wrong = {"client_id": "ivan", "composite": "2^1277-1", "parameters": {"b1": 11000}}
        assert running.submit(wrong | {"results": {"factor_found": "999983"}}).status_code == 400
        agent = [sys.executable, "-c", "from ingest.cli import main; main()", "agent", "work", "--server", running.url]
        options = ["--name", "bob", "--spool", str(tmp_path_factory.mktemp("spool")), "--max-leases", "9"]
        subprocess.run([*agent, *options, "--project", "demonstration"], check=True, stdout=subprocess.DEVNULL)
        running.run_sql("UPDATE ecm_attempts SET created_at = now() - (0.1 + 47 * random()) * interval '1 hour'")
        running.run_sql("UPDATE factors SET created_at = now() - (0.1 + 47 * random()) * interval '1 hour'")
        running.run_sql("DELETE FROM watermarks")
        wait_until(lambda: running.scalar("SELECT sum(results) FROM client_hourly_stats") is not None, 30)
        yield running
    finally:
        running.stop()


def test_pictures(chromium, shown):
    number = shown.scalar("SELECT id FROM composites WHERE number = '2^1277-1'")
    factored = shown.scalar("SELECT id FROM composites WHERE is_fully_factored ORDER BY id LIMIT 1")
    pages = {"overview": "/", "numbers": "/numbers?sort=progress&descending=true", "number": f"/numbers/{number}"}
    pages |= {"factored": f"/numbers/{factored}", "factors": "/factors", "clients": "/clients", "queue": "/queue"}
    PICTURES.mkdir(exist_ok=True)
    for width, viewport in WIDTHS.items():
        page = chromium.new_context(viewport=viewport, base_url=shown.url).new_page()
        for name, path in pages.items():
            take(page, path, f"{name}-{width}", viewport | ({"height": 1300} if name == "number" else {}))
        page.goto("/admin")
        page.get_by_label("Admin key").fill((shown.home / "admin.key").read_text().strip())
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("button", name="Log out").wait_for()
        take(page, "/admin/load", f"load-{width}", viewport)
        page.context.close()


def take(page, path, name, viewport):
    page.set_viewport_size(viewport)
    page.goto(path)
    whole = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    whole.quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURES / f"{name}.png", optimize=True)
