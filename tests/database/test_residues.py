"""Residues on the real database: linked to their stage 1, claimed by one client at a time, and counted once."""

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline import SETTINGS, assert_sound, composite, result, rows, run_jobs, scalar, submit
from primes import prime, product

from coordinator import effort
from coordinator.administration import deletions, edits
from coordinator.base.audit import OPERATOR, Actor
from coordinator.base.errors import ConflictError, DomainError, InvalidClaimError, NotFoundError
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import ledger
from coordinator.leases import claims
from coordinator.leases.work_request import NoWork
from coordinator.residues import residue_claims, residue_expiry, residue_storage, uploads
from coordinator.residues.residue_claims import ResidueRequest
from coordinator.residues.residue_storage import Storage
from coordinator.residues.save_files import SaveFile

ACTOR = Actor("alice")
P, Q = prime(40), prime(62)
NUMBER = str(product(P, Q))
B1, CURVES = 50_000, 100
LATER = timedelta(days=365)


def file_of(number=NUMBER, curves=CURVES, b1=B1, parametrization=3):
    return SaveFile(int(number), b1, parametrization, curves, secrets.token_bytes(32), 12_345)


def send(engine, body):
    """Submit a result that is no replay of any other."""
    return submit(engine, body, key=secrets.token_hex(8))


def stage1(engine, number=NUMBER, curves=CURVES, client="gpu", **fields):
    """Submit a stage 1; its attempt's id."""
    body = result(number, curves=curves, b1=B1, b2=0, parametrization=3, client=client, **fields)
    return send(engine, body).attempt_id


def upload(engine, file=None, client="gpu", attempt=None, name=None):
    made = uploads.register_upload(
        engine,
        client,
        file or file_of(),
        name or f"{secrets.token_hex(8)}.save",
        stage1_attempt_id=attempt,
        expiry_days=30,
        max_digits=SETTINGS.max_digits,
    )
    return made.residue


def claim(engine, client="cpu", **filters):
    return residue_claims.claim_residue(engine, ResidueRequest(client, **filters), 500)


def stage2(engine, *factors, number=NUMBER, curves=CURVES, b2=None, client="cpu", **fields):
    body = result(number, *factors, curves=curves, b1=B1, b2=b2, parametrization=3, client=client, **fields)
    return send(engine, body)


def level(engine):
    return scalar(engine, "SELECT current_t_level FROM composites WHERE parent_id IS NULL ORDER BY id LIMIT 1")


def t_level(*runs):
    return pytest.approx(effort.t_level(effort.effort_of(list(runs))))


def state(engine, residue_id):
    return residue_claims.read_residue(engine, residue_id)


@pytest.fixture
def waiting(engine):
    """A residue that waits for its stage 2."""
    stage1(engine)
    return upload(engine)


# Upload ---------------------------------------------------------------------------------------------------------------


def test_an_upload_links_itself_to_the_latest_stage_1_without_a_residue(engine):
    first, second = stage1(engine), stage1(engine)
    stage1(engine, curves=99)
    stage1(engine, client="other")
    assert upload(engine).stage1_attempt_id == second
    assert upload(engine).stage1_attempt_id == first
    with pytest.raises(DomainError, match="has no stage-1 attempt") as refusal:
        upload(engine)
    assert refusal.value.reason == "unknown_attempt"
    assert scalar(engine, "SELECT open_residues FROM targets") == 2
    assert_sound(engine)


def test_the_same_file_twice_is_refused_with_the_message_that_clients_match(engine, waiting):
    again = SaveFile(int(NUMBER), B1, 3, CURVES, bytes(waiting.sha256), 12_345)
    with pytest.raises(DomainError) as refusal:
        upload(engine, again)
    assert str(refusal.value) == f"Duplicate residue (checksum matches residue ID {waiting.id})"
    residue_expiry.close_residue(engine, waiting.id, "not wanted")
    assert upload(engine, again).id > waiting.id, "a closed residue may be sent again"


