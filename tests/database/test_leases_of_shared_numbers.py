"""Leases, holds, residues, primality tests and counts of numbers that share their cofactor with others."""

import pytest
from pipeline import SETTINGS, assert_sound, composite, result, rows, run_jobs, run_sql, scalar, submit
from plans import executed, plan
from primes import prime
from shared_numbers import OTHER, SHARED, SMALL, know, register, register_two, upload

from coordinator.administration import edits
from coordinator.base import jobs
from coordinator.base.audit import OPERATOR
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import holds, lease_lifecycle, registry, target_changes
from coordinator.housekeeping import job_runner
from coordinator.leases import claims, reservations
from coordinator.leases.work_request import Claim, NoWork, WorkRequest
from coordinator.reading import counts
from coordinator.residues import residue_claims
from coordinator.residues.residue_claims import ResidueRequest


def join_project(engine, number, name):
    with unit_of_work(engine, "join_project") as connection:
        registry.join_project(connection, composite(engine, str(number)).id, name)


@pytest.fixture
def sharing(engine):
    return register_two(engine)


# Claims ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def reopened(engine):
    """(a finished number, an unfinished one whose cofactor it had): their target is open until a job has run."""
    finished, new = SMALL * SHARED, OTHER * SHARED
    register(engine, finished)
    know(engine, finished, SMALL)
    know(engine, finished, prime(60))
    register(engine, new)
    target_id = composite(engine, str(finished)).target_id
    run_sql(
        engine,
        "UPDATE composites SET target_id = :target, current_composite = :shared WHERE number = :number",
        target=target_id,
        shared=str(SHARED),
        number=str(new),
    )
    run_sql(engine, "UPDATE targets SET is_finished = false, is_prime = false WHERE id = :target", target=target_id)
    run_sql(engine, "DELETE FROM targets WHERE id <> :target", target=target_id)
    refresh(engine, target_id)
    return finished, new


def refresh(engine, target_id):
    with unit_of_work(engine, "refresh") as connection:
        lease_lifecycle.refresh_eligibility(connection, [target_id])


@pytest.mark.parametrize("fields", [{}, {"method": "p1"}, {"order": "best", "shared": True}], ids=str)
def test_a_lease_names_an_unfinished_number(engine, reopened, fields):
    made = claims.claim(engine, WorkRequest("bob", **fields), SETTINGS)
    assert isinstance(made, Claim)
    assert (made.composite.number, made.composite.current_composite) == (str(reopened[1]), str(SHARED))


def test_a_project_of_finished_numbers_has_no_work(engine, reopened):
    finished, new = reopened
    join_project(engine, finished, "done")
    join_project(engine, finished, "both")
    join_project(engine, new, "both")
    assert isinstance(claims.claim(engine, WorkRequest("bob", project="done"), SETTINGS), NoWork)
    made = claims.claim(engine, WorkRequest("bob", project="both"), SETTINGS)
    assert made.composite.number == str(new)


@pytest.mark.parametrize("is_marked", [True, False], ids=["fully factored", "with unfinished parts"])
def test_a_finished_number_cannot_be_leased_by_its_name(engine, reopened, is_marked):
    finished, _ = reopened
    run_sql(
        engine,
        "UPDATE composites SET is_fully_factored = :marked WHERE number = :number",
        marked=is_marked,
        number=str(finished),
    )
    answer = claims.claim(engine, WorkRequest("bob", composite=str(finished)), SETTINGS)
    assert isinstance(answer, NoWork)
    assert "is fully factored" in answer.message if is_marked else "has no composite cofactor left" in answer.message
    assert scalar(engine, "SELECT count(*) FROM work_assignments") == 0


def test_an_open_target_without_an_unfinished_number_is_finished_by_the_claim_that_finds_it(engine, reopened):
    finished, new = reopened
    run_sql(engine, "DELETE FROM composite_aliases WHERE composite_id = :id", id=composite(engine, str(new)).id)
    run_sql(engine, "DELETE FROM composites WHERE number = :number", number=str(new))
    assert isinstance(claims.claim(engine, WorkRequest("bob"), SETTINGS), NoWork)
    assert composite(engine, str(finished)).is_finished
    assert_sound(engine)


# Holds ----------------------------------------------------------------------------------------------------------------


def test_curves_that_were_sent_for_another_number_of_the_target_prevent_the_hold(engine, sharing):
    for count, client in enumerate(("a", "b", "c")):
        lease = claims.claim(engine, WorkRequest(client, shared=True, composite=str(sharing[1])), SETTINGS)
        submit(engine, result(str(SHARED), curves=3 + count, client=client))  # names no lease
        lease_lifecycle.abandon(engine, lease.work_id, client, "off")
    attempted = {row.composite_id for row in rows(engine, "SELECT composite_id FROM ecm_attempts")}
    assert attempted == {composite(engine, str(sharing[0])).id}
    assert scalar(engine, "SELECT hold FROM targets") is None


def test_clients_that_give_up_different_numbers_of_a_target_are_counted_together(engine, sharing):
    for client, number in (("a", sharing[0]), ("b", sharing[1]), ("c", sharing[0])):
        lease = claims.claim(engine, WorkRequest(client, shared=True, composite=str(number)), SETTINGS)
        lease_lifecycle.abandon(engine, lease.work_id, client, f"off {client}")
    hold = rows(engine, "SELECT hold, hold_reason FROM targets")
    assert hold == [("parked", "c: off c; b: off b; a: off a")]


