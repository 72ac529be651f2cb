"""One application on a real database, without workers: routes are asked through Flask's client, in this process."""

import itertools
import random

import fakeredis
import gmpy2
import pytest
from page_forms import PageBrowser
from pipeline import result, submit

from config.settings import Settings
from ingest.app import create_app
from models.engine import make_engine
from tasks import broker_circuit, publishing

ADMIN_KEY = "the operator's key"
_addresses = itertools.count(1)


def random_prime(digits: int) -> int:
    """A prime of about this many digits that no other test has."""
    return int(gmpy2.next_prime(random.randrange(10 ** (digits - 1), 10**digits - 10**6)))


@pytest.fixture(scope="session")
def engine(make_database):
    """An engine for the one database of these tests."""
    made = make_engine(make_database(), pool_size=4, pool_timeout=30)
    yield made
    made.dispose()


@pytest.fixture(scope="session")
def app(engine, tmp_path_factory):
    """The application, with a broker in memory."""
    broker = fakeredis.FakeRedis()
    with pytest.MonkeyPatch.context() as patch:
        # What belongs to a whole process is left as other tests found it.
        patch.setattr("ingest.app.process_engine", lambda *_: engine)
        patch.setattr("ingest.app.configure_logging", lambda *_: None)
        patch.setattr(publishing, "use_short_timeouts", lambda: None)
        settings = Settings(
            database_url="postgresql://unused",
            redis_url="redis://127.0.0.1:1/0",
            admin_api_key=ADMIN_KEY,
            default_wait=0,
            rate_limit_per_client="off",
            rate_limit_per_address="off",
            ecm_home=tmp_path_factory.mktemp("home"),
            max_body=1_000_000,
        )
        made = create_app(settings)
    made.config["BROKER"] = broker
    made.config["LIMITS"]._redis = broker
    return made


@pytest.fixture
def published(monkeypatch):
    """The tasks that were published meanwhile: (name, arguments)."""
    sent = []
    monkeypatch.setattr(broker_circuit, "_open_until", 0.0)
    monkeypatch.setattr(publishing.app, "send_task", lambda name, kwargs, **_: sent.append((name, kwargs)))
    return sent


@pytest.fixture
def client(app, published):
    """A program or a browser at an address of its own, without a session."""
    made = app.test_client()
    place = next(_addresses)
    made.environ_base["REMOTE_ADDR"] = f"127.0.{place // 250}.{place % 250 + 1}"
    return made


@pytest.fixture
def admin(client):
    """Asks a route of administration; `body` is sent as JSON, the rest in the query."""

    def ask(method, path, body=None, *, key=ADMIN_KEY, **query):
        headers = {} if key is None else {"X-Admin-Key": key}
        return client.open(f"/api/v1/admin{path}", method=method, json=body, query_string=query, headers=headers)

    return ask


@pytest.fixture
def refused():
    """Checks that an answer is a problem of this status and reason; returns its body."""

    def check(answer, status, reason):
        assert (answer.status_code, answer.mimetype) == (status, "application/problem+json"), answer.text
        assert answer.json["reason"] == reason, answer.text
        return answer.json

    return check


class KnownNumber:
    """A registered number of four primes that had one run of 100 curves."""

    def __init__(self, engine, **fields):
        self.primes = [random_prime(digits) for digits in (14, 20, 50, 70)]
        self.value = str(self.primes[0] * self.primes[1] * self.primes[2] * self.primes[3])
        row = submit(engine, result(self.value, sigma=f"1:{random.randrange(10**15)}", **fields))
        assert row.state == "applied", row
        self.id, self.attempt_id = row.composite_id, row.attempt_id


@pytest.fixture
def known(engine):
    return KnownNumber(engine)


@pytest.fixture
def rejected(engine, known):
    """The id of a submission that was rejected for a false claim beside a true factor."""
    row = submit(engine, result(known.value, str(known.primes[0]), "999983"))
    assert row.state == "rejected"
    return row.id


class ClientBrowser(PageBrowser):
    """A browser that sends its requests through Flask's client."""

    def __init__(self, client):
        self.client = client

    def get(self, path):
        return self.client.get(path, follow_redirects=True)

    def post(self, path, data, files):
        return self.client.post(path, data=data | (files or {}), follow_redirects=True)


@pytest.fixture
def stranger(client):
    return ClientBrowser(client)


@pytest.fixture
def browser(client):
    """A browser whose user has logged in."""
    made = ClientBrowser(client)
    answer = made.send("/admin/login", "/admin/login", key=ADMIN_KEY)
    assert answer.request.path == "/admin"
    return made