def test_one_of_eight_simultaneous_uploads_of_a_file_succeeds(engine):
    for _ in range(8):
        stage1(engine)
    file = file_of()

    def upload_file(_):
        try:
            return upload(engine, file).id
        except DomainError as refusal:
            return refusal.reason

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(upload_file, range(8)))
    assert sum(isinstance(answer, int) for answer in answers) == 1
    assert {answer for answer in answers if isinstance(answer, str)} <= {"duplicate_residue"}


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"file": file_of(b1=B1 + 1)}, "has B1"),
        ({"file": file_of(parametrization=1)}, "has parametrization"),
        ({"file": file_of(curves=CURVES + 1)}, "has 100 curves without a residue"),
        ({"client": "other"}, "is gpu's"),
    ],
)
def test_an_attempt_that_is_not_its_stage_1_is_refused(engine, sent, message):
    attempt = stage1(engine)
    with pytest.raises(InvalidClaimError, match=message):
        upload(engine, **sent, attempt=attempt)
    with pytest.raises(DomainError, match="There is no attempt"):
        upload(engine, attempt=attempt + 1000)
    full = submit(engine, result(NUMBER, curves=CURVES, b1=B1, parametrization=3, client="gpu")).attempt_id
    with pytest.raises(InvalidClaimError, match="is no stage 1"):
        upload(engine, attempt=full)
    assert scalar(engine, "SELECT count(*) FROM ecm_residues") == 0


def test_an_unknown_or_finished_number_is_refused(engine):
    with pytest.raises(NotFoundError):
        upload(engine, file_of(product(prime(30), prime(31))))
    attempt = stage1(engine)
    submit(engine, result(NUMBER, str(P)))
    with pytest.raises(DomainError, match="is finished"):
        upload(engine, attempt=attempt)


def test_an_upload_before_its_attempt_is_applied_may_be_retried(engine):
    from pipeline import receive

    receipt = receive(engine, result(NUMBER, curves=CURVES, b1=B1, b2=0, parametrization=3, client="gpu"))
    submit(engine, result(NUMBER))
    for attempt in (None, receipt.attempt_id):
        with pytest.raises(residue_claims.RetryLaterError):
            upload(engine, attempt=attempt)


def test_several_files_may_share_a_stage_1_up_to_its_curves(engine):
    attempt = stage1(engine)
    upload(engine, file_of(curves=60), attempt=attempt)
    with pytest.raises(InvalidClaimError, match="has 40 curves without a residue"):
        upload(engine, file_of(curves=41), attempt=attempt)
    upload(engine, file_of(curves=40), attempt=attempt)


def test_a_cofactor_finds_its_number(engine):
    p = prime(12)
    whole = str(product(p, P, Q))
    stage1(engine, whole)
    submit(engine, result(whole, str(p)))
    residue = upload(engine, file_of(NUMBER))
    assert residue.number == NUMBER
    assert residue.composite_id == scalar(engine, "SELECT id FROM composites")


# Claims ---------------------------------------------------------------------------------------------------------------


def test_twenty_clients_never_claim_the_same_residue(engine):
    for _ in range(12):
        upload(engine, attempt=stage1(engine))
    together = threading.Barrier(20)

    def ask(n):
        together.wait()
        row = claim(engine, f"cpu-{n}")
        return row and row.id

    with ThreadPoolExecutor(20) as pool:
        got = [residue_id for residue_id in pool.map(ask, range(20)) if residue_id is not None]
    assert len(got) == len(set(got))
    while (row := claim(engine, "late")) is not None:
        got.append(row.id)
    assert sorted(got) == sorted(row.id for row in rows(engine, "SELECT id FROM ecm_residues"))


def test_the_highest_priority_first_then_the_oldest_and_filters(engine):
    other = str(product(prime(45), prime(66)))
    first = upload(engine, attempt=stage1(engine))
    second = upload(engine, attempt=stage1(engine))
    third = upload(engine, file_of(other), attempt=stage1(engine, other, project="main"))
    edits.set_priority(engine, OPERATOR, composite(engine, other).id, 5)
    assert claim(engine, max_digits=105, min_b1=B1).id == first.id
    assert claim(engine, min_b1=B1 + 1) is None
    assert claim(engine, min_target_tlevel=99) is None
    assert claim(engine, project="nowhere") is None
    assert claim(engine).id == third.id
    assert claim(engine, hours=1).id == second.id
    assert claim(engine) is None
    with pytest.raises(ConflictError, match="complete or release"):
        residue_claims.claim_residue(engine, ResidueRequest("cpu"), 3)


