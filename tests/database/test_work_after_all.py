"""Claims after other events: primality tests, migrations, results that do not match their lease, reservations."""

import numpy as np
import pytest
from alembic import command
from pipeline import (
    SETTINGS,
    assert_sound,
    composite,
    lease,
    result,
    rows,
    run_jobs,
    scalar,
    submit,
)
from primes import prime, product
from sqlalchemy import text

from coordinator.composites import lease_lifecycle
from coordinator.composites.values import sha256
from coordinator.effort import planning
from coordinator.housekeeping import lease_expiry
from coordinator.housekeeping.schema_upgrade import bring_up_to_date
from coordinator.leases import claims, reservations, speeds
from coordinator.leases.work_request import Claim, NoWork, WorkRequest
from coordinator.numbers.expressions import evaluate_number
from coordinator.reading import invariants
from models.migrate import alembic_config

NUMBER = str(product(prime(55), prime(66)))


def claim(engine, client="alice", **fields):
    return claims.claim(engine, WorkRequest(client, **fields), SETTINGS)


def test_a_large_number_can_be_leased_when_it_is_known_to_be_composite(engine):
    large = str(product(prime(1003), prime(1011)))
    row = submit(engine, result(large, curves=1))
    assert isinstance(claim(engine), NoWork)
    assert run_jobs(engine) == 1
    made = claim(engine)
    assert made.composite.id == row.composite_id
    assert_sound(engine)


NOTHING_DONE = np.zeros(91).tobytes()
OLD_COMPOSITE = """
WITH added AS (
    INSERT INTO composites (number, value_sha256, current_composite, digit_length, is_prime, is_fully_factored,
                            target_t_level, effort)
    VALUES (:number, :hash, :left, :digits, false, :done, :target, :effort) RETURNING id)
INSERT INTO composite_aliases (composite_id, value_sha256, kind) SELECT id, :hash, 'number' FROM added"""
OLD_ATTEMPT = """
WITH sent AS (
  INSERT INTO submissions (client_id, idempotency_key, key_is_implicit, payload_sha256, payload, state, outcome,
                           composite_id, settled_at)
  VALUES ('a', 'k', true, '', '{}', 'applied', '{}', 1, now()) RETURNING id)
INSERT INTO ecm_attempts (composite_id, submission_id, client_id, method, b1, b2, curves)
SELECT 1, id, 'a', 'pm1', 250000000000, -1, 1 FROM sent"""


def test_a_database_from_before_leases_hands_out_open_numbers_and_no_others(engine, database_url):
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    with engine.begin() as connection:
        for number, done in (("2^499-1", False), ("2^67-1", True), ("2^431-1", False)):
            value = str(evaluate_number(number, 1000))
            row = {"number": number, "hash": sha256(value), "left": "1" if done else value, "digits": len(value)}
            row |= {"done": done, "target": len(value) * 4 / 13, "effort": NOTHING_DONE}
            connection.execute(text(OLD_COMPOSITE), row)
        connection.execute(text(OLD_ATTEMPT))
    engine.dispose()
    bring_up_to_date(database_url)
    # Right after the migration, clients already get the right work ...
    assert {claim(engine, name).composite.number for name in "ab"} == {"2^499-1", "2^431-1"}
    assert isinstance(claim(engine, "c"), NoWork)
    # ... and every column is exact.
    found = invariants.violations(engine, max_digits=1000)
    assert [one for one in found if one.invariant in ("work", "bounded leases")] == []
    wants = rows(
        engine,
        "SELECT pm1_eligible, pp1_eligible FROM targets JOIN composites c ON target_id = targets.id ORDER BY c.id",
    )
    assert wants == [(False, True), (True, True)]


@pytest.mark.parametrize(
    ("sent", "counts"),
    [
        ({"b1": 50_000}, True),
        ({"b1": 60_000, "b2": 10**9}, True),
        ({"b1": 49_999}, False),
        ({"b1": 50_000, "b2": 0}, False),
        ({"b1": 10**9, "method": "pm1"}, False),
    ],
)
def test_curves_count_on_a_lease_if_they_are_as_good_as_the_leased_ones(engine, sent, counts):
    submit(engine, result(NUMBER, curves=0))
    own = lease(engine, composite(engine, NUMBER).id, curves=10)
    submit(engine, result(NUMBER, curves=10, work_id=str(own), **sent))
    (row,) = rows(engine, "SELECT status, curves_submitted FROM work_assignments")
    assert row == (("completed", 10) if counts else ("assigned", 0))
    assert_sound(engine)


