"""Keys and limits over HTTP: on a coordinator that requires keys, and on one that does not."""

import subprocess
import sys
import time

import pytest
import requests
from bodies import plain, problem
from stacks import wait_until
from traffic import random_number

from coordinator.administration import client_keys
from coordinator.base.audit import OPERATOR

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def strict(make_stack):
    """A coordinator that requires keys and allows each client few requests."""
    return make_stack("--no-flower", REQUIRE_CLIENT_KEYS="true", RATE_LIMIT_PER_CLIENT="25/hour", WEB_PROCESSES="1")


def command(stack, *words):
    program = [sys.executable, "-c", "from ingest.cli import main; main()", "clients", *words]
    done = subprocess.run([*program, "--home", str(stack.home)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip(), done.stderr


def authorization(key):
    return {"Authorization": f"Bearer {key}"}


def key_of(stack, name):
    """The header of a new key, which is made as the command makes it, but without a process for it."""
    return authorization(client_keys.add_key(stack.database, name, OPERATOR))


def send(stack, headers=None, **fields):
    return requests.post(f"{stack.api}/submit_result", json=plain(**fields), headers=headers, timeout=30)


def lease(stack, client, headers=None, **more):
    return requests.get(f"{stack.api}/ecm-work", params={"client_id": client, **more}, headers=headers, timeout=30)


def test_results_and_work_need_a_key_and_its_own_name(strict):
    own = key_of(strict, "ann")
    for answer in (
        send(strict, client_id="ann"),
        lease(strict, "ann"),
        send(strict, {"Authorization": "Bearer wrong"}, client_id="ann"),
        send(strict, {"Authorization": own["Authorization"].replace("Bearer", "Basic")}, client_id="ann"),
        requests.post(f"{strict.api}/submit_results", json=[plain()], timeout=30),
    ):
        problem(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    for answer in (
        send(strict, own, client_id="bob"),
        lease(strict, "bob", own),
        requests.get(f"{strict.api}/work/status/bob", headers=own, timeout=30),
        lease(strict, "ann", own | {"X-Client-ID": "bob"}),
    ):
        problem(answer, 403, "wrong_client")
    assert send(strict, own, client_id="ann").status_code == 200
    batch = [plain(client_id="ann"), plain(client_id="bob")]
    verdicts = requests.post(f"{strict.api}/submit_results", json=batch, headers=own, timeout=30).json()["results"]
    assert [(verdict["status"], verdict.get("reason")) for verdict in verdicts] == [
        ("accepted", None),
        ("refused", "wrong_client"),
    ]
    # Reading needs no key.
    assert requests.get(f"{strict.api}/stats/{random_number().value}", timeout=30).status_code == 404


def test_a_lease_is_given_up_by_its_own_client_only(strict):
    own, other = key_of(strict, "cid"), key_of(strict, "dan")
    assert send(strict, own, client_id="cid").status_code == 200
    work_id = lease(strict, "cid", own).json()["work_id"]
    problem(requests.delete(f"{strict.api}/work/{work_id}", headers=other, timeout=30), 404, "unknown_work")
    assert requests.delete(f"{strict.api}/work/{work_id}", headers=own, timeout=30).status_code == 200


def test_a_revoked_key_opens_nothing_after_some_seconds(strict):
    code, key, errors = command(strict, "add", "eve")
    assert code == 0, errors
    own = authorization(key)
    assert lease(strict, "eve", own).status_code == 200
    code, output, _ = command(strict, "revoke", "eve")
    assert (code, output) == (0, "the key of eve is revoked")
    wait_until(lambda: lease(strict, "eve", own).status_code == 401, 15, 1)
    code, output, _ = command(strict, "ls")
    assert "eve" in output
    assert "revoked" in output
    assert command(strict, "revoke", "eve")[0] == 1


def test_too_many_requests_are_told_when_to_come_again(strict):
    own = key_of(strict, "fay")
    answers = [lease(strict, "fay", own, min_digits=3000) for _ in range(26)]
    assert [answer.status_code for answer in answers] == [200] * 25 + [429]
    problem(answers[-1], 429, "too_many_requests")
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 3600
    assert [answers[0].headers[f"RateLimit-{name}"] for name in ("Limit", "Remaining")] == ["25", "24"]
    # Each client has its own limit; /health has none.
    assert requests.get(f"{strict.url}/health", timeout=30).status_code == 200
    # Pages use the database, so they count for their address; the files that they load do not.
    assert "RateLimit-Limit" in requests.get(f"{strict.url}/numbers", timeout=30).headers
    assert "RateLimit-Limit" not in requests.get(f"{strict.url}/static/pages.js", timeout=30).headers
    assert lease(strict, "gus", key_of(strict, "gus")).status_code == 200


def test_limits_hold_while_the_broker_is_frozen_and_nobody_waits_for_long(strict):
    own = key_of(strict, "hal")
    (server,) = strict.processes("valkey")[:1]
    server.suspend()
    try:
        took, statuses = [], []
        for _ in range(30):
            began = time.monotonic()
            statuses.append(lease(strict, "hal", own, min_digits=3000).status_code)
            took.append(time.monotonic() - began)
    finally:
        server.resume()
    assert statuses == [200] * 25 + [429] * 5
    assert max(took) < 2
    assert sorted(took)[15] < 0.2


def test_where_keys_are_not_required_a_wrong_one_is_refused_and_a_right_one_holds(stack):
    problem(send(stack, {"Authorization": "Bearer wrong"}), 401, "unauthorized")
    own = key_of(stack, "ida")
    problem(send(stack, own, client_id="joe"), 403, "wrong_client")
    assert send(stack, own, client_id="ida").status_code == 200
    assert send(stack, client_id="ida").status_code == 200
