"""Leases over HTTP for operators: numbers that are set aside, pauses, reservations, and what anyone may read."""

import json

import pytest
from bodies import plain, problem
from click.testing import CliRunner
from leasing import admin_key, assert_lease, call_api, register_number, request_work, submit_curves, unique_name
from stacks import wait_until
from traffic import prime

from config.settings import settings
from ingest.commands.leases_commands import work
from ingest.plurals import counted
from models.wire.work import Assignment

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def key(stack):
    return admin_key(stack)


def composite_id(stack, value):
    return stack.scalar("SELECT id FROM composites WHERE number = :value", value=value)


def reserve(stack, key, value, **fields):
    body = {"composite_identifier": value, "client_id": "siever", **fields}
    headers = {} if key is None else {"X-Admin-Key": key}
    return stack.http.post(f"{stack.api}/admin/work/reserve", json=body, headers=headers, timeout=40)


# Access -------------------------------------------------------------------------------------------------------------

ENDPOINTS = [
    ("GET", "/admin/work/assignments"),
    ("DELETE", "/admin/work/assignments/00000000-0000-4000-8000-000000000000"),
    ("POST", "/admin/work/cleanup"),
    ("POST", "/admin/work/reserve"),
    ("POST", "/admin/work/release/00000000-0000-4000-8000-000000000000"),
    ("POST", "/admin/composites/1/pause"),
    ("POST", "/admin/composites/1/resume"),
]


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
@pytest.mark.parametrize("wrong", [None, "", "x" * 64, "ключ"])
def test_without_the_key_every_request_is_refused(stack, method, path, wrong):
    held = "SELECT c.id, hold FROM targets t JOIN composites c ON c.target_id = t.id WHERE hold IS NOT NULL ORDER BY 1"
    before = stack.counts(), stack.rows(held)
    headers = {} if wrong is None else {"X-Admin-Key": wrong.encode()}
    answer = stack.http.request(method, stack.api + path, headers=headers, timeout=10)
    reply = problem(answer, *((401, "unauthorized") if wrong is None else (403, "forbidden")))
    assert "X-Admin-Key" in reply["detail"]
    assert (stack.counts(), stack.rows(held)) == before


# Set aside -----------------------------------------------------------------------------------------------------------


def test_a_number_that_three_clients_give_up_is_set_aside_until_it_is_resumed(stack, key):
    value = register_number(stack)
    for client in ("one", "one", "two", "three"):
        lease = request_work(stack, client, composite=value, shared=1)
        assert lease["work_id"], lease["message"]
        assert_lease(
            call_api(stack, "DELETE", f"/work/{lease['work_id']}", client_id=client, reason=f"{client} fell over"),
            "failed",
        )
    reply = request_work(stack, "four", composite=value)
    assert reply["work_id"] is None
    for word in ("is set aside", "one: one fell over", "two: two fell over", "three: three fell over"):
        assert word in reply["message"]
    assert request_work(stack, "four", "/p1-work", composite=value)["work_id"] is None
    (row,) = stack.rows(
        "SELECT c.id, hold, hold_reason FROM targets t JOIN composites c ON c.target_id = t.id WHERE number = :value",
        value=value,
    )
    assert (row.hold, row.hold_reason) == (
        "parked",
        "three: three fell over; two: two fell over; one: one fell over",
    )
    for _ in range(2):
        answer = call_api(stack, "POST", f"/admin/composites/{row.id}/resume", key)
        assert answer.status_code == 200
        assert answer.json() == {
            "composite_id": row.id,
            "hold": None,
            "hold_reason": None,
            "message": "It gets work again",
        }
    # Earlier failures no longer count: the next client that gives up is the first.
    lease = request_work(stack, "four", composite=value)
    assert_lease(call_api(stack, "DELETE", f"/work/{lease['work_id']}", client_id="four"), "failed")
    assert request_work(stack, "five", composite=value)["work_id"]


# Pauses --------------------------------------------------------------------------------------------------------------