@pytest.mark.parametrize(("max_claims", "held"), [(1, 0), (3, 1)])
def test_a_client_never_claims_more_than_it_may_however_many_ask_at_once(engine, max_claims, held):
    for _ in range(12):
        upload(engine, attempt=stage1(engine))
    for _ in range(held):
        claim(engine)
    together = threading.Barrier(12)

    def ask(n):
        together.wait()
        try:
            # Another client is not limited by the claims of this one.
            name = "other" if n == 0 else "cpu"
            return residue_claims.claim_residue(engine, ResidueRequest(name), max_claims).claimed_by
        except ConflictError as error:
            return error.reason

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    claims_of_cpu = max_claims - held
    assert sorted(answers) == sorted(["cpu"] * claims_of_cpu + ["other"] + ["too_many_claims"] * (11 - claims_of_cpu))
    assert scalar(engine, "SELECT count(*) FROM ecm_residues WHERE claimed_by = 'cpu'") == max_claims


def test_only_its_claimer_may_download_or_release(engine, waiting):
    with pytest.raises(ConflictError):
        residue_claims.claimed_file(engine, waiting.id, "cpu")
    claim(engine)
    assert residue_claims.claimed_file(engine, waiting.id, "cpu").id == waiting.id
    for do in (residue_claims.claimed_file, residue_claims.release_claim):
        with pytest.raises(ConflictError):
            do(engine, waiting.id, "other")
    assert residue_claims.release_claim(engine, waiting.id, "cpu").status == "available"
    assert residue_claims.release_claim(engine, waiting.id, "cpu").status == "available"


def test_claims_lapse_and_residues_expire(engine, waiting):
    claim(engine, hours=1)
    now = datetime.now(UTC)
    assert residue_expiry.release_lapsed_claims(engine, now) == 0
    assert residue_expiry.release_lapsed_claims(engine, now + timedelta(hours=2)) == 1
    assert state(engine, waiting.id).status == "available"
    assert residue_expiry.expire_residues(engine, now)[0] == 0
    assert residue_expiry.expire_residues(engine, now + LATER)[0] == 1
    assert state(engine, waiting.id).status == "expired"
    assert composite(engine, NUMBER).open_residues == 0
    assert_sound(engine)


def test_a_number_with_a_residue_waiting_gets_no_new_curves(engine, waiting):
    assert isinstance(claims.claim(engine, claims.WorkRequest("alice"), SETTINGS), NoWork)
    residue_expiry.close_residue(engine, waiting.id, "not wanted", ACTOR)
    assert not isinstance(claims.claim(engine, claims.WorkRequest("alice"), SETTINGS), NoWork)


# Stage 2 --------------------------------------------------------------------------------------------------------------


def test_a_result_that_names_its_residue_supersedes_its_stage_1(engine, waiting):
    assert level(engine) == t_level((B1, 0, 3, CURVES))
    claim(engine)
    done = stage2(engine, residue_id=waiting.id)
    assert done.outcome["residue_completed"] is True
    assert done.outcome["new_t_level"] == t_level((B1, -1, 3, CURVES))
    assert level(engine) == t_level((B1, -1, 3, CURVES))
    row = state(engine, waiting.id)
    assert (row.status, row.stage2_attempt_id) == ("completed", done.attempt_id)
    confirmed = residue_claims.complete_residue(engine, waiting.id, "cpu", done.attempt_id)
    assert confirmed.is_completed
    assert level(engine) == t_level((B1, -1, 3, CURVES))
    assert_sound(engine)


