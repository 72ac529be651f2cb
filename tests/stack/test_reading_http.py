"""Reading over HTTP: lists, one number, many at once, factors, projects, clients, and files that stream."""

import csv
import io
import json
from urllib.parse import quote

import pytest
from bodies import claiming, plain, problem
from leasing import register_number, unique_name
from stacks import wait_until
from traffic import prime

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def known(stack):
    """A number of a project of its own, with two factors by two clients: (id, value, its primes, the project)."""
    primes, project = [prime(12), prime(20), prime(50), prime(70)], unique_name("project/of")
    value = str(primes[0] * primes[1] * primes[2] * primes[3])
    for client, factor in (("=alice", primes[0]), ("bob", primes[1])):
        sent = stack.submit(claiming(plain(value, client_id=client, project=project), factor))
        assert sent.status_code == 200, sent.text
    return sent.json()["composite_id"], value, primes, project


def get_json(stack, path, **query):
    answer = stack.get(path, params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    return answer.json()


def test_a_list_of_numbers(stack, known):
    composite_id, value, primes, project = known
    found = get_json(stack, "/composites", project=project, state="composite", sort="progress", descending=True)
    (entry,) = found["composites"]
    assert (entry["composite_id"], entry["number"], entry["digit_length"]) == (
        composite_id,
        value,
        entry["digit_length"],
    )
    assert entry["current_composite"] == str(primes[2] * primes[3])
    assert entry["progress"] == pytest.approx(entry["current_t_level"] / entry["target_t_level"])
    assert entry["attempts"] == 2
    assert found["next"] is None
    assert get_json(stack, "/composites", project=project, min_progress=0.99)["composites"] == []
    assert get_json(stack, "/composites", text=str(primes[2] * primes[3]))["composites"] == [entry]
    assert get_json(stack, "/composites", project=project, min_digits="", cursor="", state="")["composites"] == [entry]


def test_pages_of_numbers_go_on(stack):
    project = unique_name("pages")
    values = {register_number(stack, project=project) for _ in range(3)}
    first = get_json(stack, "/composites", project=project, limit=2, sort="digits")
    second = get_json(stack, "/composites", project=project, limit=2, sort="digits", cursor=first["next"])
    assert {entry["number"] for entry in first["composites"] + second["composites"]} == values
    assert second["next"] is None
    wrong = stack.get("/composites", params={"project": project, "cursor": first["next"]})
    assert problem(wrong, 422, "bad_cursor")["errors"][0]["field"] == "cursor"


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/composites?project=nowhere", 404, "unknown_project"),
        ("/composites?state=open", 422, "invalid"),
        ("/composites?limit=0", 422, "invalid"),
        ("/composites?limit=1001", 422, "invalid"),
        ("/composites?min_t_level=nan", 422, "invalid"),
        ("/composites?max_progress=inf", 422, "invalid"),
        ("/composites?min_priority=99999999999", 422, "invalid"),
        ("/composites?text=%00", 422, "invalid"),
        ("/composites?project=a%00", 422, "invalid"),
        ("/composites?text=" + "(" * 4001, 422, "number_too_large"),
        ("/composites?cursor=%C3%A9", 422, "bad_cursor"),
        ("/composites/999999999999", 404, "unknown_composite"),
        ("/composites/99999999999999999999", 422, "invalid"),
        ("/composites/999999999999/effort", 404, "unknown_composite"),
        ("/composites/x", 404, "not_found"),
        ("/factors/999999999999", 404, "unknown_factor"),
        ("/factors?composite=17", 404, "unknown_composite"),
        ("/factors?composite=2%5E", 422, "malformed_number"),
        ("/factors?composite=" + "(" * 4001, 422, "number_too_large"),
        ("/factors?order=smallest", 422, "invalid"),
        ("/factors?cursor=abc", 422, "bad_cursor"),
        ("/factors?client_id=a%00", 422, "invalid"),
        ("/export/factors?format=xls", 422, "invalid"),
        ("/export/factors?since=yesterday", 422, "invalid"),
        ("/export/factors?project=nowhere", 404, "unknown_project"),
        ("/projects/999999999999", 404, "unknown_project"),
        ("/projects/by-name/nowhere/at/all", 404, "unknown_project"),
        ("/projects/by-name/%00", 422, "invalid"),
        ("/projects?cursor=abc", 422, "bad_cursor"),
        ("/clients?order=size", 422, "invalid"),
        ("/clients?cursor=abc", 422, "bad_cursor"),
        ("/stats/" + "(" * 4001, 422, "number_too_large"),
    ],
)
def test_what_cannot_be_read_is_said(stack, path, status, reason):
    problem(stack.get(path), status, reason)


def test_one_number_with_its_tree(stack, known):
    composite_id, value, primes, project = known
    whole = get_json(stack, f"/composites/{composite_id}")
    assert whole["composite"] == value
    assert whole["projects"] == [project]
    assert {(entry["factor"], entry["client_id"]) for entry in whole["factors"]} == {
        (str(primes[0]), "=alice"),
        (str(primes[1]), "bob"),
    }
    assert whole["factors_found"] == [str(primes[0]), str(primes[1])]
    assert "ecm" in whole["wants"]
    stats = stack.get(f"/stats/{value}").json()
    assert {name: whole[name] for name in stats} == stats


def test_the_chance_that_a_factor_was_missed(stack, known):
    composite_id = known[0]
    reply = get_json(stack, f"/composites/{composite_id}/effort")
    assert [point["digits"] for point in reply["points"]] == list(range(10, 101))
    missed = [point["missed"] for point in reply["points"]]
    assert 0 <= missed[0] < 0.01 < missed[20] < 1
    assert missed == sorted(missed)
    (curves,) = reply["curves"]
    assert (curves["b1"], curves["b2"], curves["curves"], curves["prior_curves"]) == (50_000, -1, 200, 0)


