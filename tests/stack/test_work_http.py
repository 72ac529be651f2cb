"""Work over HTTP as clients ask for it, do it and bring it back: through the whole coordinator."""

from datetime import UTC, datetime, timedelta

import pytest
from bodies import plain, problem
from leasing import (
    assert_lease,
    call_api,
    random_composite,
    register_number,
    request_work,
    set_priority,
    submit_curves,
    unique_name,
)
from stacks import wait_until
from traffic import prime, random_number

pytestmark = pytest.mark.stack

# What existing clients read of ecm-work, and rely on: none of it is null in a lease.
EXISTING = {"work_id", "composite_id", "composite", "digit_length", "current_t_level", "target_t_level", "expires_at"}
UNKNOWN = "00000000-0000-4000-8000-000000000000"


def in_days(text):
    """How many days from now a time on the wire is."""
    return (datetime.fromisoformat(text) - datetime.now(UTC)) / timedelta(days=1)


# A whole number, as existing clients do it ---------------------------------------------------------------------------


def test_an_existing_client_from_its_lease_to_its_completion(stack):
    value, project = random_number().value, unique_name("project")
    register_number(stack, value, project=project)
    query = {"min_digits": 100, "max_digits": "", "work_type": "standard", "timeout_days": 2, "priority": 0}
    lease = request_work(stack, "old", project=project, **query)
    assert all(lease[name] is not None for name in EXISTING | {"prior_t_level"})
    assert (lease["composite"], lease["digit_length"], lease["shared"]) == (value, len(value), False)
    assert lease["current_t_level"] < lease["target_t_level"]
    assert in_days(lease["expires_at"]) == pytest.approx(2, abs=0.01)
    path = f"/work/{lease['work_id']}"
    # All of it is leased: to nobody else, neither as a whole nor in part.
    assert request_work(stack, "other", project=project)["work_id"] is None
    assert request_work(stack, "other", project=project, shared=1)["work_id"] is None
    assert_lease(call_api(stack, "POST", f"{path}/claim", client_id="old"), "claimed")
    assert_lease(call_api(stack, "POST", f"{path}/start", client_id="old"), "running")
    # A client climbs through B1 levels on one lease; only its own word ends that.
    for b1 in (11_000, 50_000):
        reply = submit_curves(stack, "old", lease | {"b1": b1}, 100)
        assert "work_id" not in reply["message"]
    assert_lease(call_api(stack, "POST", f"{path}/complete", client_id="old"), "completed")
    reply = assert_lease(call_api(stack, "POST", f"{path}/complete", client_id="old"), "completed")
    assert reply["curves_submitted"] == 200
    assert_lease(call_api(stack, "DELETE", path), "completed")
    assert request_work(stack, "other", project=project)["composite"] == value
    stack.assert_sound()


def test_a_lease_lasts_five_days_if_nothing_is_said(stack):
    lease = request_work(stack, "old", composite=register_number(stack))
    assert in_days(lease["expires_at"]) == pytest.approx(5, abs=0.01)


def test_a_lease_is_given_up_without_a_name_and_twice(stack):
    lease = request_work(stack, "old", composite=register_number(stack))
    for _ in range(2):
        assert_lease(call_api(stack, "DELETE", f"/work/{lease['work_id']}", reason="no time"), "failed", "no time")
    assert_lease(call_api(stack, "POST", f"/work/{lease['work_id']}/complete", client_id="old"), "failed")
    assert request_work(stack, "other", composite=lease["composite"])["work_id"]


def test_no_work_is_all_null_but_when_to_ask_again(stack):
    for path in ("/ecm-work", "/p1-work", "/work"):
        query = {"min_digits": 999_999} if path == "/work" else {"project": unique_name("nothing")}
        reply = request_work(stack, "old", path, **query)
        assert reply["work_id"] is None
        assert "ask again" in reply["message"]


def test_only_a_get_leases_anything_and_nobody_keeps_its_answer(stack):
    """What a monitor or a link checker asks by HEAD, a cache on the way must not answer, and must cost no lease."""
    value, before = register_number(stack), stack.counts()
    for path in ("/ecm-work", "/p1-work", "/work"):
        query = {"client_id": "one", "composite": value}
        answer = stack.http.head(stack.api + path, params=query, timeout=10)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")
    assert stack.counts() == before
    answer = stack.get("/ecm-work", params={"client_id": "one", "composite": value})
    assert answer.headers["Cache-Control"] == "no-store"


# Shared leases -------------------------------------------------------------------------------------------------------


