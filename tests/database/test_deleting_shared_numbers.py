"""Deleting numbers that share a cofactor: the work on the cofactor stays with the others, once, and nothing else."""

import io
import secrets
from datetime import UTC, datetime, timedelta

import pytest
from pipeline import SETTINGS, assert_sound, composite, result, rows, run_jobs, run_sql, scalar, submit
from plans import executed, plan
from primes import prime
from shared_numbers import SHARED, know, level, register, upload

from coordinator.administration import deletions
from coordinator.base.audit import OPERATOR, Actor
from coordinator.composites import statistics
from coordinator.leases import claims
from coordinator.leases.work_request import WorkRequest
from coordinator.loading.list_formats import read_list
from coordinator.loading.load import load_numbers
from coordinator.residues import uploads
from coordinator.residues.save_files import SaveFile

FACTORS = [prime(20), prime(21), prime(22)]
NUMBERS = [factor * SHARED for factor in FACTORS]  # SHARED is the cofactor of each
STAGE1 = {"b1": 50_000, "b2": 0, "curves": 100, "parametrization": 3}
BOTH_STAGES = {"b1": 50_000, "curves": 100, "parametrization": 3}


def load(engine, content):
    listing = read_list(io.BytesIO(content.encode()), f"{secrets.token_hex(4)}.csv", 200_000)
    load_numbers(
        engine, listing.numbers, max_digits=SETTINGS.max_digits, actor=Actor("tester"), source="a list", processes=0
    )
    run_jobs(engine)


def id_of(engine, number):
    return composite(engine, str(number)).id


def delete(engine, number):
    return deletions.delete_composite(engine, OPERATOR, id_of(engine, number), 10_000)


def void(engine, client):
    hour = timedelta(hours=1)
    times = {"since": datetime.now(UTC) - hour, "until": datetime.now(UTC) + hour}
    deletions.void_attempts(engine, OPERATOR, client, **times, program=None, reason="it was broken")


@pytest.fixture
def sharing(engine):
    """The NUMBERS, registered in this order and divided, so that they have one target."""
    register(engine, *NUMBERS)
    for number, factor in zip(NUMBERS, FACTORS, strict=True):
        know(engine, number, factor)
    assert scalar(engine, "SELECT count(*) FROM targets") == 1


# Curves ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize("again", [SHARED, NUMBERS[1], NUMBERS[2]], ids=["cofactor", "heir", "another one"])
def test_curves_of_a_deleted_number_count_once(engine, again):
    submit(engine, result(str(NUMBERS[0]), sigma="1:77", curves=10))
    delete(engine, NUMBERS[0])
    repeated = submit(engine, result(str(again), sigma="1:77", curves=10, client="bob"))
    assert repeated.state == "duplicate"
    assert scalar(engine, "SELECT sum(curves) FROM value_effort") == 10
    assert_sound(engine)


def test_the_same_curves_on_a_deleted_number_and_on_its_heir_stay_two_attempts(engine):
    register(engine, *NUMBERS[:2])
    for number in NUMBERS[:2]:  # before they share a cofactor these are curves on two values
        assert submit(engine, result(str(number), sigma="1:77", curves=10)).state == "applied"
    for number, factor in zip(NUMBERS[:2], FACTORS, strict=False):
        know(engine, number, factor)
    delete(engine, NUMBERS[0])
    assert (
        scalar(engine, "SELECT count(*) FROM ecm_attempts WHERE composite_id = :id", id=id_of(engine, NUMBERS[1])) == 2
    )
    assert submit(engine, result(str(SHARED), sigma="1:77", curves=10, client="bob")).state == "duplicate"
    assert_sound(engine)


def test_curves_go_to_a_number_with_the_same_cofactor_before_one_that_is_a_part(engine):
    """The part has the smaller id; only numbers with the same cofactor recognize curves that are sent again."""
    part, rest = prime(60) * prime(61), prime(70) * prime(71)
    whole = part * rest
    register(engine, part, prime(20) * whole, prime(21) * whole)
    know(engine, prime(20) * whole, prime(20))
    know(engine, prime(21) * whole, prime(21))
    submit(engine, result(str(prime(20) * whole), sigma="1:77", curves=10))
    link = "INSERT INTO target_sources SELECT target_id, v.id FROM composites, worked_values v WHERE number = :part"
    run_sql(engine, link, part=str(part))
    delete(engine, prime(20) * whole)
    assert scalar(engine, "SELECT composite_id FROM ecm_attempts") == id_of(engine, prime(21) * whole)


