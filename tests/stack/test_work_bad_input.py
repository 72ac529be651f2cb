"""Whatever is wrong with what is said of work gets a clear answer that names it, and changes nothing."""

import contextlib
import json
import random
import socket
import threading

import pytest
from bodies import problem
from leasing import admin_key, assert_lease, call_api, register_number, request_work, unique_name
from stacks import wait_until
from traffic import prime

from coordinator.composites import lease_lifecycle, targets

pytestmark = pytest.mark.stack

LEASE_PATHS = ("/ecm-work", "/p1-work", "/work")
LEASE_CALLS = {
    "claim": ("POST", "/claim"),
    "start": ("POST", "/start"),
    "progress": ("PUT", "/progress"),
    "complete": ("POST", "/complete"),
    "abandon": ("DELETE", ""),
}


def read_state(stack):
    """What nothing in here may change: how many rows there are, all that leases say, and what numbers want."""
    leases = "SELECT md5(string_agg(w::text, '|' ORDER BY id)) FROM work_assignments w"
    numbers = (
        "SELECT md5(string_agg(concat_ws(' ', id, hold, hold_reason, open_leases, ecm_eligible,"
        " pm1_eligible, pp1_eligible), '|' ORDER BY id)) FROM targets"
    )
    wait_until(lambda: stack.unsettled() == 0)
    return stack.counts(), stack.scalar(leases), stack.scalar(numbers)


@pytest.fixture
def unchanged(stack):
    """Fails the test if it has changed anything."""
    before = read_state(stack)
    yield
    assert read_state(stack) == before


def refused(answer, *words, status=422, reason="invalid", field=None):
    """A problem in these words, about this field; short, whatever was sent."""
    reply = problem(answer, status, reason)
    for word in words:
        assert word in reply["detail"], reply["detail"]
    if field is not None:
        assert [error["field"] for error in reply["errors"]] == [field], reply
    assert len(answer.content) < 2_000
    return reply


# What is asked for ---------------------------------------------------------------------------------------------------

LONG = "9" * 400
# By field: what it may not be, and what is said of that.
WRONG = {
    "min_digits": {"-1": "1", "0": "1", "1000001": "1000000", "1.5": "integer", "1e5": "integer", "nan": "integer"},
    "max_digits": {"-5": "-5", LONG: "999", "ten": "ten", "0x10": "0x10", "inf": "inf", "1 2": "1 2", "true": "true"},
    "priority": {str(2**31): "2147483648", str(-(2**31) - 1): "-2147483648", LONG: "999", "high": "high"},
    "min_target_tlevel": {"-0.1": "-0.1", "100.1": "100.1", "nan": "", "inf": "", "-inf": "", "1e400": "", "x": "x"},
    "max_target_tlevel": {"NaN": "", "Infinity": "", "101": "101"},
    "max_current_tlevel": {"-1": "-1", "nan": "", "t40": "t40"},
    "timeout_days": {"0": "0", "-1": "-1", "nan": "", "inf": "", "366": "366", "1e300": "", "week": "week"},
}
WRONG_ECM = {
    "requested_b1": {"99": "99", "0": "0", "-50000": "-50000", str(10**14 + 1): "100000000000000", "5e4": "5e4"},
    "work_type": {"fastest": "fastest", "STANDARD": "STANDARD", "standard'--": "standard'--", LONG: "..."},
    "shared": {"maybe": "maybe", "2": "2", "-1": "-1"},
    "stage1_only": {"maybe": "maybe", "0.5": "0.5"},
}


@pytest.mark.parametrize(("path", "wrong"), [("/ecm-work", WRONG | WRONG_ECM), ("/p1-work", WRONG)])
@pytest.mark.usefixtures("unchanged")
def test_filters_that_make_no_sense(stack, path, wrong):
    for field, values in wrong.items():
        for value, word in values.items():
            answer = stack.get(path, params={"client_id": "one", field: value})
            refused(answer, field, word, field=field)


