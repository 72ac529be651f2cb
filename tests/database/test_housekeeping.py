"""Leases, and what housekeeping does: expiry, republishing, pruning, the table of clients."""

import threading
import uuid
from datetime import UTC, datetime, timedelta

from pipeline import SETTINGS, assert_sound, composite, lease, receive, result, rows, run_sql, scalar, submit
from plans import executed, plan
from primes import prime, product

from coordinator.base import jobs
from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import lease_lifecycle, statistics
from coordinator.housekeeping import lease_expiry, republishing, retention
from coordinator.results import delivery_attempts

NUMBER = str(product(prime(20), prime(40), prime(80)))
OTHER = str(product(prime(21), prime(40), prime(80)))


def now():
    return datetime.now(UTC)


def eight_at_once(call):
    """Call eight times at once; returns the eight results."""
    start, returned = threading.Barrier(8), []

    def one():
        start.wait()
        returned.append(call())

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(returned) == 8
    return returned


def known(engine, number=NUMBER):
    submit(engine, result(number, client="loader", curves=1))
    return composite(engine, number).id


def state(engine, lease_id):
    (row,) = rows(
        engine, "SELECT status, curves_submitted, closed_at FROM work_assignments WHERE id = :id", id=lease_id
    )
    return row


def test_a_lease_counts_a_result_once(engine):
    lease_id = lease(engine, known(engine), curves=250)
    body = result(NUMBER, sigma="1:1", work_id=str(lease_id))
    row = submit(engine, body)
    submit(engine, body)
    submit(engine, body | {"client_id": "alice", "raw_output": "again, in other words"})
    assert state(engine, lease_id) == ("assigned", 100, None)
    assert rows(engine, "SELECT work_id FROM ecm_attempts WHERE id = :id", id=row.attempt_id) == [(lease_id,)]
    submit(engine, result(NUMBER, sigma="1:2", work_id=str(lease_id)))
    submit(engine, result(NUMBER, sigma="1:3", work_id=str(lease_id)))
    status, done, closed_at = state(engine, lease_id)
    assert (status, done) == ("completed", 300)
    assert closed_at is not None
    assert_sound(engine)


def test_a_lease_of_the_whole_number_stays_open(engine):
    lease_id = lease(engine, known(engine))
    submit(engine, result(NUMBER, curves=10**6, work_id=str(lease_id)))
    assert state(engine, lease_id) == ("assigned", 10**6, None)


def test_results_count_on_an_expired_lease(engine):
    lease_id = lease(engine, known(engine), curves=100, expires="now() - interval '1 second'")
    assert lease_expiry.expire_leases(engine, now()) == 1
    assert state(engine, lease_id).status == "timeout"
    submit(engine, result(NUMBER, work_id=str(lease_id)))
    assert state(engine, lease_id)[:2] == ("completed", 100)


def test_a_lease_that_does_not_match_is_left_alone_with_a_message(engine):
    own = known(engine)
    theirs = lease(engine, own, client="bob", curves=50)
    elsewhere = lease(engine, known(engine, OTHER), curves=50)
    for work_id, word in [
        (theirs, "another client's"),
        (elsewhere, "another number"),
        (uuid.uuid4(), "unknown"),
        ("not-a-uuid", "no lease"),
    ]:
        row = submit(engine, result(NUMBER, curves=60, work_id=str(work_id)))
        assert row.state == "applied"
        assert word in row.outcome["message"]
    assert state(engine, theirs) == state(engine, elsewhere) == ("assigned", 0, None)
    assert scalar(engine, "SELECT count(*) FROM ecm_attempts WHERE work_id IS NOT NULL") == 0
    assert_sound(engine)


def test_a_result_does_not_wait_for_the_lease_of_another_number(engine):
    """Only leases of the own factor family are locked, so that two results cannot deadlock."""
    known(engine)
    elsewhere = lease(engine, known(engine, OTHER))
    with unit_of_work(engine, "hold") as connection:
        overdue = lease_lifecycle.overdue_leases(connection, now() + timedelta(days=30))
        assert [one.id for one in overdue] == [elsewhere]
        assert lease_lifecycle.expire_leases(connection, overdue, now() + timedelta(days=30), wait=True) == (1, [])
        row = submit(engine, result(NUMBER, curves=60, work_id=str(elsewhere)))
        assert row.state == "applied"


