"""Bad input gets a clear error that names it, and changes nothing."""

import json
import random
import socket

import pytest
from traffic import prime, random_number

pytestmark = pytest.mark.stack

LONE_SURROGATE = '"\\ud800"'


def body(**changes):
    """A sound result as JSON text, with the fields of `changes` replaced; dots lead into objects."""
    whole = {
        "client_id": "alice",
        "composite": random_number().value,
        "parameters": {"b1": 50_000, "curves": 100},
        "results": {"curves_completed": 100},
    }
    for path, value in changes.items():
        *way, last = path.split("__")
        place = whole
        for step in way:
            place = place[step]
        place[last] = value
    return json.dumps(whole)


def raw(field, literal):
    """A sound result in which `field` has a JSON literal that Python would not write."""
    return body(**{field: "@"}).replace('"@"', literal, 1)


def refused(stack, sent, status, reason, *words):
    """Send it; it is refused for that reason, in words that name what is wrong, and no table has changed."""
    before = stack.counts()
    answer = stack.submit_bytes(sent if isinstance(sent, bytes) else sent.encode())
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text[:500]
    assert answer.headers["Content-Type"] == "application/problem+json"
    reply = answer.json()
    for word in words:
        assert word in reply["detail"], reply["detail"]
    assert len(answer.content) < 10_000
    assert "Traceback" not in answer.text
    assert stack.counts() == before
    return reply


