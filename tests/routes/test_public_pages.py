"""The public pages: texts as people read them, lists, filters, and errors as pages."""

import re

import pytest
from pipeline import lease, result, submit

from ingest.plurals import counted

SCRIPT = "<script>alert(1)</script>"


def test_one_is_singular():
    assert [counted(count, "number") for count in (0, 1, 2, 1234)] == [
        "0 numbers",
        "1 number",
        "2 numbers",
        "1,234 numbers",
    ]
    assert counted(2, "factory", "factories") == "2 factories"


@pytest.mark.parametrize(
    ("path", "heading"),
    [
        ("/", "Overview"),
        ("/numbers", "Numbers"),
        ("/factors", "Factors"),
        ("/clients", "Clients"),
        ("/projects", "Projects"),
        ("/queue", "Queue"),
    ],
)
def test_every_page_has_its_heading_and_no_script_of_a_client(engine, stranger, known, path, heading):
    submit(engine, result(known.value, client=SCRIPT, project=f"{SCRIPT}{known.id}"))
    text = stranger.open(path).text
    assert f"<h1>{heading}</h1>" in text
    assert SCRIPT not in text


def test_the_tiles_of_the_overview_lead_to_their_lists(stranger, known):
    text = stranger.open("/").text
    tiles = re.findall(r'<dt>([^<]*)</dt><dd><a href="([^"]*)">', text)
    assert [label for label, _ in tiles][:3] == ["numbers", "fully factored", "cofactors that need ECM"]
    assert "set aside (3 clients gave up)" in text
    for label, address in tiles:
        answer = stranger.client.get(address.replace("&amp;", "&"))
        assert answer.status_code in (200, 303), label


def test_one_number_shows_what_is_done_and_needed(engine, stranger, known):
    lease(engine, known.id, client="bob", curves=10)
    submit(engine, result(known.value, (str(known.primes[0]), "3:77")))
    text = stranger.open(f"/numbers/{known.id}").text
    assert "<dt>Cofactor</dt><dd>140 digits</dd>" in text or re.search(r"<dt>Cofactor</dt><dd>1\d\d digits</dd>", text)
    assert re.search(r"<dt>Needs</dt><dd>ECM, P-1, P\+1</dd>", text)
    assert "2 attempts with 200 curves" in text
    assert "<td>3:77</td>" in text
    assert "<td>bob</td>" in text
    assert "Prior work" in text


def test_a_number_without_attempts_says_so(client, stranger, admin, known):
    value = str(int(known.value) * 2 + 1)
    admin("POST", "/composites/bulk", [value])
    (found,) = admin("GET", "/composites/find", q=value).json["composites"]
    assert "<dt>Attempts</dt><dd>No attempts yet</dd>" in stranger.open(f"/numbers/{found['composite_id']}").text


def test_empty_lists_say_that_nothing_matches(stranger, known):
    assert "No numbers match." in stranger.open("/numbers?min_digits=999&state=composite").text
    assert "No factors match." in stranger.open("/factors?min_digits=900").text


def test_a_list_goes_on_where_its_page_ends(stranger, engine, known):
    submit(engine, result("2^101-1"))
    text = stranger.open("/numbers?limit=1&endpoint=x&_external=1").text
    (onward,) = re.findall(r'<a class="next" href="([^"]+)"', text)
    assert onward.startswith("/numbers?limit=1")
    assert stranger.open(onward.replace("&amp;", "&")).text != text


def test_the_queue_names_its_components(stranger, rejected):
    text = stranger.open("/queue").text
    assert "<h2>Components</h2>" in text
    assert "<td>database</td><td>OK</td>" in text
    # Nobody works here.
    assert "no worker takes messages from" in text
    assert "factor_does_not_divide" in text


@pytest.mark.parametrize(
    ("path", "status", "heading"),
    [
        ("/numbers/999999999999", 404, "Page not found"),
        ("/numbers/99999999999999999999", 404, "Page not found"),
        ("/numbers?state=open", 422, "Invalid request"),
        ("/numbers?cursor=abc", 422, "Invalid request"),
        ("/numbers?project=nowhere", 404, "Page not found"),
        ("/numbers?text=" + "(" * 4001, 422, "Invalid request"),
        ("/factors?composite=2%5E", 422, "Invalid request"),
        ("/factors?composite=17", 404, "Page not found"),
        ("/clients?limit=0", 422, "Invalid request"),
    ],
)
def test_an_error_is_a_page_that_leads_back(stranger, path, status, heading):
    text = stranger.open(path, status).text
    assert f"<h1>{heading}</h1>" in text
    assert f"Error {status}" in text
    assert "Back to the overview" in text


def test_an_unknown_address_is_a_page_for_people_and_a_problem_for_programs(client):
    person = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = client.get("/nowhere", headers=person)
    assert (page.status_code, page.mimetype) == (404, "text/html")
    assert "<h1>Page not found</h1>" in page.text
    for path, headers in [("/nowhere", {}), ("/api/v1/nowhere", person)]:
        assert client.get(path, headers=headers).mimetype == "application/problem+json"
