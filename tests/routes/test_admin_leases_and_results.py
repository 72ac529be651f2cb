"""Routes of administration for leases, holds, rejected results and residues."""

import uuid
from hashlib import sha256

import pytest
from pipeline import SETTINGS, assert_sound, lease, result, rows, scalar, submit

from coordinator.administration import edits
from coordinator.base.audit import Actor
from coordinator.residues import uploads
from coordinator.residues.save_files import SaveFile

NO_LEASE = "00000000-0000-4000-8000-000000000000"


def test_open_leases_are_listed_and_cancelled(engine, admin, known):
    lease_id = str(lease(engine, known.id, client="bob", curves=10))
    listed = {one["work_id"]: one for one in admin("GET", "/work/assignments").json["assignments"]}
    assert (listed[lease_id]["composite_id"], listed[lease_id]["curves"]) == (known.id, 10)
    answer = admin("DELETE", f"/work/assignments/{lease_id}", reason="its machine is gone").json
    assert answer["work_id"] == lease_id
    assert "its machine is gone" in answer["message"]
    assert lease_id not in {one["work_id"] for one in admin("GET", "/work/assignments").json["assignments"]}
    # Idempotent: what is closed stays as it is.
    assert admin("DELETE", f"/work/assignments/{lease_id}").json["status"] == answer["status"]


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/work/assignments/{}"), ("POST", "/work/release/{}")])
@pytest.mark.parametrize("work_id", [NO_LEASE, "17", "x" * 200])
def test_an_unknown_lease_is_refused(admin, refused, method, path, work_id):
    assert work_id[:60] in refused(admin(method, path.format(work_id)), 404, "unknown_work")["detail"]


def test_overdue_leases_are_timed_out(engine, admin, known):
    lease_id = lease(engine, known.id, expires="now() - interval '1 hour'")
    answer = admin("POST", "/work/cleanup").json
    assert answer == {"expired": 1, "message": "1 overdue lease timed out"}
    assert scalar(engine, "SELECT status FROM work_assignments WHERE id = :id", id=lease_id) == "timeout"
    assert admin("POST", "/work/cleanup").json["message"] == "0 overdue leases timed out"


def test_a_number_is_reserved_once_and_released(engine, admin, refused, known):
    lease(engine, known.id, client="bob", curves=10)
    body = {"composite_identifier": known.value, "client_id": "siever", "method": "snfs", "metadata": {"poly": "c5"}}
    made = admin("POST", "/work/reserve", body).json
    assert (made["composite_id"], made["method"], made["client_id"]) == (known.id, "snfs", "siever")
    assert made["message"] == "Reserved; 1 open lease on it goes on and still counts"
    refused(admin("POST", "/work/reserve", body), 409, "reserved")
    released = admin("POST", f"/work/release/{made['work_id']}", reason="given up").json
    assert "given up" in released["message"]
    again = admin("POST", "/work/reserve", body | {"composite_identifier": str(known.id)}).json
    assert uuid.UUID(again["work_id"]) != uuid.UUID(made["work_id"])
    refused(admin("POST", "/work/reserve", body | {"composite_identifier": "2^89-1"}), 404, "unknown_composite")


def test_a_number_is_paused_and_resumed(admin, known):
    paused = admin("POST", f"/composites/{known.id}/pause", reason="a <b>look</b>").json
    assert (paused["hold"], paused["hold_reason"]) == ("paused", "a <b>look</b>")
    for _ in range(2):
        resumed = admin("POST", f"/composites/{known.id}/resume").json
        assert (resumed["hold"], resumed["message"]) == (None, "It gets work again")


# Rejected and failed results ------------------------------------------------------------------------------------------