@pytest.mark.parametrize("path", ["/p1-work", "/work"])
@pytest.mark.usefixtures("unchanged")
def test_methods_that_there_are_not(stack, path):
    field = "method" if path == "/p1-work" else "methods"
    for value in ("rho", "ECM", "pm1;ecm", "' OR 1=1", "<b>ecm</b>", "pm1\x00", "ecm," + "x" * 5000, "nfs"):
        refused(stack.get(path, params={"client_id": "one", field: value}), field, field=field)


@pytest.mark.usefixtures("unchanged")
def test_ranges_that_nothing_is_within(stack):
    for path in LEASE_PATHS:
        answer = stack.get(path, params={"client_id": "one", "min_digits": 200, "max_digits": 100})
        refused(answer, "min_digits is 200", "max_digits is 100")
    answer = stack.get("/ecm-work", params={"client_id": "one", "min_target_tlevel": 50, "max_target_tlevel": 40})
    refused(answer, "min_target_tlevel is 50", "max_target_tlevel is 40")


# A number that cannot be one, and what the answer's reason and detail say.
NUMBERS = {
    "-15": ("malformed_number", "-15"),
    "1e5": ("malformed_number", "1e5"),
    "9^9^9^9": ("number_too_large", "9^9^9^9"),
    "(" * 2000: ("malformed_number", "((("),
    "1/0": ("division_by_zero", "1/0"),
    "9" * 7000 + "x": ("number_too_large", "999"),
    "'; DROP TABLE composites; --": ("malformed_number", "DROP"),
    "<script>": ("malformed_number", "script"),
    "\x00": ("malformed_number", ""),
}


@pytest.mark.parametrize("path", ["/ecm-work", "/p1-work"])
@pytest.mark.usefixtures("unchanged")
def test_named_numbers_that_are_none(stack, path):
    for value, (reason, word) in NUMBERS.items():
        refused(
            stack.get(path, params={"client_id": "one", "composite": value}), word, reason=reason, field="composite"
        )


# Who asks ------------------------------------------------------------------------------------------------------------

NAMES = {
    "no name": ("", "required"),
    "an empty one": ("client_id=", "at least 1 character"),
    "spaces": ("client_id=%20%20", "at least 1 character"),
    "201 characters": ("client_id=" + "c" * 201, "at most 200 characters"),
    "7,000 characters": ("client_id=" + "c" * 7000, "at most 200 characters"),
    "a NUL": ("client_id=a%00b", "control characters"),
    "two lines": ("client_id=a%0Ab", "control characters"),
    "an escape": ("client_id=%1B%5B31m", "control characters"),
    "a line separator": ("client_id=a%E2%80%A8b", "control characters"),
}