def test_completing_does_the_same_for_clients_that_do_not_name_the_residue(engine, waiting):
    claim(engine)
    done = stage2(engine)
    assert level(engine) > t_level((B1, -1, 3, CURVES)).expected, "counted as curves of their own until then"
    for _ in range(2):
        assert residue_claims.complete_residue(engine, waiting.id, "cpu", done.attempt_id).t_level == t_level(
            (B1, -1, 3, CURVES)
        )
    assert_sound(engine)


def test_housekeeping_completes_the_stage_2_that_a_dead_client_has_sent(engine, waiting):
    claim(engine)
    stage2(engine, curves=74)
    assert residue_expiry.complete_unreported(engine) == []
    stage2(engine, curves=CURVES)
    assert residue_expiry.complete_unreported(engine)
    assert state(engine, waiting.id).status == "completed"
    assert residue_expiry.complete_unreported(engine) == []
    assert level(engine) == t_level((B1, -1, 3, CURVES + 74))
    assert_sound(engine)


def test_a_stage_2_of_some_curves_supersedes_those_curves(engine, waiting):
    claim(engine)
    done = stage2(engine, curves=60, residue_id=waiting.id)
    assert done.outcome["residue_completed"] is False
    assert level(engine) == t_level((B1, -1, 3, 60), (B1, 0, 3, 40))
    done = stage2(engine, curves=15, residue_checksum=bytes(waiting.sha256).hex())
    assert done.outcome["residue_completed"] is True
    assert level(engine) == t_level((B1, -1, 3, 75), (B1, 0, 3, 25))
    assert_sound(engine)


def test_stage_2_done_twice_counts_once(engine, waiting):
    claim(engine, "slow", hours=1)
    residue_expiry.release_lapsed_claims(engine, datetime.now(UTC) + timedelta(hours=2))
    claim(engine, "quick")
    stage2(engine, client="quick", residue_id=waiting.id)
    late = stage2(engine, client="slow", residue_id=waiting.id)
    assert late.state == "applied"
    assert level(engine) == t_level((B1, -1, 3, CURVES))
    assert residue_claims.complete_residue(engine, waiting.id, "slow", late.attempt_id).is_completed
    assert level(engine) == t_level((B1, -1, 3, CURVES))
    assert_sound(engine)


def test_a_late_completion_of_a_lapsed_residue_counts_unless_another_has_it(engine, waiting):
    claim(engine, "slow", hours=1)
    done = stage2(engine, client="slow")
    residue_expiry.release_lapsed_claims(engine, datetime.now(UTC) + timedelta(hours=2))
    claim(engine, "quick")
    with pytest.raises(ConflictError):
        residue_claims.complete_residue(engine, waiting.id, "slow", done.attempt_id)
    residue_claims.release_claim(engine, waiting.id, "quick")
    assert residue_claims.complete_residue(engine, waiting.id, "slow", done.attempt_id).is_completed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"curves": 74}, "has 74 curves; 75 of"),
        ({"b2": 99 * B1}, "has B2 = 4950000"),
        ({"b2": 0}, "has B2 = 0"),
        ({"client": "other"}, "another client's"),
        ({"number": str(product(prime(33), prime(44)))}, "is of composite"),
    ],
)
def test_too_little_or_another_run_is_no_stage_2(engine, waiting, fields, message):
    claim(engine)
    done = stage2(engine, **fields)
    with pytest.raises(InvalidClaimError, match=message):
        residue_claims.complete_residue(engine, waiting.id, "cpu", done.attempt_id)
    assert state(engine, waiting.id).status == "claimed"
    assert_sound(engine)


def test_a_stage_2_with_too_small_a_b2_adds_nothing_and_leaves_the_residue(engine, waiting):
    claim(engine)
    done = stage2(engine, b2=2 * B1, residue_id=waiting.id)
    assert done.outcome["residue_completed"] is False
    assert level(engine) == t_level((B1, 0, 3, CURVES))
    assert "takes a B2 of 5000000 or more" in done.outcome["message"]
    assert_sound(engine)


