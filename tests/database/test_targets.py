"""Targets: numbers with the same unfinished part are worked on once, and all of them have the curves."""

import secrets

import pytest
from pipeline import SETTINGS, apply_in_batches, assert_sound, composite, leaves, result, rows, run_jobs, scalar, submit
from primes import prime
from shared_numbers import OTHER, SHARED, SMALL, know, level, register, register_two, target_of, upload

from coordinator.administration import deletions, edits
from coordinator.base.audit import OPERATOR
from coordinator.leases import claims, reservations
from coordinator.leases.work_request import NoWork, WorkRequest
from coordinator.residues import residue_claims, uploads
from coordinator.residues.residue_claims import ResidueRequest
from coordinator.residues.save_files import SaveFile
from coordinator.results import applying


def claim(engine, client="alice", **fields):
    return claims.claim(engine, WorkRequest(client, shared=True, **fields), SETTINGS)


@pytest.fixture
def sharing(engine):
    return register_two(engine)


def test_numbers_with_the_same_cofactor_have_one_target(engine, sharing):
    one, two = sharing
    assert target_of(engine, one) == target_of(engine, two)
    assert scalar(engine, "SELECT count(*) FROM targets") == 1
    assert_sound(engine)


@pytest.mark.parametrize("named", [0, 1], ids=["the older number", "the younger number"])
@pytest.mark.parametrize("written", ["the cofactor", "the number"])
@pytest.mark.parametrize("apply", [applying.apply_result, apply_in_batches], ids=["one by one", "in batches"])
def test_curves_of_a_lease_count_for_the_leased_number_and_for_all_that_share_it(
    engine, sharing, named, written, apply
):
    number = sharing[named]
    lease = claim(engine, composite=str(number))
    assert lease.composite.id == composite(engine, str(number)).id
    text = lease.composite.current_composite if written == "the cofactor" else str(number)
    row = submit(
        engine,
        result(text, b1=lease.plan.b1, curves=lease.plan.curves, parametrization=1, work_id=str(lease.work_id)),
        apply=apply,
    )
    assert row.state == "applied"
    assert "without it" not in row.outcome["message"]
    assert row.outcome["composite_id"] == composite(engine, str(number)).id
    assert scalar(engine, "SELECT status FROM work_assignments") == "completed"
    assert level(engine, sharing[0]) == level(engine, sharing[1]) > 0
    assert_sound(engine)


def test_a_target_is_leased_once_whichever_number_is_named(engine, sharing):
    one, two = sharing
    assert not isinstance(claims.claim(engine, WorkRequest("alice", composite=str(one)), SETTINGS), NoWork)
    assert isinstance(claims.claim(engine, WorkRequest("bob", composite=str(two)), SETTINGS), NoWork)
    assert isinstance(claims.claim(engine, WorkRequest("bob"), SETTINGS), NoWork)


def test_the_same_curves_for_both_numbers_count_once(engine, sharing):
    one, two = sharing
    first = submit(engine, result(str(one), sigma="1:77", curves=1))
    second = submit(engine, result(str(two), sigma="1:77", curves=1, client="bob"))
    assert (first.state, second.state) == ("applied", "duplicate")
    assert second.outcome["attempt_id"] == first.outcome["attempt_id"]
    assert scalar(engine, "SELECT sum(curves) FROM value_effort") == 1
    assert_sound(engine)


def test_a_factor_of_the_target_is_used_on_every_number_and_credited_once(engine, sharing):
    one = sharing[0]
    claim(engine, client="bob", composite=str(one))
    row = submit(engine, result(str(SHARED), str(prime(60))))
    assert row.outcome["factor_status"] == "new_factor"
    for number in sharing:
        assert composite(engine, str(number)).is_fully_factored
        assert [int(factor) for factor, _ in leaves(engine, str(number))] == sorted(
            [SMALL if number == one else OTHER, prime(60), prime(61)]
        )
    assert scalar(engine, "SELECT count(*) FROM factors WHERE client_id IS NOT NULL AND origin = 'submitted'") == 1
    assert scalar(engine, "SELECT status FROM work_assignments") == "completed"
    run_jobs(engine)
    assert_sound(engine)


def test_the_union_of_attempts_counts_where_two_numbers_meet(engine):
    one, two = SMALL * SHARED, OTHER * SHARED
    register(engine, one, two)
    submit(engine, result(str(one), curves=30))
    submit(engine, result(str(two), curves=50))
    know(engine, one, SMALL)
    submit(engine, result(str(SHARED), curves=7))
    know(engine, two, OTHER)
    assert scalar(engine, "SELECT count(*) FROM targets") == 1
    assert scalar(engine, "SELECT attempt_count FROM targets") == 3
    assert composite(engine, str(one)).attempt_count == composite(engine, str(two)).attempt_count == 3
    expected = scalar(
        engine,
        "SELECT sum(e.curves) FROM value_effort e JOIN target_sources USING (value_id)",
    )
    assert expected == 87
    assert_sound(engine)