def test_many_numbers_at_once(stack, known):
    composite_id, value, primes, _ = known
    asked = [value, str(primes[2] * primes[3]), "17", "2^^3"]
    answer = stack.http.post(f"{stack.api}/composites/batch-status", json={"numbers": asked}, timeout=40)
    assert answer.status_code == 200, answer.text
    reply = answer.json()
    assert (reply["found"], reply["not_found"]) == (2, 2)
    ids = [entry["composite"] and entry["composite"]["composite_id"] for entry in reply["results"]]
    assert ids == [composite_id, composite_id, None, None]
    assert [bool(entry["message"]) for entry in reply["results"]] == [False, False, True, True]
    for wrong in ({"numbers": ["1"] * 1001}, {"numbers": "17"}, {"numbers": [17]}, {}, []):
        refused = stack.http.post(f"{stack.api}/composites/batch-status", json=wrong, timeout=40)
        problem(refused, 422, "invalid")


def test_the_most_advanced_numbers(stack, known):
    composite_id, value, _, project = known

    def top(**body):
        return stack.http.post(f"{stack.api}/composites/top-progress", json=body, timeout=40)

    assert [entry["composite_id"] for entry in top(project_name=project).json()["composites"]] == [composite_id]
    assert top(formulas=[value, "17"], limit=1).json()["composites"][0]["number"] == value
    assert top(project_name=project, min_difficulty=1000).json()["composites"] == []
    request_everywhere = top(limit=5, include_factored=True).json()["composites"]
    shares = [entry["progress"] for entry in request_everywhere]
    assert shares == sorted(shares, reverse=True)
    problem(top(project_name="nowhere"), 404, "unknown_project")
    problem(top(limit="5"), 422, "invalid")


def test_factors_and_who_found_them(stack, known):
    composite_id, value, primes, project = known
    found = get_json(stack, "/factors", composite=value, order="largest")["factors"]
    assert [entry["factor"] for entry in found] == [str(primes[1]), str(primes[0])]
    entry = found[0]
    assert (entry["composite_id"], entry["client_id"], entry["b1"], entry["b2"]) == (composite_id, "bob", 50_000, -1)
    assert get_json(stack, f"/factors/{entry['factor_id']}") == entry
    first = get_json(stack, "/factors", project=project, limit=1)
    rest = get_json(stack, "/factors", project=project, limit=1, cursor=first["next"])
    assert [first["factors"][0]["factor"], rest["factors"][0]["factor"]] == [str(primes[1]), str(primes[0])]


def test_files_of_factors(stack, known):
    _, value, primes, project = known
    lines = stack.get("/export/factors", params={"project": project, "format": "ndjson"})
    assert lines.headers["Content-Type"] == "application/x-ndjson"
    assert [json.loads(line)["factor"] for line in lines.text.splitlines()] == [str(primes[0]), str(primes[1])]
    table = stack.get("/export/factors", params={"project": project})
    assert table.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert table.headers["Content-Disposition"] == "attachment; filename=factors.csv"
    listed = list(csv.DictReader(io.StringIO(table.text)))
    assert [entry["number"] for entry in listed] == [value, value]
    # What a spreadsheet would run is text to it.
    assert [entry["client_id"] for entry in listed] == ["'=alice", "bob"]
    assert [entry["b2"] for entry in listed] == ["-1", "-1"]
    assert len(stack.get("/export/factors", params={"client_id": "=alice", "format": "ndjson"}).text.splitlines()) == 1


def test_projects(stack, known):
    project = known[3]
    entry = get_json(stack, f"/projects/by-name/{quote(project)}")
    assert entry["composites"] == 1
    assert get_json(stack, f"/projects/{entry['project_id']}") == entry
    found, cursor = [], ""
    while cursor is not None:
        page = get_json(stack, "/projects", limit=50, cursor=cursor)
        found, cursor = found + page["projects"], page["next"]
    assert entry in found
    names = [project["name"] for project in found]
    assert len(set(names)) == len(names)


def test_clients(stack, known):
    def names_seen():
        return {entry["name"] for entry in get_json(stack, "/clients", limit=1000)["clients"]}

    wait_until(lambda: {"=alice", "bob"} <= names_seen())
    by_name = [entry["name"] for entry in get_json(stack, "/clients", order="name", limit=1000)["clients"]]
    assert set(by_name) >= {"=alice", "bob"}


def test_the_specification_has_all_of_it(stack):
    paths = stack.http.get(f"{stack.url}/openapi.json", timeout=40).json()["paths"]
    for path, view in paths.items():
        for operation in view.values():
            # /health is not limited: load balancers ask for it all the time.
            is_limited = path.startswith("/api/v1/") and path != "/api/v1/health"
            assert ("429" in operation["responses"]) == is_limited, path
    for path, method in (("submit_result", "post"), ("submit_results", "post"), ("ecm-work", "get")):
        operation = paths[f"/api/v1/{path}"][method]
        assert operation["security"] == [{}, {"client_key": []}]
        assert {"401", "403"} <= set(operation["responses"])
    for path in ("composites", "composites/{composite_id}/effort", "factors", "export/factors", "clients", "projects"):
        assert "get" in paths[f"/api/v1/{path}"], path
    for path in ("batch-status", "top-progress"):
        assert "requestBody" in paths[f"/api/v1/composites/{path}"]["post"], path
