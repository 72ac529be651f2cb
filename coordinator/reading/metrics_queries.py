"""Queries of the metrics page: Prometheus asks them every few seconds, so their cost must not grow with the tables."""

from sqlalchemy import Engine, func, select

from models.tables import WorkAssignment


def count_open_leases(engine: Engine) -> tuple[dict[tuple[str, str], int], int]:
    """Return (number of open leases by method and status, number of overdue ones). Only open leases are read."""
    is_open = WorkAssignment.closed_at.is_(None)
    kinds = select(WorkAssignment.method, WorkAssignment.status, func.count().label("leases")).where(is_open)
    overdue = select(func.count()).where(is_open, WorkAssignment.expires_at < func.now())
    with engine.connect() as connection:
        rows = connection.execute(kinds.group_by(WorkAssignment.method, WorkAssignment.status)).all()
        return {(row.method, row.status): row.leases for row in rows}, connection.execute(overdue).scalar_one()