def request_everywhere(stack, query):
    """Every endpoint that takes a client's name, with this query; a lease's id that is none."""
    for path in LEASE_PATHS:
        yield stack.http.get(f"{stack.api}{path}?{query}", timeout=10)
    for method, path in LEASE_CALLS.values():
        if path or "client_id=" in query.replace("client_id=&", ""):  # abandoning takes no name, too
            url = f"{stack.api}/work/00000000-0000-4000-8000-000000000000{path}?curves_completed=1&{query}"
            yield stack.http.request(method, url, timeout=10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("unchanged")
def test_names_that_are_none(stack, name):
    query, word = NAMES[name]
    for answer in request_everywhere(stack, query):
        if name == "an empty one" and answer.request.method == "DELETE":
            continue  # as if it was not given
        refused(answer, "client_id", word, field="client_id")


@pytest.mark.usefixtures("unchanged")
def test_a_name_in_the_path_is_one_too(stack):
    for query, word in (("c" * 201, "at most 200"), ("a%00b", "control"), ("a%1Bb", "control"), ("%20", "at least 1")):
        refused(stack.http.get(f"{stack.api}/work/status/{query}", timeout=10), word, field="client_id")
    problem(stack.http.get(f"{stack.api}/work/status/", timeout=10), 404, "not_found")


@pytest.mark.usefixtures("unchanged")
def test_a_name_of_a_megabyte(stack):
    """More than a request line may be: it is refused before there is anybody to make a problem of it."""
    for target in (f"/api/v1/ecm-work?client_id={'c' * 2**20}", f"/api/v1/work/status/{'c' * 2**20}"):
        with socket.create_connection(("127.0.0.1", stack.port), timeout=30) as connection:
            request = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            # It may stop reading long before the end.
            sending = threading.Thread(target=_send, args=(connection, request))
            sending.start()
            received = b""
            with contextlib.suppress(ConnectionError):
                while data := connection.recv(65536):
                    received += data
            sending.join(30)
        assert received[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 414"}, received[:200]
        assert b"8190" in received  # what ingest/gunicorn_settings.py allows


def _send(connection, request):
    with contextlib.suppress(OSError):  # it was refused before we were done
        connection.sendall(request)


LITERAL = (
    "lab/host",
    *("'; DROP TABLE work_assignments; --", "<script>alert(1)</script>", "../../etc/passwd", "%", "_", "\\", "[red]"),
    *("{0}", "%(client)s", ":client", "$1", "Ærøskøbing ☃", "\ufffd", "\u202eabc", "c" * 200),
)


def test_names_are_taken_as_they_are(stack):
    """Whatever they would mean to somebody else."""
    for name in LITERAL:
        lease = request_work(stack, name, composite=register_number(stack))
        (row,) = stack.rows("SELECT client_id FROM work_assignments WHERE id = :id", id=lease["work_id"])
        assert row.client_id == name
        assert_lease(call_api(stack, "POST", f"/work/{lease['work_id']}/claim", client_id=name), "claimed")
        own = stack.http.get(f"{stack.api}/work/status/{requote(name)}", timeout=10).json()
        assert (own["client_id"], len(own["assignments"])) == (name, 1)
        assert_lease(
            call_api(stack, "DELETE", f"/work/{lease['work_id']}", client_id=name, reason=name), "failed", name
        )


def requote(name):
    return "".join(f"%{byte:02X}" for byte in name.encode())


@pytest.mark.parametrize("garbage", ["%ED%A0%80", "%FF", "%C3%28", "%", "%zz", "%F4%90%80%80"])
def test_percent_garbage_is_no_reason_to_fall_over(stack, garbage):
    """Half a surrogate pair, bytes that are no UTF-8, no escapes: read as U+FFFD or as they stand."""
    for path in ("/ecm-work", "/p1-work"):
        answer = stack.http.get(f"{stack.api}{path}?client_id=one&project={garbage}", timeout=10)
        assert (answer.status_code, answer.json()["work_id"]) == (200, None)
    lease = request_work(stack, "one", composite=register_number(stack))
    url = f"{stack.api}/work/{lease['work_id']}?client_id=one&reason={garbage}"
    assert_lease(stack.http.delete(url, timeout=10), "failed")
    assert stack.http.get(f"{stack.api}/work/status/x{garbage}", timeout=10).json()["assignments"] == []


# Leases in every state -----------------------------------------------------------------------------------------------

# By state: what each of TELLING is answered, and the state afterwards where that is another one.
STATES_AFTER = {
    "assigned": {"claim": "claimed", "start": "running", "progress": "running", "complete": "completed"},
    "claimed": {"claim": None, "start": "running", "progress": "running", "complete": "completed"},
    "running": {"claim": None, "start": None, "progress": "running", "complete": "completed"},
    "completed": {"claim": None, "start": None, "progress": "completed", "complete": "completed"},
    "failed": {"claim": None, "start": None, "progress": "failed", "complete": "failed"},
    "timeout": {"claim": None, "start": None, "progress": "timeout", "complete": "timeout"},
}
OPEN = ("assigned", "claimed", "running")


@pytest.mark.parametrize("state", STATES_AFTER)
def test_every_state_and_what_can_be_said_in_it(stack, state):
    client = unique_name("client")
    lease = request_work(stack, client, composite=register_number(stack), shared=1)
    put = "UPDATE work_assignments SET status = :state, closed_at = CASE WHEN :closed THEN now() END WHERE id = :id"
    for what, (method, path) in LEASE_CALLS.items():
        stack.run_sql(put, state=state, closed=state not in OPEN, id=lease["work_id"])
        with stack.database.begin() as connection:  # as whoever closes a lease does
            of_composite = targets.ids_of(connection, [lease["composite_id"]])
            lease_lifecycle.refresh_eligibility(connection, of_composite)
        expected = (STATES_AFTER[state] | {"abandon": "failed" if state in OPEN else state})[what]
        before = read_state(stack)
        url, reply = f"/work/{lease['work_id']}{path}", {"client_id": client, "curves_completed": 1}
        answer = call_api(stack, method, url, **reply)
        if expected is None:
            refused(answer, lease["work_id"], f"is {state}", status=404, reason="unknown_work")
        else:
            assert_lease(answer, expected)
        if expected is None or state not in OPEN:
            assert read_state(stack) == before, what
        elif what in {"complete", "abandon"}:  # and once more changes nothing more
            before = read_state(stack)
            assert_lease(call_api(stack, method, url, **reply), expected)
            assert read_state(stack) == before, what


@pytest.mark.usefixtures("unchanged")
def test_ids_that_are_none(stack):
    key = admin_key(stack)
    wrong = ("7", "None", "null", "0" * 31, "g" * 32, "' OR 1=1 --", "\x00", "x" * 5000)
    for work_id in wrong:
        for method, path in LEASE_CALLS.values():
            answer = call_api(stack, method, f"/work/{work_id}{path}", client_id="one", curves_completed=1)
            refused(answer, "no work_id", status=404, reason="unknown_work")
        for method, path in (("DELETE", "/admin/work/assignments/"), ("POST", "/admin/work/release/")):
            refused(call_api(stack, method, path + work_id, key), "no work_id", status=404, reason="unknown_work")


def test_progress_that_is_none(stack):
    lease = request_work(stack, "one", composite=register_number(stack))
    before = read_state(stack)
    for curves in ("-1", str(10**9 + 1), LONG, "1.5", "nan", "inf", "many", "", None):
        answer = call_api(stack, "PUT", f"/work/{lease['work_id']}/progress", client_id="one", curves_completed=curves)
        refused(answer, "curves_completed", field="curves_completed")
    assert read_state(stack) == before
    # What is only for people to read is taken whatever it looks like: a lease must not be kept for its reason's looks.
    for value, kept in (("a\x00b", "a b"), ("two\nlines", "two lines"), ("x" * 2001, "x" * 500), ("\n", "x" * 500)):
        query = {"client_id": "one", "curves_completed": 0, "message": value}
        assert_lease(call_api(stack, "PUT", f"/work/{lease['work_id']}/progress", **query), "running")
        assert stack.scalar("SELECT message FROM work_assignments WHERE id = :id", id=lease["work_id"]) == kept
    gone = call_api(stack, "DELETE", f"/work/{lease['work_id']}", reason="Traceback:\n  no\x00memory")
    assert_lease(gone, "failed", "Traceback: no memory")


# What operators say --------------------------------------------------------------------------------------------------

RESERVATIONS = {
    "no number": ({"composite_identifier": None}, "composite_identifier", "string"),
    "an empty number": ({"composite_identifier": ""}, "composite_identifier", "at least 1"),
    "a number as JSON's": ({"composite_identifier": 15}, "composite_identifier", "string"),
    "no client": ({"client_id": None}, "client_id", "string"),
    "a client of two lines": ({"client_id": "a\nb"}, "client_id", "control"),
    "a client of a megabyte": ({"client_id": "c" * 2**20}, "client_id", "200"),
    "ecm": ({"method": "ecm"}, "method", "ecm"),
    "no hours": ({"duration_hours": 0}, "duration_hours", "greater than 0"),
    "minus an hour": ({"duration_hours": -1}, "duration_hours", "-1"),
    "a century": ({"duration_hours": 24 * 36525}, "duration_hours", "43800"),
    "metadata that is no object": ({"metadata": ["x"]}, "metadata", "array"),
    "metadata beyond all numbers": ({"metadata": {"x": [{"y": float("-inf")}]}}, "metadata", "number"),
    "metadata of a megabyte": ({"metadata": {"x": "y" * 2**20}}, "metadata", "65536"),
}


@pytest.mark.parametrize("name", RESERVATIONS)
def test_reservations_that_make_no_sense(stack, name):
    changes, field, word = RESERVATIONS[name]
    value = register_number(stack)
    before = read_state(stack)
    body = {"composite_identifier": value, "client_id": "one", "method": "nfs"} | changes
    sent = json.dumps(body).replace("Infinity", "1e400")  # which is how it can be written
    refused(_reserve(stack, sent.encode()), word, field=field)
    assert read_state(stack) == before


@pytest.mark.usefixtures("unchanged")
def test_reservations_that_cannot_be_read(stack):
    for body in (b"", b"[", b'{"client_id": "a", "client_id": "b"}', b'{"duration_hours": NaN}', b"[" * 200_000):
        refused(_reserve(stack, body), reason="malformed")
    refused(_reserve(stack, b"[]"), "object", field="body")
    refused(_reserve(stack, b'{"composite_identifier": "\\u0000", "client_id": "a"}'), "NUL", reason="malformed")
    for number in ("9^9^9^9", "1/0", "-5", "x" * 10_000, str(prime(40))):
        body = json.dumps({"composite_identifier": number, "client_id": "one"}).encode()
        refused(_reserve(stack, body), status=404, reason="unknown_composite")


def _reserve(stack, body):
    headers = {"X-Admin-Key": admin_key(stack), "Content-Type": "application/json"}
    return stack.http.post(f"{stack.api}/admin/work/reserve", data=body, headers=headers, timeout=40)


@pytest.mark.usefixtures("unchanged")
def test_numbers_to_pause_that_are_none(stack):
    key = admin_key(stack)
    for number in ("x", "-1", "1.5", "%00", ""):
        problem(call_api(stack, "POST", f"/admin/composites/{number}/pause", key), 404, "not_found")


NASTY = (
    "",
    "-1",
    "0",
    "7",
    "1e400",
    "nan",
    "9" * 500,
    "%00",
    "%ED%A0%80",
    "%",
    "a%0Ab",
    "'--",
    "[]",
    "null",
    "1_0",
    "%EF%BC%91",
)


@pytest.mark.usefixtures("unchanged")
def test_random_queries_never_make_it_fall_over(stack):
    """Fields repeated, misplaced and full of anything: work that there is none of, or a refusal."""
    fields = (*WRONG, *WRONG_ECM, "method", "methods", "reason", "message", "curves_completed", "client_id", "what")
    no_work = ("project=none-of-these", "min_digits=999999")
    random.seed(4)
    for _ in range(200):
        chosen = [f"{random.choice(fields)}={random.choice(NASTY)}" for _ in range(random.randrange(4))]
        method, path = random.choice([*[("GET", path) for path in LEASE_PATHS], *LEASE_CALLS.values()])
        if method != "GET":
            path = f"/work/00000000-0000-4000-8000-000000000000{path}"
        # Of a field that is given twice the first counts.
        query = "&".join([*no_work, "client_id=one", *chosen])
        answer = stack.http.request(method, f"{stack.api}{path}?{query}", timeout=10)
        assert answer.status_code in ((200, 422) if method == "GET" else (404, 422)), (query, answer.text)