def test_a_paused_number_gets_no_work_and_its_leases_go_on(stack, key):
    value = register_number(stack)
    number_id = composite_id(stack, value)
    lease = request_work(stack, "one", composite=value, shared=1)
    answer = call_api(stack, "POST", f"/admin/composites/{number_id}/pause", key, reason="<b>looked at</b>; -- it's")
    assert answer.json()["hold"] == "paused"
    assert answer.json()["hold_reason"] == "<b>looked at</b>; -- it's"
    for path in ("/ecm-work", "/p1-work"):
        reply = request_work(stack, "two", path, composite=value)
        assert "is paused: <b>looked at</b>; -- it's" in reply["message"]
    submit_curves(stack, "one", lease, lease["curves"])
    assert_lease(
        call_api(stack, "PUT", f"/work/{lease['work_id']}/progress", client_id="one", curves_completed=1), "completed"
    )
    assert request_work(stack, "two", composite=value)["work_id"] is None
    assert call_api(stack, "POST", f"/admin/composites/{number_id}/resume", key).json()["hold"] is None
    assert request_work(stack, "two", composite=value)["work_id"]


UNKNOWN, NO_ID = (404, "unknown_composite"), (422, "invalid")


@pytest.mark.parametrize(
    ("number_id", "refusal"),
    [(0, UNKNOWN), (2**31, UNKNOWN), (2**63 - 1, UNKNOWN), (2**63, NO_ID), (10**40, NO_ID)],
)
@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_unknown_numbers_are_not_paused(stack, key, number_id, refusal, verb):
    reply = problem(call_api(stack, "POST", f"/admin/composites/{number_id}/{verb}", key), *refusal)
    assert str(number_id)[:18] in reply["detail"]


# Reservations --------------------------------------------------------------------------------------------------------


def test_a_reserved_number_gets_no_work_until_it_is_released(stack, key):
    value = register_number(stack)
    lease = request_work(stack, "one", composite=value, shared=1)
    answer = reserve(stack, key, value, method="snfs", duration_hours=2, metadata={"polynomial": "x^6 + 1"})
    assert answer.status_code == 200, answer.text
    reply = answer.json()
    assert (reply["composite"], reply["method"], reply["client_id"]) == (value, "snfs", "siever")
    assert "1 open lease on it goes on" in reply["message"]
    for path in ("/ecm-work", "/p1-work"):
        assert "is reserved for another method" in request_work(stack, "two", path, composite=value)["message"]
    taken = problem(reserve(stack, key, value, client_id="another"), 409, "reserved")
    for word in ("siever", "snfs", "release"):
        assert word in taken["detail"]
    # Open leases go on, and their curves count.
    submit_curves(stack, "one", lease, lease["curves"])
    # The client's own list shows it.
    (own,) = stack.get("/work/status/siever").json()["assignments"][:1]
    assert (own["work_id"], own["method"], own["status"]) == (reply["work_id"], "snfs", "claimed")
    path = f"/admin/work/release/{reply['work_id']}"
    for _ in range(2):
        assert_lease(
            call_api(stack, "POST", path, key, reason="the sieving is done"), "completed", "the sieving is done"
        )
    assert request_work(stack, "two", composite=value)["work_id"]
    stack.assert_sound()


def test_a_reservation_ends_with_its_number_and_with_its_time(stack, key):
    small = prime(12)
    value = register_number(stack, str(small * prime(150)))
    kept = reserve(stack, key, value).json()
    short = reserve(stack, key, register_number(stack), duration_hours=1 / 3600).json()
    body = plain(value, client_id="siever", method="nfs", results={"factor_found": str(small)})
    assert stack.submit(body).json()["factor_status"] == "new_factor"
    (closed,) = stack.rows("SELECT status, message FROM work_assignments WHERE id = :id", id=kept["work_id"])
    assert closed == ("completed", "nothing is left to do on this number")
    # Only operators can end a reservation.
    path = f"/work/{short['work_id']}"
    problem(call_api(stack, "DELETE", path, client_id="siever"), 404, "unknown_work")
    wait_until(lambda: request_work(stack, "two", composite=short["composite"])["work_id"])