def test_a_finished_number_ends_its_leases(engine):
    number = str(product(prime(20), prime(40)))
    first, second = lease(engine, known(engine, number)), lease(engine, known(engine, number), client="bob", curves=7)
    elsewhere = lease(engine, known(engine))
    submit(engine, result(number, str(prime(20)), curves=5, work_id=str(first)))
    assert state(engine, first)[:2] == ("completed", 5)
    assert state(engine, second)[:2] == ("completed", 0)
    assert state(engine, elsewhere).status == "assigned"
    assert_sound(engine)


def test_expiry_ends_overdue_leases_once_and_no_others(engine, monkeypatch):
    monkeypatch.setattr(lease_lifecycle, "EXPIRY_BATCH", 7)
    own = known(engine)
    overdue = [lease(engine, own, expires=f"now() - interval '{n} seconds'") for n in range(1, 31)]
    current = lease(engine, own)
    done = lease(engine, own, expires="now() - interval '1 second'")
    run_sql(engine, "UPDATE work_assignments SET status = 'completed', closed_at = now() WHERE id = :id", id=done)
    assert sum(eight_at_once(lambda: lease_expiry.expire_leases(engine, now()))) == 30
    assert {state(engine, one).status for one in overdue} == {"timeout"}
    assert (state(engine, current).status, state(engine, done).status) == ("assigned", "completed")
    assert lease_expiry.expire_leases(engine, now()) == 0


def set_due(engine, seconds):
    run_sql(engine, "UPDATE submissions SET due_at = now() - make_interval(secs => :seconds)", seconds=seconds)


def test_submissions_that_have_been_due_for_long_are_counted(engine):
    receive(engine, result(NUMBER))
    receive(engine, result(NUMBER, curves=7))
    submit(engine, result(OTHER))
    for seconds, overdue in ((-5, 0), (0, 0), (14, 0), (15, 2)):
        set_due(engine, seconds)
        assert republishing.overdue_submissions(engine, republish_after=15) == overdue


def test_a_submission_that_was_taken_is_not_overdue(engine):
    receive(engine, result(NUMBER))
    set_due(engine, 100)
    delivery_attempts.take(engine, uuid.uuid4(), 10)
    assert republishing.overdue_submissions(engine, republish_after=15) == 0


def test_jobs_that_have_waited_for_long_are_counted_until_they_run_or_are_done(engine):
    with unit_of_work(engine, "request jobs") as connection:
        requested = [jobs.request(connection, jobs.SPLIT_FACTOR, target)[0] for target in range(1, 21)]
        assert jobs.request_once(connection, jobs.SPLIT_FACTOR, 1) == []
    assert republishing.overdue_jobs(engine, republish_after=15) == 0
    run_sql(engine, "UPDATE jobs SET published_at = now() - interval '15 seconds'")
    assert republishing.overdue_jobs(engine, republish_after=15) == 20
    with unit_of_work(engine, "finish") as connection:
        jobs.finish(connection, requested[0].job_id, 1)
        # A second request while the first one runs: finishing the first does not end the second.
        jobs.request(connection, jobs.SPLIT_FACTOR, 2)
        jobs.finish(connection, requested[1].job_id, 1)
    run_sql(engine, "UPDATE jobs SET running_since = now() WHERE target_id = 3")
    assert republishing.overdue_jobs(engine, republish_after=15) == 17
    run_sql(engine, "UPDATE jobs SET published_at = now() - interval '15 seconds'")
    assert republishing.overdue_jobs(engine, republish_after=15) == 18


def test_clients_are_stored_once_with_when_they_were_first_and_last_seen(engine):
    receive(engine, result(NUMBER, curves=1))
    run_sql(engine, "UPDATE submissions SET created_at = now() - interval '2 days'")
    eight_at_once(lambda: statistics.update_clients(engine))
    receive(engine, result(NUMBER, curves=2))
    receive(engine, result(NUMBER, curves=3, client="bob"))
    eight_at_once(lambda: statistics.update_clients(engine))
    seen = rows(engine, "SELECT name, last_seen - first_seen > interval '1 day' FROM clients ORDER BY name")
    assert seen == [("alice", True), ("bob", False)]


