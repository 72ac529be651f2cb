"""Public routes that read: numbers, factors, projects, clients, and what operators' tools ask."""

import json
import math

import pytest
from pipeline import result, submit


@pytest.fixture
def found(engine, known):
    """A number with a factor, in a project of its own."""
    project = f"project {known.id}"
    submit(engine, result(known.value, str(known.primes[0]), project=project))
    known.project = project
    return known


def get(client, path, **query):
    return client.get(f"/api/v1{path}", query_string=query)


def test_a_number_is_read_by_value_and_id(client, refused, found):
    stats, whole = get(client, f"/stats/{found.value}").json, get(client, f"/composites/{found.id}").json
    assert (whole["composite_id"], whole["composite"]) == (found.id, found.value)
    assert stats["current_t_level"] == whole["current_t_level"] > 0
    assert get(client, f"/composites/{found.id}/effort").status_code == 200
    refused(get(client, "/stats/17"), 404, "unknown_composite")
    refused(get(client, "/stats/2^^3"), 422, "malformed_number")
    refused(get(client, "/stats/" + "(" * 4001), 422, "number_too_large")
    for path in ("/composites/4611686018427387904", "/composites/4611686018427387904/effort"):
        refused(get(client, path), 404, "unknown_composite")


def test_numbers_with_the_same_cofactor_are_named(client, stranger, engine, known):
    def share(*factors):
        value = int(known.value) * math.prod(factors)
        return submit(engine, result(str(value), *map(str, factors), curves=1)).composite_id

    others = [share(3), share(5)]
    whole = get(client, f"/composites/{known.id}").json
    assert [one["composite_id"] for one in whole["shares_cofactor_with"]] == others
    assert whole["shares_cofactor_with"][0]["composite"] == str(3 * int(known.value))
    shared = get(client, f"/composites/{others[0]}").json
    assert [one["composite_id"] for one in shared["shares_cofactor_with"]] == [known.id, others[1]]
    assert whole["ecm_work"] == shared["ecm_work"]
    assert whole["ecm_work"]["total_attempts"] == 3
    text = stranger.open(f"/numbers/{others[1]}").text
    assert "<dt>Shares its cofactor with</dt>" in text
    for number in (known.id, others[0]):
        assert f'<a href="/numbers/{number}">' in text
    assert "more number" not in text
    for factor in (7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
        share(factor)
    whole = get(client, f"/composites/{known.id}").json
    assert (len(whole["shares_cofactor_with"]), whole["sharing_count"]) == (10, 12)
    assert " and 2 more numbers; curves on it" in stranger.open(f"/numbers/{known.id}").text


def test_numbers_are_listed(client, refused, found):
    page = get(client, "/composites", project=found.project).json
    assert [one["composite_id"] for one in page["composites"]] == [found.id]
    assert page["message"] == "1 number"
    assert get(client, "/composites", text=found.value).json["composites"][0]["composite_id"] == found.id
    refused(get(client, "/composites", project="nowhere"), 404, "unknown_project")
    refused(get(client, "/composites", cursor="x"), 422, "bad_cursor")


def test_many_numbers_are_asked_at_once(client, refused, found):
    answer = client.post("/api/v1/composites/batch-status", json={"numbers": [found.value, "17", "2^^3"]}).json
    assert (answer["found"], answer["not_found"]) == (1, 2)
    assert answer["results"][1]["message"] == "is not a number of this server"
    refused(client.post("/api/v1/composites/batch-status", json={"numbers": "15"}), 422, "invalid")
    top = client.post("/api/v1/composites/top-progress", json={"project_name": found.project}).json
    assert [one["composite_id"] for one in top["composites"]] == [found.id]


def test_factors_are_listed_and_exported(client, refused, found):
    (factor,) = get(client, "/factors", composite=found.value).json["factors"]
    assert factor["factor"] == str(found.primes[0])
    assert get(client, f"/factors/{factor['factor_id']}").json == factor
    refused(get(client, "/factors/4611686018427387904"), 404, "unknown_factor")
    refused(get(client, "/factors", composite="(" * 4001), 422, "number_too_large")
    csv = get(client, "/export/factors", project=found.project)
    assert csv.mimetype == "text/csv"
    assert str(found.primes[0]) in csv.text
    lines = get(client, "/export/factors", project=found.project, format="ndjson").text.splitlines()
    assert [json.loads(line)["factor"] for line in lines] == [str(found.primes[0])]


def test_projects_and_clients_are_listed(client, refused, found):
    by_name = get(client, f"/projects/by-name/{found.project}").json
    assert by_name["name"] == found.project
    assert get(client, f"/projects/{by_name['project_id']}").json == by_name
    assert found.project in {one["name"] for one in get(client, "/projects").json["projects"]}
    refused(get(client, "/projects/4611686018427387904"), 404, "unknown_project")
    assert get(client, "/clients", order="name").status_code == 200


def test_the_state_of_a_submission_is_read(client, refused, rejected):
    state = get(client, f"/submissions/{rejected}").json
    assert (state["submission_id"], state["state"]) == (rejected, "rejected")
    refused(get(client, "/submissions/4611686018427387904"), 404, "unknown_submission")


def test_health_and_readiness(client):
    assert client.get("/health").json == {"status": "ok"}
    assert client.get("/ready").json == {"status": "ready"}
    status = client.get("/status")
    # There is no worker here.
    assert (status.status_code, status.json["database"]["ok"], status.json["workers"]["ok"]) == (503, True, False)
