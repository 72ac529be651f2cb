"""Batches of submissions that wait: what is plain is applied together, and no fault of one touches another."""

import threading
import uuid
from types import SimpleNamespace

import pytest
from pipeline import (
    SETTINGS,
    apply_in_batches,
    assert_sound,
    composite,
    lease,
    receive,
    result,
    rows,
    run_sql,
    scalar,
    submit,
)
from primes import prime, product
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from structlog.testing import CapturingLogger

from coordinator.results import applying, batches, delivery_attempts, inbox

NUMBER = str(product(prime(20), prime(40), prime(80)))
OTHER = str(product(prime(21), prime(41), prime(81)))
THREE = SETTINGS.model_copy(update={"max_deliveries": 3})


def run(engine, settings=SETTINGS, batch=None, after=None):
    """One run of a worker; returns its report, what it said was settled, and the jobs that follow."""
    settled, jobs = [], []

    def on_settled(ids, to_publish):
        settled.append(ids)
        jobs.extend(to_publish)

    report = batches.apply_waiting(engine, settings, batch or uuid.uuid4(), on_settled, after=after)
    return SimpleNamespace(report=report, settled=settled, jobs=jobs)


def states(engine):
    return [row.state for row in rows(engine, "SELECT state FROM submissions ORDER BY id")]


def pages_read(engine, from_id):
    """How many pages PostgreSQL reads to take what is due; nothing is taken."""
    parameters = {"limit": 100, "batch": uuid.uuid4(), "from_id": from_id}
    statement = delivery_attempts._TAKE.compile(dialect=engine.dialect)
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        explained = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
        cursor.execute(explained, {name: statement.params[name] for name in statement.params} | parameters)
        ((found,),) = cursor.fetchone()
        connection.rollback()
    return found["Plan"]["Shared Hit Blocks"] + found["Plan"]["Shared Read Blocks"]


def make_due(engine):
    run_sql(engine, "UPDATE submissions SET due_at = now() WHERE state = 'received'")


def known(engine, *numbers):
    for number in numbers:
        submit(engine, result(number, client="first"))


def test_what_waits_is_applied_by_one_run_and_told_at_once(engine):
    known(engine, NUMBER, OTHER)
    ids = [receive(engine, result(number, curves=n)).submission_id for n, number in enumerate((NUMBER, OTHER, NUMBER))]
    done = run(engine)
    assert [(one.submission_id, one.state, one.factor_status) for one in done.report.attempted] == [
        (id, "applied", "no_factor") for id in ids
    ]
    assert (done.settled, done.report.next_due) == ([ids], None)
    assert [row.outcome["attempt_id"] for row in rows(engine, "SELECT outcome FROM submissions ORDER BY id")] == [
        row.id for row in rows(engine, "SELECT id FROM ecm_attempts ORDER BY submission_id")
    ]
    assert_sound(engine)


def test_results_on_leases_are_plain_and_the_last_one_completes_the_lease(engine):
    known(engine, NUMBER)
    number = scalar(engine, "SELECT id FROM composites")
    lease_id = lease(engine, number, client="alice", curves=30)
    for curves in (10, 20):
        receive(engine, result(NUMBER, curves=curves, work_id=str(lease_id)))
    log = CapturingLogger()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coordinator.base.unit_of_work.log", log)
        run(engine)
    units = [call.kwargs["unit"] for call in log.calls]
    assert ("apply_batch" in units, "apply_result" in units) == (True, False)
    row = scalar(engine, "SELECT (status, curves_submitted)::text FROM work_assignments")
    assert row == "(completed,30)"
    assert composite(engine, NUMBER).open_leases == 0
    assert_sound(engine)


def test_the_others_are_applied_after_the_plain_ones_in_the_same_run(engine):
    known(engine, NUMBER)
    with_factor = receive(engine, result(NUMBER, str(prime(20)), client="bob")).submission_id
    plain = receive(engine, result(NUMBER, curves=7)).submission_id
    unknown = receive(engine, result(OTHER)).submission_id
    wrong = receive(engine, result(NUMBER, "10007", client="carl")).submission_id
    done = run(engine)
    assert done.settled == [[plain], [with_factor], [unknown], [wrong]]
    told = {one.submission_id: (one.state, one.factor_status) for one in done.report.attempted}
    assert told == {
        plain: ("applied", "no_factor"),
        with_factor: ("applied", "new_factor"),
        unknown: ("applied", "no_factor"),
        wrong: ("rejected", None),
    }
    detail = next(one.detail for one in done.report.attempted if one.submission_id == wrong)
    assert detail.startswith("factor_does_not_divide: 10007 does not divide")
    assert_sound(engine)