@pytest.mark.usefixtures("sharing")
def test_duplicates_follow_their_attempt(engine):
    first = submit(engine, result(str(NUMBERS[0]), sigma="1:77", curves=10))
    for number in NUMBERS[:2]:
        submit(engine, result(str(number), sigma="1:77", curves=10, client=f"of {number}"))
    delete(engine, NUMBERS[0])
    settled = rows(engine, "SELECT state, composite_id FROM submissions ORDER BY id")
    heir = id_of(engine, NUMBERS[1])
    assert settled == [("applied", heir), ("duplicate", heir), ("duplicate", heir)]
    assert scalar(engine, "SELECT id FROM ecm_attempts") == first.attempt_id
    assert_sound(engine)


def test_a_finished_number_inherits_nothing_if_another_one_is_unfinished(engine):
    register(engine, *NUMBERS)
    know(engine, NUMBERS[0], FACTORS[0])
    know(engine, NUMBERS[0], prime(60))
    for number, factor in zip(NUMBERS[1:], FACTORS[1:], strict=True):
        know(engine, number, factor)  # the others are divided by the job that has not run yet
    taken = claims.claim(engine, WorkRequest("bob", composite=str(NUMBERS[1])), SETTINGS)
    assert taken.composite.id == id_of(engine, NUMBERS[1])
    delete(engine, NUMBERS[1])
    assert scalar(engine, "SELECT composite_id FROM work_assignments") == id_of(engine, NUMBERS[2])


# Residues -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_stages(engine, sharing):
    """Stage 1 of the youngest number, whose residues the oldest number has, and stage 2 by bob."""
    stage1 = submit(engine, result(str(NUMBERS[2]), **STAGE1))
    residue = upload(engine, SHARED, stage1.attempt_id)
    run_sql(engine, "UPDATE ecm_residues SET composite_id = :id", id=id_of(engine, NUMBERS[0]))
    stage2 = submit(engine, result(str(NUMBERS[2]), **BOTH_STAGES, client="bob", residue_id=residue.id))
    assert stage2.outcome["residue_completed"]
    assert_sound(engine)
    return residue


@pytest.mark.parametrize("deleted", [NUMBERS[:1], NUMBERS[:2], NUMBERS[1:]], ids=["its own", "two", "of stage 1"])
def test_stage_1_counts_again_after_its_stage_2_is_voided(engine, two_stages, deleted):
    for number in deleted:
        delete(engine, number)
    assert scalar(engine, "SELECT count(*) FROM ecm_residues WHERE id = :id", id=two_stages.id) == 1
    assert_sound(engine)
    void(engine, "bob")
    assert rows(engine, "SELECT b2::int, curves::int FROM value_effort WHERE curves > 0") == [(0, 100)]
    (left,) = {number for number in NUMBERS if number not in deleted} - set(NUMBERS[1:2]) or {NUMBERS[1]}
    assert level(engine, left) > 0
    assert_sound(engine)


@pytest.mark.usefixtures("sharing")
def test_open_residues_go_to_a_number_with_the_same_cofactor(engine):
    stage1 = submit(engine, result(str(NUMBERS[2]), **STAGE1))
    residue = upload(engine, SHARED, stage1.attempt_id)
    run_sql(engine, "UPDATE ecm_residues SET composite_id = :id", id=id_of(engine, NUMBERS[0]))
    delete(engine, NUMBERS[0])
    assert rows(engine, "SELECT id, status FROM ecm_residues") == [(residue.id, "available")]
    assert scalar(engine, "SELECT open_residues FROM targets") == 1
    assert_sound(engine)


def test_residues_are_closed_when_only_parts_of_their_number_stay(engine):
    """A stage 2 of the deleted number would have no home; the curves of its stage 1 count for the part that stays."""
    other = prime(70) * prime(71)
    whole = SHARED * other
    register(engine, whole, SHARED)
    stage1 = submit(engine, result(str(whole), **STAGE1))
    file = SaveFile(int(whole), 50_000, 3, 100, secrets.token_bytes(32), 12_345)
    made = uploads.register_upload(
        engine, "alice", file, "x.save", stage1_attempt_id=stage1.attempt_id, expiry_days=30, max_digits=10_000
    )
    half = {**BOTH_STAGES, "curves": 50, "residue_id": made.residue.id}
    submit(engine, result(str(whole), **half, client="bob"))
    know(engine, whole, SHARED)
    run_sql(engine, "UPDATE ecm_residues SET status = 'available', closed_at = NULL, message = NULL")
    run_sql(engine, "UPDATE targets SET open_residues = 1 WHERE id = :id", id=composite(engine, str(whole)).target_id)
    _, to_publish = delete(engine, whole)
    assert level(engine, SHARED) > 0
    (residue,) = rows(engine, "SELECT composite_id, status, message FROM ecm_residues")
    assert (residue.composite_id, residue.status) == (id_of(engine, SHARED), "closed")
    assert residue.message == deletions.RESIDUE_WITHOUT_NUMBER
    assert [job.kind for job in to_publish] == ["drop_residue"]
    assert_sound(engine)
    void(engine, "bob")
    assert rows(engine, "SELECT b2::int, curves::int FROM value_effort WHERE curves > 0") == [(0, 100)]
    assert_sound(engine)


