"""Expiring leases: housekeeping ends each lease whose time has run out."""

from datetime import datetime

from sqlalchemy import Engine

from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import lease_lifecycle


def expire_leases(engine: Engine, now: datetime) -> int:
    """End every lease that has expired by `now`, and return how many; their curves can be leased again."""
    expired = 0
    while True:
        with unit_of_work(engine, "expire_leases") as connection:
            # The ids are read first, then locked in the common order, and then the rows are read again.
            overdue = lease_lifecycle.overdue_leases(connection, now)
            batch, left = lease_lifecycle.expire_leases(connection, overdue, now, wait=False) if overdue else (0, [])
        for composite_id in sorted({lease.composite_id for lease in left}):
            leases = [lease for lease in left if lease.composite_id == composite_id]
            with unit_of_work(engine, "expire_leases_of_composite", composite=composite_id) as connection:
                batch += lease_lifecycle.expire_leases(connection, leases, now, wait=True)[0]
        if not batch:
            return expired
        expired += batch
