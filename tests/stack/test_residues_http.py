"""Residues over HTTP, with what GMP-ECM writes: stage 1 by one client, stage 2 by another, each curve counted once."""

import io
import subprocess

import pytest
from bodies import plain, problem
from leasing import admin_key, request_work, set_priority, unique_name
from stacks import wait_until
from traffic import prime

from agent.gmp_ecm import find_ecm
from coordinator import effort

pytestmark = pytest.mark.stack

B1, CURVES = 2000, 3


def ecm(number, *arguments, b1, b2="", stdin=None):
    run = [find_ecm(), *map(str, arguments), str(b1), *([str(b2)] if b2 != "" else [])]
    done = subprocess.run(run, input=stdin or f"{number}\n", text=True, capture_output=True, check=False)
    return done.stdout


def upload(stack, client, content, name="c60.save", **query):
    files = {"file": (name, io.BytesIO(content))}
    return stack.http.post(
        f"{stack.api}/residues/upload", files=files, params=query, headers={"X-Client-ID": client}, timeout=60
    )


def call(stack, method, path, client, **options):
    return stack.http.request(
        method, f"{stack.api}/residues{path}", headers={"X-Client-ID": client}, timeout=60, **options
    )


def stage1(stack, number, client, directory, *, parametrization=1, curves=CURVES, sigma=None, **fields):
    """Run stage 1 with GMP-ECM and submit it: (its attempt's id, what -save wrote)."""
    file = directory / f"{client}.save"
    which = ("-sigma", sigma) if sigma else ("-param", parametrization)
    ecm(number, *which, "-c", curves, "-save", file, b1=B1, b2=0)
    body = plain(number, client_id=client, results={"curves_completed": curves}, **fields)
    body["parameters"] |= {"b1": B1, "b2": 0, "curves": curves, "parametrization": parametrization, "sigma": None}
    answer = stack.submit(body, Idempotency_Key=unique_name("stage1"))
    assert answer.status_code == 200, answer.text
    return answer.json()["attempt_id"], file.read_bytes()


def composite_of(first, second):
    return str(first * second)


def level(stack, number):
    return stack.get(f"/stats/{number}").json()["current_t_level"]


@pytest.mark.parametrize("parametrization", [0, 1, 2, 3])
def test_a_round_trip_counts_each_curve_once_and_in_full(stack, tmp_path, parametrization):
    number, project, gpu, cpu = (
        composite_of(prime(40), prime(45)),
        unique_name("trip"),
        unique_name("gpu"),
        unique_name("cpu"),
    )
    attempt, content = stage1(stack, number, gpu, tmp_path, parametrization=parametrization, project=project)
    assert level(stack, number) == pytest.approx(effort.t_level(effort.effort_of([(B1, 0, parametrization, CURVES)])))
    sent = upload(stack, gpu, content, stage1_attempt_id=attempt if parametrization % 2 else "")
    assert sent.status_code == 200, sent.text
    residue = sent.json()
    assert (residue["stage1_attempt_id"], residue["curve_count"], residue["b1"]) == (attempt, CURVES, B1)
    again = problem(upload(stack, gpu, content), 400, "duplicate_residue")
    assert f"Duplicate residue (checksum matches residue ID {residue['residue_id']})" in again["detail"]
    assert request_work(stack, cpu, composite=number)["work_id"] is None, (
        "no new curves while some wait for their stage 2"
    )

    work = call(stack, "GET", "/work", cpu, params={"project": project}).json()
    assert (work["residue_id"], work["composite"]) == (residue["residue_id"], number)
    got = stack.http.get(stack.url + work["download_url"], headers={"X-Client-ID": cpu}, timeout=60)
    assert got.content == content
    assert got.headers["Cache-Control"] == "no-store"
    problem(call(stack, "GET", f"/{work['residue_id']}/download", gpu), 409, "not_claimed")
    (tmp_path / "got.save").write_bytes(got.content)
    output = ecm(number, "-resume", tmp_path / "got.save", b1=B1, b2=work["suggested_b2"])
    assert output.count("Step 2 took") == CURVES
    body = plain(number, client_id=cpu, residue_id=work["residue_id"], results={"curves_completed": CURVES})
    body["parameters"] |= {"b1": B1, "b2": None, "curves": CURVES, "parametrization": parametrization, "sigma": None}
    answer = stack.submit(body).json()
    assert answer["residue_completed"] is True
    whole = pytest.approx(effort.t_level(effort.effort_of([(B1, -1, parametrization, CURVES)])))
    assert answer["new_t_level"] == answer["current_t_level"] == level(stack, number) == whole
    done = {"stage2_attempt_id": answer["attempt_id"]}
    for _ in range(2):
        confirmed = call(stack, "POST", f"/{work['residue_id']}/complete", cpu, json=done)
        assert confirmed.status_code == 200, confirmed.text
        assert confirmed.json()["new_t_level"] == whole
    wait_until(lambda: not stack.scalar("SELECT has_file FROM ecm_residues WHERE id = :id", id=work["residue_id"]))
    file = stack.scalar("SELECT file_name FROM ecm_residues WHERE id = :id", id=work["residue_id"])
    assert not (stack.home / "residues" / file).exists()