def test_several_clients_share_a_number(stack):
    value = register_number(stack)
    lease_one, lease_two = (request_work(stack, client, composite=value, shared=1) for client in ("one", "two"))
    assert lease_one["work_id"] != lease_two["work_id"]
    for lease in (lease_one, lease_two):
        assert all(lease[name] is not None for name in EXISTING | {"b1", "curves", "parametrization", "prior_t_level"})
        assert lease["shared"] is True
        assert lease["curves"] >= 1
    assert "open leases (2)" in request_work(stack, "old", composite=value)["message"]  # not as a whole
    submit_curves(stack, "one", lease_one, lease_one["curves"] - 1)
    assert_lease(
        call_api(stack, "PUT", f"/work/{lease_one['work_id']}/progress", client_id="one", curves_completed=1), "running"
    )
    reply = submit_curves(stack, "one", lease_one, 1)
    assert "work_id" not in reply["message"]
    assert_lease(
        call_api(stack, "PUT", f"/work/{lease_one['work_id']}/progress", client_id="one", curves_completed=1),
        "completed",
    )
    assert_lease(call_api(stack, "DELETE", f"/work/{lease_two['work_id']}", client_id="two"), "failed")
    assert request_work(stack, "old", composite=value)["work_id"]
    stack.assert_sound()


def test_what_is_asked_for_is_what_is_leased(stack):
    value = register_number(stack)
    lease = request_work(stack, "one", composite=value, shared="true", requested_b1=43_000, stage1_only="true")
    assert (lease["b1"], lease["b2"], lease["method"]) == (43_000, 0, "ecm")


def test_heartbeats_extend_a_lease_only_when_curves_advanced(stack):
    lease = request_work(stack, "one", composite=register_number(stack), shared=1)

    def send_progress(curves, **more):
        answer = call_api(
            stack, "PUT", f"/work/{lease['work_id']}/progress", client_id="one", curves_completed=curves, **more
        )
        reply = assert_lease(answer, "running")
        return datetime.fromisoformat(reply["expires_at"]), reply["curves_completed"]

    granted = datetime.fromisoformat(lease["expires_at"])
    assert send_progress(0) == (granted, 0)
    extended, _ = send_progress(1, message="on its way")
    assert extended > granted
    assert send_progress(1) == (extended, 1)
    assert send_progress(0) == (extended, 1)
    # Progress ends at what was leased, so that no lease is kept for ever.
    most, curves = send_progress(lease["curves"] + 1000)
    assert curves == lease["curves"]
    assert send_progress(lease["curves"] + 2000) == (most, curves)
    (shown,) = stack.get("/work/status/one").json()["assignments"][:1]
    assert (shown["work_id"], shown["message"]) == (lease["work_id"], "on its way")


def test_a_factor_that_finishes_a_number_closes_its_leases(stack):
    small = prime(12)
    value = register_number(stack, str(small * prime(150)))
    leases = [request_work(stack, client, composite=value, shared=1) for client in ("one", "two")]
    body = plain(value, client_id="three", results={"factor_found": str(small), "curves_completed": 1})
    assert stack.submit(body).json()["factor_status"] == "new_factor"
    for client, lease in zip(("one", "two"), leases, strict=True):
        path = f"/work/{lease['work_id']}"
        answer = call_api(stack, "PUT", f"{path}/progress", client_id=client, curves_completed=1)
        reply = assert_lease(answer, "completed", "nothing is left to do")
        assert reply["curves_completed"] == 0
        assert_lease(call_api(stack, "POST", f"{path}/complete", client_id=client), "completed")
        assert_lease(call_api(stack, "DELETE", path), "completed")
    assert "is fully factored" in request_work(stack, "one", composite=value)["message"]
    stack.assert_sound()


# P-1 and P+1 ---------------------------------------------------------------------------------------------------------


