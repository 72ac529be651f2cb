"""The time and size of pages, with a million numbers and a history of ten million attempts.

Flask's test client requests each page from the application, with an embedded PostgreSQL and an embedded Valkey: all the
work of a web process without HTTP. The session is an operator's, who sees the longest pages. For every page the
benchmark gives the p50 and the slowest of REPEATS requests after a first one, and the bytes that a browser with an
empty cache loads, uncompressed: the page and its files.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from urllib.parse import quote

from flask.testing import FlaskClient
from rich.table import Table

from bench import history, reading
from bench.claims import PROJECT
from config.local.postgres import start_postgres
from config.local.valkey import start_valkey
from config.logging import configure_logging
from config.settings import Settings
from ingest.app import create_app, freeze_loaded_objects
from models.engine import make_engine
from models.migrate import upgrade

HISTORY = history.History(
    numbers=1_000_000,
    attempts=10_000_000,
    busy=500_000,
    busy_attempts=100_000,
    split=333_334,
    split_factors=10_000,
    longest_digits=50_000,
)
FACTORS = 200_000
REPEATS = 15
AIM_MS, AIM_BYTES = 100, 200_000
LOG_LEVEL = "ERROR"
ADMIN_KEY = "an operator's"
DEEP = 100  # how many pages of `numbers` come before the deep one

PAGES = {
    "start": "/",
    "numbers": "/numbers",
    "numbers by digits, largest first": "/numbers?sort=digits&descending=true",
    "numbers by t-level": "/numbers?sort=t_level",
    "numbers by progress, nearest first": "/numbers?sort=progress&descending=true",
    "numbers by priority": "/numbers?sort=priority&descending=true",
    "composite, 150-152 digits, by progress": "/numbers?state=composite&min_digits=150&max_digits=152&sort=progress",
    "prime (none), by digits": "/numbers?state=prime&sort=digits",
    "t-level 20-21, priority 6, by digits": "/numbers?min_t_level=20&max_t_level=21&min_priority=6&sort=digits",
    "nothing passes": "/numbers?min_digits=249&max_t_level=0&min_progress=0.5",
    "a project of 1 %, by progress": f"/numbers?project={quote(PROJECT)}&sort=progress",
    "a project of everything, by digits": "/numbers?project=everything&sort=digits",
    "search: its value": f"/numbers?text=1{12345:012d}{'7' * 140}",
    "search: beginning with 10000001": "/numbers?text=10000001&sort=digits",
    "search: beginning with 1": "/numbers?text=1&sort=progress",
    "factors, newest first": "/factors",
    "factors, largest first": "/factors?order=largest",
    "a client's factors": "/factors?client_id=client-7",
    "a client's largest factors": "/factors?client_id=client-7&order=largest",
    "a project's factors": f"/factors?project={quote(PROJECT)}",
    "clients": "/clients",
    "clients, 250": "/clients?limit=250",
    "projects": "/projects",
    "queue": "/queue",
    "administration": "/admin",
    "leases and numbers kept from work": "/admin/work",
    "dead letters": "/admin/letters",
}


@contextmanager
def application(history_: history.History = HISTORY, factors: int = FACTORS) -> Iterator[FlaskClient]:
    """A client of the application on a database with this history; everything is removed at the end."""
    configure_logging("console", LOG_LEVEL)
    with tempfile.TemporaryDirectory(prefix="ecm-pages-", ignore_cleanup_errors=True) as home:
        # Not durable, because loading is not measured.
        database = start_postgres(Path(home), durable=False)
        broker = start_valkey(Path(home))
        try:
            upgrade(database.url)
            engine = make_engine(database.url)
            reading.fill(engine, history_.numbers, factors)
            history.fill(engine, history_)
            engine.dispose()
            yield client(database.url, broker.url)
        finally:
            broker.stop()
            database.stop()


def client(database_url: str, broker_url: str) -> FlaskClient:
    """A client with an operator's session of an application that is made as a web process makes it."""
    settings = Settings(
        database_url=database_url,
        redis_url=broker_url,
        rate_limit_per_address="off",
        log_level=LOG_LEVEL,
        admin_api_key=ADMIN_KEY,
    )
    app = create_app(settings)
    freeze_loaded_objects()
    browser = app.test_client()
    token = re.search(r'name="csrf_token" value="([^"]+)"', _get(browser, "/admin/login").decode())
    if token is None:
        raise RuntimeError("the login page has no CSRF token")
    browser.post("/admin/login", data={"csrf_token": token[1], "key": ADMIN_KEY})
    _get(browser, "/admin")
    return browser


def measure() -> dict[str, dict[str, float]]:
    """The p50 and the slowest request in milliseconds, and the bytes that a browser loads, by page."""
    with application() as browser:
        return measure_pages(browser, HISTORY)


def measure_pages(browser: FlaskClient, filled: history.History) -> dict[str, dict[str, float]]:
    """As `measure`, on an application with this history."""
    pages = {
        **PAGES,
        "numbers by digits, a page deep inside": _deep(browser),
        f"number: {filled.busy_attempts:,} attempts": f"/numbers/{filled.busy}",
        f"number: {filled.split_factors:,} factors": f"/numbers/{filled.split}",
        f"number: {filled.longest_digits:,} digits": f"/numbers/{filled.longest}",
        "number: any": f"/numbers/{filled.numbers // 7}",
    }
    return {name: _measure_page(browser, path) for name, path in pages.items()}


def _deep(browser: FlaskClient) -> str:
    path = "/numbers?sort=digits"
    for _ in range(DEEP):
        onward = re.search(r'<a class="next" href="([^"]+)"', _get(browser, path).decode())
        if onward is None:
            break
        path = onward[1].replace("&amp;", "&")
    return path


def _get(browser: FlaskClient, path: str) -> bytes:
    answer = browser.get(path)
    if answer.status_code != 200:
        raise RuntimeError(f"{path} was answered with {answer.status}: {answer.text[:200]}")
    data: bytes = answer.data
    return data


def _measure_page(browser: FlaskClient, path: str) -> dict[str, float]:
    page = _get(browser, path)  # the first one fills the caches
    loaded = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.decode())
    size = len(page) + sum(len(_get(browser, name)) for name in set(loaded))
    seconds = []
    for _ in range(REPEATS):
        began = perf_counter()
        _get(browser, path)
        seconds.append(perf_counter() - began)
    return {"p50_ms": round(1000 * median(seconds), 1), "slowest_ms": round(1000 * max(seconds), 1), "bytes": size}


def as_table(figures: dict[str, dict[str, float]]) -> Table:
    """The figures for a terminal; pages above an aim are marked."""
    table = Table(
        title=f"Pages, with {HISTORY.numbers:,} numbers and {HISTORY.attempts:,} attempts "
        f"(aim: {AIM_MS} ms, {AIM_BYTES // 1000} KB)"
    )
    for heading in ("page", "KB", "p50, ms", "slowest, ms", ""):
        table.add_column(heading, justify="left" if heading == "page" else "right")
    for name, row in figures.items():
        above = row["slowest_ms"] > AIM_MS or row["bytes"] > AIM_BYTES
        kilobytes = f"{row['bytes'] / 1000:.0f}"
        table.add_row(name, kilobytes, f"{row['p50_ms']:.1f}", f"{row['slowest_ms']:.1f}", "above" if above else "")
    return table
