"""Changes by operators: each is applied as a whole with its audit row, and leaves no reference to a deleted row."""

import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from pipeline import (
    SETTINGS,
    apply_in_batches,
    assert_sound,
    composite,
    counts,
    lease,
    leaves,
    receive,
    result,
    rows,
    run_jobs,
    run_sql,
    scalar,
    submit,
)
from primes import prime, product
from sqlalchemy import select

from coordinator import effort
from coordinator.administration import dead_letters, deletions, edits, project_edits, recalculation
from coordinator.administration.edits import Provenance
from coordinator.base.audit import Actor
from coordinator.base.errors import ConflictError, DomainError, InvalidClaimError, NotFoundError
from coordinator.base.unit_of_work import is_transient
from coordinator.composites import ledger
from coordinator.leases import reservations
from coordinator.reading import counts as row_counts
from coordinator.reading import detail, lookup, projects
from coordinator.results import applying
from models.tables import Base, EcmAttempt, Factor

ACTOR = Actor("alice", "request-1")
MOST = SETTINGS.max_digits
NOBODY = Provenance(None, None)
P9, P20, P40, P80 = prime(9), prime(20), prime(40), prime(80)
Q40, Q42, Q81 = prime(40, 1), prime(42), prime(81)
NUMBER = str(product(P9, P20, P40, P80))
LONG_AGO, SOON = datetime(2020, 1, 1, tzinfo=UTC), timedelta(hours=1)


def events(engine):
    """(actor, action, target, before, after, request) of the audit rows, in order."""
    found = rows(engine, "SELECT actor, action, target, before, after, request_id FROM admin_events ORDER BY id")
    return [tuple(row) for row in found]


def void(engine, client, **options):
    choice = {"since": LONG_AGO, "until": datetime.now(UTC) + SOON, "program": None, "reason": "broken"} | options
    return deletions.void_attempts(engine, ACTOR, client, **choice)


def assert_no_orphans(engine):
    """Every foreign key holds by itself; these are the references that the database does not know of."""
    for statement in (
        "SELECT id FROM submissions WHERE composite_id NOT IN (SELECT id FROM composites)",
        "SELECT id FROM submissions WHERE (outcome->>'attempt_id')::bigint NOT IN (SELECT id FROM ecm_attempts)",
        "SELECT id FROM jobs WHERE kind IN ('test_cofactor', 'share_factors')"
        " AND target_id NOT IN (SELECT id FROM composites)",
        "SELECT id FROM jobs WHERE kind IN ('test_factor', 'split_factor')"
        " AND target_id NOT IN (SELECT id FROM factors)",
        "SELECT id FROM factors f WHERE split_from_id IS NOT NULL AND NOT EXISTS"
        " (SELECT FROM factors a WHERE a.id = f.split_from_id AND a.composite_id = f.composite_id)",
        "SELECT composite_id AS id FROM composite_aliases WHERE composite_id NOT IN (SELECT id FROM composites)",
    ):
        assert rows(engine, statement) == [], statement
    assert_sound(engine)


# Priority and completion ----------------------------------------------------------------------------------------------


def test_a_priority_is_set_and_audited(engine):
    number = submit(engine, result(NUMBER)).composite_id
    assert edits.set_priority(engine, ACTOR, number, 7) == 0
    assert composite(engine, NUMBER).priority == 7
    assert events(engine) == [
        ("alice", "set priority", f"composite {number}", {"priority": 0}, {"priority": 7}, "request-1")
    ]
    with pytest.raises(NotFoundError, match="12345"):
        edits.set_priority(engine, ACTOR, 12345, 1)


def complete(engine, number, *factors, cofactor_is_prime=False):
    texts = [str(factor) for factor in factors]
    return edits.complete_composite(
        engine, ACTOR, number, texts, NOBODY, cofactor_is_prime=cofactor_is_prime, max_digits=MOST
    )


