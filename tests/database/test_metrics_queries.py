"""Leases as Prometheus sees them: the open ones, by method and status, and those whose time has run out."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import insert

from coordinator.composites import registry
from coordinator.numbers.expressions import evaluate_number
from coordinator.reading import metrics_queries
from models.tables import WorkAssignment

NOW = datetime.now(UTC)


def test_open_leases_are_counted_by_kind_and_closed_ones_are_not(engine):
    assert metrics_queries.count_open_leases(engine) == ({}, 0)
    hour = timedelta(hours=1)
    kinds = [
        *[("ecm", "assigned", NOW + hour, None)] * 2,
        ("ecm", "running", NOW - hour, None),
        ("pm1", "claimed", NOW + hour, None),
        ("ecm", "timeout", NOW - hour, NOW),
        ("nfs", "completed", NOW + hour, NOW),
    ]
    with engine.begin() as connection:
        number = registry.register(connection, "91", evaluate_number("91", 100), is_prime=False)
        for method, status, expires_at, closed_at in kinds:
            connection.execute(
                insert(WorkAssignment).values(
                    composite_id=number,
                    client_id="alice",
                    method=method,
                    status=status,
                    expires_at=expires_at,
                    closed_at=closed_at,
                )
            )
    assert metrics_queries.count_open_leases(engine) == (
        {("ecm", "assigned"): 2, ("ecm", "running"): 1, ("pm1", "claimed"): 1},
        1,
    )