HUGE = "7" * 5000
NOT_JSON = {
    "nothing": (b"", "empty"),
    "a word": (b"factor", "line 1 column"),
    "half an object": (b'{"client_id": "alice"', "line 1 column"),
    "a form": (b"client_id=alice&composite=15", "line 1 column"),
    "two objects": (body().encode() * 2, "line 1 column"),
    "not UTF-8": (body(client_id="@").replace("@", "\xff").encode("latin-1"), "unicode"),
    "200,000 nested brackets": (b"[" * 200_000, "recursion limit"),
    "200,000 nested objects": (b'{"a":' * 200_000, "recursion limit"),
    "deep beneath a field": (raw("composite", "[" * 100_000 + "]" * 100_000).encode(), "recursion limit"),
    "a key twice": (b'{"client_id": "alice", "client_id": "bob", "composite": "15"}', 'key "client_id"'),
    "a key twice, deep": (b'{"client_id": "a", "composite": "15", "parameters": {"b1": 100, "b1": 200}}', 'key "b1"'),
    "NaN": (raw("results__execution_time", "NaN").encode(), "line 1 column"),
    "Infinity": (raw("results__execution_time", "Infinity").encode(), "line 1 column"),
    "-Infinity as B1": (raw("parameters__b1", "-Infinity").encode(), "line 1 column"),
    "a lone surrogate": (raw("client_id", LONE_SURROGATE).encode(), "surrogate pair"),
    "a lone surrogate in raw output": (raw("raw_output", LONE_SURROGATE).encode(), "surrogate pair"),
    "a NUL": (raw("client_id", '"a\\u0000b"').encode(), "NUL"),
    "a NUL in raw output": (raw("raw_output", '"a\\u0000b"').encode(), "NUL"),
    "a NUL in an unknown field": (raw("comment", '{"x": ["\\u0000"]}').encode(), "NUL"),
    "5,000 digits where a string belongs": (raw("composite", HUGE).encode(), "sent as strings"),
    "5,000 digits as a factor": (raw("results__factor_found", HUGE).encode(), "sent as strings"),
    "B1 of 5,000 digits": (raw("parameters__b1", HUGE).encode(), "sent as strings"),
    "a NUL byte": (body(client_id="@").replace("@", "\x00").encode(), "control character"),
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_not_sound_json(stack, name):
    sent, word = NOT_JSON[name]
    refused(stack, sent, 422, "malformed", word)


WRONG_TYPES = {
    "no object": ("[]", "body", "should be an object; this is an array"),
    "a string": ('"15"', "body", 'should be an object; this is "15"'),
    "no client": (body(client_id=None), "client_id", "string; this is null"),
    "an empty client": (body(client_id=""), "client_id", "at least 1"),
    "a long client": (body(client_id="c" * 201), "client_id", "200"),
    "a client of two lines": (body(client_id="a\nb"), "client_id", "printable"),
    "a number for a string": (body(composite=91), "composite", "string; this is 91"),
    "a factor that is no string": (body(results__factor_found=7), "results.factor_found", "string; this is 7"),
    "4,000 digits where a string belongs": (raw("composite", "7" * 4000), "composite", "(4002 characters)"),
    "a list for an object": (body(parameters=[50_000]), "parameters", "object; this is an array"),
    "a factor without a value": (body(results__factors_found=[{}]), "results.factors_found.0.factor", "required"),
    "an unknown method": (body(method="rho"), "method", '; this is "rho"'),
    "curves -1": (
        body(results__curves_completed=-1),
        "results.curves_completed",
        "greater than or equal to 0; this is -1",
    ),
    "10^12 curves": (
        body(parameters__curves=10**12),
        "parameters.curves",
        "less than or equal to 1000000000; this is 1000000000000",
    ),
    "half a curve": (body(parameters__curves=0.5), "parameters.curves", "integer; this is 0.5"),
    "true curves": (body(parameters__curves=True), "parameters.curves", "integer; this is true"),
    "B1 of 0": (body(parameters__b1=0), "parameters.b1", "greater than or equal to 100; this is 0"),
    "B1 of 10^30": (body(parameters__b1=10**30), "parameters.b1", '100000000000000; this is "100'),
    "B1 of 4,000 digits": (raw("parameters__b1", "7" * 4000), "parameters.b1", "777..."),
    "a float as B1": (body(parameters__b1=5e4), "parameters.b1", "integer; this is 50000.0"),
    "1e400 as B1": (raw("parameters__b1", "1e400"), "parameters.b1", "integer"),
    "a string as B1": (body(parameters__b1="50000"), "parameters.b1", 'integer; this is "50000"'),
    "no B1": (body(parameters__b1=None), "body", "parameters.b1 is required for method ecm"),
    "B2 of -2": (body(parameters__b2=-2), "parameters.b2", "greater than or equal to -1; this is -2"),
    "parametrization 4": (body(parameters__parametrization=4), "parameters.parametrization", "3"),
    "parametrization 7 in a sigma": (body(parameters__sigma="7:123"), "parameters.sigma", "7:123"),
    "a sigma in words": (body(parameters__sigma="one"), "parameters.sigma", "'one'"),
    "a sigma in unicode digits": (body(parameters__sigma="1:١٢٣"), "parameters.sigma", "decimal digits"),
    "a sigma of 101 digits": (body(parameters__sigma="9" * 101), "parameters.sigma", "999"),
    "minus a second": (body(results__execution_time=-1), "results.execution_time", "greater than or equal to 0"),
    "1e400 seconds": (raw("results__execution_time", "1e400"), "results.execution_time", ""),
    "1,001 factors": (body(results__factors_found=[{"factor": "3"}] * 1001), "results.factors_found", "1000"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_what_has_the_wrong_shape(stack, name):
    sent, field, word = WRONG_TYPES[name]
    reply = refused(stack, sent, 422, "invalid", word)
    assert any(error["field"].startswith(field) for error in reply["errors"]), reply["errors"]


# What is no number: (as written, reason, words of the explanation)
NUMBERS = {
    "negative": ("-15", "malformed_number", "-15"),
    "plus sign": ("+15", "malformed_number", "+15"),
    "zero": ("0", "not_positive", "0"),
    "one": ("1", "number_is_one", "1"),
    "spaces": (" 15", "malformed_number", "15"),
    "a space inside": ("1 5", "malformed_number", "1 5"),
    "unicode digits": ("١٢٣", "malformed_number", "١٢٣"),
    "full-width digits": ("\uff11\uff15", "malformed_number", "\uff11\uff15"),
    "empty brackets": ("()", "malformed_number", "()"),
    "leading zeros": ("0015", "malformed_number", "0015"),
    "hexadecimal": ("0xff", "malformed_number", "0xff"),
    "a float": ("1e5", "malformed_number", "1e5"),
    "code": ("__import__('os')", "malformed_number", "__import__"),
    "a million digits": ("9" * 10**6, "number_too_large", "50000"),
    "50,001 digits": ("9" * 50_001, "number_too_large", "50000"),
    "9^9^9^9": ("9^9^9^9", "number_too_large", "9^9^9^9"),
    "10^50000": ("10^50000", "number_too_large", "10^50000"),
    "a large factorial": ("99999999!", "number_too_large", "99999999!"),
    "2^-1": ("2^-1", "malformed_number", "2^-1"),
    "1/0": ("1/0", "division_by_zero", "1/0"),
    "10/3": ("10/3", "not_an_integer", "10/3"),
    "a difference below zero": ("2-3", "not_positive", "2-3"),
    "brackets without end": ("(" * 100_000, "number_too_large", "((("),
    "brackets": ("(" * 4_000, "malformed_number", "((("),
}


# Of a factor it takes the number to say so: the worker does (below).
LATER = ("zero", "one", "a difference below zero")


@pytest.mark.parametrize(
    ("field", "name"),
    [("composite", name) for name in NUMBERS]
    + [("results__factor_found", name) for name in NUMBERS if name not in LATER],
)
def test_what_is_no_number(stack, field, name):
    written, reason, word = NUMBERS[name]
    reply = refused(stack, body(**{field: written}), 422, reason, word)
    assert reply["errors"][0]["field"] == field.replace("__", ".")


# What only the worker finds out leaves nothing but the refused submission.
@pytest.mark.parametrize(
    ("field", "make", "reason"),
    [
        ("composite", lambda: str(prime(30)), "composite_is_prime"),
        ("composite", lambda: "2", "composite_is_prime"),
        ("composite", lambda: "(10^300+1)/(10^200+1)", "not_an_integer"),
        ("results__factor_found", lambda: "2-9", "factor_does_not_divide"),
        ("results__factor_found", lambda: str(prime(12)), "factor_does_not_divide"),
        ("results__factor_found", lambda: str(prime(400)), "factor_does_not_divide"),
    ],
)
def test_what_is_found_out_later(stack, field, make, reason):
    before = stack.counts()
    value = make()
    answer = stack.submit_bytes(body(**{field: value}).encode())
    reply = answer.json()
    assert (answer.status_code, reply["reason"]) == (400, reason), reply
    assert value[:16] in reply["detail"]
    assert stack.counts() == before | {"submissions": before["submissions"] + 1}
    again = stack.get(f"/submissions/{reply['submission_id']}").json()
    assert (again["state"], again["reason"], again["detail"]) == ("rejected", reason, reply["detail"])


def test_a_factor_of_0_is_refused(stack):
    refused(stack, body(results__factor_found="0"), 422, "malformed_number", "0")
    refused(stack, body(results__factors_found=[{"factor": "3"}, {"factor": "0"}]), 422, "malformed_number", "0")


def test_bodies_of_50_mb(stack):
    before = stack.counts()
    answer = too_large(stack, 50 * 2**20)
    assert (answer["status"], answer["reason"]) == (413, "body_too_large")
    assert str(16 * 2**20) in answer["detail"]
    assert stack.counts() == before


def too_large(stack, size):
    """The answer to a body of that size, which may come before the body has been read to its end."""
    with socket.create_connection(("127.0.0.1", stack.port), timeout=30) as connection:
        head = f"POST /api/v1/submit_result HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        chunk = b"[" * 2**16
        try:
            for _ in range(size // len(chunk)):
                connection.sendall(chunk)
        except OSError:
            pass  # it was refused before we were done
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
        except OSError:
            pass
    head, _, content = received.partition(b"\r\n\r\n")
    assert b" 413 " in head.splitlines()[0], received[:300]
    return json.loads(content)


def test_what_is_unusual_but_sound_is_taken(stack):
    unusual = {
        "client_id": "Ærøskøbing ☃",
        "comment": {"ignored": [1, 2, {"deep": None}]},
        "raw_output": "the text \\u0000, a real tab\t and lines\r\n" + "x" * 100_000,
        "parameters__sigma": "1:" + "9" * 100,
        "parameters__b1": 10**14,
        "parameters__b2": 10**21,
        "results__curves_completed": 10**9,
        "results__factors_found": [],
        "project": None,
    }
    reply = stack.submit_bytes(body(**unusual).encode()).json()
    assert reply["status"] == "success", reply
    row = stack.rows("SELECT client_id, raw_output FROM submissions WHERE id = :id", id=reply["submission_id"])[0]
    assert row.client_id == "Ærøskøbing ☃"
    assert len(row.raw_output) == 64 * 1024
    assert row.raw_output.endswith("x")


def test_random_bytes_never_make_it_fall_over(stack):
    """Whatever a sound body is damaged into, the answer is a refusal or, where the damage is none, an outcome."""
    random.seed(5)
    for _ in range(150):
        damaged = bytearray(body(composite="1" + "0" * random.randrange(5) + "1").encode())
        for _ in range(random.randrange(1, 4)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        answer = stack.submit_bytes(bytes(damaged))
        assert answer.status_code in (200, 400, 422), (bytes(damaged), answer.text)
    stack.assert_sound()
