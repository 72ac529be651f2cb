"""The ledger: superseding, deleting and recalculating keep the sums and the vectors exact."""

import uuid

import numpy as np
import pytest
from pipeline import SETTINGS, assert_sound, receive, result, rows, run_sql, scalar, submit
from plans import executed, plan
from sqlalchemy import select, text

from coordinator import effort
from coordinator.administration import recalculation
from coordinator.base.audit import Actor
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import ledger
from coordinator.reading import invariants
from coordinator.results import batches
from models.engine import make_engine
from models.tables import EcmAttempt, Target, ValueEffort

ACTOR = Actor("alice")
NUMBER = "2^1277-1"


def runs(engine, *settings):
    """Submit runs of (curves, B1, B2) on NUMBER; returns the ids of their attempts."""
    return [
        submit(engine, result(NUMBER, b1=b1, b2=b2, curves=curves, sigma=f"1:{index + 1}")).attempt_id
        for index, (curves, b1, b2) in enumerate(settings)
    ]


def standing(engine):
    """Return (vector, t-level, sums) of the first target."""
    target = rows(engine, select(Target.effort, Target.current_t_level).order_by(Target.id))[0]
    sums = rows(engine, select(ValueEffort.b1, ValueEffort.b2, ValueEffort.curves))
    return target.effort, target.current_t_level, {(row.b1, row.b2): row.curves for row in sums if row.curves}


def test_superseding_leaves_exactly_what_a_rebuild_gives(engine):
    stage1, _ = runs(engine, (1000, 250_000, 0), (600, 250_000, None))
    with unit_of_work(engine, "test") as connection:
        ledger.supersede(connection, stage1, 600)
    vector, stored, sums = standing(engine)
    assert sums == {(250_000, 0): 400, (250_000, -1): 600}
    expected = effort.effort_of([(250_000, -1, 1, 600), (250_000, 0, 1, 400)])
    assert np.array_equal(vector, expected)
    assert stored == effort.t_level(expected)
    # Without the residue that curves are superseded by in practice, the doctor reports that, and nothing else.
    (violation,) = invariants.violations(engine, max_digits=SETTINGS.max_digits)
    assert (violation.table, violation.id) == ("ecm_attempts", stage1)
    assert "has no residue" in violation.detail


def test_more_curves_than_an_attempt_has_cannot_be_superseded(engine):
    (attempt,) = runs(engine, (100, 50_000, 0))
    before = standing(engine)
    for curves in (101, -1):
        with pytest.raises(ValueError, match="100 curves left"), unit_of_work(engine, "test") as connection:
            ledger.supersede(connection, attempt, curves)
    with pytest.raises(ValueError, match="no ECM attempt"), unit_of_work(engine, "test") as connection:
        ledger.supersede(connection, attempt + 1000, 1)
    after = standing(engine)
    assert np.array_equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_deleting_an_attempt_takes_its_effort_and_keeps_its_factors(engine):
    kept, _ = runs(engine, (100, 50_000, None), (200, 250_000, None))
    number = str(1_000_003 * (10**60 + 7))
    gone = submit(engine, result(number, "1000003", curves=50, sigma="1:9"))
    other = submit(engine, result(number, curves=10, sigma="1:10"))
    with unit_of_work(engine, "test") as connection:
        ledger.delete_attempt(connection, gone.attempt_id, "a broken client")
    of_composite = "SELECT target_id FROM composites WHERE id = :id"
    target_id = scalar(engine, of_composite, id=gone.composite_id)
    target = rows(engine, select(Target).where(Target.id == target_id))[0]
    assert np.array_equal(target.effort, effort.effort_of([(50_000, -1, 1, 10)]))
    assert target.attempt_count == 1
    assert scalar(engine, "SELECT attempt_id FROM factors WHERE factor = '1000003'") is None
    assert scalar(engine, "SELECT state || ' ' || reason FROM submissions WHERE id = :id", id=gone.id) == (
        "rejected attempt_deleted"
    )
    assert {row.id for row in rows(engine, select(EcmAttempt.id))} >= {kept, other.attempt_id}
    assert_sound(engine)


