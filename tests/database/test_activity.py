"""Client statistics: attempts are added once, however often and by how many tasks, and not before all are committed."""

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from pipeline import SETTINGS, composite, result, rows, run_sql, submit
from primes import prime, product

from coordinator.administration import deletions
from coordinator.base.audit import OPERATOR
from coordinator.composites import statistics

NUMBER = str(product(prime(15), prime(40), prime(60)))
LATE = timedelta(seconds=90)


@pytest.fixture
def now():
    return datetime.now(UTC)


def send(engine, *factors, client="alice", ago=timedelta(minutes=5), **fields):
    """Submit a result, and move its attempt and its factors back in time by `ago`."""
    done = submit(engine, result(NUMBER, *factors, client=client, **fields), key=f"{random.getrandbits(64):x}")
    for table, column in (("ecm_attempts", "id"), ("factors", "attempt_id")):
        moved = f"UPDATE {table} SET created_at = now() - :ago WHERE {column} = :attempt"
        run_sql(engine, moved, ago=ago, attempt=done.attempt_id)


def known(engine):
    return {row.name: (row.results, row.curves, row.factors) for row in rows(engine, "SELECT * FROM clients")}


def test_results_curves_and_factors_are_added_once(engine, now):
    send(engine, str(prime(15)), curves=7)
    send(engine, curves=3)
    send(engine, client="bob", method="pm1", curves=1)
    statistics.update_clients(engine)
    for _ in range(3):
        statistics.aggregate_attempts(engine, now, LATE)
    assert known(engine) == {"alice": (2, 10, 1), "bob": (1, 0, 0)}
    send(engine, curves=5, ago=timedelta(minutes=-5))
    statistics.aggregate_attempts(engine, now + timedelta(minutes=10), LATE)
    assert known(engine)["alice"] == (3, 15, 1)
    assert sum(hour.curves for hour in statistics.hourly_statistics(engine, 3, now + timedelta(minutes=10))) == 15


def test_attempts_of_the_last_minutes_are_left_for_the_next_time(engine, now):
    send(engine, curves=7, ago=timedelta(seconds=30))
    statistics.aggregate_attempts(engine, now, LATE)
    assert known(engine) == {}
    statistics.aggregate_attempts(engine, now + timedelta(minutes=3), LATE)
    assert known(engine)["alice"] == (1, 7, 0)


def test_concurrent_tasks_add_years_of_attempts_once(engine, now):
    for days in (1000, 400, 1):
        send(engine, curves=days, ago=timedelta(days=days))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: statistics.aggregate_attempts(engine, now, LATE), range(4)))
    assert known(engine)["alice"] == (3, 1401, 0)


def test_voided_and_deleted_attempts_are_subtracted_and_not_added_later(engine, now):
    send(engine, curves=1000, ago=timedelta(hours=2))
    send(engine, client="bob", curves=50)
    deleted = submit(engine, result(NUMBER, client="bob", curves=7), key="deleted")
    moved = "UPDATE ecm_attempts SET created_at = now() - interval '3 hours' WHERE id = :attempt"
    run_sql(engine, moved, attempt=deleted.attempt_id)
    statistics.update_clients(engine)
    statistics.aggregate_attempts(engine, now - timedelta(hours=1), LATE)
    assert known(engine) == {"alice": (1, 1000, 0), "bob": (1, 7, 0)}
    alices = {"client_id": "alice", "since": now - timedelta(days=1), "until": now + timedelta(days=1)}
    for _ in range(2):
        deletions.void_attempts(engine, OPERATOR, program=None, reason="a broken build", **alices)
    assert known(engine)["alice"] == (0, 0, 0)
    deletions.delete_attempt(engine, OPERATOR, deleted.attempt_id, None)
    assert not any(hour.curves or hour.results for hour in statistics.hourly_statistics(engine, 48, now))
    statistics.aggregate_attempts(engine, now, LATE)
    assert known(engine) == {"alice": (0, 0, 0), "bob": (1, 50, 0)}
    deletions.delete_composite(engine, OPERATOR, composite(engine, NUMBER).id, SETTINGS.max_digits)
    assert known(engine) == {"alice": (0, 0, 0), "bob": (0, 0, 0)}


def test_hours_clients_and_the_ranking(engine, now):
    assert [hour.curves for hour in statistics.hourly_statistics(engine, 2, now)] == [0, 0]
    for client, curves, hours in (("alice", 5, 1), ("bob", 50, 1), ("carol", 9, 30)):
        send(engine, client=client, curves=curves, ago=timedelta(hours=hours))
    statistics.aggregate_attempts(engine, now, LATE)
    shown = statistics.hourly_statistics(engine, 48, now)
    assert len(shown) == 48
    assert [(hour.curves, hour.clients) for hour in shown if hour.curves] == [(9, 1), (55, 2)]
    assert [row.client_id for row in statistics.busiest_clients(engine, now - timedelta(hours=24), 10)] == [
        "bob",
        "alice",
    ]
    assert [row.name for row in statistics.rank_clients(engine, 2)] == ["bob", "carol"]
    day = now - timedelta(hours=24)
    assert statistics.curves_since(engine, day, ["alice", "carol", "dave"]) == {"alice": 5}