def test_a_batch_of_only_a_repeat_is_no_fault(engine):
    submit(engine, result(NUMBER, sigma="1:17"))
    repeat = receive(engine, result(NUMBER, sigma="1:17", client="bob")).submission_id
    (told,) = run(engine).report.attempted
    assert (told.submission_id, told.state) == (repeat, "duplicate")
    assert scalar(engine, "SELECT attempt_count FROM composites") == 1
    assert_sound(engine)


def test_a_batch_with_a_fault_is_applied_one_by_one(engine, monkeypatch):
    known(engine, NUMBER)
    ids = [receive(engine, result(NUMBER, curves=curves)).submission_id for curves in (1, 2)]

    def taken(connection, *_):
        connection.exec_driver_sql("INSERT INTO projects (name) VALUES ('x'), ('x')")

    monkeypatch.setattr(batches, "_add_effort", taken)
    assert [one.state for one in run(engine).report.attempted] == ["applied", "applied"]
    assert [inbox.submission_row(engine, id).tries for id in ids] == [1, 1]
    assert_sound(engine)


def test_a_batch_names_the_requests_whose_results_it_applies(engine, monkeypatch):
    known(engine, NUMBER)
    for curves, trace in ((1, "trace-b"), (2, "trace-a"), (3, None)):
        receive(engine, result(NUMBER, curves=curves), request_id=trace)
    log = CapturingLogger()
    monkeypatch.setattr("coordinator.base.unit_of_work.log", log)
    run(engine)
    (committed,) = [call for call in log.calls if call.kwargs["unit"] == "apply_batch"]
    assert committed.args == ("Transaction committed",)
    assert committed.kwargs["requests"] == ["trace-a", "trace-b"]


def test_a_result_that_fails_every_time_has_three_attempts_and_harms_no_other(engine, monkeypatch):
    known(engine, NUMBER)
    bad = receive(engine, result(NUMBER, str(prime(20)))).submission_id

    def broken(*_, **__):
        raise ZeroDivisionError("a bug in arithmetic")

    monkeypatch.setattr(applying, "_record_attempt", broken)
    for attempt in range(1, 4):
        good = receive(engine, result(NUMBER, curves=attempt)).submission_id
        done = run(engine, THREE)
        assert [(one.submission_id, one.state) for one in done.report.attempted] == [
            (good, "applied"),
            (bad, "received"),
        ]
        assert inbox.submission_row(engine, bad).tries == attempt
        # It waits before its next attempt.
        assert run(engine, THREE).report.attempted == []
        assert 0 < done.report.next_due < 2
        make_due(engine)
    (told,) = run(engine, THREE).report.attempted
    assert (told.state, "a bug in arithmetic" in told.detail) == ("failed", True)
    assert inbox.submission_row(engine, bad).tries == 3
    assert_sound(engine)


def test_a_statement_that_runs_out_of_time_every_time_ends_as_failed(engine, monkeypatch):
    receive(engine, result(NUMBER))

    def slow(connection, *_, **__):
        connection.execute(text("SET LOCAL statement_timeout = 20"))
        connection.execute(text("SELECT pg_sleep(5)"))

    monkeypatch.setattr(applying, "_record_attempt", slow)
    for _ in range(3):
        assert [one.state for one in run(engine, THREE).report.attempted] == ["received"]
        make_due(engine)
    assert [one.state for one in run(engine, THREE).report.attempted] == ["failed"]