def test_a_finished_number_is_not_reserved(stack, key):
    small = prime(12)
    value = str(small * prime(20))
    assert stack.submit(plain(value, results={"factor_found": str(small)})).status_code == 200
    assert "is fully factored" in problem(reserve(stack, key, value), 409, "fully_factored")["detail"]
    stack.assert_sound()


def test_a_number_is_reserved_by_its_id_and_an_unknown_one_is_not(stack, key):
    value = register_number(stack)
    reply = reserve(stack, key, str(composite_id(stack, value))).json()
    assert (reply["composite"], reply["method"]) == (value, "nfs")
    for unknown in (str(prime(40)), "0", "9" * 18, "9" * 40):
        assert unknown[:16] in problem(reserve(stack, key, unknown), 404, "unknown_composite")["detail"]
    problem(call_api(stack, "POST", "/admin/work/release/7", key), 404, "unknown_work")
    lease = request_work(stack, "one", composite=register_number(stack))
    refused = problem(call_api(stack, "POST", f"/admin/work/release/{lease['work_id']}", key), 404, "unknown_work")
    assert "no reservation" in refused["detail"]


# Leases --------------------------------------------------------------------------------------------------------------


def test_operators_see_open_leases_and_cancel_them(stack, key):
    client = unique_name("client")
    leases = [request_work(stack, client, composite=register_number(stack), timeout_days=days) for days in (2, 1)]
    for _ in range(2):
        path = f"/admin/work/assignments/{leases[0]['work_id']}"
        assert_lease(call_api(stack, "DELETE", path, key, reason="not now"), "failed", "not now")
    shown = stack.get("/admin/work/assignments", headers={"X-Admin-Key": key}).json()["assignments"]
    assert [item["work_id"] for item in shown if item["composite"] in {lease["composite"] for lease in leases}] == [
        leases[1]["work_id"]
    ]
    assert set(shown[0]) == set(Assignment.model_fields)
    assert [item["expires_at"] for item in shown] == sorted(item["expires_at"] for item in shown)
    answer = call_api(stack, "PUT", f"/work/{leases[0]['work_id']}/progress", client_id=client, curves_completed=1)
    assert_lease(answer, "failed", "not now")
    (own,) = (item for item in stack.get(f"/work/status/{client}").json()["assignments"] if item["message"])
    assert (own["work_id"], own["status"], own["message"]) == (leases[0]["work_id"], "failed", "not now")
    assert request_work(stack, "two", composite=leases[0]["composite"])["work_id"]
    problem(call_api(stack, "DELETE", "/admin/work/assignments/7", key), 404, "unknown_work")


def test_overdue_leases_are_timed_out_on_demand_or_before(stack, key):
    client = unique_name("client")
    lease = request_work(stack, client, composite=register_number(stack))
    past = "UPDATE work_assignments SET expires_at = now() - interval '1 minute' WHERE id = :id"
    stack.run_sql(past, id=lease["work_id"])
    reply = call_api(stack, "POST", "/admin/work/cleanup", key).json()
    assert reply["message"] == f"{counted(reply['expired'], 'overdue lease')} timed out"
    (shown,) = stack.get(f"/work/status/{client}").json()["assignments"]
    assert (shown["status"], shown["message"]) == ("timeout", "its time ran out")


def test_the_command_finds_the_database_of_a_home(stack, monkeypatch):
    client = unique_name("client")
    lease = request_work(stack, client, composite=register_number(stack))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr("ingest.commands.database.configure_logging", lambda *_: None)
    settings.cache_clear()
    home = ("--home", str(stack.home))
    (shown,) = json.loads(CliRunner().invoke(work, ["ls", "--json", "--client", client, *home]).stdout)
    assert shown["work_id"] == lease["work_id"]
    result = CliRunner().invoke(work, ["cancel", lease["work_id"], *home])
    expected = f"lease {lease['work_id']} of {client} is cancelled: cancelled by an operator"
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, expected)
    answer = call_api(stack, "PUT", f"/work/{lease['work_id']}/progress", client_id=client, curves_completed=1)
    assert_lease(answer, "failed", "cancelled by an operator")