def test_a_number_is_completed_by_its_factors_alone(engine):
    number = submit(engine, result(NUMBER)).composite_id
    lease(engine, number, curves=5)
    with pytest.raises(ConflictError, match=r"is composite.*pause"):
        complete(engine, number)
    with pytest.raises(ConflictError, match="a part of 119 digits, is composite"):
        complete(engine, number, P9, P20)
    with pytest.raises(InvalidClaimError, match="no proper factor"):
        complete(engine, number, P9, P20 + 2)
    assert (leaves(engine, NUMBER), events(engine)) == ([], [])
    done = complete(engine, number, P9, P20, P40)
    assert done.row.is_fully_factored
    assert leaves(engine, NUMBER) == [(str(p), True) for p in (P9, P20, P40, P80)]
    assert scalar(engine, "SELECT status FROM work_assignments") == "completed"
    assert complete(engine, number).row.is_fully_factored
    assert [event[1] for event in events(engine)] == ["add factors", "complete", "complete"]
    assert_sound(engine)


def test_an_operator_may_declare_an_untested_cofactor_prime(engine):
    large = 2**9689 - 1  # a Mersenne prime of 2917 digits, too large to be tested at once
    number = submit(engine, result(str(P40 * large), str(P40))).composite_id
    assert composite(engine, str(P40 * large)).is_prime is None
    with pytest.raises(ConflictError, match="not been tested"):
        complete(engine, number)
    assert complete(engine, number, cofactor_is_prime=True).row.is_fully_factored
    assert_sound(engine)


# Factors known from elsewhere -----------------------------------------------------------------------------------------


def test_factors_known_from_elsewhere_bring_their_provenance_and_no_curves(engine):
    number = submit(engine, result(NUMBER)).composite_id
    before = composite(engine, NUMBER)
    provenance = Provenance("the Cunningham tables", datetime(1999, 5, 1, tzinfo=UTC))
    done = edits.add_known_factors(engine, ACTOR, NUMBER, [str(P20), str(P9)], provenance, max_digits=MOST)
    assert (done.new, done.known) == ([str(P20), str(P9)], [])
    again = edits.add_known_factors(engine, ACTOR, NUMBER, [str(P20)], NOBODY, max_digits=MOST)
    assert (again.new, again.known) == ([], [str(P20)])
    (row,) = rows(engine, select(Factor).where(Factor.factor == str(P20)))
    assert (row.origin, row.source, row.found_at, row.attempt_id) == (
        "known",
        provenance.source,
        provenance.found_at,
        None,
    )
    after = composite(engine, NUMBER)
    assert (after.attempt_count, after.current_t_level) == (before.attempt_count, before.current_t_level)
    assert events(engine)[0][4]["factors"] == [str(P20), str(P9)]
    assert_sound(engine)
    for wrong in ("7", "1", NUMBER, str(P9 * P9)):
        with pytest.raises(InvalidClaimError, match="no proper factor"):
            edits.add_known_factors(engine, ACTOR, NUMBER, [str(P40), wrong], NOBODY, max_digits=MOST)
    with pytest.raises(NotFoundError, match="not a number of this server"):
        edits.add_known_factors(engine, ACTOR, "2^1277-1", ["3"], NOBODY, max_digits=MOST)
    assert composite(engine, NUMBER).current_composite == str(P40 * P80)
    assert number == composite(engine, NUMBER).id


# Deleting numbers -----------------------------------------------------------------------------------------------------


