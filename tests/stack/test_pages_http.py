"""The pages: they show what there is, as text whatever it says, within 200 KB and without a script of their own."""

import re

import pytest
from bodies import SCRIPT, claiming, plain
from leasing import register_number, unique_name
from traffic import prime

pytestmark = pytest.mark.stack

STATIC = ("pages.css", "pages.js", "icon.svg")


@pytest.fixture(scope="module")
def known(stack):
    """A number with a factor, of a project and by a client whose names are no harmless text: (id, value, factor)."""
    factor, project = prime(15), f"<b>{unique_name('bold')}</b>"
    value = str(factor * prime(50) * prime(60))
    body = plain(value, client_id=SCRIPT, project=project, program="<i>ecm</i>", raw_output=SCRIPT)
    body |= {"results": {"factors_found": [{"factor": str(factor), "sigma": "3:77"}]}}
    sent = stack.submit(body)
    assert sent.status_code == 200, sent.text
    refused = stack.submit(claiming(plain(value, client_id=SCRIPT), 999))
    assert refused.status_code == 400
    return sent.json()["composite_id"], value, str(factor), project


def page(stack, path, status=200):
    answer = stack.http.get(stack.url + path, timeout=40)
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert len(answer.content) < 200_000
    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "script-src 'self'" in policy
    # What the policy forbids must not be there either: it would be a fault that only a browser shows.
    assert not re.search(r"<script(?! src=)|\son[a-z]+=|\sstyle=|<style|javascript:", answer.text)
    assert SCRIPT not in answer.text
    return answer.text


@pytest.mark.parametrize("path", ["/", "/numbers", "/factors", "/clients", "/projects", "/queue"])
def test_every_page_is_there_and_shows_texts_as_texts(stack, known, path):
    text = page(stack, path)
    assert "<h1>" in text
    assert "<i>ecm</i>" not in text
    assert known[3] not in text


def test_one_number(stack, known):
    composite_id, value, factor, _ = known
    text = page(stack, f"/numbers/{composite_id}")
    assert value in text
    assert factor in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert '<svg xmlns="http://www.w3.org/2000/svg"' in text
    assert "5e4" in text
    assert "<td>3:77</td>" in text


def test_numbers_are_filtered_sorted_and_go_on(stack):
    project = unique_name("pages")
    values = [register_number(stack, project=project) for _ in range(3)]
    text = page(stack, f"/numbers?project={project}&sort=digits&limit=2&text=")
    (onward,) = re.findall(r'<a class="next" href="([^"]+)"', text)
    rest = page(stack, onward.replace("&amp;", "&"))
    assert sum(value[:12] in text + rest for value in values) == 3
    # What else is asked for says nothing of where the next page is.
    odd = page(stack, f"/numbers?project={project}&limit=2&endpoint=x&_external=1&_method=X&_anchor=x")
    (onward,) = re.findall(r'<a class="next" href="([^"]+)"', odd)
    assert onward.startswith("/numbers?project=")
    assert text.count("/numbers/") == 2
    assert rest.count("/numbers/") == 1
    assert "No numbers match." in page(stack, f"/numbers?project={project}&state=prime")
    assert page(stack, f"/numbers?text={values[0]}").count("/numbers/") == 1


def test_factors_of_a_client(stack, known):
    text = page(stack, "/factors?client_id=%3Cscript%3Ealert(1)%3C/script%3E&order=largest")
    assert known[2] in text


def test_the_queue_shows_what_was_refused(stack, known):
    text = page(stack, "/queue")
    for state in ("results waiting", "applied", "duplicate", "rejected", "failed"):
        assert f"<dt>{state}</dt>" in text
    assert re.search(r"<dt>applied</dt><dd>[1-9][0-9,]*</dd>", text)
    assert "factor_does_not_divide" in text
    assert "<strong>Down</strong>" not in text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/numbers/999999999999", 404),
        ("/numbers/99999999999999999999", 404),
        ("/numbers?state=open", 422),
        ("/numbers?cursor=abc", 422),
        ("/numbers?project=nowhere", 404),
        ("/numbers?text=%00", 422),
        ("/numbers?text=" + "(" * 4001, 422),
        ("/factors?composite=2%5E", 422),
        ("/factors?composite=17", 404),
        ("/clients?limit=0", 422),
    ],
)
def test_what_cannot_be_shown_is_said_on_a_page(stack, path, status):
    text = page(stack, path, status)
    assert f"<h1>{'Page not found' if status == 404 else 'Invalid request'}</h1>" in text
    assert f"Error {status}" in text


@pytest.mark.parametrize("name", STATIC)
def test_what_pages_need_comes_from_here(stack, name):
    answer = stack.http.get(f"{stack.url}/static/{name}", timeout=40)
    assert answer.status_code == 200
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "")