def test_locked_numbers_hold_up_no_other(engine):
    """Locked by something long: plain results and factors for them wait, and everything else is applied meanwhile."""
    known(engine, NUMBER, OTHER)
    locked_number = composite(engine, NUMBER).id
    with engine.connect() as holder:
        holder.execute(text("SELECT id FROM composites WHERE id = :id FOR UPDATE"), {"id": locked_number})
        plain = receive(engine, result(NUMBER, curves=5)).submission_id
        factor = receive(engine, result(NUMBER, str(prime(20)))).submission_id
        free = [receive(engine, result(OTHER, curves=n)).submission_id for n in (3, 4)]
        done = run(engine)
        assert done.settled == [free]
        waiting = {one.submission_id: one.state for one in done.report.attempted if one.state == "received"}
        assert waiting == {plain: "received", factor: "received"}
        assert done.report.next_due is not None
        assert [row.tries for row in rows(engine, "SELECT tries FROM submissions WHERE state = 'received'")] == [0, 0]
        holder.rollback()
    assert apply_in_batches(engine, plain, SETTINGS).state == "applied"
    assert apply_in_batches(engine, factor, SETTINGS).state == "applied"
    assert_sound(engine)


def test_a_result_waits_for_a_claim_that_has_locked_its_number_for_a_moment(engine):
    known(engine, NUMBER, OTHER)
    ids = [receive(engine, result(number, curves=5)).submission_id for number in (NUMBER, OTHER)]
    with engine.connect() as holder:
        target = composite(engine, NUMBER).target_id
        holder.execute(text("SELECT id FROM targets WHERE id = :id FOR NO KEY UPDATE"), {"id": target})
        release = threading.Timer(batches.BATCH_PATIENCE_MS / 4000, holder.rollback)
        release.start()
        done = run(engine)
        release.join()
    # The other result does not wait with it.
    assert done.settled == [[ids[1]], [ids[0]]]
    assert [row.tries for row in rows(engine, "SELECT tries FROM submissions WHERE id = ANY(:ids)", ids=ids)] == [1, 1]
    assert_sound(engine)


def test_a_locked_target_holds_up_no_other(engine):
    known(engine, NUMBER, OTHER)
    with engine.connect() as holder:
        target = composite(engine, NUMBER).target_id
        holder.execute(text("SELECT id FROM targets WHERE id = :id FOR UPDATE"), {"id": target})
        last = receive(engine, result(NUMBER, curves=5)).submission_id
        free = receive(engine, result(OTHER, curves=3)).submission_id
        done = run(engine, after=last)
        assert done.settled == [[free]]
        # A claim locks a number for a moment only.
        assert done.report.next_due < batches.LOOK_AGAIN_SECONDS / 2
        holder.rollback()
    make_due(engine)
    assert len(run(engine).settled) == 1
    assert_sound(engine)


def test_while_the_database_is_away_the_run_raises_and_nothing_is_counted(engine, monkeypatch):
    known(engine, NUMBER)
    plain = receive(engine, result(NUMBER, curves=5)).submission_id

    def away(*_, **__):
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr(batches, "_find", away)
    with pytest.raises(OperationalError):
        run(engine)
    monkeypatch.undo()
    # As if its process had died: it is taken again after a while, and then by itself.
    assert run(engine).report.attempted == []
    make_due(engine)
    assert [one.state for one in run(engine).report.attempted] == ["applied"]
    assert inbox.submission_row(engine, plain).state == "applied"
    assert_sound(engine)


def test_submissions_of_a_lost_batch_are_due_at_once_and_applied_alone(engine, monkeypatch):
    """A submission that was in a batch whose process died is never in another batch."""
    known(engine, NUMBER)
    lost, batch = receive(engine, result(NUMBER, curves=5)).submission_id, uuid.uuid4()
    assert [row.id for row in delivery_attempts.take(engine, batch, 100)] == [lost]
    assert delivery_attempts.take(engine, uuid.uuid4(), 100) == []
    assert 10 < delivery_attempts.seconds_until_due(engine) <= delivery_attempts.TAKEN_SECONDS
    delivery_attempts.release_lost(engine, [uuid.uuid4()])
    assert delivery_attempts.take(engine, uuid.uuid4(), 100) == []
    delivery_attempts.release_lost(engine, [batch])
    together = []
    monkeypatch.setattr(batches, "_apply", lambda _, read: (together.extend(read), (set(), set()))[1])
    assert [one.state for one in run(engine).report.attempted] == ["applied"]
    assert (together, inbox.submission_row(engine, lost).tries) == ([], 2)
    assert_sound(engine)