def test_p1_work_until_it_is_done(stack):
    value = register_number(stack)

    def request_p1(client="one", **query):
        return request_work(stack, client, "/p1-work", composite=value, **query)

    def run(lease, method, **parameters):
        body = plain(value, client_id="one", method=method, work_id=lease["work_id"])
        body["parameters"] = {"b1": lease[f"{method}_b1"], **parameters}
        body["results"] = {"curves_completed": 1}
        assert "work_id" not in stack.submit(body).json()["message"]

    lease = request_p1()
    b1 = lease["pm1_b1"]
    assert lease["composite"] == value
    assert b1 == lease["pp1_b1"] > 100_000
    assert in_days(lease["expires_at"]) == pytest.approx(5, abs=0.01)
    assert request_p1("two")["work_id"] is None  # somebody has it
    assert request_work(stack, "two", composite=value)["work_id"]  # curves are something else
    run(lease, "pm1", b1=b1 - 1)  # not far enough
    run(lease, "pm1", b2=0)  # no stage 2
    assert_lease(call_api(stack, "POST", f"/work/{lease['work_id']}/complete", client_id="one"), "completed")
    lease = request_p1(method="p1", timeout_days=1)
    assert (lease["pm1_b1"], lease["pp1_b1"]) == (b1, b1)
    run(lease, "pm1")
    assert_lease(call_api(stack, "POST", f"/work/{lease['work_id']}/complete", client_id="one"), "completed")
    assert request_p1(method="pm1")["work_id"] is None
    lease = request_p1()
    assert (lease["pm1_b1"], lease["pp1_b1"]) == (None, b1)
    run(lease, "pp1")
    assert_lease(call_api(stack, "DELETE", f"/work/{lease['work_id']}", client_id="one"), "failed")
    reply = request_p1()
    assert reply["work_id"] is None
    assert f"{b1:,}" in reply["message"]
    stack.assert_sound()


def test_p1_work_passes_by_numbers_that_have_it(stack):
    project = unique_name("project")
    values = [register_number(stack, random_composite(digits), project=project) for digits in (151, 152)]
    first = request_work(stack, "one", "/p1-work", project=project, method="pm1")
    assert (first["composite"], first["pp1_b1"]) == (values[0], None)
    assert request_work(stack, "two", "/p1-work", project=project, method="pm1")["composite"] == values[1]
    assert request_work(stack, "three", "/p1-work", project=project, method="pp1")["composite"] == values[0]


# Whatever there is ---------------------------------------------------------------------------------------------------


def test_work_of_the_first_method_that_there_is_any_of(stack):
    value = register_number(stack, random_composite(311))
    of_this_size = {"min_digits": 311, "max_digits": 311}

    def work(client, methods):
        return request_work(stack, client, "/work", methods=methods, **of_this_size)

    lease_one = work("one", "pm1,ecm")
    assert (lease_one["composite"], lease_one["method"], set(lease_one["parameters"])) == (value, "pm1", {"b1", "b2"})
    assert in_days(lease_one["expires_at"]) == pytest.approx(5, abs=0.01)
    lease_two = work("two", " pm1 , ecm ,")
    assert (lease_two["composite"], lease_two["method"]) == (value, "ecm")
    assert set(lease_two["parameters"]) == {"b1", "b2", "curves", "parametrization"}
    assert lease_two["estimated_time_minutes"] > 0
    assert work("three", "pp1")["parameters"]["b1"] == lease_one["parameters"]["b1"]
    assert work("four", "pm1,pp1")["work_id"] is None
    assert work("five", "")["method"] == "ecm"


# Which number --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(stack):
    """A project of three numbers: its name, and they, by size."""
    name = unique_name("project")
    small, middle, large = (
        register_number(stack, random_composite(digits), project=name) for digits in (120, 150, 180)
    )
    # The small one has had most, the large one nothing worth speaking of.
    for value, curves in ((small, 5000), (middle, 500)):
        body = plain(value, results={"curves_completed": curves})
        assert stack.submit(body).status_code == 200
    set_priority(stack, middle, 7)
    return name, {"small": small, "middle": middle, "large": large}


FILTERS = [
    ({"min_digits": 130}, "middle"),
    ({"min_digits": 180, "max_digits": 180}, "large"),
    ({"min_digits": 181}, None),
    ({"max_digits": 119}, None),
    ({"priority": 1}, "middle"),
    ({"priority": -5, "max_digits": ""}, "small"),
    ({"priority": 8}, None),
    ({"min_target_tlevel": 50}, "large"),
    ({"min_target_tlevel": 40, "max_target_tlevel": 50}, "middle"),
    ({"max_target_tlevel": 10}, None),
    ({"max_current_tlevel": 20}, "large"),
    ({"max_current_tlevel": 0}, None),
    ({"project": "no such project"}, None),
    ({"work_type": "standard"}, "small"),
    ({"work_type": "progressive"}, "large"),
    ({"work_type": "priority"}, "middle"),
]


@pytest.mark.parametrize(("query", "expected"), FILTERS, ids=str)
@pytest.mark.parametrize("shared", [0, 1])
def test_filters_and_orders(stack, project, query, expected, shared):
    name, values = project
    lease = request_work(stack, "one", **({"project": name, "shared": shared} | query))
    if lease["work_id"]:
        assert_lease(call_api(stack, "DELETE", f"/work/{lease['work_id']}"), "failed")
    assert lease["composite"] == values.get(expected), lease