def test_curves_without_a_lease_prevent_a_hold(engine):
    submit(engine, result(NUMBER, curves=0))
    for client in "abc":
        made = claim(engine, client)
        submit(engine, result(NUMBER, client=client, curves=5))
        lease_lifecycle.abandon(engine, made.work_id, None, "done for today")
    assert composite(engine, NUMBER).hold is None


def test_a_number_that_an_operator_paused_stays_paused(engine):
    submit(engine, result(NUMBER, curves=0))
    leases = [
        claims.claim(engine, WorkRequest(name, shared=True), SETTINGS.model_copy(update={"lease_target_minutes": 0.1}))
        for name in "abc"
    ]
    reservations.pause(engine, composite(engine, NUMBER).id, "polynomial search")
    for made, name in zip(leases, "abc", strict=True):
        lease_lifecycle.abandon(engine, made.work_id, name, "it crashes")
    row = composite(engine, NUMBER)
    assert (row.hold, row.hold_reason) == ("paused", "polynomial search")


def test_a_clients_speed_is_that_of_its_last_timed_ecm_runs(engine):
    usual = planning.seconds_per_curve(50_000, -1, 120)
    for n in range(12):
        submit(engine, result(NUMBER, curves=100, raw_output=str(n), results={"execution_time": 100 * usual}))
    for n in range(10):
        submit(engine, result(NUMBER, curves=100, raw_output=f"x{n}", results={"execution_time": 25 * usual}))
    for n in range(12):
        submit(engine, result(NUMBER, curves=n + 1, raw_output=f"untimed {n}"))
    submit(engine, result(NUMBER, method="pm1", b1=10**8, curves=1, results={"execution_time": 1}))
    submit(engine, result(NUMBER, client="carol", curves=7, results={"execution_time": 14 * usual}))
    of_clients = speeds.client_speeds(engine, ["carol", "bob", "alice"])
    assert of_clients == {"carol": pytest.approx(0.5), "alice": pytest.approx(4)}


def test_a_client_does_not_end_an_operators_reservation(engine):
    submit(engine, result(NUMBER, curves=0))
    row = reservations.reserve(engine, NUMBER, "carol", "nfs", 1, details=None, max_digits=1000)
    for end in (
        lambda: lease_lifecycle.abandon(engine, row.id, None, "x"),
        lambda: lease_lifecycle.complete(engine, row.id, "carol"),
    ):
        with pytest.raises(lease_lifecycle.LeaseNotFoundError, match="reservation"):
            end()
    assert isinstance(claim(engine), NoWork)
    assert reservations.release(engine, row.id, None).status == "completed"
    assert isinstance(claim(engine), Claim)


def test_a_part_inherits_the_p1_bounds_of_its_number(engine):
    number = product(prime(41), prime(42), prime(50), prime(80))
    submit(engine, result(str(number), method="pm1", b1=10**10, curves=1))
    submit(engine, result(str(number), str(product(prime(41), prime(42))), curves=1))
    child = composite(engine, str(product(prime(41), prime(42))))
    assert (child.pm1_b1, child.pm1_eligible, child.pp1_eligible) == (10**10, False, True)
    assert_sound(engine)


def test_expiry_waits_for_a_busy_number_without_holding_up_another(engine):
    other = str(product(prime(56), prime(67)))
    for number in (NUMBER, other):
        submit(engine, result(number, curves=0))
        lease(engine, composite(engine, number).id, expires="now() - interval '1 second'")
    with engine.begin() as busy:
        busy.execute(text("SELECT FROM composites WHERE number = :n FOR NO KEY UPDATE"), {"n": NUMBER})
        with engine.begin() as connection:
            overdue = lease_lifecycle.overdue_leases(connection, scalar(engine, "SELECT now()"))
            expired, left = lease_lifecycle.expire_leases(
                connection, overdue, scalar(engine, "SELECT now()"), wait=False
            )
        assert (expired, len(left)) == (1, 1)
    assert lease_expiry.expire_leases(engine, scalar(engine, "SELECT now()")) == 1
    assert_sound(engine)