def test_deleting_a_number_leaves_no_orphans_and_its_submissions_refused(engine):
    kept = submit(engine, result("2^1061-1", sigma="1:5")).composite_id
    part = str(P40 * Q42)
    whole = str(product(P40, Q42, P80, Q81))
    first = submit(engine, result(whole, part, sigma="1:1", project="main"))
    again = submit(engine, result(whole, part, sigma="1:1", client="bob"))
    child = scalar(engine, "SELECT id FROM composites WHERE parent_id IS NOT NULL")
    on_child = submit(engine, result(part, sigma="1:2", client="carol"))
    lease(engine, first.composite_id, curves=3)
    lease(engine, child, curves=3)
    with pytest.raises(ConflictError, match=f"works on a factor of composite {first.composite_id}"):
        deletions.delete_composite(engine, ACTOR, child, MOST)
    deleted, _ = deletions.delete_composite(engine, ACTOR, first.composite_id, MOST)
    assert deleted["composites"] == 2
    assert (deleted["ecm_attempts"], deleted["work_assignments"], deleted["submissions_refused"]) == (2, 2, 3)
    assert [row.id for row in rows(engine, "SELECT id FROM composites")] == [kept]
    refused = rows(engine, "SELECT id, state, reason FROM submissions WHERE id <> 1 ORDER BY id")
    assert refused == [(row.id, "rejected", "composite_deleted") for row in (first, again, on_child)]
    emptied = ("factors", "work_assignments", "project_composites", "recalculated_efforts")
    assert counts(engine, emptied) == dict.fromkeys(emptied, 0)
    assert {event[2] for event in events(engine)} == {f"composite {first.composite_id}", f"composite {child}"}
    assert_no_orphans(engine)
    # After a retry by an operator the number is registered like any other.
    dead_letters.retry(engine, ACTOR, first.id)
    assert applying.apply_result(engine, first.id, SETTINGS).state == "applied"
    assert_no_orphans(engine)
    with pytest.raises(NotFoundError):
        deletions.delete_composite(engine, ACTOR, first.composite_id, MOST)


def test_results_sent_while_their_number_is_deleted_are_neither_lost_nor_half_applied(engine):
    part, number = str(P40 * Q42), str(product(P40, Q42, P80, Q81))
    wrong: list[BaseException] = []

    def send(name):
        for turn in range(12):
            factors = [part] if turn % 4 == 0 else []
            to = part if turn % 3 == 0 and not factors else number
            body = result(to, *factors, client=name, curves=1 + turn, sigma=f"1:{turn}")
            receipt = receive(engine, body)
            for _ in range(SETTINGS.max_deliveries):
                try:
                    apply_in_batches(engine, receipt.submission_id, SETTINGS)
                    break
                except Exception as error:
                    if not is_transient(error):
                        wrong.append(error)

    def delete():
        for _ in range(10):
            for row in rows(engine, "SELECT id FROM composites"):
                try:
                    deletions.delete_composite(engine, ACTOR, row.id, MOST)
                except DomainError:
                    pass
                except Exception as error:
                    if not is_transient(error):
                        wrong.append(error)

    threads = [threading.Thread(target=send, args=(name,)) for name in ("one", "two", "three")]
    threads.append(threading.Thread(target=delete))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for row in rows(engine, "SELECT id FROM submissions WHERE state = 'received'"):
        apply_in_batches(engine, row.id, SETTINGS)
    run_jobs(engine)
    assert scalar(engine, "SELECT count(*) FROM submissions WHERE state = 'received'") == 0
    assert_no_orphans(engine)


def test_a_part_that_another_number_needs_becomes_a_root(engine):
    shared = P40 * Q42
    first, second = str(product(shared, P80)), str(product(shared, Q81))
    owner = submit(engine, result(first, str(shared)))
    child = scalar(engine, "SELECT id FROM composites WHERE parent_id IS NOT NULL")
    submit(engine, result(second, str(shared)))
    run_jobs(engine)
    assert (
        scalar(
            engine,
            "SELECT child_composite_id FROM factors f JOIN composites c ON c.id = f.composite_id"
            " WHERE c.number = :second AND child_composite_id IS NOT NULL",
            second=second,
        )
        == child
    )
    deletions.delete_composite(engine, ACTOR, owner.composite_id, MOST)
    assert scalar(engine, "SELECT parent_id FROM composites WHERE id = :id", id=child) is None
    run_jobs(engine)
    assert_no_orphans(engine)
    # What is found on it still reaches the number that needs it.
    submit(engine, result(str(shared), str(P40)))
    run_jobs(engine)
    assert [value for value, _ in leaves(engine, second)] == [str(P40), str(Q42), str(Q81)]
    assert_no_orphans(engine)


