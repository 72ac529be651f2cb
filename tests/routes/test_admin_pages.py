"""The pages of administration: session and token, every form with its success and its refusal."""

import io
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from conftest import ADMIN_KEY, random_prime
from page_forms import message
from pipeline import lease, rows, scalar

PAGES = ("/admin", "/admin/load", "/admin/work", "/admin/letters")
FORMS = ("priority", "pause", "resume", "recalculate", "reserve")


# Access ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_without_a_session_a_page_leads_to_the_login_and_back(stranger, path):
    answer = stranger.open(path)
    assert answer.request.path == "/admin/login"
    assert parse_qs(answer.request.query_string.decode()) == {"next": [path]}
    form = f"/admin/login?next={quote(path)}"
    assert stranger.send(form, form, key=ADMIN_KEY).request.path == path


def test_a_form_without_a_session_changes_nothing(engine, client, known):
    answer = client.post(f"/admin/numbers/{known.id}/priority", data={"priority": "9"})
    assert (answer.status_code, urlsplit(answer.headers["Location"]).path) == (303, "/admin/login")
    assert "log in and repeat it" in client.get(answer.headers["Location"]).text
    assert scalar(engine, "SELECT priority FROM composites WHERE id = :id", id=known.id) == 0


@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_a_form_without_its_token_changes_nothing(engine, browser, known, token):
    data = {"priority": "9"} | ({} if token is None else {"csrf_token": token})
    answer = browser.client.post(f"/admin/numbers/{known.id}/priority", data=data)
    assert answer.status_code == 400
    assert "This form is out of date" in answer.text
    assert scalar(engine, "SELECT priority FROM composites WHERE id = :id", id=known.id) == 0


def test_the_token_of_another_session_is_refused(app, browser, known):
    other = app.test_client()
    text = other.get("/admin/login").text
    token = text.partition('name="csrf_token" value="')[2].partition('"')[0]
    answer = browser.client.post(f"/admin/numbers/{known.id}/priority", data={"priority": "9", "csrf_token": token})
    assert answer.status_code == 400


def test_a_wrong_key_is_refused_and_guessing_is_limited(stranger):
    answers = [stranger.send("/admin/login", "/admin/login", key="a guess") for _ in range(11)]
    # The window may have ended between two of them; then the count began again.
    assert [answer.status_code for answer in answers[:2]] == [403, 403]
    assert answers[-1].status_code in (403, 429)
    assert "not this server&#39;s admin key" in message(answers[0], "refused")
    assert stranger.open("/admin").request.path == "/admin/login"


@pytest.mark.parametrize("elsewhere", ["https://example.org/", "//example.org", "/\\example.org", "javascript:1"])
def test_the_login_leads_to_no_other_site(stranger, elsewhere):
    form = f"/admin/login?next={quote(elsewhere, safe='')}"
    assert stranger.send(form, form, key=ADMIN_KEY).request.path == "/admin"


def test_a_session_ends_with_its_log_out(browser):
    assert browser.open("/admin/login").request.path == "/admin"
    assert browser.send("/admin", "/admin/logout").request.path == "/"
    assert browser.open("/admin").request.path == "/admin/login"