@pytest.mark.parametrize("named", [True, False])
def test_a_factor_ends_the_residue_whatever_was_done(engine, named):
    number = str(product(prime(25), prime(50), prime(60)))
    stage1(engine, number)
    residue = upload(engine, file_of(number))
    claim(engine)
    done = stage2(
        engine, str(prime(25)), number=number, curves=7, b2=2 * B1, **{"residue_id": residue.id} if named else {}
    )
    if not named:
        residue_claims.complete_residue(engine, residue.id, "cpu", done.attempt_id)
    assert state(engine, residue.id).status == "completed"
    assert level(engine) == t_level((B1, 2 * B1, 3, 7), (B1, 0, 3, 93))
    assert_sound(engine)


def test_a_finished_number_closes_its_residues(engine, waiting):
    other = upload(engine, attempt=stage1(engine))
    claim(engine)
    done = stage2(engine, str(P), curves=7, residue_id=waiting.id)
    assert done.outcome["residue_completed"] is True
    assert (state(engine, waiting.id).status, state(engine, other.id).status) == ("completed", "closed")
    assert_sound(engine)


@pytest.mark.parametrize(
    "fields",
    [{"residue_id": 999_999}, {"residue_checksum": "0" * 64}, {"residue_id": 1, "parametrization": 1}],
)
def test_a_residue_that_does_not_fit_is_left_alone(engine, waiting, fields):
    body = result(NUMBER, curves=CURVES, b1=B1, client="cpu") | fields
    body["parameters"]["parametrization"] = body.pop("parametrization", 3)
    if fields.get("residue_id") == 1:
        body["residue_id"] = waiting.id
    done = send(engine, body)
    assert "the result counts without it" in done.outcome["message"]
    assert "residue_completed" not in done.outcome
    assert state(engine, waiting.id).status == "available"
    assert_sound(engine)


# Revoked attempts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["deleted", "voided"])
def test_a_revoked_stage_2_gives_stage_1_its_curves_back(engine, waiting, way):
    claim(engine)
    done = stage2(engine, residue_id=waiting.id)
    if way == "deleted":
        deletions.delete_attempt(engine, ACTOR, done.attempt_id, None)
    else:
        void(engine, "cpu")
    assert level(engine) == t_level((B1, 0, 3, CURVES))
    assert_sound(engine)


@pytest.mark.parametrize("way", ["deleted", "voided"])
def test_a_revoked_stage_1_closes_its_residue(engine, waiting, way):
    if way == "deleted":
        deletions.delete_attempt(engine, ACTOR, waiting.stage1_attempt_id, None)
    else:
        void(engine, "gpu")
    assert (state(engine, waiting.id).status, composite(engine, NUMBER).open_residues) == ("closed", 0)
    done = stage2(engine, residue_id=waiting.id)
    assert done.state == "applied"
    assert level(engine) == t_level((B1, -1, 3, CURVES))
    stage2(engine, residue_id=waiting.id, client="twice")
    assert level(engine) == t_level((B1, -1, 3, CURVES))
    assert_sound(engine)


def test_two_revoked_stages_leave_no_effort(engine, waiting):
    claim(engine)
    done = stage2(engine, residue_id=waiting.id)
    void(engine, "gpu")
    deletions.delete_attempt(engine, ACTOR, done.attempt_id, None)
    assert level(engine) == 0
    assert_sound(engine)


def void(engine, client):
    since, until = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(hours=1)
    with unit_of_work(engine, "void") as connection:
        ledger.void(connection, client, since=since, until=until, program=None)


def test_a_deleted_number_takes_its_residues_with_it(engine, waiting):
    claim(engine)
    stage2(engine, residue_id=waiting.id)
    deletions.delete_composite(engine, ACTOR, waiting.composite_id, SETTINGS.max_digits)
    assert scalar(engine, "SELECT count(*) FROM ecm_residues") == 0
    assert_sound(engine)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["stage1", "upload", "claim", "release", "stage2", "other stage2", "complete", "void", "close"]
        ),
        st.integers(1, 12),
        st.integers(0, 5),
    ),
    max_size=14,
)


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_effort_agrees_with_the_attempts_after_any_steps(make_database, steps):
    from models.engine import make_engine

    engine = make_engine(make_database())
    try:
        submit(engine, result(NUMBER, curves=1))
        for what, curves, which in steps:
            ids = [row.id for row in rows(engine, "SELECT id FROM ecm_residues ORDER BY id")]
            residue_id = ids[which % len(ids)] if ids else 1
            try:
                take(engine, what, curves, residue_id)
            except DomainError:
                continue
            finally:
                run_jobs(engine)
        assert_sound(engine)
    finally:
        engine.dispose()