def test_deleting_an_attempt_rejects_its_submission_and_the_duplicates_of_it(engine):
    first = submit(engine, result(NUMBER, sigma="1:1"))
    again = submit(engine, result(NUMBER, sigma="1:1", client="bob"))
    other = submit(engine, result(NUMBER, sigma="1:2", client="bob"))
    other_again = submit(engine, result(NUMBER, sigma="1:2", client="carol"))
    assert (again.state, other_again.state) == ("duplicate", "duplicate")

    def delete():
        with unit_of_work(engine, "test") as connection:
            ledger.delete_attempt(connection, first.attempt_id, "a broken client")

    # The statement reads only the duplicates of the number, however many results it has had.
    run_sql(engine, "CREATE INDEX ON submissions (composite_id) WHERE state = 'duplicate'")
    sent, repeated = (statement for statement in executed(engine, delete) if statement.startswith("UPDATE submissions"))
    assert f"Index Cond: (id = {first.id})" in plan(engine, sent)
    assert f"Index Cond: (composite_id = {first.composite_id})" in plan(engine, repeated)
    standing = rows(engine, "SELECT id, state, reason, outcome FROM submissions ORDER BY id")
    assert [(row.id, row.state, row.reason, row.outcome is None) for row in standing] == [
        (first.id, "rejected", "attempt_deleted", True),
        (again.id, "rejected", "attempt_deleted", True),
        (other.id, "applied", None, False),
        (other_again.id, "duplicate", None, False),
    ]
    assert_sound(engine)


def test_a_recalculation_corrects_wrong_effort_and_nothing_else(engine):
    runs(engine, (100, 50_000, None), (200, 250_000, None))
    submit(engine, result("2^1061-1", curves=77))
    correct = standing(engine)
    assert recalculation.recalculate_all(engine, ACTOR) == []
    with unit_of_work(engine, "test") as connection:
        connection.execute(text("UPDATE value_effort SET curves = curves + 5 WHERE b1 = 250000"))
    wrong = recalculation.recalculate_all(engine, ACTOR)
    assert [difference.what for difference in wrong] == ["sums"]
    with unit_of_work(engine, "test") as connection:
        connection.execute(
            text(
                "UPDATE targets SET effort = :none FROM composites c"
                " WHERE c.target_id = targets.id AND c.number = :number"
            ),
            {"none": bytes(91 * 8), "number": NUMBER},
        )
    assert [difference.what for difference in recalculation.recalculate_all(engine, ACTOR)] == ["vector"]
    after = standing(engine)
    assert np.array_equal(correct[0], after[0])
    assert correct[1:] == after[1:]
    assert_sound(engine)


def test_a_hundred_thousand_attempts_are_summed_by_the_database(engine):
    (attempt,) = runs(engine, (10, 50_000, None))
    with unit_of_work(engine, "test") as connection:
        connection.execute(
            text(
                "WITH s AS (INSERT INTO submissions (client_id, idempotency_key, key_is_implicit, payload_sha256,"
                " payload, state, settled_at) SELECT 'x', n::text, false, '', '{}', 'rejected', now()"
                " FROM generate_series(1, 100000) n RETURNING id)"
                " INSERT INTO ecm_attempts (composite_id, value_id, submission_id, client_id, method, b1, b2,"
                " parametrization, curves) SELECT a.composite_id, a.value_id, s.id, 'x', 'ecm', 50000, -1, 1, 10"
                " FROM s, ecm_attempts a WHERE a.id = :attempt"
            ),
            {"attempt": attempt},
        )
    (difference,) = recalculation.recalculate_all(engine, ACTOR)
    expected = effort.t_level(effort.effort_of([(50_000, -1, 1, 1_000_010)]))
    assert difference.correct_t_level == pytest.approx(expected)


def test_a_batch_and_single_results_give_the_same_effort(engine, make_database):
    bodies = [result(NUMBER, b1=b1, curves=curves) for b1, curves in ((50_000, 7), (250_000, 3), (50_000, 11))]
    submit(engine, result(NUMBER, curves=1))
    ids = [receive(engine, body, key=str(index)).submission_id for index, body in enumerate(bodies)]
    together = []
    batches.apply_waiting(engine, SETTINGS, uuid.uuid4(), lambda settled, _: together.append(settled))
    assert together == [ids]
    other = make_engine(make_database())
    submit(other, result(NUMBER, curves=1))
    for index, body in enumerate(bodies):
        submit(other, body, key=str(index))
    assert np.array_equal(standing(engine)[0], standing(other)[0])
    assert standing(engine)[1:] == standing(other)[1:]
    other.dispose()
    assert_sound(engine)