def test_the_cookie_is_kept_from_scripts_and_from_plain_http_after_https(client):
    plain = client.get("/admin/login").headers["Set-Cookie"]
    assert "HttpOnly" in plain
    assert "SameSite=Lax" in plain
    assert "Secure" not in plain
    # A client of its own, that has no session yet.
    secure = client.application.test_client().get("/admin/login", headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in secure.headers["Set-Cookie"]
    assert secure.headers["Cache-Control"] == "no-store"


# Numbers --------------------------------------------------------------------------------------------------------------


def test_a_number_is_found_by_value_or_id(browser, known):
    for query in (known.value, str(known.id)):
        assert browser.open(f"/admin/find?q={query}").request.path == f"/numbers/{known.id}"
    unknown = browser.open("/admin/find?q=2%5E99991-1")
    assert "neither a number of this server" in message(unknown, "refused")


def test_the_forms_of_a_number(engine, browser, known):
    page, forms = f"/numbers/{known.id}", f"/admin/numbers/{known.id}"
    assert message(browser.send(page, f"{forms}/priority", priority="7"), "done") == "The priority is 7; it was 0."
    assert "should be a valid integer" in message(browser.send(page, f"{forms}/priority", priority="high"), "refused")
    assert "is required" in message(browser.send(page, f"{forms}/priority", priority=""), "refused")
    paused = browser.send(page, f"{forms}/pause", reason="a <b>look</b>")
    assert message(paused, "done") == "The number gets no work until it is resumed."
    assert "a &lt;b&gt;look&lt;/b&gt;" in browser.open("/admin/work").text
    resumed = browser.send("/admin/work", f"{forms}/resume", **{"from": "work"})
    assert resumed.request.path == "/admin/work"
    assert message(resumed, "done") == f"Number {known.id} gets work again."
    assert message(browser.send(page, f"{forms}/resume"), "done") == f"Number {known.id} gets work again."
    assert "The t-level was right" in message(browser.send(page, f"{forms}/recalculate"), "done")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE composites SET current_t_level = 1 WHERE id = %(id)s", {"id": known.id})
    assert "The t-level was t1.00 and is t" in message(browser.send(page, f"{forms}/recalculate"), "done")
    audit = browser.open("/admin").text
    assert f"composite {known.id}" in audit
    assert "set priority" in audit


def test_a_number_is_reserved_and_released(engine, browser, known):
    page, form = f"/numbers/{known.id}", f"/admin/numbers/{known.id}/reserve"
    client = f"siever-{known.id}"
    reserved = message(browser.send(page, form, client_id=client, method="snfs"), "done")
    assert reserved.startswith(f"The number is reserved for {client} until ")
    assert f"is reserved by {client}" in message(browser.send(page, form, client_id="other"), "refused")
    assert "duration_hours" in message(browser.send(page, form, client_id="x", duration_hours="-1"), "refused")
    work = scalar(engine, "SELECT id FROM work_assignments WHERE client_id = :client", client=client)
    assert client in browser.open("/admin/work").text
    ended = browser.send("/admin/work", f"/admin/work/{work}/end", reason="finished elsewhere")
    assert client in message(ended, "done")
    assert (
        scalar(
            engine,
            "SELECT open_leases FROM targets t JOIN composites c ON c.target_id = t.id WHERE c.id = :id",
            id=known.id,
        )
        == 0
    )
    assert "is no work_id" in message(browser.send("/admin/work", "/admin/work/none/end"), "refused")


def test_a_lease_is_cancelled(engine, browser, known):
    work = lease(engine, known.id, client=f"bob-{known.id}", curves=5)
    answer = browser.send("/admin/work", f"/admin/work/{work}/end")
    assert message(answer, "done").startswith(f"The ecm lease of bob-{known.id} is ")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", [2**40, 2**63])
def test_an_unknown_number_is_named(browser, form, number):
    answer = browser.send("/admin", f"/admin/numbers/{number}/{form}", priority="1", client_id="nfs")
    assert answer.status_code == 404
    assert f"There is no composite with id {number}" in answer.text
    assert "<h1>Page not found</h1>" in answer.text


# Loading --------------------------------------------------------------------------------------------------------------


def test_numbers_are_loaded_from_a_list_or_a_file(engine, browser):
    values = [str(random_prime(30) * random_prime(31)) for _ in range(3)]

    def load(**fields):
        if "file" in fields:
            fields["file"] = (io.BytesIO(fields["file"].encode()), "list.csv")
        return browser.send("/admin/load", "/admin/load", **fields)

    pasted = load(numbers=f"# a list\n{values[0]}", project_name="pasted", default_priority="3")
    assert "1 new" in message(pasted, "done")
    table = f"number,priority,colour\n{values[1]},5,red\n<b>{values[2]},4,red\n"
    refused = load(file=table)
    assert refused.status_code == 422
    assert "nothing was stored" in message(refused, "refused")
    assert "<h2>Invalid lines</h2>" in refused.text
    assert "&lt;b&gt;" in refused.text
    skipped = message(load(file=table, on_error="skip"), "done")
    assert "1 new" in skipped
    assert "Ignored columns: colour" in skipped
    shared = load(numbers=f"7*{values[0]}")
    assert "1 of the new ones share" in message(shared, "done")
    assert f"Line 1: 7*{values[0][:3]}" in shared.text
    assert "its cofactor is the number" in shared.text
    assert "nothing was stored" in message(load(numbers=values[2], dry_run="true"), "done")
    assert "no number in the list" in message(load(numbers=""), "refused")
    assert "both a file and a list" in message(load(numbers="15", file=table), "refused")
    assert "default_priority" in message(load(numbers="15", default_priority="high"), "refused")
    found = rows(engine, "SELECT number, priority FROM composites WHERE number = ANY(:values)", values=values)
    assert dict(map(tuple, found)) == {values[0]: 3, values[1]: 5}


# Rejected and failed results ------------------------------------------------------------------------------------------


def test_true_factors_are_accepted_and_results_retried(engine, browser, known, rejected):
    page = browser.open("/admin/letters").text
    assert str(known.primes[0]) in page
    accepted = browser.send("/admin/letters", "/admin/letters", submission=str(rejected), do="accept")
    assert message(accepted, "done") == "1 factor accepted."
    again = browser.send("/admin/letters", "/admin/letters", submission=str(rejected), do="accept")
    assert message(again, "done").startswith(f"0 factors accepted. {rejected}: ")
    retried = browser.send("/admin/letters", "/admin/letters", submission=[str(rejected), "0"], do="retry")
    assert message(retried, "done").startswith("1 result queued again. 0: ")
    assert scalar(engine, "SELECT state FROM submissions WHERE id = :id", id=rejected) == "received"
    nothing = browser.send("/admin/letters", "/admin/letters", submission="\u00b2", do="retry")
    assert message(nothing, "refused") == "Select at least one result first."


@pytest.mark.parametrize("cursor", ["1-\u00b2", "1-", "x", "1-9999999999999999999", "1-1", "0-1"])
def test_any_cursor_opens_the_list(browser, cursor):
    assert "<h1>Rejected and failed results</h1>" in browser.open(f"/admin/letters?cursor={cursor}").text


# Recalculation --------------------------------------------------------------------------------------------------------


def test_a_recalculation_is_started_once_and_shown(engine, browser):
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE recalculations SET finished_at = now() WHERE finished_at IS NULL")
    started = browser.send("/admin", "/admin/recalculate", recalculate_all="true")
    assert message(started, "done").startswith("Recalculating the effort of ")
    assert "The latest recalculation, started " in started.text
    assert "<progress" in started.text
    assert "recalculation" in message(browser.send("/admin", "/admin/recalculate"), "refused")
