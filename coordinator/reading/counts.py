"""How many rows of each kind there are, for pages and operators.

No big table is counted: PostgreSQL's planner estimates it, and the answer says which counts are estimates.
"""

from typing import Any

from sqlalchemy import Connection, Engine, Select, func, select, text

from coordinator.reading import health_queries
from coordinator.reading.search import expected_rows
from models.tables import Client, Composite, EcmAttempt, Factor, Project, Submission, Target, WorkAssignment

# The database reads a table of this size through in a few hundredths of a second.
COUNTED_BYTES = 32 * 2**20


def composites_status(engine: Engine) -> dict[str, Any]:
    """Count the composites of each kind; `estimated` tells whether the counts are the planner's estimates.

    Needs (`wanting_ecm` and so on) are those of targets: a cofactor that several numbers have counts once. Holds
    (`paused`, `parked`) are counted by number, as operators' lists show them; always, up to MOST_COUNTED of them.
    """
    kinds: dict[str, Any] = {
        "total": select(Composite.id),
        "finished": select(Composite.id).where(Composite.is_fully_factored),
        "primality_unknown": select(Composite.id).where(Composite.is_prime.is_(None)),
        "wanting_ecm": select(Target.id).where(Target.ecm_eligible),
        "wanting_pm1": select(Target.id).where(Target.pm1_eligible),
        "wanting_pp1": select(Target.id).where(Target.pp1_eligible),
        "parts": select(Composite.id).where(Composite.parent_id.is_not(None)),
    }
    with engine.connect() as connection:
        small = all(_is_small(connection, table) for table in ("composites", "targets"))
        counted = {name: _count(connection, statement, exact=small) for name, statement in kinds.items()}
        numbers = select(Target.hold).join(Composite, Composite.target_id == Target.id)
        latest = numbers.where(Target.hold.is_not(None)).order_by(Target.held_at.desc())
        held = latest.limit(health_queries.MOST_COUNTED).subquery()
        by_kind = select(held.c.hold, func.count().label("count")).group_by(held.c.hold)
        holds = {row.hold: row.count for row in connection.execute(by_kind)}
    return {**counted, "paused": holds.get("paused", 0), "parked": holds.get("parked", 0), "estimated": not small}


def summarize_database(engine: Engine) -> dict[str, Any]:
    """Count the rows of the main tables, open work and the inbox; `estimated` names the counts that are estimates."""
    tables: dict[str, Any] = {
        "composites": Composite,
        "factors": Factor,
        "attempts": EcmAttempt,
        "submissions": Submission,
        "clients": Client,
        "projects": Project,
    }
    estimated = []
    counts: dict[str, int] = {}
    with engine.connect() as connection:
        for name, table in tables.items():
            small = _is_small(connection, table.__tablename__)
            counts[name] = _count(connection, select(text("1")).select_from(table), exact=small)
            estimated += [] if small else [name]
        open_work = select(func.count()).where(WorkAssignment.closed_at.is_(None))
        counts["open_work"] = connection.execute(open_work).scalar_one()
        rejected = (
            select(Submission.id).where(Submission.state == "rejected").limit(health_queries.MOST_COUNTED).subquery()
        )
        counts["rejected"] = connection.execute(select(func.count()).select_from(rejected)).scalar_one()
        last = select(EcmAttempt.created_at).order_by(EcmAttempt.id.desc()).limit(1)
        last_attempt = connection.execute(last).scalar_one_or_none()
    return {
        **counts,
        "inbox": health_queries.inbox_state(engine),
        "last_attempt_at": last_attempt,
        "estimated": estimated,
    }


def submissions_by_state(engine: Engine) -> tuple[dict[str, int], bool]:
    """Return (number of submissions in each settled state, whether these are estimates).

    Failed submissions are always counted, up to MOST_COUNTED of them, because an operator must look at each.
    """
    with engine.connect() as connection:
        small = _is_small(connection, "submissions")
        states = {
            state: _count(connection, select(Submission.id).where(Submission.state == state), exact=small)
            for state in ("applied", "duplicate", "rejected")
        }
        failed = select(Submission.id).where(Submission.state == "failed").limit(health_queries.MOST_COUNTED)
        states["failed"] = _count(connection, failed, exact=True)
    return states, not small


def _is_small(connection: Connection, table: str) -> bool:
    size: int = connection.execute(select(func.pg_relation_size(table))).scalar_one()
    return size <= COUNTED_BYTES


def _count(connection: Connection, statement: Select[Any], *, exact: bool) -> int:
    if exact:
        return connection.execute(select(func.count()).select_from(statement.subquery())).scalar_one()
    return int(expected_rows(connection, statement))
