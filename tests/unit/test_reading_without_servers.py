"""Routes that only read: their answers while the database is away, and the numbers that they refuse to compute."""

import pytest

from config.settings import Settings
from coordinator.reading import health_queries
from ingest.app import create_app
from models.engine import make_engine
from tasks import publishing

NOWHERE = "postgresql://operator:secret@/ecm?host=/nowhere/at-all"


@pytest.fixture
def client(monkeypatch):
    """The app with neither database nor broker."""
    engine = make_engine(NOWHERE)
    # These settings belong to the whole process, which other tests share.
    monkeypatch.setattr("ingest.app.process_engine", lambda *_: engine)
    monkeypatch.setattr("ingest.app.configure_logging", lambda *_: None)
    monkeypatch.setattr(publishing, "use_short_timeouts", lambda: None)
    settings = Settings(database_url=NOWHERE, redis_url="redis://127.0.0.1:1/0", database_timeout=0)
    return create_app(settings).test_client()


def problem(answer, status, reason):
    assert (answer.status_code, answer.json["status"], answer.json["reason"]) == (status, status, reason)
    assert answer.content_type == "application/problem+json"
    return answer.json["detail"]


def hides_the_servers(answer):
    return not any(word in answer.text for word in ("nowhere", "operator", "secret", "127.0.0.1", "refused"))


# Without the database ----------------------------------------------------------------------------------------------


def test_ready_is_a_problem_while_the_database_is_away(client):
    answer = client.get("/ready")
    assert "does not answer" in problem(answer, 503, "database_away")
    assert answer.headers["Retry-After"] == "5"
    assert hides_the_servers(answer)


def test_ready_is_a_problem_while_the_schema_is_another_versions(client, monkeypatch):
    monkeypatch.setattr(health_queries, "schema_revision", lambda _: "0000")
    answer = client.get("/ready")
    detail = problem(answer, 503, "schema_outdated")
    assert "0000" in detail
    assert "ecm-coordinator migrate" in detail
    assert answer.headers["Retry-After"] == "5"


def test_status_names_the_parts_that_do_not_answer_without_their_addresses(client):
    answer = client.get("/status")
    assert (answer.status_code, answer.json["status"]) == (503, "degraded")
    assert answer.headers["Retry-After"] == "5"
    assert answer.json["database"] == {"ok": False, "detail": "the database does not answer"}
    assert answer.json["broker"] == {"ok": False, "detail": "the broker does not answer"}
    assert hides_the_servers(answer)


def test_only_a_request_that_sends_something_is_told_that_nothing_was_stored(client):
    for path in ("/stats/15", "/submissions/1"):
        answer = client.get(f"/api/v1{path}")
        detail = problem(answer, 503, "database_away")
        assert "stored" not in detail
        assert "Ask again in 5 seconds" in detail
    body = {"client_id": "alice", "composite": "15", "parameters": {"b1": 50_000}}
    answer = client.post("/api/v1/submit_result", json=body)
    assert "nothing was stored" in problem(answer, 503, "database_away")
    assert answer.headers["Retry-After"] == "5"


# Numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("007", "malformed_number"),
        ("\u0661\u0662", "malformed_number"),
        ("1", "number_is_one"),
        ("0", "not_positive"),
        ("9^9^9^9", "number_too_large"),
        ("2^4-16", "not_positive"),
    ],
)
def test_a_malformed_number_is_refused_before_the_database_is_asked(client, written, reason):
    problem(client.get(f"/api/v1/stats/{written}"), 422, reason)


def test_expressions_too_long_to_be_computed_for_an_answer_are_refused(client):
    written = "+".join(["3^9000"] * 300)
    detail = problem(client.get(f"/api/v1/stats/{written}"), 422, "number_too_large")
    assert f"{len(written)} characters" in detail
    assert "decimal" in detail
    # Plain digits need no computation, and a short expression is computed; both are searched in the database.
    for allowed in ("9" * 5000, "+".join(["3^9000"] * 143)):
        problem(client.get(f"/api/v1/stats/{allowed}"), 503, "database_away")


def test_the_specification_documents_429_where_requests_are_counted(client):
    paths = client.get("/openapi.json").json["paths"]
    for path, views in paths.items():
        for view in views.values():
            # Load balancers ask for /health all the time; those requests are not counted.
            is_counted = path.startswith("/api/v1/") and path != "/api/v1/health"
            assert ("429" in view["responses"]) == is_counted, path
