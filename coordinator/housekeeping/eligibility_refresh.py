"""Recomputing which work every target is eligible for, after a migration."""

from sqlalchemy import Connection, select

from coordinator.composites import lease_lifecycle, targets
from models.tables import Target

REFRESH_BATCH = 200


def refresh_after(connection: Connection, after: int) -> int | None:
    """Lock the next REFRESH_BATCH targets after an id, and recompute their eligibility.

    Returns the id of the last one, None if there was none.
    """
    batch = select(Target.id).where(Target.id > after).order_by(Target.id).limit(REFRESH_BATCH)
    ids = list(connection.execute(batch).scalars())
    lease_lifecycle.refresh_eligibility(connection, targets.lock_ids(connection, ids))
    return ids[-1] if ids else None
