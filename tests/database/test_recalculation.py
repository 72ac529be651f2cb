"""Recalculating effort: wrong effort is corrected whatever happens meanwhile, all of it or nothing."""

import threading

import numpy as np
import pytest
from pipeline import SETTINGS, assert_sound, composite, result, rows, run_jobs, run_sql, scalar, set_targets, submit
from sqlalchemy import select

from coordinator import effort
from coordinator.administration import recalculation
from coordinator.base import jobs
from coordinator.base.audit import Actor
from coordinator.base.errors import ConflictError, NotFoundError
from coordinator.housekeeping import job_runner
from models.tables import Composite, Target

ACTOR = Actor("alice")
NUMBERS = ["2^1061-1", "2^1277-1", "2^1297-1", "2^1301-1", "2^1303-1"]


@pytest.fixture
def numbers(engine):
    """Five numbers with some curves each; their ids."""
    ids = [
        submit(engine, result(number, b1=250_000, curves=50 + place)).composite_id
        for place, number in enumerate(NUMBERS)
    ]
    submit(engine, result(NUMBERS[0], method="pm1", b1=10**6, curves=1))
    return ids


def vectors(engine):
    both = select(Composite.id, Target.effort).join(Target, Target.id == Composite.target_id)
    return {row.id: row.effort for row in rows(engine, both)}


def damage(engine, *ids):
    """Leave only the attempts, as in a database that was migrated from elsewhere."""
    set_targets(engine, ids, effort=effort.no_effort(), current_t_level=0, attempt_count=0, pm1_b1=0)
    run_sql(engine, "UPDATE composites SET current_t_level = 0, attempt_count = 0 WHERE id = ANY(:ids)", ids=list(ids))
    run_sql(
        engine,
        "DELETE FROM value_effort USING target_sources s JOIN composites c USING (target_id)"
        " WHERE s.value_id = value_effort.value_id AND c.id = ANY(:ids)",
        ids=list(ids),
    )


def begin(engine, *, only_missing=False):
    row, to_publish = recalculation.start_recalculation(engine, ACTOR, only_missing=only_missing)
    assert [job.kind for job in to_publish] == [jobs.RECALCULATE]
    return row.id


def test_wrong_effort_is_corrected_and_the_rest_is_left_alone(engine, numbers):
    correct = vectors(engine)
    damage(engine, *numbers[:2])
    begin(engine)
    run_jobs(engine)
    assert all(np.array_equal(correct[number], vector) for number, vector in vectors(engine).items())
    status = recalculation.recalculation_status(engine)
    assert (status.state, status.done, status.total, status.changed) == ("done", 5, 5, 2)
    assert (scalar(engine, "SELECT count(*) FROM recalculated_efforts"), status.job_state) == (0, "done")
    assert_sound(engine)
    begin(engine)
    run_jobs(engine)
    assert recalculation.recalculation_status(engine).changed == 0


def test_missing_effort_is_that_of_numbers_with_attempts_but_no_t_level_or_sums(engine, numbers):
    submit(engine, result("2^1307-1", b1=None, method="nfs"))
    damage(engine, numbers[1])
    run_sql(engine, "UPDATE composites SET current_t_level = 9 WHERE id = :id", id=numbers[2])
    begin(engine, only_missing=True)
    run_jobs(engine)
    status = recalculation.recalculation_status(engine)
    assert (status.total, status.done, status.changed) == (1, 1, 1)
    assert scalar(engine, "SELECT current_t_level FROM composites WHERE id = :id", id=numbers[2]) == 9


def test_a_recalculation_continues_where_it_was_stopped(engine, numbers, monkeypatch):
    monkeypatch.setattr(recalculation, "CHUNK", 2)
    correct = vectors(engine)
    damage(engine, *numbers)
    recalculation_id = begin(engine)
    step = recalculation.continue_recalculation(engine, recalculation_id, seconds=-1)
    assert (step.is_finished, step.label) == (False, "recalculate: 0 of 5")
    begun = []

    def died(engine, recalculation, compute=recalculation._compute_chunk):
        begun.append(recalculation.cursor)
        if len(begun) == 2:
            raise SystemExit
        compute(engine, recalculation)

    monkeypatch.setattr(recalculation, "_compute_chunk", died)
    with pytest.raises(SystemExit):
        recalculation.continue_recalculation(engine, recalculation_id)
    assert recalculation.recalculation_status(engine).done == 2
    run_jobs(engine)
    # The interrupted chunk is computed again, the chunk before it is not.
    ids = [composite(engine, number).target_id for number in numbers]
    assert begun == [0, ids[1], ids[1], ids[3]]
    assert all(np.array_equal(correct[number], vector) for number, vector in vectors(engine).items())
    assert_sound(engine)


def test_a_slice_requests_the_next_one_with_a_label_of_its_progress(engine, numbers, monkeypatch):
    monkeypatch.setattr(recalculation, "CHUNK", 2)
    begin(engine)
    (job,) = rows(engine, "SELECT id FROM jobs WHERE kind = 'recalculate'")
    continue_, labels = recalculation.continue_recalculation, []

    def one_chunk(engine, recalculation_id):
        row = recalculation.recalculation_status(engine)
        if row.state == recalculation.COMPUTING:
            recalculation._compute_chunk(engine, row)
            return continue_(engine, recalculation_id, seconds=-1)
        return continue_(engine, recalculation_id)

    monkeypatch.setattr(recalculation, "continue_recalculation", one_chunk)
    while to_publish := job_runner.run_job(engine, job.id, max_deliveries=2, max_digits=SETTINGS.max_digits):
        labels.append(to_publish[0].kind)
    # More slices than tries: there was progress in each.
    assert labels == ["recalculate: 2 of 5", "recalculate: 4 of 5"]
    assert recalculation.recalculation_status(engine).state == "done"


