"""Routes of administration for numbers, factors, attempts, projects and recalculation: success, unknown, invalid."""

from datetime import UTC, datetime, timedelta

import pytest
from pipeline import assert_sound, result, rows, scalar, submit

UNKNOWN = 2**62


def events(engine, target):
    found = rows(
        engine, "SELECT actor, action, request_id FROM admin_events WHERE target = :target ORDER BY id", target=target
    )
    assert all(row.actor == "admin" and row.request_id for row in found)
    return [row.action for row in found]


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        ("GET", "/composites/{}", "unknown_composite"),
        ("DELETE", "/composites/{}", "unknown_composite"),
        ("PUT", "/composites/{}/priority?priority=1", "unknown_composite"),
        ("POST", "/composites/{}/complete", "unknown_composite"),
        ("POST", "/composites/{}/recalculate-t-level", "unknown_composite"),
        ("POST", "/composites/{}/pause", "unknown_composite"),
        ("POST", "/composites/{}/resume", "unknown_composite"),
        ("DELETE", "/factors/{}", "unknown_factor"),
        ("DELETE", "/attempts/{}", "unknown_attempt"),
        ("DELETE", "/projects/{}", "unknown_project"),
        ("DELETE", "/projects/by-name/{}", "unknown_project"),
        ("POST", "/submissions/{}/retry", "unknown_submission"),
        ("DELETE", "/residues/{}", "unknown_residue"),
        ("DELETE", "/residues/{}/release", "unknown_residue"),
    ],
)
def test_an_unknown_id_is_named(client, refused, method, path, reason):
    headers = {"X-Admin-Key": "the operator's key"}
    answer = client.open(f"/api/v1/admin{path.format(UNKNOWN)}", method=method, headers=headers)
    assert str(UNKNOWN) in refused(answer, 404, reason)["detail"]


@pytest.mark.parametrize(
    ("request_line", "body", "field"),
    [
        ("PUT /composites/1/priority", {"priority": 2**31}, "priority"),
        ("PUT /composites/1/priority", {"priority": "high"}, "priority"),
        ("POST /composites/1/complete", {"factors": "3"}, "factors"),
        ("POST /factors", {"composite": "15"}, "factors"),
        ("POST /factors", {"composite": "15", "factors": ["x"], "found_at": "soon"}, "found_at"),
        ("POST /attempts/void", {"client_id": "x", "from": "2020-01-01T00:00:00Z"}, "reason"),
        ("POST /projects", {"name": " "}, "name"),
        ("POST /projects", {"name": "a\nb"}, "name"),
        (
            "POST /work/reserve",
            {"composite_identifier": "15", "client_id": "x", "duration_hours": 0},
            "duration_hours",
        ),
        ("POST /work/reserve", {"composite_identifier": "15"}, "client_id"),
    ],
)
def test_an_invalid_body_is_refused_by_its_field(admin, refused, request_line, body, field):
    assert refused(admin(*request_line.split(" "), body), 422, "invalid")["errors"][0]["field"] == field


def test_kinds_of_numbers_are_counted(engine, admin, known):
    status = admin("GET", "/composites/status").json
    assert status["total"] == scalar(engine, "SELECT count(*) FROM composites")
    assert status["estimated"] is False
    assert admin("GET", "/stats/summary").json["composites"] == status["total"]


def test_a_number_is_found_by_value_expression_and_id(admin, refused, known):
    for query in (known.value, f" {known.value} ", f"{known.value}*1", str(known.id)):
        assert admin("GET", "/composites/find", q=query).json["composites"][0]["composite_id"] == known.id
    assert admin("GET", "/composites/find", q="no number").json == {"composites": []}
    refused(admin("GET", "/composites/find", q="1-" * 2100 + "1"), 422, "number_too_large")
    refused(admin("GET", "/composites/find"), 422, "invalid")


def test_a_number_is_shown_with_its_effort(admin, known):
    shown = admin("GET", f"/composites/{known.id}").json
    assert (shown["composite_id"], shown["number"], shown["factors"]) == (known.id, known.value, [])
    assert shown["effort"][0]["curves"] == 100


def test_a_priority_is_set_by_query_or_body(engine, admin, known):
    assert admin("PUT", f"/composites/{known.id}/priority", priority=5).json["priority"] == 5
    answer = admin("PUT", f"/composites/{known.id}/priority", {"priority": -3}).json
    assert (answer["priority"], answer["message"]) == (-3, "The priority was 5")
    assert scalar(engine, "SELECT priority FROM composites WHERE id = :id", id=known.id) == -3
    assert events(engine, f"composite {known.id}") == ["set priority", "set priority"]