def test_the_last_closed_leases_of_each_number_are_read_in_the_order_of_an_index(engine, sharing):
    target_id = composite(engine, str(sharing[0])).target_id

    def check():
        with unit_of_work(engine, "check") as connection:
            holds.hold_if_abandoned(connection, target_id)

    (closed,) = [sql for sql in executed(engine, check) if "FROM work_assignments" in sql]
    found = plan(engine, closed)
    assert "Limit" in found.split("work_assignments_of_composite")[0].split("Nested Loop")[-1]
    assert "Index Scan Backward using work_assignments_of_composite" in found
    # Only the few rows that the limits let through are sorted.
    assert "Sort" not in found.split("Nested Loop")[-1]


# Residues -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def residue(engine, sharing):
    """The residue of stage 1 on the younger number; it is registered for the older one, which has no filter's value."""
    younger = composite(engine, str(sharing[1])).id
    edits.set_priority(engine, OPERATOR, younger, 9)
    run_sql(engine, "UPDATE targets SET target_t_level = 77")
    join_project(engine, sharing[1], "P")
    row = submit(engine, result(str(sharing[1]), b1=50_000, b2=0, curves=100, parametrization=3))
    return upload(engine, SHARED, row.attempt_id)


@pytest.mark.parametrize(
    "filters",
    [{"project": "P"}, {"min_priority": 9}, {"min_target_tlevel": 77.0, "max_target_tlevel": 77.0}],
    ids=str,
)
def test_a_residue_is_found_by_the_filters_that_fit_its_target(engine, residue, filters):
    assert residue.composite_id == composite(engine, str(SMALL * SHARED)).id
    claimed = residue_claims.claim_residue(engine, ResidueRequest("bob", **filters), 5)
    assert claimed is not None
    assert (claimed.id, claimed.target_t_level) == (residue.id, 77)


@pytest.mark.parametrize("filters", [{"project": "Q"}, {"min_priority": 10}, {"max_target_tlevel": 76.0}], ids=str)
def test_a_residue_is_not_found_by_filters_that_do_not_fit_its_target(engine, residue, filters):
    assert residue_claims.claim_residue(engine, ResidueRequest("bob", **filters), 5) is None


def test_residues_come_in_the_order_of_the_priorities_of_their_targets(engine, residue):
    middle = prime(62) * prime(63)
    register(engine, middle)
    edits.set_priority(engine, OPERATOR, composite(engine, str(middle)).id, 5)
    row = submit(engine, result(str(middle), b1=50_000, b2=0, curves=100, parametrization=3))
    run_sql(engine, "UPDATE ecm_residues SET id = id + 1000")
    second = upload(engine, middle, row.attempt_id)
    assert second.id < residue.id + 1000
    order = [residue_claims.claim_residue(engine, ResidueRequest("bob"), 5).id for _ in range(2)]
    assert order == [residue.id + 1000, second.id]


# Primality ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cofactor", [SHARED, prime(60)], ids=["composite", "prime"])
def test_a_cofactor_that_another_number_has_is_tested_once(engine, monkeypatch, cofactor):
    numbers = [prime(20, which) * cofactor for which in range(3)]
    for number in numbers:
        register(engine, number)
        know(engine, number, number // cofactor)
    run_jobs(engine)
    forget_primality(engine, cofactor, numbers)
    # Each job records the answer for its own family only, as with more families than one unit of work locks.
    monkeypatch.setattr(registry, "_sharing_roots", lambda connection, root_id: [])
    tested = []

    def test(value, _seconds):
        tested.append(value)
        return value != SHARED

    monkeypatch.setattr(job_runner, "is_prime_within", test)
    run_jobs(engine)
    assert tested == [cofactor]
    for number in numbers:
        row = composite(engine, str(number))
        assert row.is_fully_factored if cofactor != SHARED else row.is_prime is False
    assert_sound(engine)


def forget_primality(engine, cofactor, numbers):
    """Let these numbers have the cofactor without a factor of it and without an answer, and request a test of each."""
    run_sql(engine, "DELETE FROM factors WHERE factor = :cofactor", cofactor=str(cofactor))
    ids = [composite(engine, str(number)).id for number in numbers]
    with unit_of_work(engine, "forget") as connection:
        for composite_id in ids:
            connection.exec_driver_sql(
                "UPDATE composites SET current_composite = %s, digit_length = %s, is_prime = NULL,"
                " is_fully_factored = false WHERE id = %s",
                (str(cofactor), len(str(cofactor)), composite_id),
            )
            target_id = target_changes.point(connection, composite_id, cofactor, None)
            target_changes.set_open(connection, target_id, None)
            jobs.request(connection, jobs.TEST_COFACTOR, composite_id)


# Counts ---------------------------------------------------------------------------------------------------------------


def test_holds_are_counted_by_number_and_needs_by_cofactor(engine, sharing):
    found = counts.composites_status(engine)
    assert (found["total"], found["wanting_ecm"], found["wanting_pm1"]) == (2, 1, 1)
    reservations.pause(engine, composite(engine, str(sharing[0])).id, "wait")
    found = counts.composites_status(engine)
    assert (found["paused"], found["parked"], found["wanting_ecm"]) == (2, 0, 0)
    assert found["paused"] == len(reservations.held_composites(engine))


def test_counts_are_exact_only_while_both_tables_are_small(engine, sharing, monkeypatch):
    assert not counts.composites_status(engine)["estimated"]
    monkeypatch.setattr(counts, "_is_small", lambda connection, table: table != "targets")
    assert counts.composites_status(engine)["estimated"]
