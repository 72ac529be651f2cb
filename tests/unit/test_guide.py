"""The guide: built without a warning, complete in itself, and served where it has been built."""

import re

import pytest

from config.settings import Settings
from docs.__main__ import build, collect
from ingest.app import create_app
from models.engine import make_engine
from tasks import publishing

LOADED = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="([^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = tmp_path_factory.mktemp("guide")
    collect(root / "source")
    assert build(root / "source", root / "site") == 0, "see the warnings in what the test printed"
    return root / "site"


@pytest.fixture
def client(monkeypatch):
    # Nobody listens there.
    url = "postgresql://ecm@127.0.0.1:1/ecm"
    monkeypatch.setattr("ingest.app.process_engine", lambda *_: make_engine(url))
    monkeypatch.setattr("ingest.app.configure_logging", lambda *_: None)
    monkeypatch.setattr(publishing, "use_short_timeouts", lambda: None)
    return create_app(Settings(database_url=url, redis_url="redis://127.0.0.1:1/0")).test_client()


@pytest.fixture
def built(client, site):
    client.application.config["GUIDE"] = site
    return client


@pytest.fixture
def absent(client, tmp_path):
    client.application.config["GUIDE"] = tmp_path / "nothing"
    return client


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    loaded = {address for page in pages for address in LOADED.findall(page.read_text())}
    assert len(pages) > 10
    assert any(address.startswith("_static/") for address in loaded)
    assert [address for address in loaded if re.match(r"(\w+:)?//", address)] == []
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()) == []


def test_the_same_process_builds_it_twice(site, tmp_path):
    collect(tmp_path / "source")
    assert build(tmp_path / "source", tmp_path / "site") == 0
    assert (tmp_path / "site" / "operations.html").exists()


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path, capfd):
    collect(tmp_path / "source")
    with (tmp_path / "source" / "join.md").open("a") as page:
        page.write("\n[nothing](absent.md)\n")
    assert build(tmp_path / "source", tmp_path / "site") == 1
    assert "absent.md" in capfd.readouterr().err


def test_the_index_is_the_readme_and_the_menu_has_every_document(built):
    answer = built.get("/docs/guide/")
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    assert "Two commands" in answer.text
    for page in ("operations", "ops/README", "effort", "reference/settings", "contributing", "security"):
        assert f'href="{page}.html"' in answer.text
        assert built.get(f"/docs/guide/{page}.html").status_code == 200


def test_the_address_without_a_slash_leads_there(built):
    answer = built.get("/docs/guide")
    assert (answer.status_code, answer.headers["Location"]) == (308, "http://localhost/docs/guide/")


def test_every_page_may_run_its_own_scripts_and_no_others(built, site):
    for page in site.rglob("*.html"):
        answer = built.get(f"/docs/guide/{page.relative_to(site)}")
        policy = answer.headers["Content-Security-Policy"]
        inline = [text for text in re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL) if text.strip()]
        assert len(re.findall(r"'sha256-[^']+'", policy)) == len(inline) > 0
        assert re.search(r"script-src 'self'( 'sha256-[^']+')+;", policy)
        assert "default-src 'none'" in policy
        assert "http" not in policy
        # A 304 would bring a policy without hashes.
        assert "ETag" not in answer.headers


def test_files_beside_the_pages_are_served_and_cached(built, site):
    script = next((site / "_static" / "scripts").glob("*.js")).relative_to(site)
    answer = built.get(f"/docs/guide/{script}")
    assert answer.status_code == 200
    assert "max-age=300" in answer.headers["Cache-Control"]
    assert built.get(f"/docs/guide/{script}", headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


@pytest.mark.parametrize("path", ["nothing.html", "../app.py", "%2e%2e/app.py", "_static"])
def test_what_is_not_in_the_guide_is_not_served(built, path):
    answer = built.get(f"/docs/guide/{path}")
    assert answer.status_code == 404
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_pages_link_to_it_where_it_is_built(built):
    assert 'href="/docs/guide/"' in built.get("/queue").text


def test_pages_do_not_link_to_a_guide_that_is_absent(absent):
    assert "/docs/guide" not in absent.get("/queue").text


def test_without_a_guide_the_answer_says_how_to_build_it(absent):
    for path in ("/docs/guide/", "/docs/guide/operations.html"):
        answer = absent.get(path)
        assert (answer.status_code, answer.mimetype) == (404, "text/html")
        assert "make docs" in answer.text


def test_the_specifications_viewer_is_still_there(built):
    assert built.get("/docs").headers["Location"] == "/docs/swagger"
    assert built.get("/docs/swagger").status_code == 200
