"""Read-only questions of Prometheus: what changes by the minute, and is cheap to ask however much there is."""

from sqlalchemy import Engine, func, select

from models.tables import WorkAssignment


def count_open_leases(engine: Engine) -> tuple[dict[tuple[str, str], int], int]:
    """(open leases by method and status, how many of them are overdue). Only open ones are read."""
    is_open = WorkAssignment.closed_at.is_(None)
    kinds = select(WorkAssignment.method, WorkAssignment.status, func.count().label("leases")).where(is_open)
    late = select(func.count()).where(is_open, WorkAssignment.expires_at < func.now())
    with engine.connect() as connection:
        rows = connection.execute(kinds.group_by(WorkAssignment.method, WorkAssignment.status)).all()
        return {(row.method, row.status): row.leases for row in rows}, connection.execute(late).scalar_one()