# Anyone --------------------------------------------------------------------------------------------------------------


def test_pages_of_any_origin_may_read_all_but_administration(stack, key):
    for path in ("/work/status/one", "/ecm-work?client_id=one&project=none", "/p1-work", "/work/status/%01"):
        answer = stack.get(path, headers={"Origin": "https://example.org"})
        assert answer.headers["Access-Control-Allow-Origin"] == "*", path
        assert "Access-Control-Allow-Credentials" not in answer.headers
    for headers in ({"X-Admin-Key": key}, {}):
        answer = stack.get("/admin/work/assignments", headers=headers | {"Origin": "https://example.org"})
        assert "Access-Control-Allow-Origin" not in answer.headers


WORK_PATHS = {
    "/ecm-work": {"get": {"200", "422", "503"}},
    "/p1-work": {"get": {"200", "422", "503"}},
    "/work": {"get": {"200", "422", "503"}},
    "/work/{work_id}/claim": {"post": {"200", "404", "422", "503"}},
    "/work/{work_id}/start": {"post": {"200", "404", "422", "503"}},
    "/work/{work_id}/progress": {"put": {"200", "404", "422", "503"}},
    "/work/{work_id}/complete": {"post": {"200", "404", "422", "503"}},
    "/work/{work_id}": {"delete": {"200", "404", "422", "503"}},
    "/work/status/{client_id}": {"get": {"200", "422", "503"}},
    "/admin/work/assignments": {"get": {"200", "401", "403", "503"}},
    "/admin/work/assignments/{work_id}": {"delete": {"200", "401", "403", "404", "503"}},
    "/admin/work/cleanup": {"post": {"200", "401", "403", "503"}},
    "/admin/work/reserve": {"post": {"200", "401", "403", "404", "409", "422", "503"}},
    "/admin/work/release/{work_id}": {"post": {"200", "401", "403", "404", "503"}},
    "/admin/composites/{composite_id}/pause": {"post": {"200", "401", "403", "404", "503"}},
    "/admin/composites/{composite_id}/resume": {"post": {"200", "401", "403", "404", "503"}},
}


def test_the_specification_has_every_route_of_leases(stack):
    specification = stack.http.get(f"{stack.url}/openapi.json").json()
    for path, methods in WORK_PATHS.items():
        documented = specification["paths"][f"/api/v1{path}"]
        assert set(documented) == set(methods), path
        for method, statuses in methods.items():
            operation = documented[method]
            assert operation["summary"], path
            assert set(operation["responses"]) >= statuses, path
            placed = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
            assert placed == {name.strip("{}") for name in path.split("/") if name.startswith("{")}, path
            assert (operation.get("security") == [{"admin_key": []}]) == path.startswith("/admin"), path
    theirs = {
        path.removeprefix("/api/v1")
        for path in specification["paths"]
        if "residues" not in path and ("work" in path or path.endswith(("pause", "resume")))
    }
    assert theirs == set(WORK_PATHS)
    queried = {parameter["name"] for parameter in specification["paths"]["/api/v1/ecm-work"]["get"]["parameters"]}
    assert queried == {
        *("client_id", "min_digits", "max_digits", "priority", "work_type", "timeout_days", "project", "composite"),
        *("min_target_tlevel", "max_target_tlevel", "max_current_tlevel", "stage1_only", "requested_b1", "shared"),
    }
    reserving = specification["paths"]["/api/v1/admin/work/reserve"]["post"]["requestBody"]["content"][
        "application/json"
    ]
    assert reserving["schema"]["$ref"].endswith("/Reservation")
    assert "composite_identifier" in specification["components"]["schemas"]["Reservation"]["properties"]