# Attempts -------------------------------------------------------------------------------------------------------------


def test_an_attempt_is_deleted_with_its_effort(engine):
    first = submit(engine, result(NUMBER, str(P9), curves=10, sigma="1:1"))
    kept = submit(engine, result(NUMBER, curves=20))
    of, _ = deletions.delete_attempt(engine, ACTOR, first.attempt_id, "it was a test")
    row = composite(engine, NUMBER)
    assert (of, row.attempt_count) == (row.id, 1)
    assert row.current_composite == str(product(P20, P40, P80))
    assert [row.id for row in rows(engine, select(EcmAttempt.id))] == [kept.attempt_id]
    assert "it was a test" in scalar(engine, "SELECT detail FROM submissions WHERE id = :id", id=first.id)
    assert events(engine)[0][3]["curves"] == 10
    with pytest.raises(NotFoundError):
        deletions.delete_attempt(engine, ACTOR, first.attempt_id, None)
    assert_no_orphans(engine)


def test_voiding_keeps_rows_and_factors_and_subtracts_effort(engine):
    bad = submit(engine, result(NUMBER, str(P9), client="broken", curves=50, sigma="1:1"))
    submit(engine, result(NUMBER, client="broken", method="pm1", b1=10**6, curves=1))
    submit(engine, result(NUMBER, client="broken", curves=5, program="yafu"))
    submit(engine, result(NUMBER, client="good", curves=20))
    submit(engine, result("2^1061-1", client="broken", curves=7))
    assert void(engine, "broken", program="yafu")[:3] == (1, 5, 1)
    done = void(engine, "broken")
    assert done == ledger.VoidReport(3, 58, 2, 0)
    row = composite(engine, bad.composite_id)
    assert np.array_equal(row.effort, effort.effort_of([(50_000, -1, 1, 20)]))
    assert (row.attempt_count, row.pm1_b1) == (1, 0)
    assert row.current_composite == str(product(P20, P40, P80))
    assert (
        scalar(engine, "SELECT count(*) FROM ecm_attempts WHERE voided_at IS NOT NULL AND curves_sha256 IS NULL") == 4
    )
    assert recalculation.recalculate_all(engine, ACTOR) == []
    assert_no_orphans(engine)
    assert void(engine, "broken").attempts == 0
    # The same curves, from a client in order this time, count.
    assert submit(engine, result(NUMBER, client="good", curves=50, sigma="1:1")).state == "applied"
    # What was voided can be deleted as well.
    deletions.delete_attempt(engine, ACTOR, bad.attempt_id, None)
    assert composite(engine, NUMBER).attempt_count == 2
    assert_no_orphans(engine)


def test_voiding_affects_only_the_given_time(engine):
    submit(engine, result(NUMBER, client="broken", curves=50))
    run_sql(engine, "UPDATE submissions SET created_at = now() - interval '2 days'")
    submit(engine, result(NUMBER, client="broken", curves=3, b1=11_000))
    assert void(engine, "broken", until=datetime.now(UTC) - timedelta(days=1))[:2] == (1, 50)
    assert void(engine, "broken", since=datetime.now(UTC) + SOON, until=datetime.now(UTC) + 2 * SOON).attempts == 0
    assert_sound(engine)