def take(engine, what, curves, residue_id):
    if what == "stage1":
        stage1(engine, curves=curves)
    elif what == "upload":
        upload(engine, file_of(curves=curves))
    elif what == "claim":
        claim(engine)
    elif what == "release":
        residue_claims.release_claim(engine, residue_id, "cpu")
    elif what == "stage2":
        stage2(engine, curves=curves, residue_id=residue_id)
    elif what == "other stage2":
        stage2(engine, curves=curves, b2=B1 * 100)
    elif what == "complete":
        latest = scalar(engine, "SELECT coalesce(max(id), 0) FROM ecm_attempts WHERE client_id = 'cpu'")
        residue_claims.complete_residue(engine, residue_id, "cpu", latest)
    elif what == "void":
        void(engine, "cpu" if curves % 2 else "gpu")
    else:
        residue_expiry.close_residue(engine, residue_id, "not wanted")


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["a directory", "memory"])
def storage(request, tmp_path, monkeypatch):
    """The storage that this test's jobs use."""
    url = tmp_path.joinpath("residues").as_uri() if request.param == "a directory" else f"memory://{tmp_path.name}"
    made = Storage(url)
    monkeypatch.setattr(residue_storage, "storage", lambda settings: made)
    return made


def put(storage, content=b"x"):
    with storage.writing() as (name, file):
        file.write(content)
    return name


def test_a_file_goes_after_the_commit_that_closes_its_residue(engine, storage):
    stage1(engine)
    residue = upload(engine, name=put(storage))
    claim(engine)
    stage2(engine, residue_id=residue.id)
    assert storage.exists(residue.file_name)
    run_jobs(engine)
    assert not storage.exists(residue.file_name)
    assert not state(engine, residue.id).has_file


def test_an_unfinished_file_is_not_stored(storage):
    def fail_halfway():
        with storage.writing() as (name, file):
            file.write(b"half")
            assert not storage.exists(name)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert storage.stored() == []


def test_garbage_is_files_without_rows_and_rows_without_files(engine, storage):
    orphan, now = put(storage), datetime.now(UTC)
    kept = upload(engine, attempt=stage1(engine), name=put(storage))
    lost = upload(engine, attempt=stage1(engine), name=put(storage))
    storage.delete(lost.file_name)
    report = residue_expiry.collect_garbage(engine, storage, now)
    assert (report.files, report.residues) == (0, 1), "a young file may still get its row"
    assert residue_expiry.collect_garbage(engine, storage, now + timedelta(hours=2)).files == 1
    assert {file.name for file in storage.stored()} == {kept.file_name}
    assert not storage.exists(orphan)
    assert (state(engine, kept.id).status, state(engine, lost.id).status) == ("available", "closed")
    assert_sound(engine)


def test_no_death_between_stage_2_and_its_completion_counts_twice(engine, waiting, monkeypatch):
    """A process that dies anywhere within the unit of work leaves it as if it had never begun."""
    from coordinator.composites import superseding

    claim(engine)
    before = level(engine)
    for name, where in (
        ("close_residues", superseding),
        ("supersede", ledger),
        ("recount_open_residues", superseding),
    ):
        with monkeypatch.context() as dying:

            def die(*_args, **_options):
                raise KeyboardInterrupt

            dying.setattr(where, name, die)
            with pytest.raises(KeyboardInterrupt):
                stage2(engine, residue_id=waiting.id, client=f"cpu-{name}")
        assert level(engine) == before
    assert np.isclose(before, effort.t_level(effort.effort_of([(B1, 0, 3, CURVES)])))
    assert_sound(engine)