def test_the_best_work_is_of_most_value(stack, project):
    name, values = project
    (best, *_) = stack.rows(
        "SELECT number FROM composites JOIN targets t ON t.id = target_id WHERE number = ANY(:all)"
        " ORDER BY work_value DESC",
        all=list(values.values()),
    )
    lease = request_work(stack, "one", project=name, work_type="best", shared=1)
    assert_lease(call_api(stack, "DELETE", f"/work/{lease['work_id']}"), "failed")
    assert lease["composite"] == best.number


def test_a_number_is_named_in_any_way_and_what_is_wrong_with_it_is_said(stack):
    value = register_number(stack)
    lease = request_work(stack, "one", composite=f"2*{value}-{value}", shared=1)
    assert lease["composite"] == value
    assert request_work(stack, "one", composite=value, shared=1, min_digits=1, max_digits=2)["message"].endswith(
        "filters."
    )
    assert "is not a number of this server" in request_work(stack, "one", composite=str(prime(40)))["message"]


# Time and memory -----------------------------------------------------------------------------------------------------


def test_beat_takes_back_what_ran_out_and_a_late_result_completes_it(stack):
    value = register_number(stack)
    second = 1.5 / 86_400
    lease = request_work(stack, "one", composite=value, shared=1, timeout_days=second)
    whole = request_work(stack, "old", composite=register_number(stack), timeout_days=second)

    def status(client, of):
        shown = stack.get(f"/work/status/{client}").json()["assignments"]
        return next(item["status"] for item in shown if item["work_id"] == of["work_id"])

    wait_until(lambda: status("one", lease) == status("old", whole) == "timeout")
    answer = call_api(stack, "PUT", f"/work/{lease['work_id']}/progress", client_id="one", curves_completed=1)
    assert_lease(answer, "timeout", "its time ran out")
    assert_lease(call_api(stack, "POST", f"/work/{whole['work_id']}/complete", client_id="old"), "timeout")
    assert request_work(stack, "other", composite=whole["composite"])["work_id"]
    before = stack.get(f"/stats/{value}").json()["current_t_level"]
    submit_curves(stack, "one", lease, lease["curves"])
    assert stack.get(f"/stats/{value}").json()["current_t_level"] > before
    reply = assert_lease(call_api(stack, "POST", f"/work/{lease['work_id']}/complete", client_id="one"), "completed")
    assert reply["curves_submitted"] == lease["curves"]
    assert "ran out" not in reply["message"]
    stack.assert_sound()


def test_a_client_takes_up_its_leases_after_a_crash(stack):
    client = unique_name("crashed")
    done, whole = (request_work(stack, client, composite=register_number(stack)) for _ in range(2))
    shared = request_work(stack, client, composite=register_number(stack), shared=1)
    assert_lease(call_api(stack, "POST", f"/work/{done['work_id']}/complete", client_id=client), "completed")
    assert_lease(call_api(stack, "POST", f"/work/{shared['work_id']}/start", client_id=client), "running")
    reply = stack.get(f"/work/status/{client}").json()
    assert reply["client_id"] == client
    again, kept, closed = reply["assignments"]  # open ones first, the newest of them first
    assert [again["work_id"], kept["work_id"], closed["work_id"]] == [
        lease["work_id"] for lease in (shared, whole, done)
    ]
    for name in ("composite", "method", "b1", "b2", "curves", "parametrization", "expires_at", "shared"):
        assert again[name] == shared[name], name
    assert (again["status"], again["closed_at"]) == ("running", None)
    assert (kept["shared"], kept["curves"], kept["composite"]) == (False, None, whole["composite"])
    assert closed["status"] == "completed"
    assert stack.get(f"/work/status/{unique_name('nobody')}").json()["assignments"] == []


# Ids -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/claim"), ("POST", "/start"), ("PUT", "/progress"), ("POST", "/complete"), ("DELETE", "")],
)
def test_another_clients_lease_and_one_that_is_not_there(stack, method, path):
    lease = request_work(stack, "one", composite=register_number(stack))
    for client, work_id, word in (
        ("two", lease["work_id"], "'two'"),
        ("one", UNKNOWN, UNKNOWN),
        ("one", "7", "'7' is no work_id"),
    ):
        reply = problem(
            call_api(stack, method, f"/work/{work_id}{path}", client_id=client, curves_completed=1), 404, "unknown_work"
        )
        assert word in reply["detail"]
    assert_lease(call_api(stack, "POST", f"/work/{lease['work_id']}/claim", client_id="one"), "claimed")
    assert_lease(call_api(stack, "POST", f"/work/{lease['work_id']}/complete", client_id="one"), "completed")
