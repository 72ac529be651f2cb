"""What operators look at: one number with all that hangs on it, numbers found by a word, and how much there is.

Nothing here counts a big table: what is large is estimated as PostgreSQL's planner does, and said to be.
"""

from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, func, select, text

from coordinator.composites import registry
from coordinator.numbers.expressions import ExpressionError
from coordinator.reading import health_queries
from coordinator.reading.search import expected_rows
from models.tables import (
    Client,
    Composite,
    CompositeAlias,
    CompositeEffort,
    EcmAttempt,
    Factor,
    Project,
    ProjectComposite,
    Submission,
    WorkAssignment,
)

# A table up to this size is read through in a few hundredths of a second.
COUNTED_BYTES = 32 * 2**20
# A number of the table, as lists show it.
SHORT = (
    Composite.id,
    Composite.number,
    Composite.current_composite,
    Composite.digit_length,
    Composite.is_prime,
    Composite.is_fully_factored,
    Composite.priority,
    Composite.current_t_level,
    Composite.target_t_level,
    Composite.attempt_count,
    Composite.hold,
    Composite.parent_id,
    Composite.open_leases,
)


def list_by_id(
    engine: Engine, *, project: str | None = None, unfinished: bool = False, after: int = 0, limit: int = 1000
) -> list[Row]:
    """Numbers whose id is above `after`, by id: those of a project, if given, or those that are not finished."""
    statement = select(*SHORT).where(Composite.id > after).order_by(Composite.id).limit(limit)
    if unfinished:
        statement = statement.where(Composite.is_fully_factored.is_(False))
    if project is not None:
        members = select(ProjectComposite.composite_id).join(Project, Project.id == ProjectComposite.project_id)
        statement = statement.where(Composite.id.in_(members.where(Project.name == project)))
    with engine.connect() as connection:
        return list(connection.execute(statement))


def find_composites(engine: Engine, word: str, max_digits: int, limit: int = 100) -> list[Row]:
    """The numbers that `word` may mean: by any value they have had (number or expression), or by id.

    The one that results for it would go to comes first.
    """
    with engine.connect() as connection:
        ids = _ids(connection, word, max_digits)[:limit]
        rows = {row.id: row for row in connection.execute(select(*SHORT).where(Composite.id.in_(ids)))}
    return [rows[one] for one in ids if one in rows]


def _ids(connection: Connection, word: str, max_digits: int) -> list[int]:
    try:
        best = registry.find(connection, word, max_digits)
    except ExpressionError:
        return []
    ids = [] if best is None else [best.id]
    same = select(CompositeAlias.composite_id).where(CompositeAlias.value_sha256 == registry.sha256(word))
    ids += connection.execute(same.order_by(CompositeAlias.composite_id)).scalars()
    if word.isascii() and word.isdigit() and len(word) < 19:
        ids.append(int(word))
    return list(dict.fromkeys(ids))


def read_admin_detail(engine: Engine, composite_id: int) -> dict[str, Any] | None:
    """One number with its tree of factors, effort, open leases, projects and parts; None if there is none."""
    mine = {table: table.composite_id == composite_id for table in (Factor, CompositeEffort, WorkAssignment)}
    columns = [column for column in Composite.__table__.columns if column.key not in ("effort", "value_sha256")]
    with engine.connect() as connection:
        row = connection.execute(select(*columns).where(Composite.id == composite_id)).one_or_none()
        if row is None:
            return None
        factors = connection.execute(select(Factor).where(mine[Factor]).order_by(Factor.id)).all()
        sums = connection.execute(
            select(CompositeEffort)
            .where(mine[CompositeEffort])
            .order_by(CompositeEffort.b1, CompositeEffort.b2, CompositeEffort.parametrization)
        ).all()
        leases = connection.execute(
            select(WorkAssignment)
            .where(mine[WorkAssignment], WorkAssignment.closed_at.is_(None))
            .order_by(WorkAssignment.created_at)
        ).all()
        projects = connection.execute(
            select(Project.name)
            .join(ProjectComposite, ProjectComposite.project_id == Project.id)
            .where(ProjectComposite.composite_id == composite_id)
            .order_by(Project.name)
        ).scalars()
        parts = select(Composite.id).where(Composite.parent_id == composite_id).order_by(Composite.id)
        return {
            **row._asdict(),
            "factors": [_without(factor, "factor_sha256", "composite_id") for factor in factors],
            "effort": [_without(one, "composite_id") for one in sums],
            "open_work": [_without(lease, "composite_id") | {"id": str(lease.id)} for lease in leases],
            "projects": list(projects),
            "parts": list(connection.execute(parts).scalars()),
        }


def _without(row: Row, *names: str) -> dict[str, Any]:
    return {name: _sendable(value) for name, value in row._asdict().items() if name not in names}


def _sendable(value: Any) -> Any:
    """A B2 past 64 bits is a number in JSON all the same, but none that its writer takes as an integer."""
    return float(value) if isinstance(value, int) and value >= 2**63 else value


def composites_status(engine: Engine) -> dict[str, Any]:
    """How many numbers there are of each kind; `estimated` says whether those of large tables are estimates.

    Paused and parked ones are counted, up to MOST_COUNTED of them.
    """
    kinds: dict[str, Any] = {
        "total": select(Composite.id),
        "finished": select(Composite.id).where(Composite.is_fully_factored),
        "primality_unknown": select(Composite.id).where(Composite.is_prime.is_(None)),
        "wanting_ecm": select(Composite.id).where(Composite.ecm_eligible),
        "wanting_pm1": select(Composite.id).where(Composite.pm1_eligible),
        "wanting_pp1": select(Composite.id).where(Composite.pp1_eligible),
        "parts": select(Composite.id).where(Composite.parent_id.is_not(None)),
    }
    with engine.connect() as connection:
        small = _is_small(connection, "composites")
        counted = {name: _count(connection, statement, exact=small) for name, statement in kinds.items()}
        latest = select(Composite.hold).where(Composite.hold.is_not(None)).order_by(Composite.held_at.desc())
        held = latest.limit(health_queries.MOST_COUNTED).subquery()
        by_kind = select(held.c.hold, func.count().label("count")).group_by(held.c.hold)
        holds = {row.hold: row.count for row in connection.execute(by_kind)}
    return {**counted, "paused": holds.get("paused", 0), "parked": holds.get("parked", 0), "estimated": not small}


def summarize_database(engine: Engine) -> dict[str, Any]:
    """How much there is of everything; the `estimated` ones are named."""
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
    """How many submissions are in each state that is settled, and whether those are estimates.

    Failed ones are counted, up to MOST_COUNTED of them: somebody must look at each.
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