def test_a_number_is_completed_only_by_all_of_its_factors(engine, admin, refused, known):
    path = f"/composites/{known.id}/complete"
    refused(admin("POST", path), 409, "not_finished")
    refused(admin("POST", path, {"factors": [str(known.primes[1] + 2)]}), 400, "factor_does_not_divide")
    refused(admin("POST", path, {"factors": ["2^^3"]}), 422, "malformed_number")
    assert events(engine, f"composite {known.id}") == []
    answer = admin("POST", path, {"factors": [str(one) for one in known.primes[:3]], "source": "NFS"})
    assert (answer.status_code, answer.json["is_fully_factored"]) == (200, True)
    assert admin("POST", path).json["new_factors"] == []
    assert_sound(engine)


def test_a_number_is_deleted_with_its_attempts(engine, admin, refused, client, known):
    answer = admin("DELETE", f"/composites/{known.id}").json
    assert (answer["deleted"]["composites"], answer["deleted"]["ecm_attempts"]) == (1, 1)
    assert "1 composite" in answer["message"]
    refused(admin("GET", f"/composites/{known.id}"), 404, "unknown_composite")
    refused(client.get(f"/api/v1/stats/{known.value}"), 404, "unknown_composite")


def test_known_factors_are_added_once_and_taken_back(engine, admin, refused, published, known):
    body = {"composite": known.value, "factors": [str(known.primes[0])], "source": "a table"}
    first, second = admin("POST", "/factors", body).json, admin("POST", "/factors", body).json
    assert (first["new_factors"], first["message"]) == ([str(known.primes[0])], "1 new factor, 0 known before")
    assert (second["new_factors"], second["known_factors"]) == ([], [str(known.primes[0])])
    refused(admin("POST", "/factors", body | {"factors": ["7"]}), 400, "factor_does_not_divide")
    refused(admin("POST", "/factors", body | {"composite": str(int(known.value) + 2)}), 404, "unknown_composite")
    factor = scalar(engine, "SELECT id FROM factors WHERE composite_id = :id", id=known.id)
    assert admin("DELETE", f"/factors/{factor}").json["current_composite"] == known.value
    refused(admin("DELETE", f"/factors/{factor}"), 404, "unknown_factor")
    assert_sound(engine)


def test_an_attempt_is_deleted_and_its_effort_with_it(engine, admin, known):
    answer = admin("DELETE", f"/attempts/{known.attempt_id}", reason="a test run").json
    assert (answer["composite_id"], answer["current_t_level"]) == (known.id, 0)
    assert scalar(engine, "SELECT attempt_count FROM composites WHERE id = :id", id=known.id) == 0


def test_the_attempts_of_a_broken_client_are_voided(engine, admin, refused, known):
    client = f"broken-{known.id}"
    submit(engine, result(known.value, client=client, curves=7, program="bad"))
    since = datetime.now(UTC) - timedelta(hours=1)
    body = {"client_id": client, "from": since.isoformat(), "reason": "its fan died"}
    assert admin("POST", "/attempts/void", body | {"program": "other"}).json["attempts"] == 0
    answer = admin("POST", "/attempts/void", body).json
    assert (answer["attempts"], answer["curves"], answer["waiting"]) == (1, 7, 0)
    assert answer["message"] == "1 attempt on 1 number voided"
    backwards = body | {"to": (since - timedelta(hours=1)).isoformat()}
    refused(admin("POST", "/attempts/void", backwards), 422, "invalid")
    assert events(engine, f"client {client}") == ["void attempts", "void attempts"]


def test_projects_are_created_once_and_deleted_by_id_or_name(admin, refused, known):
    name = f"a/b c {known.id}"
    made = admin("POST", "/projects", {"name": name})
    assert (made.status_code, made.json["name"]) == (201, name)
    refused(admin("POST", "/projects", {"name": name}), 409, "project_exists")
    assert admin("DELETE", f"/projects/{made.json['project_id']}").json["name"] == name
    admin("POST", "/projects", {"name": name})
    assert admin("DELETE", f"/projects/by-name/{name}").json["composites"] == 0


def test_effort_is_recalculated_for_one_number(engine, admin, known):
    level = scalar(engine, "UPDATE composites SET priority = 0 WHERE id = :id RETURNING current_t_level", id=known.id)
    assert admin("POST", f"/composites/{known.id}/recalculate-t-level").json == {
        "composite_id": known.id,
        "previous_t_level": level,
        "current_t_level": level,
        "message": "The t-level was right",
    }


def test_one_recalculation_runs_at_a_time(engine, admin, refused, published, known):
    with engine.begin() as connection:  # those of other tests, which no worker finishes here
        connection.exec_driver_sql("UPDATE recalculations SET finished_at = now() WHERE finished_at IS NULL")
    started = admin("POST", "/composites/calculate-t-levels", recalculate_all="true")
    assert started.status_code == 202
    assert started.json["total"] >= 1
    assert [name for name, _ in published] == ["tasks.analysis.run_job"]
    refused(admin("POST", "/composites/calculate-t-levels"), 409, "recalculation_runs")
    status = admin("GET", "/composites/recalculate-status").json
    assert (status["recalculation_id"], status["finished_at"]) == (started.json["recalculation_id"], None)