def test_nothing_is_written_if_writing_fails(engine, numbers, monkeypatch):
    damage(engine, *numbers)
    before = vectors(engine)
    recalculation_id = begin(engine)

    def fails(connection, ids):
        raise RuntimeError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(recalculation.planned_effort, "differences", fails)
        with pytest.raises(RuntimeError):
            recalculation.continue_recalculation(engine, recalculation_id)
    assert all(np.array_equal(before[number], vector) for number, vector in vectors(engine).items())
    assert recalculation.recalculation_status(engine).state == "writing"
    run_jobs(engine)
    assert_sound(engine)


def test_results_sent_meanwhile_are_neither_lost_nor_counted_twice(engine, numbers, monkeypatch):
    damage(engine, *numbers[:3])
    recalculation_id = begin(engine)
    write = recalculation._write

    def meanwhile(engine, recalculation_id):
        # Between computing and writing, one wrong number gets a result, another is deleted, and a third stays.
        submit(engine, result(NUMBERS[0], b1=250_000, curves=1000))
        from coordinator.administration import deletions

        deletions.delete_composite(engine, ACTOR, numbers[1], SETTINGS.max_digits)
        return write(engine, recalculation_id)

    monkeypatch.setattr(recalculation, "_write", meanwhile)
    recalculation.continue_recalculation(engine, recalculation_id)
    assert recalculation.recalculation_status(engine).changed == 2
    sums = (
        "SELECT sum(curves) FROM value_effort JOIN target_sources USING (value_id) JOIN composites c USING (target_id)"
        " WHERE c.id = :id"
    )
    assert scalar(engine, sums, id=numbers[0]) == 1050
    assert_sound(engine)


def test_computing_waits_for_no_lock_and_holds_none(engine, numbers):
    damage(engine, numbers[0])
    recalculation_id = begin(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT FROM composites FOR NO KEY UPDATE")
        recalculation._compute_chunk(engine, recalculation.recalculation_status(engine))
    assert recalculation.recalculation_status(engine).state == "writing"
    recalculation.continue_recalculation(engine, recalculation_id)
    assert_sound(engine)


def test_one_recalculation_runs_at_a_time_and_a_failed_one_is_finished_by_the_next(engine, numbers):
    outcomes = []

    def start():
        try:
            outcomes.append(recalculation.start_recalculation(engine, ACTOR, only_missing=False)[0].id)
        except ConflictError as error:
            outcomes.append(error.reason)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == sorted(
        ["recalculation_runs"] * 3 + [str(recalculation.recalculation_status(engine).id)]
    )
    run_sql(engine, "UPDATE jobs SET state = 'failed', error = 'out of luck'")
    assert recalculation.recalculation_status(engine).job_state == "failed"
    first = recalculation.recalculation_status(engine).id
    begin(engine)
    assert rows(engine, "SELECT state, error FROM recalculations WHERE id = :id", id=first) == [
        ("failed", "out of luck")
    ]
    run_jobs(engine)
    assert recalculation.recalculation_status(engine).state == "done"


def test_a_stopped_recalculation_wrote_nothing_and_is_finished_by_the_next(engine, numbers, monkeypatch):
    monkeypatch.setattr(recalculation, "CHUNK", 2)
    run_sql(engine, "UPDATE value_effort SET curves = curves + 1")

    third = composite(engine, numbers[2]).target_id

    def died(connection, ids, compute=recalculation.ledger.compute):
        if third in ids:
            raise SystemExit
        return compute(connection, ids)

    with monkeypatch.context() as patch:
        patch.setattr(recalculation.ledger, "compute", died)
        with pytest.raises(SystemExit):
            recalculation.recalculate_all(engine, ACTOR)
    sums = "SELECT curves FROM value_effort ORDER BY value_id"
    assert rows(engine, sums) == [(51 + place,) for place in range(5)]
    differences = recalculation.recalculate_all(engine, ACTOR)
    assert [(difference.composite_id, difference.what) for difference in differences] == [
        (number, "sums") for number in numbers
    ]
    assert rows(engine, sums) == [(50 + place,) for place in range(5)]
    assert recalculation.recalculate_all(engine, ACTOR) == []
    assert rows(engine, "SELECT DISTINCT state FROM jobs WHERE kind = 'recalculate'") == [("done",)]
    assert_sound(engine)


def test_all_numbers_are_not_recalculated_while_a_worker_does(engine, numbers):
    begin(engine)
    (job,) = rows(engine, "SELECT id FROM jobs WHERE kind = 'recalculate'")
    with jobs.try_lock(engine, job.id) as is_alone:
        assert is_alone
        with pytest.raises(ConflictError) as refused:
            recalculation.recalculate_all(engine, ACTOR)
    assert refused.value.reason == "recalculation_runs"


def test_one_number_is_recalculated_at_once_and_audited(engine, numbers):
    correct = vectors(engine)
    damage(engine, numbers[0])
    before, after, differences = recalculation.recalculate_composite(engine, ACTOR, numbers[0])
    assert (before, after > 0, [difference.composite_id for difference in differences]) == (0, True, numbers[:1])
    assert np.array_equal(vectors(engine)[numbers[0]], correct[numbers[0]])
    assert scalar(engine, "SELECT target FROM admin_events") == f"composite {numbers[0]}"
    assert recalculation.recalculate_composite(engine, ACTOR, numbers[0]) == (after, after, [])
    with pytest.raises(NotFoundError):
        recalculation.recalculate_composite(engine, ACTOR, 12345)
    assert_sound(engine)
