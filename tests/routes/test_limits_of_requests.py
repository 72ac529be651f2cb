"""What a request counts for: the client in whose name it acts, and each result of a batch."""

import json
from itertools import count

import fakeredis
import pytest
from pipeline import result, scalar

from config.settings import Settings
from ingest import rate_limits
from tasks import broker_circuit

API = "/api/v1"
_names = count()


@pytest.fixture
def limited(app, monkeypatch):
    """Sets the limits of the application."""
    monkeypatch.setattr(broker_circuit, "_open_until", 0.0)
    monkeypatch.setattr(rate_limits, "time", lambda: 1_000_000.0)

    def set_limits(client="off", address="off"):
        settings = Settings(
            redis_url="redis://unused", rate_limit_per_client=client, rate_limit_per_address=address, web_processes=1
        )
        made = rate_limits.Counters(settings)
        made._redis = fakeredis.FakeRedis()
        monkeypatch.setitem(app.config, "LIMITS", made)

    return set_limits


@pytest.fixture
def name():
    return f"flood-{next(_names)}"


def body(name, sigma):
    return result("2^1277-1", client=name, sigma=f"1:{sigma + 100}", curves=1)


def as_array(bodies):
    return {"json": bodies}


def as_lines(bodies):
    return {"data": "\n".join(map(json.dumps, bodies)), "content_type": "application/x-ndjson"}


def stored(engine, name):
    return scalar(engine, "SELECT count(*) FROM submissions WHERE client_id = :name", name=name)


@pytest.mark.parametrize(("form", "size"), [(as_array, 2), (as_array, 5), (as_lines, 2), (as_lines, 5)])
def test_a_batch_counts_its_results_for_their_client(client, limited, engine, form, size):
    name = f"flood-{next(_names)}"
    limited(client="5/minute")
    answers = []
    for turn in range(15):
        bodies = [body(name, turn * size + place) for place in range(size)]
        answers.append(client.post(f"{API}/submit_results", query_string={"client_id": f"other{turn}"}, **form(bodies)))
    taken = 5 // size
    assert [answer.status_code for answer in answers] == [200] * taken + [429] * (15 - taken)
    assert stored(engine, name) == taken * size
    assert answers[0].headers["RateLimit-Remaining"] == str(5 - size)


def test_a_batch_beyond_the_limit_says_how_many_results_have_room(client, limited, refused, name):
    limited(client="5/minute")
    client.post(f"{API}/submit_results", json=[body(name, 0), body(name, 1)])
    answer = client.post(f"{API}/submit_results", json=[body(name, sigma) for sigma in range(4)])
    detail = refused(answer, 429, "too_many_requests")["detail"]
    assert detail.startswith("4 results count as 4 requests, and 3 of 5 are left; send fewer at a time, or again in ")
    assert answer.headers["Retry-After"] == answer.headers["RateLimit-Reset"]


@pytest.mark.parametrize(
    "others",
    [
        lambda turn: {"query_string": {"client_id": f"other{turn}"}},
        lambda turn: {"headers": {"X-Client-ID": f"other{turn}"}},
        lambda turn: {},
    ],
)
def test_a_result_counts_for_the_client_that_it_names(client, limited, engine, name, others):
    limited(client="5/minute")
    answers = [client.post(f"{API}/submit_result", json=body(name, turn), **others(turn)) for turn in range(15)]
    assert [answer.status_code for answer in answers] == [202] * 5 + [429] * 10
    assert stored(engine, name) == 5


def test_work_on_residues_counts_for_the_client_of_the_header(client, limited, name):
    limited(client="5/minute")
    headers = {"X-Client-ID": name}
    answers = [
        client.get(f"{API}/residues/work", query_string={"client_id": f"other{turn}"}, headers=headers)
        for turn in range(7)
    ]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2


def test_a_lease_counts_for_the_client_that_gets_it(client, limited, name):
    limited(client="5/minute")
    asked = [("client_id", name), ("client_id", "other"), ("min_digits", "49000")]
    answers = [
        client.get(f"{API}/ecm-work", query_string=asked, headers={"X-Client-ID": f"other{turn}"}) for turn in range(7)
    ]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2


def test_a_batch_counts_its_results_for_the_address_also_those_that_are_invalid(client, limited, engine, name):
    limited(address="10/minute")
    bodies = [body(name, 0), *[{"client_id": name}] * 6]
    assert client.post(f"{API}/submit_results", json=bodies).status_code == 200
    answer = client.post(f"{API}/submit_results", json=[body(name, sigma) for sigma in range(1, 5)])
    assert answer.status_code == 429
    assert stored(engine, name) == 1


def test_a_batch_counts_for_no_client_if_one_of_them_has_no_room(client, limited, engine, name):
    limited(client="5/minute")
    mixed = [body(name, 0), body(name, 1), *(body(f"{name}-b", sigma) for sigma in range(6))]
    assert client.post(f"{API}/submit_results", json=mixed).status_code == 429
    assert stored(engine, name) == stored(engine, f"{name}-b") == 0
    assert client.post(f"{API}/submit_results", json=[body(name, 10 + sigma) for sigma in range(5)]).status_code == 200
