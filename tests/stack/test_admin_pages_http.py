"""The forms of administration in a browser: who may send them, what they do, and what they refuse."""

import time
from itertools import count
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from bodies import SCRIPT, claiming, plain
from leasing import register_number, request_work, unique_name
from page_forms import PageBrowser, message
from requests.adapters import HTTPAdapter
from stacks import wait_until
from traffic import prime

pytestmark = pytest.mark.stack

PAGES = ("/admin", "/admin/load", "/admin/work", "/admin/letters")


@pytest.fixture
def key(stack):
    return (stack.home / "admin.key").read_text().strip()


@pytest.fixture
def browser(stack, key):
    """A browser whose user has logged in."""
    made = HttpBrowser(stack.url)
    answer = made.send("/admin/login", "/admin/login", key=key)
    assert answer.url == f"{stack.url}/admin"
    yield made
    made.session.close()


class OwnAddressAdapter(HTTPAdapter):
    """Connects from an address of its own, because the server counts logins by address."""

    addresses = count(1)

    def init_poolmanager(self, *args, **options):
        place = next(self.addresses)
        options["source_address"] = (f"127.9.{place // 250}.{place % 250 + 1}", 0)
        super().init_poolmanager(*args, **options)


class HttpBrowser(PageBrowser):
    """A browser that speaks HTTP to a coordinator, from an address of its own."""

    def __init__(self, url):
        self.url, self.session = url, requests.Session()
        self.session.mount("http://", OwnAddressAdapter())

    def get(self, path):
        return self.session.get(self.url + path, timeout=40)

    def post(self, path, data, files):
        return self.session.post(self.url + path, data=data, files=files, timeout=60)


def number_page(stack, **facts):
    value = register_number(stack, **facts)
    return f"/numbers/{stack.scalar('SELECT id FROM composites WHERE number = :value', value=value)}", value


# Access --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_without_a_session_every_page_leads_to_the_login_and_back(stack, key, path):
    stranger = HttpBrowser(stack.url)
    answer = stranger.open(path)
    assert urlsplit(answer.url).path == "/admin/login"
    assert parse_qs(urlsplit(answer.url).query) == {"next": [path]}
    asked = answer.url.removeprefix(stack.url)
    assert stranger.send(asked, asked, key=key).url == stack.url + path


def test_the_cookie_is_signed_and_out_of_reach(stack, browser):
    cookies = requests.Session()
    answer = cookies.get(f"{stack.url}/admin/login", timeout=40)
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Secure" not in cookie
    secure = requests.get(f"{stack.url}/admin/login", headers={"X-Forwarded-Proto": "https"}, timeout=40)
    assert "Secure" in secure.headers["Set-Cookie"]
    (signed,) = [stored for stored in browser.session.cookies if stored.name == "ecm_operator"]
    head, _, signature = signed.value.rpartition(".")
    turned = signature[::-1] if signature[::-1] != signature else "A" * len(signature)
    forged = requests.get(f"{stack.url}/admin", cookies={"ecm_operator": f"{head}.{turned}"}, timeout=40)
    assert "/admin/login" in forged.url


def test_logging_out_ends_the_session(stack, browser):
    assert browser.send("/admin", "/admin/logout").url == f"{stack.url}/"
    assert "/admin/login" in browser.open("/admin").url


@pytest.mark.parametrize(
    "elsewhere", ["https://example.org/", "//example.org", "/\\example.org", "javascript:alert(1)"]
)
def test_the_login_redirects_only_to_this_server(stack, key, elsewhere):
    form = f"/admin/login?next={requests.utils.quote(elsewhere, safe='')}"
    assert HttpBrowser(stack.url).send(form, form, key=key).url == f"{stack.url}/admin"


def test_a_wrong_key_opens_nothing_and_guessing_is_slowed_down(stack):
    guesser = HttpBrowser(stack.url)
    # All of them within one minute, because the limit counts per minute.
    wait_until(lambda: time.time() % 60 < 50, 30)
    answers = [guesser.send("/admin/login", "/admin/login", key=f"guess {place}") for place in range(11)]
    assert [answer.status_code for answer in answers] == [403] * 10 + [429]
    assert "10 requests" in message(answers[-1], "refused")
    assert "not this server&#39;s admin key" in message(answers[0], "refused")
    assert "/admin/login" in guesser.open("/admin").url


def test_a_form_from_elsewhere_changes_nothing(stack, browser):
    page, value = number_page(stack)
    path = page.replace("/numbers", "/admin/numbers") + "/priority"
    own = browser.token(page)
    others = HttpBrowser(stack.url).token("/admin/login")
    for token in (None, "", "wrong", others):
        fields = {"priority": "9"} | ({} if token is None else {"csrf_token": token})
        answer = browser.session.post(stack.url + path, data=fields, timeout=40)
        assert answer.status_code == 400
        assert "This form is out of date" in answer.text
    stranger = requests.post(stack.url + path, data={"priority": "9", "csrf_token": own}, timeout=40)
    assert "log in and repeat it" in message(stranger, "refused")
    # The browser does not send the cookie with other sites' forms; the answer must not replace it.
    elsewhere = requests.post(stack.url + "/admin/logout", timeout=40, allow_redirects=False)
    assert (elsewhere.status_code, "Set-Cookie" in elsewhere.headers) == (303, False)
    assert stack.scalar("SELECT priority FROM composites WHERE number = :value", value=value) == 0