def test_stage_1_counts_again_if_its_stage_2_is_deleted_with_a_number(engine, two_stages):
    """Curves of the deleted number count for no other one, while the stage 1 of these curves does."""
    run_sql(engine, "UPDATE ecm_attempts SET composite_id = :id WHERE client_id = 'bob'", id=id_of(engine, NUMBERS[1]))
    alone = "INSERT INTO worked_values (value_sha256, value) SELECT sha256('77'), '77' RETURNING id"
    run_sql(engine, f"WITH alone AS ({alone}) UPDATE ecm_attempts SET value_id = alone.id FROM alone"
                    " WHERE client_id = 'bob'")  # fmt: skip
    run_sql(
        engine, "UPDATE value_effort SET value_id = (SELECT id FROM worked_values WHERE value = '77') WHERE b2 = -1"
    )
    delete(engine, NUMBERS[1])
    assert rows(engine, "SELECT b2::int, curves::int FROM value_effort WHERE curves > 0") == [(0, 100)]
    assert rows(engine, "SELECT superseded_curves FROM ecm_attempts") == [(0,)]
    assert_sound(engine)


# Prior work -----------------------------------------------------------------------------------------------------------


def test_prior_work_goes_with_the_number(engine):
    load(engine, f"number,prior_work\n{NUMBERS[0]},t40\n")
    assert level(engine, NUMBERS[0]) > 39
    delete(engine, NUMBERS[0])
    assert rows(engine, "SELECT id FROM worked_values") == []
    load(engine, f"number\n{NUMBERS[0]}\n")
    assert level(engine, NUMBERS[0]) == 0
    assert_sound(engine)


def test_prior_work_on_a_former_cofactor_goes_with_the_number(engine):
    load(engine, f"number,prior_work\n{SHARED},t40\n")
    register(engine, NUMBERS[0])
    know(engine, NUMBERS[0], FACTORS[0])
    (factor,) = rows(engine, "SELECT id FROM factors WHERE composite_id = :id", id=id_of(engine, NUMBERS[0]))
    delete(engine, SHARED)
    assert level(engine, NUMBERS[0]) > 39
    deletions.delete_factor(engine, OPERATOR, factor.id, 10_000)
    run_jobs(engine)
    assert_sound(engine)
    delete(engine, NUMBERS[0])
    assert rows(engine, "SELECT id FROM worked_values") == []
    assert_sound(engine)


def test_prior_work_stays_while_another_number_has_the_value(engine):
    load(engine, f"number,prior_work\n{SHARED},t40\n")
    register(engine, NUMBERS[0])
    know(engine, NUMBERS[0], FACTORS[0])
    before = level(engine, NUMBERS[0])
    delete(engine, SHARED)
    assert level(engine, NUMBERS[0]) == before > 39
    assert_sound(engine)


# Costs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sharing")
def test_no_large_table_is_read_as_a_whole_while_numbers_are_locked(engine):
    for number in NUMBERS:
        for client in ("alice", "bob"):
            submit(engine, result(str(number), sigma=f"1:{number % 1000}", curves=10, client=client))
    stage1 = submit(engine, result(str(NUMBERS[0]), **STAGE1))
    upload(engine, SHARED, stage1.attempt_id)
    # The first statistics ever begin with the oldest attempt; later ones know where they are.
    statistics.aggregate_attempts(engine, datetime.now(UTC), timedelta(0))
    statements = executed(engine, lambda: delete(engine, NUMBERS[0]))
    found = [plan(engine, one) for one in statements if one.split()[0] in {"SELECT", "UPDATE", "DELETE", "WITH"}]
    assert len(found) > 20
    tables = ("submissions", "ecm_attempts", "composites", "targets", "worked_values", "value_effort", "ecm_residues")
    assert [one for one in found for table in tables if f"Seq Scan on {table}" in one] == []