def test_a_part_loses_the_curves_inherited_from_a_revoked_attempt(engine):
    part, number = str(P40 * Q42), str(product(P40, Q42, P80, Q81))
    submit(engine, result(number, curves=10, sigma="1:1"))
    submit(engine, result(number, curves=7, client="broken", sigma="1:2"))
    submit(engine, result(number, client="broken", method="pm1", b1=10**6, curves=1))
    found = submit(engine, result(number, part, curves=30, client="broken", sigma="1:3"))
    submit(engine, result(number, curves=99, client="broken", sigma="1:4"))
    submit(engine, result(part, curves=5))
    counting = (
        "SELECT sum(curves + prior_curves) FROM value_effort JOIN target_sources USING (value_id)"
        " JOIN composites c USING (target_id) WHERE c.number = :part"
    )
    # The 99 curves that came after the split were curves on the whole number, so they count, too.
    assert (scalar(engine, counting, part=part), composite(engine, part).pm1_b1) == (151, 10**6)
    assert recalculation.recalculate_all(engine, ACTOR) == []
    assert composite(engine, part).pm1_b1 == 10**6
    deletions.delete_attempt(engine, ACTOR, found.attempt_id, None)
    assert scalar(engine, counting, part=part) == 121
    assert_no_orphans(engine)
    void(engine, "broken")
    assert (scalar(engine, counting, part=part), composite(engine, part).pm1_b1) == (15, 0)
    expected = effort.effort_of([(50_000, -1, 1, 15)])
    assert np.array_equal(composite(engine, part).effort, expected)
    assert_no_orphans(engine)


# Factors --------------------------------------------------------------------------------------------------------------


def factor_id(engine, value, number=None):
    """The id of the first factor with this value, of any number or of one."""
    statement = (
        "SELECT min(f.id) FROM factors f JOIN composites c ON c.id = f.composite_id"
        " WHERE f.factor = :value AND c.number = coalesce(:number, c.number)"
    )
    return scalar(engine, statement, value=str(value), number=number)


def delete_factor(engine, value):
    return deletions.delete_factor(engine, ACTOR, factor_id(engine, value), MOST)


def test_a_factor_goes_back_into_the_cofactor(engine):
    submit(engine, result(NUMBER, str(P9), str(P20)))
    _, left, _ = delete_factor(engine, P9)
    assert left == str(product(P9, P40, P80))
    row = composite(engine, NUMBER)
    assert (row.current_composite, row.is_prime, row.ecm_eligible) == (left, False, True)
    assert leaves(engine, NUMBER) == [(str(P20), True)]
    assert events(engine)[0][3]["factor"] == str(P9)
    assert_no_orphans(engine)
    assert submit(engine, result(NUMBER, str(P9))).outcome["factor_status"] == "new_factor"


def test_a_factor_that_follows_from_others_is_found_again_without_credit(engine):
    submit(engine, result(NUMBER, str(P9), str(P20), str(P40)))
    assert composite(engine, NUMBER).is_fully_factored
    delete_factor(engine, P40)
    assert composite(engine, NUMBER).is_fully_factored
    (row,) = rows(engine, select(Factor).where(Factor.factor == str(P40)))
    assert (row.origin, row.client_id, row.attempt_id) == ("cofactor", None, None)
    assert_no_orphans(engine)
    for factor in (P40, P80):
        delete_factor(engine, factor)
    assert leaves(engine, NUMBER) == [(str(p), True) for p in (P9, P20, P40, P80)]
    assert_no_orphans(engine)


def test_splits_are_deleted_with_their_factor_and_a_split_is_undone_as_a_whole(engine):
    part = str(product(P9, P40))
    submit(engine, result(NUMBER, part))
    run_jobs(engine)
    assert [value for value, _ in leaves(engine, NUMBER)] == [str(P9), str(P40)]
    delete_factor(engine, P9)
    assert leaves(engine, NUMBER) == [(part, False)]
    assert_no_orphans(engine)
    run_jobs(engine)
    assert [value for value, _ in leaves(engine, NUMBER)] == [str(P9), str(P40)]
    delete_factor(engine, part)
    assert (leaves(engine, NUMBER), composite(engine, NUMBER).current_composite) == ([], NUMBER)
    assert_no_orphans(engine)


