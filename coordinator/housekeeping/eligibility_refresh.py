"""Recomputing which work every number is eligible for, after a migration or a changed limit."""

from sqlalchemy import Engine, select

from coordinator.base.unit_of_work import unit_of_work
from coordinator.composites import lease_lifecycle
from models.engine import make_engine
from models.tables import Composite

REFRESH_BATCH = 200


def refresh_database(database_url: str) -> None:
    """Run `refresh_all` on the database at `database_url`, with an engine of its own."""
    engine = make_engine(database_url)
    try:
        refresh_all(engine)
    finally:
        engine.dispose()


def refresh_all(engine: Engine) -> None:
    """Recompute the eligibility columns of every composite: after a migration, or when a limit on leases changed.

    Works in batches by id; each batch is a unit of work that locks its composites.
    """
    after = 0
    while True:
        with unit_of_work(engine, "refresh_eligibility", after=after) as connection:
            batch = select(Composite.id).where(Composite.id > after).order_by(Composite.id).limit(REFRESH_BATCH)
            ids = list(connection.execute(batch).scalars())
            lease_lifecycle.lock_composites(connection, ids)
            lease_lifecycle.refresh_eligibility(connection, ids)
        if not ids:
            return
        after = ids[-1]