def test_a_part_has_the_curves_of_the_whole_before_and_after_the_split(engine):
    left, right = prime(80), prime(81)
    whole = left * prime(82) * right * prime(83)
    part = left * prime(82)
    register(engine, whole)
    submit(engine, result(str(whole), curves=10))
    submit(engine, result(str(whole), str(part), curves=5))
    run_jobs(engine)
    submit(engine, result(str(whole), curves=3))  # a late result for the whole number
    submit(engine, result(str(whole // part), curves=2))
    submit(engine, result(str(part), curves=1))
    child = composite(engine, str(part))
    sums = dict(
        rows(
            engine,
            "SELECT target_id, sum(curves)::int FROM value_effort JOIN target_sources USING (value_id) GROUP BY 1",
        )
    )
    assert sums == {child.target_id: 19, target_of(engine, whole): 20}
    assert_sound(engine)


def test_a_number_and_its_cofactor_are_numbers_of_their_own(engine):
    number = SMALL * SHARED
    register(engine, number)
    submit(engine, result(str(number), curves=30))
    know(engine, number, SMALL)
    register(engine, SHARED)
    assert target_of(engine, number) == target_of(engine, SHARED)
    assert level(engine, SHARED) == level(engine, number) > 0
    assert_sound(engine)


def test_a_former_cofactor_that_is_registered_later_has_its_curves_and_gets_the_factors(engine):
    first, second = prime(20), prime(22)
    number = first * second * SHARED
    register(engine, number)
    know(engine, number, first)
    submit(engine, result(str(second * SHARED), curves=30))
    know(engine, number, second)
    submit(engine, result(str(second * SHARED), curves=4))
    run_jobs(engine)
    register(engine, second * SHARED)
    assert level(engine, second * SHARED) == level(engine, number) > 0


def test_deleting_a_number_leaves_its_curves_to_those_that_share_its_target(engine, sharing):
    one, two = sharing
    claim(engine, client="bob", composite=str(one))
    submit(engine, result(str(one), curves=30))
    submit(engine, result(str(SHARED), curves=12))
    before = level(engine, two)
    deletions.delete_composite(engine, OPERATOR, composite(engine, str(one)).id, 10_000)
    assert level(engine, two) == before > 0
    assert {row.composite_id for row in rows(engine, "SELECT composite_id FROM ecm_attempts")} == {
        composite(engine, str(two)).id
    }
    assert scalar(engine, "SELECT composite_id FROM work_assignments") == composite(engine, str(two)).id
    assert_sound(engine)


def test_a_pause_holds_the_target(engine, sharing):
    one, two = sharing
    reservations.pause(engine, composite(engine, str(one)).id, "wait")
    assert isinstance(claim(engine, composite=str(two)), NoWork)
    reservations.resume(engine, composite(engine, str(two)).id)
    assert not isinstance(claim(engine, composite=str(one)), NoWork)
    assert_sound(engine)


def test_the_priority_of_a_target_is_the_largest(engine, sharing):
    two = sharing[1]
    edits.set_priority(engine, OPERATOR, composite(engine, str(two)).id, 5)
    assert scalar(engine, "SELECT priority FROM targets") == 5
    edits.set_priority(engine, OPERATOR, composite(engine, str(two)).id, -1)
    assert scalar(engine, "SELECT priority FROM targets") == 0
    assert_sound(engine)


# Residues of the one for the other ------------------------------------------------------------------------------------


@pytest.mark.parametrize("names_attempt", [True, False])
@pytest.mark.parametrize("which", [(0, 1), (1, 0)], ids=["the younger one's file", "the older one's file"])
def test_a_residue_of_the_one_fits_stage_1_of_the_other(engine, sharing, names_attempt, which):
    stage1, own = sharing[which[0]], sharing[which[1]]
    row = submit(engine, result(str(stage1), b1=50_000, b2=0, curves=100, parametrization=3))
    residue = upload(engine, own, row.attempt_id if names_attempt else None)
    assert residue.stage1_attempt_id == row.attempt_id
    assert scalar(engine, "SELECT open_residues FROM targets") == 1
    claimed = residue_claims.claim_residue(engine, ResidueRequest("bob"), 5)
    assert claimed.id == residue.id
    other = submit(
        engine,
        result(str(stage1), b1=50_000, curves=100, parametrization=3, client="bob", residue_id=residue.id),
    )
    assert other.outcome["residue_completed"]
    sums = dict(rows(engine, "SELECT b2::int, sum(curves)::int FROM value_effort GROUP BY b2"))
    assert sums == {0: 0, -1: 100}
    assert level(engine, stage1) == level(engine, own) > 0
    assert_sound(engine)


def test_no_new_curves_are_leased_while_a_residue_of_the_other_waits(engine, sharing):
    submit(engine, result(str(sharing[0]), b1=50_000, b2=0, curves=100, parametrization=3))
    upload(engine, SHARED)
    assert isinstance(claim(engine, composite=str(sharing[1])), NoWork)


def test_the_file_of_the_case_fits_the_number_and_its_cofactor(engine):
    """Case B2: the file's N is (2^223-1)/18287, which is registered as well; its stage 1 was run on 2^223-1."""
    register(engine, "2^223-1", "(2^223-1)/18287")
    know(engine, "2^223-1", 18287)
    run_jobs(engine)
    row = submit(engine, result("2^223-1", b1=2000, b2=0, curves=3, sigma="1:55", parametrization=1))
    cofactor = (2**223 - 1) // 18287
    made = uploads.register_upload(
        engine,
        "alice",
        SaveFile(cofactor, 2000, 1, 3, secrets.token_bytes(32), 1_000),
        "both.save",
        stage1_attempt_id=None,
        expiry_days=30,
        max_digits=10_000,
    )
    assert made.residue.stage1_attempt_id == row.attempt_id
    assert_sound(engine)