def test_pruning_deletes_old_data_and_nothing_else(engine):
    submit(engine, result(NUMBER, raw_output="old"))
    submit(engine, result(NUMBER, "999", raw_output="rejected"))
    receive(engine, result(NUMBER, client="waiting", raw_output="waiting"))
    with unit_of_work(engine, "request jobs") as connection:
        old, waiting = (jobs.request(connection, jobs.SPLIT_FACTOR, target)[0] for target in (1, 2))
        jobs.finish(connection, old.job_id, 1)
    run_sql(engine, "UPDATE submissions SET settled_at = settled_at - interval '10 days'")
    run_sql(engine, "UPDATE jobs SET finished_at = finished_at - interval '10 days'")
    submit(engine, result(NUMBER, curves=7, raw_output="young"))

    def prune(**days):
        return retention.prune(engine, now(), **days)

    assert prune(raw_output_days=None, jobs_days=None) == {"raw_output": 0, "jobs": 0, "job_shares": 0}
    assert prune(raw_output_days=11, jobs_days=11) == {"raw_output": 0, "jobs": 0, "job_shares": 0}
    both = eight_at_once(lambda: prune(raw_output_days=9, jobs_days=9))
    assert [sum(deleted[kind] for deleted in both) for kind in ("raw_output", "jobs")] == [1, 1]
    kept = rows(engine, "SELECT raw_output FROM submissions WHERE raw_output IS NOT NULL ORDER BY 1")
    assert kept == [("rejected",), ("waiting",), ("young",)]
    assert rows(engine, "SELECT id FROM jobs") == [(waiting.job_id,)]
    assert scalar(engine, "SELECT count(*) FROM submissions") == 4
    assert_sound(engine)
    assert SETTINGS.retain_raw_output_days is None


def test_shares_of_the_running_time_are_forgotten_when_nothing_is_left_of_them(engine):
    with unit_of_work(engine, "charge") as connection:
        for client in ("gone", "here", None):
            jobs.charge(connection, client, 3600.0)
    run_sql(engine, "UPDATE job_shares SET counted_at = now() - interval '25 hours' WHERE client_id = 'gone'")
    assert retention.prune(engine, now(), raw_output_days=None, jobs_days=None)["job_shares"] == 1
    assert rows(engine, "SELECT client_id FROM job_shares ORDER BY 1") == [("",), ("here",)]


def test_pruning_deletes_batch_after_batch_until_nothing_is_left(engine, monkeypatch):
    monkeypatch.setattr(retention, "PRUNE_BATCH", 3)
    for curves in range(7):
        submit(engine, result(NUMBER, curves=curves, raw_output="old"))
        submit(engine, result(NUMBER, "999", curves=curves, raw_output="rejected"))
    with unit_of_work(engine, "request jobs") as connection:
        for target in range(7):
            jobs.finish(connection, jobs.request(connection, jobs.SPLIT_FACTOR, target)[0].job_id, 1)
    # Five at the same moment: more than a batch.
    run_sql(engine, "UPDATE submissions SET settled_at = now() - make_interval(days => 10 + least(id::int, 9))")
    run_sql(engine, "UPDATE jobs SET finished_at = now() - interval '10 days'")
    statements = executed(engine, lambda: retention.prune(engine, now(), raw_output_days=9, jobs_days=9))
    assert sum(statement.startswith("WITH") for statement in statements) == 3 + 3
    kept = rows(engine, "SELECT raw_output, count(*) FROM submissions WHERE raw_output IS NOT NULL GROUP BY 1")
    assert kept == [("rejected", 7)]
    assert rows(engine, "SELECT id FROM jobs") == []


def test_pruning_reads_only_rows_with_raw_output(engine):
    run_sql(engine, "CREATE INDEX ON submissions (settled_at) WHERE raw_output IS NOT NULL")
    (prune, _) = executed(engine, lambda: retention.prune(engine, now(), raw_output_days=9, jobs_days=None))
    assert "Index Cond: ((settled_at < " in plan(engine, prune)


def test_pruning_reads_only_jobs_that_are_old(engine):
    """Nearly all jobs are done, and only those of the last hour have become too old."""
    (prune, _) = executed(engine, lambda: retention.prune(engine, now(), raw_output_days=None, jobs_days=9))
    found = plan(engine, prune)
    assert "using jobs_done on jobs" in found
    assert "Index Cond: (finished_at < " in found
    assert "Seq Scan" not in found
