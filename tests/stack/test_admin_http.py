"""Administration over HTTP: without a key, with a wrong one and with the right one; every change is audited."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from bodies import claiming, plain, problem
from leasing import admin_key, register_number, unique_name
from stacks import wait_until
from traffic import prime

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def key(stack):
    return admin_key(stack)


@pytest.fixture
def admin(stack, key):
    """Sends a request with the admin key; `body` is sent as JSON, the other arguments in the query."""

    def send_as_operator(method, path, body=None, **query):
        return stack.http.request(
            method, f"{stack.api}/admin{path}", json=body, params=query, headers={"X-Admin-Key": key}, timeout=60
        )

    return send_as_operator


ENDPOINTS = [
    ("GET", "/composites/status"),
    ("GET", "/composites/find?q=1"),
    ("GET", "/composites/1"),
    ("PUT", "/composites/1/priority?priority=1"),
    ("POST", "/composites/1/complete"),
    ("DELETE", "/composites/1"),
    ("POST", "/composites/calculate-t-levels"),
    ("GET", "/composites/recalculate-status"),
    ("POST", "/composites/1/recalculate-t-level"),
    ("POST", "/factors"),
    ("DELETE", "/factors/1"),
    ("POST", "/attempts/void"),
    ("DELETE", "/attempts/1"),
    ("POST", "/projects"),
    ("DELETE", "/projects/1"),
    ("DELETE", "/projects/by-name/main"),
    ("GET", "/stats/summary"),
    ("GET", "/submissions"),
    ("POST", "/submissions/1/retry"),
]
IDS = ["composites/{}", "composites/{}/recalculate-t-level", "factors/{}", "attempts/{}", "projects/{}"]


def number_of(stack, composite_id, column="current_t_level"):
    return stack.scalar(f"SELECT {column} FROM composites WHERE id = :id", id=composite_id)


def events(stack, target):
    """Return the audited actions on a target, oldest first."""
    found = stack.rows("SELECT actor, action, request_id FROM admin_events WHERE target = :t ORDER BY id", t=target)
    assert all(row.actor == "admin" and row.request_id for row in found)
    return [row.action for row in found]


@pytest.fixture
def known(stack):
    """A number of four primes with one curve: (its id, its value, its primes)."""
    primes = [prime(11), prime(20), prime(50), prime(70)]
    value = str(primes[0] * primes[1] * primes[2] * primes[3])
    register_number(stack, value)
    return stack.scalar("SELECT id FROM composites WHERE number = :value", value=value), value, primes


# Access --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
@pytest.mark.parametrize("wrong", [None, "", "x" * 64])
def test_without_the_key_every_request_is_refused(stack, method, path, wrong):
    before = stack.counts(), stack.scalar("SELECT count(*) FROM admin_events")
    headers = {} if wrong is None else {"X-Admin-Key": wrong}
    answer = stack.http.request(method, f"{stack.api}/admin{path}", headers=headers, timeout=10)
    problem(answer, *((401, "unauthorized") if wrong is None else (403, "forbidden")))
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert (stack.counts(), stack.scalar("SELECT count(*) FROM admin_events")) == before


# Unknown ids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", IDS)
@pytest.mark.parametrize("unknown", [0, 2**31, 2**63 - 1])
def test_unknown_ids_are_answered_404(admin, path, unknown):
    method = "POST" if "recalculate" in path else "DELETE"
    reply = problem(admin(method, f"/{path.format(unknown)}"), 404, f"unknown_{path.partition('/')[0].rstrip('s')}")
    assert str(unknown) in reply["detail"]


@pytest.mark.parametrize("number", ["9223372036854775808", "1" * 60])
def test_ids_that_no_row_can_have_are_refused(admin, number):
    for method, path in (("GET", "/composites/{}"), ("DELETE", "/factors/{}"), ("POST", "/submissions/{}/retry")):
        assert admin(method, path.format(number)).status_code in (404, 422)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/factors", {"composite": "15"}),
        ("POST", "/factors", {"composite": "15", "factors": []}),
        ("POST", "/factors", {"composite": "15", "factors": ["x"], "found_at": "soon"}),
        ("POST", "/attempts/void", {"client_id": "x", "from": "2020-01-01"}),
        ("POST", "/attempts/void", {"client_id": "x", "from": "2020-01-02", "to": "2020-01-01", "reason": "r"}),
        ("POST", "/projects", {"name": " "}),
        ("POST", "/projects", {"name": "a\nb"}),
        ("PUT", "/composites/1/priority", {"priority": 2**31}),
        ("PUT", "/composites/1/priority", {"priority": "high"}),
        ("POST", "/composites/1/complete", {"factors": "3"}),
    ],
)
def test_malformed_bodies_are_refused(admin, method, path, body):
    reply = problem(admin(method, path, body), 422, "invalid")
    assert reply["errors"][0]["field"]


@pytest.mark.parametrize("query", [{"state": "lost"}, {"limit": "0"}, {"cursor": "x"}])
def test_malformed_queries_are_refused(admin, query):
    problem(admin("GET", "/submissions", **query), 422, "invalid")


# Numbers --------------------------------------------------------------------------------------------------------------


def test_a_priority_is_set_by_query_or_body(stack, admin, known):
    number, _, _ = known
    assert admin("PUT", f"/composites/{number}/priority", priority=5).json()["priority"] == 5
    reply = admin("PUT", f"/composites/{number}/priority", {"priority": -3}).json()
    assert (reply["priority"], reply["message"]) == (-3, "The priority was 5")
    assert number_of(stack, number, "priority") == -3
    assert events(stack, f"composite {number}") == ["set priority", "set priority"]


def test_numbers_are_found_and_shown(stack, admin, known):
    number, value, primes = known
    for word in (value, f" {value} ", f"{value}*1", str(number)):
        assert admin("GET", "/composites/find", q=word).json()["composites"][0]["composite_id"] == number
    assert admin("GET", "/composites/find", q="no number").json() == {"composites": []}
    admin("POST", "/factors", {"composite": value, "factors": [str(primes[0])]})
    shown = admin("GET", f"/composites/{number}").json()
    assert (shown["composite_id"], shown["number"]) == (number, value)
    assert [factor["factor"] for factor in shown["factors"]] == [str(primes[0])]
    assert shown["effort"][0]["curves"] == 1
    problem(admin("GET", "/composites/find", q="1-" * 2100 + "1"), 422, "number_too_large")
    stack.submit(plain(value, parameters={"b1": 10**9, "b2": 10**21, "curves": 1}))
    assert 10**21 in [row["b2"] for row in admin("GET", f"/composites/{number}").json()["effort"]]
    counted = admin("GET", "/composites/status").json()
    assert counted["total"] >= counted["finished"] + counted["wanting_ecm"]
    assert admin("GET", "/stats/summary").json()["composites"] == counted["total"]


def test_a_number_is_completed_or_its_composite_cofactor_is_named(stack, admin, known):
    number, value, primes = known
    left = problem(admin("POST", f"/composites/{number}/complete"), 409, "not_finished")
    assert "is composite" in left["detail"]
    wrong = {"factors": [str(primes[1]), str(primes[2] + 2)]}
    problem(admin("POST", f"/composites/{number}/complete", wrong), 400, "factor_does_not_divide")
    problem(admin("POST", f"/composites/{number}/complete", {"factors": ["2^^3"]}), 422, "malformed_number")
    assert events(stack, f"composite {number}") == []
    reply = admin("POST", f"/composites/{number}/complete", {"factors": [str(p) for p in primes[:3]], "source": "NFS"})
    assert (reply.status_code, reply.json()["is_fully_factored"]) == (200, True)
    assert admin("POST", f"/composites/{number}/complete").status_code == 200
    assert stack.get(f"/stats/{value}").json()["status"] == "fully_factored"
    stack.assert_sound()


def test_a_number_is_deleted_with_its_factors_attempts_and_leases(stack, admin, known):
    number, value, primes = known
    body = claiming(plain(value, project=unique_name("project")), primes[0])
    assert stack.submit(body).status_code == 200
    deleted = admin("DELETE", f"/composites/{number}").json()["deleted"]
    assert (deleted["composites"], deleted["ecm_attempts"], deleted["submissions_refused"]) == (1, 2, 2)
    problem(admin("GET", f"/composites/{number}"), 404, "unknown_composite")
    problem(stack.get(f"/stats/{value}"), 404, "unknown_composite")
    assert events(stack, f"composite {number}") == ["delete"]
    # The same result is refused again until an operator retries it.
    reply = problem(stack.submit(body), 400, "composite_deleted")
    assert admin("POST", f"/submissions/{reply['submission_id']}/retry").json()["state"] == "received"
    wait_until(lambda: stack.get(f"/submissions/{reply['submission_id']}").json()["state"] == "applied")
    stack.assert_sound()


# Factors, attempts, projects ------------------------------------------------------------------------------------------


def test_known_factors_are_added_and_deleted(stack, admin, known):
    number, value, primes = known
    body = {"composite": value, "factors": [str(primes[0])], "source": "a table", "found_at": "2001-02-03T04:05:06"}
    reply = admin("POST", "/factors", body).json()
    assert (reply["new_factors"], reply["known_factors"]) == ([str(primes[0])], [])
    assert admin("POST", "/factors", body).json()["known_factors"] == [str(primes[0])]
    problem(admin("POST", "/factors", {**body, "factors": ["7"]}), 400, "factor_does_not_divide")
    problem(admin("POST", "/factors", {**body, "composite": str(prime(30))}), 404, "unknown_composite")
    (row,) = stack.rows("SELECT * FROM factors WHERE composite_id = :id", id=number)
    assert (row.origin, row.source, row.found_at.isoformat()) == ("known", "a table", "2001-02-03T04:05:06+00:00")
    taken = admin("DELETE", f"/factors/{row.id}").json()
    assert (taken["composite_id"], taken["current_composite"]) == (number, value)
    problem(admin("DELETE", f"/factors/{row.id}"), 404, "unknown_factor")
    stack.assert_sound()


def test_attempts_are_deleted_and_voided(stack, admin, known):
    number, value, primes = known
    client = unique_name("client")
    bodies = [plain(value, client_id=client, program=program) for program in ("good", "bad", "bad")]
    ids = [stack.submit(claiming(body, primes[0])).json()["attempt_id"] for body in bodies]
    reply = admin("DELETE", f"/attempts/{ids[0]}", reason="a test run").json()
    assert (reply["composite_id"], reply["current_t_level"]) == (number, number_of(stack, number))
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    selection = {"client_id": client, "from": since, "reason": "its fan died"}
    assert admin("POST", "/attempts/void", {**selection, "program": "other"}).json()["attempts"] == 0
    reply = admin("POST", "/attempts/void", {**selection, "program": "bad"}).json()
    assert (reply["attempts"], reply["curves"], reply["composites"], reply["waiting"]) == (2, 200, 1, 0)
    assert number_of(stack, number, "attempt_count") == 1
    assert number_of(stack, number, "current_composite") == str(int(value) // primes[0])
    assert events(stack, f"client {client}") == ["void attempts", "void attempts"]
    stack.assert_sound()


def test_projects_are_created_and_deleted(stack, admin, known):
    _, value, _ = known
    names = [unique_name("a/b c"), unique_name("project")]
    made = [admin("POST", "/projects", {"name": name}) for name in names]
    assert [answer.status_code for answer in made] == [201, 201]
    problem(admin("POST", "/projects", {"name": names[0]}), 409, "project_exists")
    stack.submit(plain(value, project=names[1]))
    assert admin("DELETE", f"/projects/by-name/{names[0]}").json()["composites"] == 0
    gone = admin("DELETE", f"/projects/{made[1].json()['project_id']}").json()
    assert (gone["name"], gone["composites"]) == (names[1], 1)
    problem(admin("DELETE", f"/projects/by-name/{names[0]}"), 404, "unknown_project")
    stack.assert_sound()


# Dead letters ---------------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_and_their_true_factors_accepted(stack, admin, known):
    number, value, primes = known
    refused = problem(stack.submit(claiming(plain(value), primes[0], 999_999)), 400, "factor_does_not_divide")
    without_true_factors = problem(stack.submit(claiming(plain(value), 999_999)), 400, "factor_does_not_divide")
    first = admin("GET", "/submissions", state="rejected", limit=1).json()
    assert first["submissions"][0]["true_factors"]
    listed, cursor = [], None
    while not listed or cursor:
        page = admin("GET", "/submissions", limit=100, **({"cursor": cursor} if cursor else {})).json()
        listed += [entry["submission_id"] for entry in page["submissions"]]
        cursor = page["next"]
    assert len(listed) == len(set(listed))
    assert listed.index(refused["submission_id"]) < listed.index(without_true_factors["submission_id"])
    path = f"/submissions/{refused['submission_id']}/retry"
    reply = admin("POST", path, accept_factors=1).json()
    assert (reply["state"], reply["new_factors"]) == ("rejected", [str(primes[0])])
    assert number_of(stack, number, "current_composite") == str(int(value) // primes[0])
    problem(admin("POST", path, accept_factors=1), 409, "no_true_factors")
    problem(admin("POST", f"/submissions/{2**40}/retry"), 404, "unknown_submission")
    applied = stack.submit(plain(value)).json()["submission_id"]
    problem(admin("POST", f"/submissions/{applied}/retry"), 409, "not_dead")
    # The worker refuses it again, for the same reason.
    assert admin("POST", f"/submissions/{without_true_factors['submission_id']}/retry").json()["state"] == "received"
    wait_until(lambda: stack.get(f"/submissions/{without_true_factors['submission_id']}").json()["state"] == "rejected")
    stack.assert_sound()


# Effort ---------------------------------------------------------------------------------------------------------------


def test_effort_is_recalculated_for_one_number_and_for_all(stack, admin, known):
    number, value, _ = known
    stack.submit(plain(value, parameters={"b1": 10**6, "curves": 500, "sigma": str(random.randrange(2**32))}))
    right = number_of(stack, number)

    def damage():
        stack.run_sql("UPDATE composites SET current_t_level = 0 WHERE id = :id", id=number)
        of_number = "(SELECT target_id FROM composites WHERE id = :id)"
        stack.run_sql(f"UPDATE targets SET current_t_level = 0 WHERE id = {of_number}", id=number)

    damage()
    reply = admin("POST", f"/composites/{number}/recalculate-t-level").json()
    assert (reply["previous_t_level"], reply["current_t_level"]) == (0, right)
    assert events(stack, f"composite {number}") == ["recalculate"]
    for query in ({}, {"recalculate_all": "true"}):
        damage()
        begun = admin("POST", "/composites/calculate-t-levels", **query)
        assert begun.status_code == 202, begun.text
        status = wait_until(
            lambda: (now := admin("GET", "/composites/recalculate-status").json())["finished_at"] and now, timeout=60
        )
        assert (status["recalculation_id"], status["state"]) == (begun.json()["recalculation_id"], "done")
        assert (status["done"], status["changed"] >= 1) == (status["total"], True)
        assert number_of(stack, number) == right
    stack.assert_sound()


def test_the_specification_has_every_admin_route(stack):
    paths = stack.http.get(f"{stack.url}/openapi.json").json()["paths"]
    for method, path in ENDPOINTS:
        parts = [("{" if part.isdigit() or part == "main" else part) for part in path.partition("?")[0].split("/")]
        fits = [
            documented
            for documented in paths
            if len(split := documented.removeprefix("/api/v1/admin").split("/")) == len(parts)
            and all(
                part == other or (part == "{" and other.startswith("{"))
                for part, other in zip(parts, split, strict=True)
            )
        ]
        assert len(fits) == 1, (path, fits)
        operation = paths[fits[0]][method.lower()]
        assert operation["summary"]
        assert operation["security"] == [{"admin_key": []}]
        assert {"401", "403", "503"} <= set(operation["responses"])
