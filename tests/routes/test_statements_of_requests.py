"""How many statements a request sends: each costs the web process and PostgreSQL more than anything else in it.

A test that fails here says that a statement was added to a frequent request. COMMIT and BEGIN are not counted.
"""

import re

import pytest
from pipeline import result, submit

API = "/api/v1"
CLIENT = {"client_id": "counted"}


@pytest.fixture
def statements(engine):
    """Returns a function that sends a request and returns its answer and the statements that it sent."""
    from sqlalchemy import event

    def count(ask, *arguments, **named):
        sent = []

        def note(connection, cursor, statement, *_):
            sent.append(statement)

        event.listen(engine, "before_cursor_execute", note)
        try:
            answer = ask(*arguments, **named)
        finally:
            event.remove(engine, "before_cursor_execute", note)
        assert answer.status_code == 200, answer.text
        return answer.json, [re.sub(r"\s+", " ", one)[:60] for one in sent]

    return count


@pytest.fixture
def lease(client, known):
    """Leases curves of a number, as volunteers do."""

    def make(**query):
        answer = client.get(f"{API}/ecm-work", query_string=CLIENT | {"composite": known.value, "shared": 1} | query)
        assert answer.json["work_id"], answer.text
        return answer.json["work_id"]

    return make


@pytest.fixture
def of_project(engine, known):
    """A number of the project `statements`."""
    submit(engine, result(known.value, project="statements", sigma=f"1:{known.id}"))


@pytest.mark.parametrize(
    ("query", "most"),
    [
        # The lock of the client, the target and its lock, what planning needs, the lease.
        ({"shared": 1}, 4),
        ({"shared": 1, "work_type": "best", "min_digits": 10, "priority": -1000}, 4),
        ({}, 4),
        # The project's id comes first.
        ({"shared": 1, "project": "statements"}, 5),
        # What matches the request, and when the next lease ends.
        ({"shared": 1, "min_digits": 40_000}, 4),
    ],
)
@pytest.mark.usefixtures("of_project")
def test_a_claim(client, statements, query, most):
    answer, sent = statements(client.get, f"{API}/ecm-work", query_string=CLIENT | query)
    assert (answer["work_id"] is None) == ("min_digits" in query and query["min_digits"] > 1000)
    assert len(sent) <= most, sent


def test_a_claim_of_p1_work(client, known, statements):
    answer, sent = statements(client.get, f"{API}/p1-work", query_string=CLIENT | {"method": "p1"})
    assert answer["work_id"]
    assert len(sent) <= 4, sent


@pytest.mark.parametrize("state", ["claim", "start"])
def test_a_change_of_state(client, lease, statements, state):
    _, sent = statements(client.post, f"{API}/work/{lease()}/{state}", query_string=CLIENT)
    assert len(sent) == 1, sent


def test_a_heartbeat(client, lease, statements):
    work = f"{API}/work/{lease()}"
    _, sent = statements(client.put, f"{work}/progress", query_string=CLIENT | {"curves_completed": 1})
    assert len(sent) == 1, sent
    client.post(f"{work}/complete", query_string=CLIENT)
    # Of a closed lease, the state is read.
    _, sent = statements(client.put, f"{work}/progress", query_string=CLIENT | {"curves_completed": 2})
    assert len(sent) == 2, sent


def test_the_completion_of_a_lease(client, lease, statements):
    work = f"{API}/work/{lease()}"
    # The target and its lock, the lease, the eligibility of the target.
    _, sent = statements(client.post, f"{work}/complete", query_string=CLIENT)
    assert len(sent) == 3, sent
    _, sent = statements(client.post, f"{work}/complete", query_string=CLIENT)
    assert len(sent) == 2, sent


def test_a_lease_that_is_given_up(client, lease, statements):
    # One more: who else gave the number up.
    _, sent = statements(client.delete, f"{API}/work/{lease()}", query_string=CLIENT)
    assert len(sent) == 4, sent


def test_the_leases_of_a_client(client, lease, statements):
    lease()
    answer, sent = statements(client.get, f"{API}/work/status/counted")
    assert answer["assignments"]
    assert len(sent) == 1, sent
