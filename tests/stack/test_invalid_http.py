"""What is not valid HTTP is answered with a problem, as everything else is, and is no error of this server's log."""

import pytest
from raw_http import assert_problem, exchange
from stacks import wait_until

GET = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
POST = b"POST /api/v1/submit_result HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def log(stack):
    """What the coordinator has logged by itself while these tests ran."""
    path = stack.home / "up.log"
    before = path.stat().st_size
    yield path
    added = path.read_bytes()[before:]
    assert b"Traceback" not in added, added[-3000:]
    assert b"[error" not in added, added[-3000:]


pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("log")]

HEADS = {
    "no request line": (b"\r\n\r\n\r\n", 400),
    "one word": (b"GET\r\n\r\n", 400),
    "two words": (b"GET /health\r\n\r\n", 400),
    "four words": (b"GET /health HTTP/1.1 now\r\n\r\n", 400),
    "no version": (b"GET /health FTP/1.1\r\n\r\n", 400),
    "a version in words": (b"GET /health HTTP/one\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /health HTTP/0.9\r\n\r\n", 505),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/3": (b"GET /health HTTP/3.0\r\nHost: x\r\n\r\n", 505),
    "a method with a bracket": (b"G(T /health HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a method in lower case": (b"get /health HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a method of bytes": (b"\xff\xfe /health HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "line feeds alone": (b"GET /health HTTP/1.1\nHost: x\n\n", 400),
    "a header without a colon": (GET + b"Nonsense\r\n\r\n", 400),
    "a header without a name": (GET + b": value\r\n\r\n", 400),
    "a header with a space in its name": (GET + b"X Y: value\r\n\r\n", 400),
    "a space before the colon": (GET + b"X-Y : value\r\n\r\n", 400),
    "a folded header": (GET + b"X-Y: one\r\n two\r\n\r\n", 400),
    "a NUL in a header": (GET + b"X-Y: a\x00b\r\n\r\n", 400),
    "a line feed in a header": (GET + b"X-Y: a\nX-Z: b\r\n\r\n", 400),
    "a length in words": (POST + b"Content-Length: ten\r\n\r\n", 400),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400),
    "a length and chunks": (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "an unknown transfer coding": (POST + b"Transfer-Encoding: brotli\r\n\r\n", 501),
    "chunked twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "an expectation": (POST + b"Expect: 200-ok\r\nContent-Length: 2\r\n\r\n{}", 417),
    "an address of 10,000 bytes": (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "an address of a megabyte": (b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "a header of 10,000 bytes": (GET + b"X-Y: " + b"y" * 10_000 + b"\r\n\r\n", 431),
    "200 headers": (GET + b"".join(b"X-%d: y\r\n" % number for number in range(200)) + b"\r\n", 431),
    "headers of a megabyte": (GET + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 8000) for n in range(128)) + b"\r\n", 431),
}
REASONS = {
    400: "bad_request",
    414: "address_too_long",
    417: "expectation_failed",
    431: "headers_too_large",
    501: "not_implemented",
    505: "http_version_not_supported",
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_is_not_http(stack, name):
    request, status = HEADS[name]
    answer = exchange(stack.port, request)
    reply = assert_problem(answer, status, REASONS[status])
    assert reply["detail"].endswith(".")
    assert answer.headers["connection"] == "close"
    assert len(answer.body) < 2000


CHUNKS = {
    "minus five": b"-5\r\nhello\r\n0\r\n\r\n",
    "plus five": b"+5\r\nhello\r\n0\r\n\r\n",
    "a trailing space": b"5 \r\nhello\r\n0\r\n\r\n",
    "a leading space": b" 5\r\nhello\r\n0\r\n\r\n",
    "a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "an underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "no number": b"five\r\nhello\r\n0\r\n\r\n",
    "nothing": b"\r\nhello\r\n0\r\n\r\n",
    "an extension alone": b";a=b\r\nhello\r\n0\r\n\r\n",
    "an extension that is none": b"5;a=(b)\r\nhello\r\n0\r\n\r\n",
    "a carriage return in an extension": b"5;a=\rb\r\nhello\r\n0\r\n\r\n",
    "a size line without end": b"5" * 20_000,
    "a chunk that is longer": b"3\r\nhello\r\n0\r\n\r\n",
    "a bad second chunk": b"5\r\nhello\r\n-1\r\n\r\n",
    "a trailer without a colon": b"5\r\nhello\r\n0\r\nNonsense\r\n\r\n",
    "a trailer with line feeds": b"5\r\nhello\r\n0\r\nA: b\nC: d\n\n",
}


@pytest.mark.parametrize("path", ["submit_result", "submit_results"])
@pytest.mark.parametrize("name", CHUNKS)
def test_a_chunk_that_is_none(stack, name, path):
    before = stack.counts()
    answer = exchange(stack.port, CHUNKED.replace(b"submit_result", path.encode()) + CHUNKS[name])
    assert_problem(answer, 400, "bad_request")
    assert stack.counts() == before


def test_a_body_that_ends_before_its_end(stack):
    before = stack.counts()
    for request in (POST + b'Content-Length: 1000\r\n\r\n{"client_id":', CHUNKED + b'd\r\n{"client_id":'):
        assert_problem(exchange(stack.port, request, half_close=True), 400, "bad_request")
    assert stack.counts() == before


def test_trailers_that_are_too_large(stack):
    trailers = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 8000) for number in range(128))
    assert_problem(
        exchange(stack.port, CHUNKED + b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n"), 431, "headers_too_large"
    )


def test_unusual_chunks_that_are_valid(stack):
    for chunks in (
        b"5;a\r\nhello\r\n0\r\n\r\n",
        b'5 ; a="b c"\r\nhello\r\n0\r\n\r\n',
        b"0005\r\nhello\r\n00\r\nA: b\r\n\r\n",
    ):
        assert_problem(exchange(stack.port, CHUNKED + chunks), 422, "malformed")


@pytest.mark.parametrize("method", ["FROBNICATE", "TRACE", "PROPFIND", "PATCH", "CONNECT"])
def test_methods_that_no_route_has(stack, method):
    answer = exchange(stack.port, f"{method} /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert_problem(answer, 405, "method_not_allowed")
    assert {word.strip() for word in answer.headers["allow"].split(",")} == {"GET", "HEAD", "OPTIONS"}


def test_the_next_connection_is_served(stack):
    for request, _ in HEADS.values():
        exchange(stack.port, request)
    wait_until(lambda: stack.http.get(f"{stack.url}/health", timeout=10).status_code == 200)
