"""Requests of clients that send few statements: what another transaction does between, and while they wait for it."""

import threading
import time

from pipeline import SETTINGS, assert_sound, composite, rows, run_sql
from primes import prime, product

from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import lease_lifecycle, registry, target_changes
from coordinator.leases import candidate_locks, claims
from coordinator.leases.work_request import Claim, NoWork, WorkRequest

NUMBER = product(prime(60, 1), prime(61, 51))


def register(engine):
    with unit_of_work(engine, "load") as connection:
        return registry.register_new(connection, str(NUMBER), NUMBER, is_prime=False)


def claim(engine, client="alice", **fields):
    return claims.claim(engine, WorkRequest(client, **fields), SETTINGS)


def in_thread(call):
    """Run a call in a thread; returns the thread and a list that gets what the call returns."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    return thread, answers


def wait_until_one_waits(engine):
    deadline = time.monotonic() + 20
    while not rows(engine, "SELECT FROM pg_locks WHERE NOT granted"):
        assert time.monotonic() < deadline, "nobody waits for a lock"
        time.sleep(0.01)


def test_the_end_of_a_lease_locks_the_composite_before_the_target(engine):
    number = register(engine)
    made = claim(engine, shared=True)
    with engine.connect() as connection:
        lease_lifecycle.lock_composites(connection, [number])
        thread, answers = in_thread(lambda: lease_lifecycle.complete(engine, made.work_id, "alice"))
        wait_until_one_waits(engine)
        # The other one must not hold the target yet, for which this transaction comes next.
        connection.exec_driver_sql("SELECT id FROM targets FOR UPDATE NOWAIT").one()
        connection.exec_driver_sql("UPDATE targets SET pm1_b1 = 1000000000")
        connection.commit()
    thread.join(20)
    assert answers[0].status == "completed"
    assert not composite(engine, number).pm1_eligible, "the target was read before it was locked"
    assert composite(engine, number).open_leases == 0


def test_a_lease_ends_whose_number_gets_another_target_meanwhile(engine):
    number = register(engine)
    made = claim(engine, shared=True)
    with unit_of_work(engine, "split") as connection:
        lease_lifecycle.lock_composites(connection, [number])
        thread, answers = in_thread(lambda: lease_lifecycle.complete(engine, made.work_id, "alice"))
        wait_until_one_waits(engine)
        target = composite(engine, number).target_id
        target_changes.finish(connection, target)
        connection.exec_driver_sql("UPDATE composites SET target_id = NULL")
    thread.join(20)
    assert (answers[0].status, answers[0].message) == ("completed", lease_lifecycle.NOTHING_LEFT)


def test_a_number_is_not_leased_as_a_whole_beside_a_lease_that_came_meanwhile(engine, monkeypatch):
    register(engine)
    lock_first = candidate_locks.lock_first_at_once

    def lock_and_let_another_lease_it(*arguments):
        locked = lock_first(*arguments)
        if locked:
            run_sql(
                engine,
                "INSERT INTO work_assignments (id, composite_id, target_id, client_id, method, b1, b2, parametrization,"
                " curves, expires_at) SELECT gen_random_uuid(), id, target_id, 'bob', 'ecm', 50000, -1, 1, 10,"
                " now() + interval '1 day' FROM composites",
            )
        return locked

    monkeypatch.setattr(candidate_locks, "lock_first_at_once", lock_and_let_another_lease_it)
    assert isinstance(claim(engine), NoWork)
    assert_sound(engine)
    monkeypatch.setattr(candidate_locks, "lock_first_at_once", lock_first)
    assert isinstance(claim(engine, shared=True), Claim)
    assert_sound(engine)


def test_claims_of_one_client_count_the_leases_that_were_made_while_they_waited(engine):
    register(engine)
    one_lease = SETTINGS.model_copy(update={"max_work_per_client": 1})
    with engine.connect() as connection:
        assert candidate_locks.lock_client(connection, "alice") == 0
        thread, answers = in_thread(lambda: claims.claim(engine, WorkRequest("alice", shared=True), one_lease))
        wait_until_one_waits(engine)
        connection.exec_driver_sql(
            "INSERT INTO work_assignments (id, composite_id, target_id, client_id, method, expires_at)"
            " SELECT gen_random_uuid(), id, target_id, 'alice', 'pm1', now() + interval '1 day' FROM composites"
        )
        connection.commit()
    thread.join(20)
    assert isinstance(answers[0], NoWork)
    assert "You hold 1 leases" in answers[0].message


def test_a_lease_lasts_by_the_clock_of_the_database(engine):
    register(engine)
    made = claim(engine, days=0.5)
    (lease,) = rows(engine, "SELECT expires_at, expires_at - created_at AS lasts, lease_seconds FROM work_assignments")
    assert made.expires_at == lease.expires_at
    assert lease.lease_seconds == 43_200
    assert abs(lease.lasts.total_seconds() - 43_200) < 1