def test_head_requests_change_nothing(stack, browser):
    """HEAD reaches every route that answers GET."""
    value = str(prime(20) * prime(60))
    answer = browser.session.head(f"{stack.url}/admin/load", data={"numbers": value}, timeout=40)
    assert answer.status_code == 200
    assert stack.scalar("SELECT count(*) FROM composites WHERE number = :value", value=value) == 0
    visitor = HttpBrowser(stack.url)
    answers = [visitor.session.head(f"{stack.url}/admin/login", data={"key": "guess"}, timeout=40) for _ in range(12)]
    assert {answer.status_code for answer in answers} == {200}


def test_malformed_cursors_and_ids_are_ignored(stack, browser):
    for place in ("1-\u00b2", "1-", "x", "1-9999999999999999999"):
        browser.open(f"/admin/letters?cursor={place}")
    answer = browser.send("/admin/letters", "/admin/letters", submission="\u00b2", do="retry")
    assert "Select at least one result first" in message(answer, "refused")


def test_a_reader_sees_nothing_of_administration_and_the_cookie_opens_no_api(stack, browser):
    page, _ = number_page(stack)
    assert "/admin/numbers/" in browser.open(page).text
    assert "/admin/numbers/" not in HttpBrowser(stack.url).open(page).text
    assert browser.session.get(f"{stack.api}/admin/composites/status", timeout=40).status_code == 401


# Forms --------------------------------------------------------------------------------------------------------------


def test_a_number_is_given_a_priority_paused_resumed_and_recalculated(stack, browser):
    page, value = number_page(stack)
    forms = page.replace("/numbers", "/admin/numbers")

    def state():
        ((priority, hold, reason),) = stack.rows(
            "SELECT c.priority, hold, hold_reason FROM targets t JOIN composites c ON c.target_id = t.id"
            " WHERE number = :value",
            value=value,
        )
        return priority, hold, reason

    assert message(browser.send(page, f"{forms}/priority", priority="7"), "done") == "The priority is 7; it was 0."
    assert "should be a valid integer" in message(browser.send(page, f"{forms}/priority", priority="high"), "refused")
    assert "is required" in message(browser.send(page, f"{forms}/priority", priority=""), "refused")
    browser.send(page, f"{forms}/pause", reason="a <b>look</b>")
    assert state() == (7, "paused", "a <b>look</b>")
    assert "a &lt;b&gt;look&lt;/b&gt;" in browser.open("/admin/work").text
    browser.send(page, f"{forms}/resume")
    assert state() == (7, None, None)
    assert "The t-level was right" in message(browser.send(page, f"{forms}/recalculate"), "done")
    # The audit log has all of it.
    number = page.removeprefix("/numbers/")
    actions = [
        row.action
        for row in stack.rows(
            "SELECT action FROM admin_events WHERE target = :target ORDER BY id", target=f"composite {number}"
        )
    ]
    assert actions[:3] == ["set priority", "pause", "resume"]
    assert f"composite {number}" in browser.open("/admin").text


@pytest.mark.parametrize("verb", ["priority", "pause", "resume", "recalculate", "reserve"])
def test_the_id_of_an_unknown_number_is_named(stack, browser, verb):
    for number in (2**40, 2**63):
        fields = {"priority": "1", "client_id": "nfs"}
        answer = browser.send("/admin", f"/admin/numbers/{number}/{verb}", **fields)
        assert answer.status_code == 404
        assert f"There is no composite with id {number}" in answer.text


def test_a_number_is_reserved_and_released(stack, browser):
    page, value = number_page(stack)
    forms = page.replace("/numbers", "/admin/numbers")
    client = unique_name("nfs")
    assert client in message(browser.send(page, f"{forms}/reserve", client_id=client, method="snfs"), "done")
    again = browser.send(page, f"{forms}/reserve", client_id=client, method="snfs")
    assert f"is reserved by {client}" in message(again, "refused")
    assert "should be greater than 0" in message(
        browser.send(page, f"{forms}/reserve", client_id=client, duration_hours="-1"), "refused"
    )
    assert client in browser.open("/admin/work").text
    work = stack.scalar("SELECT id FROM work_assignments WHERE client_id = :client", client=client)
    assert client in message(browser.send("/admin/work", f"/admin/work/{work}/end", reason="done with"), "done")
    assert (
        stack.scalar(
            "SELECT open_leases FROM targets t JOIN composites c ON c.target_id = t.id WHERE number = :value",
            value=value,
        )
        == 0
    )
    status = "SELECT status FROM work_assignments WHERE client_id = :client"
    assert stack.scalar(status, client=client) == "completed"
    # The same form cancels a lease, which then has failed.
    client = unique_name("leased")
    lease = request_work(stack, client, composite=value)
    shown = message(browser.send("/admin/work", f"/admin/work/{lease['work_id']}/end", reason="not now"), "done")
    assert f"lease of {client} is failed" in shown
    assert stack.scalar(status, client=client) == "failed"
    assert "is no work_id" in message(browser.send("/admin/work", "/admin/work/none/end"), "refused")