def test_a_factor_with_a_composite_of_its_own_is_deleted_only_without_work_on_it(engine):
    part = str(product(P40, Q42))
    number = str(product(P40, Q42, P80, Q81))
    submit(engine, result(number, part))
    delete_factor(engine, part)
    assert rows(engine, "SELECT number FROM composites") == [(number,)]
    assert_no_orphans(engine)
    submit(engine, result(number, part, curves=3))
    submit(engine, result(part, curves=3))
    with pytest.raises(ConflictError, match="1 attempts"):
        delete_factor(engine, part)
    child = scalar(engine, "SELECT id FROM composites WHERE number = :part", part=part)
    submit(engine, result(part, str(P40), curves=4))
    of_child = scalar(engine, "SELECT min(id) FROM factors WHERE composite_id = :child", child=child)
    with pytest.raises(ConflictError, match="delete the factor there"):
        deletions.delete_factor(engine, ACTOR, of_child, MOST)
    with pytest.raises(NotFoundError):
        deletions.delete_factor(engine, ACTOR, 99999, MOST)
    assert_no_orphans(engine)


# Projects -------------------------------------------------------------------------------------------------------------


def test_projects_are_created_and_deleted_and_their_numbers_stay(engine):
    made = project_edits.create_project(engine, ACTOR, "Cunningham")
    with pytest.raises(ConflictError, match="'Cunningham'"):
        project_edits.create_project(engine, ACTOR, "Cunningham")
    submit(engine, result(NUMBER, project="Cunningham"))
    assert [(row.name, row.composites) for row in projects.list_projects(engine, limit=10).rows] == [("Cunningham", 1)]
    deleted = project_edits.delete_project(engine, ACTOR, name="Cunningham")
    assert deleted == {"project_id": made.id, "name": "Cunningham", "composites": 1}
    for which in ({"name": "Cunningham"}, {"project_id": made.id}):
        with pytest.raises(NotFoundError):
            project_edits.delete_project(engine, ACTOR, **which)
    assert composite(engine, NUMBER).id
    assert [event[1] for event in events(engine)] == ["create", "delete"]


# Dead letters ---------------------------------------------------------------------------------------------------------


def test_rejected_results_with_true_factors_are_first_and_their_factors_are_accepted(engine):
    submit(engine, result(NUMBER))
    true = submit(engine, result(NUMBER, (str(P9), "3:77"), "999", client="bob"))
    plain = [submit(engine, result(NUMBER, str(997 + 2 * n), client="carol")).id for n in range(3)]
    run_sql(engine, "UPDATE submissions SET state = 'failed', reason = 'x', detail = 'x' WHERE id = :id", id=plain[1])
    order = [true.id, *reversed(plain)]
    assert [row.id for row in dead_letters.list_dead_letters(engine)] == order
    paged, after = [], None
    while page := dead_letters.list_dead_letters(engine, limit=1, after=after):
        paged += [row.id for row in page]
        after = (page[-1].holds_factors, page[-1].id)
    assert paged == order
    whole, brief = (
        dead_letters.list_dead_letters(engine, limit=1),
        dead_letters.list_dead_letters(engine, limit=1, most_bytes=10),
    )
    assert [(row.composite, row.true_factors) for row in whole + brief] == [(NUMBER, [str(P9)]), (None, None)]
    assert [row.id for row in dead_letters.list_dead_letters(engine, ["failed"])] == [plain[1]]

    done = dead_letters.accept_factors(engine, ACTOR, true.id, MOST)
    assert (done.accepted, done.new) == ([str(P9)], [str(P9)])
    (factor,) = rows(engine, "SELECT client_id, method, sigma, parametrization, attempt_id FROM factors")
    assert factor == ("bob", "ecm", "77", 3, None)
    row = dead_letters.read_submission(engine, true.id)
    assert (row.state, row.outcome) == ("rejected", None)
    assert "an operator accepted" in row.detail
    for _ in range(2):
        with pytest.raises(ConflictError, match="no true factor"):
            dead_letters.accept_factors(engine, ACTOR, true.id, MOST)
    assert_sound(engine)