def test_rejected_results_are_listed_page_by_page(engine, admin, refused, rejected):
    submit(engine, result("2^97-1", "999983"))
    listed, cursor = [], ""
    while not listed or cursor:
        page = admin("GET", "/submissions", limit=1, cursor=cursor).json
        listed += page["submissions"]
        cursor = page["next"]
    # Those that hold true factors come first.
    assert [one["submission_id"] for one in listed][0:1] == [rejected]
    assert len({one["submission_id"] for one in listed}) == len(listed) >= 2
    assert {one["state"] for one in listed} <= {"rejected", "failed"}
    applied = admin("GET", "/submissions", state="applied", limit=1).json["submissions"]
    assert [one["state"] for one in applied] == ["applied"]
    for query in ({"state": "lost"}, {"limit": "0"}, {"cursor": "x"}):
        refused(admin("GET", "/submissions", **query), 422, "invalid")


def test_true_factors_of_a_rejected_result_are_accepted_once(engine, admin, refused, known, rejected):
    path = f"/submissions/{rejected}/retry"
    answer = admin("POST", path, accept_factors=1).json
    assert (answer["state"], answer["new_factors"]) == ("rejected", [str(known.primes[0])])
    assert answer["message"] == "1 factor accepted, 1 of them new"
    refused(admin("POST", path, accept_factors=1), 409, "no_true_factors")
    assert_sound(engine)


def test_a_rejected_result_is_queued_again(admin, refused, published, rejected):
    answer = admin("POST", f"/submissions/{rejected}/retry").json
    assert (answer["state"], answer["message"]) == ("received", "The result is queued again")
    ((task, arguments),) = published
    assert (task, arguments["submissions"][0][0]) == ("tasks.results.apply_result", rejected)
    refused(admin("POST", f"/submissions/{rejected}/retry"), 409, "not_dead")


# Residues -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def residue(engine, app, client, known):
    """The id of a claimed residue of three curves, with its file."""
    attempt = submit(engine, result(known.value, b1=2000, b2=0, curves=3, parametrization=3, client="gpu")).attempt_id
    name, content = f"{known.id}.save", f"stage 1 of {known.value}".encode()
    directory = app.config["SETTINGS"].ecm_home / "residues"
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(content)
    file = SaveFile(int(known.value), 2000, 3, 3, sha256(content).digest(), len(content))
    made = uploads.register_upload(
        engine, "gpu", file, name, stage1_attempt_id=attempt, expiry_days=30, max_digits=SETTINGS.max_digits
    )
    # Claims prefer the highest priority: other tests leave residues behind.
    edits.set_priority(engine, Actor("tester"), known.id, known.id)
    headers = {"X-Client-ID": f"cpu-{known.id}"}
    claim = client.get(f"/api/v1/residues/work?min_digits={len(known.value)}&max_b1=2000", headers=headers)
    assert claim.json["residue_id"] == made.residue.id, claim.text
    return made.residue.id


def test_a_claim_is_released_and_a_residue_closed(engine, admin, residue):
    for _ in range(2):
        assert admin("DELETE", f"/residues/{residue}/release").json["status"] == "available"
    closed = admin("DELETE", f"/residues/{residue}", reason="a bad upload").json
    assert closed["status"] not in ("available", "claimed")
    actions = rows(engine, "SELECT action FROM admin_events WHERE target = :target", target=f"residue {residue}")
    assert len(actions) >= 2


def test_lapsed_claims_and_expired_residues_are_cleaned_up(engine, admin, residue):
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE ecm_residues SET claim_expires_at = now() - interval '1 hour' WHERE id = %(id)s", {"id": residue}
        )
    assert admin("POST", "/residues/cleanup").json == {
        "lapsed": 1,
        "expired": 0,
        "message": "1 claim ran out, 0 residues expired",
    }


def test_a_residue_without_a_file_is_closed(engine, app, admin, residue):
    name = scalar(engine, "SELECT file_name FROM ecm_residues WHERE id = :id", id=residue)
    (app.config["SETTINGS"].ecm_home / "residues" / name).unlink()
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE ecm_residues SET created_at = now() - interval '1 day' WHERE id = %(id)s", {"id": residue}
        )
    answer = admin("POST", "/residues/cleanup-orphaned").json
    assert answer["residues"] == 1
    assert "1 residue without a file closed" in answer["message"]