def test_a_submission_whose_worker_died_when_it_was_applied_alone_lets_the_others_come_first(engine):
    known(engine, NUMBER)
    suspect, other = (receive(engine, result(NUMBER, curves=curves)).submission_id for curves in (5, 6))
    run_sql(engine, "UPDATE submissions SET created_at = now() - interval '8 seconds' WHERE state = 'received'")
    batch = uuid.uuid4()
    delivery_attempts.take(engine, batch, 100)
    delivery_attempts.count_attempt(engine, suspect)
    delivery_attempts.release_lost(engine, [batch])
    assert [row.id for row in delivery_attempts.take(engine, uuid.uuid4(), 100)] == [other]
    run_sql(engine, "DELETE FROM submissions WHERE id = :id", id=other)
    assert 3 < delivery_attempts.seconds_until_due(engine) <= 4.5


def test_many_workers_apply_each_submission_once(engine):
    known(engine, NUMBER, OTHER)
    for n in range(60):
        receive(engine, result((NUMBER, OTHER)[n % 2], curves=n, client=f"client-{n % 5}"))
    reports, start = [], threading.Barrier(6)

    def work():
        start.wait()
        for _ in range(4):
            reports.append(run(engine).report)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while "received" in states(engine):
        reports.append(run(engine).report)
    done = [one.submission_id for report in reports for one in report.attempted if one.state != "received"]
    assert sorted(done) == sorted(set(done))
    assert len(done) == 60
    assert scalar(engine, "SELECT count(*) FROM ecm_attempts") == 62
    assert_sound(engine)


def test_results_of_a_run_that_has_no_time_left_are_due_at_once(engine, monkeypatch):
    known(engine, NUMBER)
    ids = [receive(engine, result(NUMBER, str(prime(20)), client=f"client-{n}")).submission_id for n in range(3)]
    monkeypatch.setattr(batches, "RUN_SECONDS", 0.0)
    done = run(engine)
    assert (done.report.attempted, done.report.next_due) == ([], 0.0)
    monkeypatch.undo()
    assert [one.submission_id for one in run(engine).report.attempted] == ids
    assert [row.tries for row in rows(engine, "SELECT tries FROM submissions ORDER BY id")] == [1] * 4


def test_a_run_takes_a_bounded_number_and_says_that_more_wait(engine, monkeypatch):
    known(engine, NUMBER)
    monkeypatch.setattr(batches, "MAX_BATCH", 2)
    for curves in range(3):
        receive(engine, result(NUMBER, curves=curves))
    assert run(engine).report.next_due == 0.0
    assert run(engine).report.next_due is None
    assert set(states(engine)) == {"applied"}


def test_a_run_after_another_looks_only_for_what_came_in_since_then(engine, monkeypatch):
    monkeypatch.setattr(batches, "OVERTAKEN", 2)
    known(engine, NUMBER)
    ids = [receive(engine, result(NUMBER, curves=curves)).submission_id for curves in range(1, 7)]
    done = run(engine, after=ids[-1])
    # Those that were overtaken are found; the others wait for a run that looks for all.
    assert [one.submission_id for one in done.report.attempted] == ids[-3:]
    assert (done.report.last_taken, done.report.next_due) == (ids[-1], batches.LOOK_AGAIN_SECONDS)
    nothing = run(engine, after=ids[-1]).report
    assert (nothing.attempted, nothing.last_taken) == ([], ids[-1])
    everything = run(engine).report
    assert [one.submission_id for one in everything.attempted] == ids[:3]
    assert (everything.last_taken, everything.next_due) == (ids[2], None)
    assert_sound(engine)


def test_a_search_for_what_came_in_passes_no_settled_submissions(engine):
    """Not even while an open transaction, such as that of a backup, keeps the index entries of all of them."""
    known(engine, NUMBER)
    with engine.connect() as backup:
        backup.execution_options(isolation_level="REPEATABLE READ")
        backup.execute(text("SELECT count(*) FROM submissions"))
        run_sql(
            engine,
            "INSERT INTO submissions (client_id, idempotency_key, key_is_implicit, payload_sha256, payload, attempt_id)"
            " SELECT client_id, n, false, payload_sha256, payload, -n FROM submissions, generate_series(1, 5000) n",
        )
        run_sql(engine, "UPDATE submissions SET state = 'rejected', settled_at = now() WHERE state = 'received'")
        last = receive(engine, result(NUMBER, curves=7)).submission_id
        assert pages_read(engine, last - 5) < pages_read(engine, 0) / 10
    assert [one.submission_id for one in run(engine, after=last).report.attempted] == [last]