def test_a_factor_found_in_stage_2_is_applied(stack, tmp_path):
    # Whether a curve finds it depends on it and on sigma alone: this one does, in stage 2, with such bounds.
    small, sigma = 700000000000000033, "1:215"
    number, project, gpu, cpu = (
        composite_of(small, prime(50)),
        unique_name("found"),
        unique_name("gpu"),
        unique_name("cpu"),
    )
    attempt, content = stage1(stack, number, gpu, tmp_path, curves=1, sigma=sigma, project=project)
    sent = upload(stack, gpu, content, stage1_attempt_id=attempt)
    assert sent.status_code == 200, sent.text
    work = call(stack, "GET", "/work", cpu, params={"project": project}).json()
    (tmp_path / "got.save").write_bytes(call(stack, "GET", f"/{work['residue_id']}/download", cpu).content)
    output = ecm(number, "-resume", tmp_path / "got.save", b1=B1, b2=10_000_000)
    assert f"Factor found in step 2: {small}" in output
    body = plain(number, client_id=cpu, residue_checksum=work["checksum"])
    body["parameters"] |= {"b1": B1, "b2": 10_000_000, "parametrization": 1, "sigma": None}
    body["results"] = {"curves_completed": output.count("Step 2 took"), "factor_found": str(small)}
    answer = stack.submit(body).json()
    assert (answer["factor_status"], answer["residue_completed"]) == ("new_factor", True)
    assert stack.get(f"/stats/{number}").json()["status"] == "fully_factored"


@pytest.fixture
def stored(stack, tmp_path):
    """(number, its stage 1's attempt, the file, its client): ready to be uploaded."""
    number, gpu = composite_of(prime(41), prime(46)), unique_name("gpu")
    return number, *stage1(stack, number, gpu, tmp_path), gpu