def test_numbers_are_loaded_from_text_or_from_a_file_and_all_or_none_are_stored(stack, browser):
    project = unique_name("loaded")
    values = [str(prime(30) * prime(31)) for _ in range(4)]
    pasted = "\n".join(["# a list", *values[:2]])
    answer = browser.send("/admin/load", "/admin/load", numbers=pasted, project_name=project, default_priority="3")
    assert "2 new" in message(answer, "done")
    table = f"number,priority\n{values[2]},5\n<b>{values[3]},4\n"
    refused = browser.send("/admin/load", "/admin/load", files={"file": ("list.csv", table)})
    assert refused.status_code == 422
    assert "nothing was stored" in message(refused, "refused")
    assert "&lt;b&gt;" in refused.text
    skipped = browser.send("/admin/load", "/admin/load", files={"file": ("list.csv", table)}, on_error="skip")
    assert "1 new" in message(skipped, "done")
    looked = browser.send("/admin/load", "/admin/load", numbers=values[3], dry_run="true")
    assert "nothing was stored" in message(looked, "done")
    assert "no number in the list" in message(browser.send("/admin/load", "/admin/load", numbers=""), "refused")
    both = browser.send("/admin/load", "/admin/load", numbers="15", files={"file": ("list.csv", table)})
    assert "both a file and a list" in message(both, "refused")
    rows = stack.rows("SELECT number, priority FROM composites WHERE number = ANY(:values)", values=values)
    assert sorted(map(tuple, rows)) == sorted([(values[0], 3), (values[1], 3), (values[2], 5)])


def test_a_pasted_list_may_be_as_long_as_a_body(stack, browser):
    # Flask limits the fields of forms to half a megabyte by default.
    pasted = "\n".join([*["# " + "a" * 100_000] * 100, "15"])
    answer = browser.send("/admin/load", "/admin/load", numbers=pasted, dry_run="true")
    assert answer.status_code == 200, message(answer, "refused")
    assert "1 number: " in message(answer, "done")


def test_a_number_is_found_by_its_value_or_its_id(stack, browser):
    page, value = number_page(stack)
    assert browser.open(f"/admin/find?q={value}").url == stack.url + page
    assert browser.open(f"/admin/find?q={page.removeprefix('/numbers/')}").url == stack.url + page
    assert "neither a number of this server" in message(browser.open("/admin/find?q=2%5E99991-1"), "refused")


def test_dead_letters_are_retried_and_their_true_factors_accepted(stack, browser):
    factor, other = prime(15), prime(16)
    value = str(factor * other * prime(50) * prime(60))
    assert stack.submit(plain(value)).status_code == 200
    refused = stack.submit(claiming(plain(value), factor, 999983))
    assert refused.status_code == 400
    submission_id = str(refused.json()["submission_id"])
    assert str(factor) in browser.open("/admin/letters").text
    answer = browser.send("/admin/letters", "/admin/letters", submission=submission_id, do="accept")
    assert "1 factor accepted" in message(answer, "done")
    assert stack.scalar("SELECT count(*) FROM factors WHERE factor = :factor", factor=str(factor)) == 1
    again = browser.send("/admin/letters", "/admin/letters", submission=[submission_id, "0"], do="retry")
    assert message(again, "done").startswith("1 result queued again. 0: ")
    wait_until(
        lambda: stack.scalar("SELECT state FROM submissions WHERE id = :id", id=int(submission_id)) == "rejected"
    )
    assert "Select at least one result first" in message(
        browser.send("/admin/letters", "/admin/letters", do="retry"), "refused"
    )


def test_effort_is_recalculated_and_the_page_shows_the_progress(stack, browser):
    answer = browser.send("/admin", "/admin/recalculate")
    assert "Recalculating the effort of " in answer.text
    wait_until(lambda: " is done: " in browser.open("/admin").text, 60)


# Errors ---------------------------------------------------------------------------------------------------------------


def test_errors_are_pages_for_people_and_problems_for_programs(stack):
    person = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    seen = requests.get(f"{stack.url}/nowhere", headers=person, timeout=40)
    assert (seen.status_code, seen.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert "There is nothing at /nowhere" in seen.text
    for path, headers in [("/nowhere", {}), ("/api/v1/nowhere", person), ("/api/v1/admin/composites/status", person)]:
        problem = requests.get(stack.url + path, headers=headers, timeout=40)
        assert problem.headers["Content-Type"] == "application/problem+json", path
    assert requests.get(f"{stack.url}/numbers?sort=colour", timeout=40).headers["Content-Type"].startswith("text/html")


def test_a_claim_of_a_factor_that_does_not_divide_is_shown_as_text(stack, browser):
    value = register_number(stack)
    refused = stack.submit(claiming(plain(value, client_id=SCRIPT), 999))
    assert refused.status_code == 400
    text = browser.open("/admin/letters").text
    assert SCRIPT not in text
    assert "&lt;script&gt;alert(1)" in text
