"""The guide in a browser: its policy blocks nothing, it loads nothing from other hosts, and it fits a phone."""

from threading import Thread

import pytest
from browsers import skip_without_browser
from werkzeug.serving import make_server

from config.settings import Settings
from docs.__main__ import build, collect
from ingest.app import create_app
from models.engine import make_engine
from tasks import publishing

skip_without_browser()
pytestmark = pytest.mark.browser

PAGES = ("", "operations.html", "reference/commands.html", "reference/settings.html", "reference/api.html")


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """The address of a freshly built guide, served by the application; no database is needed for it."""
    root = tmp_path_factory.mktemp("guide")
    collect(root / "source")
    assert build(root / "source", root / "site") == 0
    url = "postgresql://ecm@127.0.0.1:1/ecm"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.app.process_engine", lambda *_: make_engine(url))
        patch.setattr("ingest.app.configure_logging", lambda *_: None)
        patch.setattr(publishing, "use_short_timeouts", lambda: None)
        app = create_app(Settings(database_url=url, redis_url="redis://127.0.0.1:1/0"))
    app.config["GUIDE"] = root / "site"
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.port}/docs/guide/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def reader(chromium, guide, width):
    """A window; an error that the browser reports, or a request to another host, fails the test."""
    wrong = []
    window = chromium.new_page(viewport=width)
    window.on("console", lambda message: wrong.append(message.text))
    window.on("pageerror", lambda error: wrong.append(str(error)))
    window.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    window.on("response", lambda answer: answer.status < 400 or wrong.append(f"{answer.status}: {answer.url}"))
    window.on("request", lambda request: request.url.startswith((guide, "data:")) or wrong.append(request.url))
    yield window
    window.close()
    assert wrong == []


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_whole_and_fits(reader, guide, width, path):
    reader.goto(guide + path, wait_until="networkidle")
    assert reader.locator("h1").count() >= 1
    # The theme's inline script has run, and its stylesheet is in effect.
    assert reader.evaluate("document.body.dataset.theme") == "auto"
    assert reader.evaluate("document.documentElement.scrollWidth") <= width["width"]


def test_the_search_finds_a_word_without_a_server(reader, guide):
    reader.goto(f"{guide}search.html?q=housekeeping")
    # The results appear one after the other.
    reader.locator("ul.search li a", has_text="Operations").first.wait_for()