def test_only_dead_letters_are_retried(engine):
    sent = submit(engine, result(NUMBER))
    with pytest.raises(ConflictError, match="is applied"):
        dead_letters.retry(engine, ACTOR, sent.id)
    with pytest.raises(NotFoundError):
        dead_letters.retry(engine, ACTOR, 777)
    refused = submit(engine, result(NUMBER, "999"))
    assert dead_letters.retry(engine, ACTOR, refused.id).state == "received"
    assert scalar(engine, "SELECT tries FROM submissions WHERE id = :id", id=refused.id) == 0
    assert events(engine)[0][1:3] == ("retry", f"submission {refused.id}")


# Work -----------------------------------------------------------------------------------------------------------------


def test_what_operators_do_to_work_is_audited_once(engine):
    number = submit(engine, result(NUMBER)).composite_id
    leased = lease(engine, number, curves=3)
    for _ in range(2):
        reservations.cancel(engine, leased, "not now", ACTOR)
    reservations.pause(engine, number, "a look", ACTOR)
    reservations.resume(engine, number, ACTOR)
    taken = reservations.reserve(engine, NUMBER, "bob", "nfs", 1, details=None, max_digits=MOST, actor=ACTOR)
    with pytest.raises(ConflictError, match="reserved by"):
        reservations.reserve(engine, NUMBER, "carol", "nfs", 1, details=None, max_digits=MOST, actor=ACTOR)
    reservations.release(engine, taken.id, None, ACTOR)
    done = [(actor, action, target) for actor, action, target, *_ in events(engine)]
    assert done == [
        ("alice", "end work", f"work {leased}"),
        ("alice", "pause", f"composite {number}"),
        ("alice", "resume", f"composite {number}"),
        ("alice", "reserve", f"composite {number}"),
        ("alice", "end work", f"work {taken.id}"),
    ]
    assert events(engine)[1][4] == {"hold": "paused", "hold_reason": "a look"}


# Reading --------------------------------------------------------------------------------------------------------------


def test_numbers_are_found_by_value_old_cofactor_and_id(engine):
    number = submit(engine, result("2^67-1")).composite_id
    other = submit(engine, result(NUMBER, str(P9))).composite_id

    def found(word):
        return [row.id for row in lookup.find_composites(engine, word, MOST)]

    assert found("2^67-1") == found(str(2**67 - 1)) == found("(2^68-2)/2") == [number]
    assert found(str(product(P20, P40, P80))) == found(NUMBER) == [other]
    assert found(str(other)) == [other]
    assert found("nonsense!!") == found("12345") == []
    shown = detail.read_columns(engine, other)
    assert [factor["factor"] for factor in shown["factors"]] == [str(P9)]
    with pytest.raises(NotFoundError):
        detail.read_columns(engine, 12345)


def test_numbers_of_rows_are_counted_or_estimated(engine, monkeypatch):
    submit(engine, result(NUMBER, str(P9)))
    submit(engine, result(str(product(P9, P20))))
    counted = row_counts.composites_status(engine)
    assert (counted["total"], counted["finished"], counted["estimated"]) == (2, 1, False)
    assert (
        row_counts.summarize_database(engine)["factors"],
        row_counts.summarize_database(engine)["estimated"],
    ) == (3, [])
    run_sql(engine, "ANALYZE")
    monkeypatch.setattr(row_counts, "COUNTED_BYTES", 0)
    estimates = row_counts.composites_status(engine)
    # The planner never says that there is nothing.
    assert all(abs(estimates[name] - count) <= 1 for name, count in counted.items())
    assert estimates["estimated"]
    assert row_counts.summarize_database(engine)["factors"] == 3
    assert "factors" in row_counts.summarize_database(engine)["estimated"]


def test_every_table_that_refers_to_a_number_is_emptied_with_it():
    """A new table with a composite_id must be thought of here, in deletions.py."""
    referring = {name for name, table in Base.metadata.tables.items() if "composite_id" in table.columns}
    deleted = {table.__tablename__ for table in deletions.DEPENDENT_TABLES}
    assert referring - deleted == {"submissions"}