def test_bad_files_are_refused_clearly_and_nothing_is_stored(stack, stored):
    _, attempt, content, gpu = stored
    before = stack.scalar("SELECT count(*) FROM ecm_residues"), sorted((stack.home / "residues").iterdir())
    lines = content.splitlines(keepends=True)
    for bad, words in (
        (b"", "no curve"),
        (content[: len(content) // 2], "Line 2"),
        (lines[0] + lines[1].replace(b"X=0x", b"X=0x1"), "Line 2: CHECKSUM"),
        (lines[0] * 2, "Line 2: this curve"),
        (bytes(range(256)) * 100, "Line 1"),
        (b"PK\x03\x04", "Line 1"),
    ):
        refused = problem(upload(stack, gpu, bad, stage1_attempt_id=attempt), 400, "bad_residue")
        assert words in refused["detail"]
    large = upload(stack, gpu, b"#" + b"\n# nothing but comments" * 2_500_000, stage1_attempt_id=attempt)
    problem(large, 413, "body_too_large")
    long_names = upload(stack, gpu, content, name="../../etc/passwd\n" + "x" * 5000, stage1_attempt_id=attempt + 10**9)
    problem(long_names, 400, "unknown_attempt")
    unknown = content.replace(stored[0].encode(), str(prime(30) * prime(31)).encode())
    problem(upload(stack, gpu, unknown), 404, "unknown_composite")
    assert (stack.scalar("SELECT count(*) FROM ecm_residues"), sorted((stack.home / "residues").iterdir())) == before


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/999999999", 404, "unknown_residue"),
        ("GET", "/999999999/download", 404, "unknown_residue"),
        ("POST", "/999999999/complete", 404, "unknown_residue"),
        ("DELETE", "/999999999/claim", 404, "unknown_residue"),
        ("GET", "/work?min_b1=x", 422, "invalid"),
        ("GET", "/work?claim_timeout_hours=nan", 422, "invalid"),
        ("GET", "/work?project=a%00", 422, "invalid"),
        ("POST", "/upload", 415, "unsupported_media_type"),
        ("POST", "/upload?stage1_attempt_id=-1", 422, "invalid"),
        ("POST", "/upload?b1=5", 422, "invalid"),
    ],
)
def test_what_cannot_be_is_said(stack, method, path, status, reason):
    body = {"json": {"stage2_attempt_id": 1}} if path.endswith("complete") else {}
    problem(call(stack, method, path, "cpu", **body), status, reason)


def test_who_asks_must_say_so(stack):
    for path in ("/residues/work", "/residues/1/download"):
        assert problem(stack.get(path), 422, "invalid")["errors"][0]["field"] == "X-Client-ID"


def test_no_work_says_when_to_ask_again(stack):
    reply = call(stack, "GET", "/work", unique_name("cpu"), params={"project": unique_name("nowhere")}).json()
    assert {name for name, value in reply.items() if value is not None} == {"retry_after", "message"}


def test_a_claim_is_given_back_and_an_operator_closes(stack, stored):
    number, attempt, content, gpu = stored
    residue = upload(stack, gpu, content, stage1_attempt_id=attempt).json()["residue_id"]
    key, cpu = admin_key(stack), unique_name("cpu")
    set_priority(stack, number, 99)

    def admin(method, path):
        return stack.http.request(method, f"{stack.api}/admin{path}", headers={"X-Admin-Key": key}, timeout=60)

    for give_back in (
        lambda: call(stack, "DELETE", f"/{residue}/claim", cpu),
        lambda: admin("DELETE", f"/residues/{residue}/release"),
    ):
        assert call(stack, "GET", "/work", cpu, params={"min_priority": 99}).json()["residue_id"] == residue
        assert call(stack, "GET", f"/{residue}", cpu).json()["claimed_by"] == cpu
        assert give_back().json()["status"] == "available"
    assert call(stack, "GET", "/work", cpu, params={"min_priority": 99, "claim_timeout_hours": 0.0001}).json()[
        "residue_id"
    ]
    wait_until(
        lambda: stack.get(f"/residues/{residue}").json()["status"] == "available"
    )  # beat has seen that it ran out
    assert admin("DELETE", f"/residues/{residue}").json()["status"] == "closed"
    assert stack.scalar("SELECT count(*) FROM admin_events WHERE target = :t", t=f"residue {residue}") == 2
    summary = stack.get("/residues/stats/summary").json()
    assert summary["residues"]["closed"] >= 1
    assert request_work(stack, cpu, composite=number)["work_id"] is not None
    for path in ("cleanup", "cleanup-orphaned"):
        assert admin("POST", f"/residues/{path}").status_code == 200
        problem(stack.http.post(f"{stack.api}/admin/residues/{path}", timeout=60), 401, "unauthorized")
