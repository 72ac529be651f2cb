"""How numbers stand: one with its factors and effort, many at once, and those that are nearest to their targets."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Row, select

from coordinator import effort
from coordinator.base.errors import composite_not_found
from coordinator.composites import registry
from coordinator.effort import chart
from coordinator.reading import factors
from models.tables import Composite, CompositeEffort, EcmAttempt, Factor, Project, ProjectComposite, WorkAssignment


def composite_stats(engine: Engine, written: str, max_digits: int) -> dict[str, Any] | None:
    """Everything about the composite that `written` names (any value it has ever had), or None if it is unknown.

    Factors are the leaves of its tree, with multiplicity, smallest first; curves are summed by B1.
    """
    with engine.connect() as connection:
        found = registry.find(connection, written, max_digits)
        if found is None:
            return None
        row = _row(connection, found.id, _ALL_BUT_EFFORT)
        return {
            **_row_fields(row),
            "factors_found": _leaves(_tree(connection, row.id)),
            "ecm_work": _work(row, _sums(connection, row.id)),
            "projects": _projects(connection, row.id),
        }


def read_composite(engine: Engine, composite_id: int) -> dict[str, Any]:
    """As `composite_stats`, by id, with its state, its tree of factors and what work it has and wants.

    Raises Unknown.
    """
    with engine.connect() as connection:
        row = _row(connection, composite_id, _ALL_BUT_EFFORT)
        tree = _tree(connection, composite_id)
        return {
            **_row_fields(row),
            **_state_and_eligibility(row),
            "factors_found": _leaves(tree),
            "factors": [factor._asdict() for factor in tree],
            "ecm_work": _work(row, _sums(connection, composite_id)),
            "projects": _projects(connection, composite_id),
        }


class CompositeDetail(NamedTuple):
    """What there is to see of a number: as in `composite` but for its factors, and the rows beneath it.

    Of `factors` (factors.COLUMNS, each after what it was split from), `curves`, `leases` (the oldest first) and
    `attempts` (the newest first) there are so many at most; `is_cut` names those of which there are more.
    """

    number: dict[str, Any]
    factors: list[Row]
    chart: str
    curves: list[Row]
    leases: list[Row]
    attempts: list[Row]
    is_cut: frozenset[str]


def read_detail(engine: Engine, composite_id: int, *, most: int) -> CompositeDetail:
    """All of a number that its page shows, with `most` rows of a kind. Raises Unknown."""
    with engine.connect() as connection:
        row = _row(connection, composite_id, [*_ALL_BUT_EFFORT, Composite.effort])
        curves = _sums(connection, composite_id)
        rows = {
            "factors": factors.composite_factors(connection, composite_id, most + 1),
            "curves": curves,
            "leases": _open_work(connection, composite_id, most + 1),
            "attempts": _last_attempts(connection, composite_id, most + 1),
        }
        number = {
            **_row_fields(row),
            **_state_and_eligibility(row),
            "ecm_work": _work(row, curves),
            "projects": _projects(connection, composite_id),
        }
    return CompositeDetail(
        number,
        chart=chart.svg(row.effort, "Has a factor been missed?", row.target_t_level),
        is_cut=frozenset(name for name, found in rows.items() if len(found) > most),
        **{name: found[:most] for name, found in rows.items()},
    )


# Its effort is 91 doubles that only its own page shows.
_ALL_BUT_EFFORT = [column for column in Composite.__table__.columns if column.key != "effort"]


def _row(connection: Connection, composite_id: int, columns: Sequence[Any]) -> Row:
    row = connection.execute(select(*columns).where(Composite.id == composite_id)).one_or_none()
    if row is None:
        raise composite_not_found(composite_id)
    return row


def _row_fields(row: Row) -> dict[str, Any]:
    finished = "prime" if row.is_prime else "fully_factored"
    return {
        "composite": row.number,
        "current_composite": row.current_composite,
        "digit_length": row.digit_length,
        "has_snfs_form": row.has_snfs_form,
        "snfs_difficulty": row.snfs_difficulty,
        "target_t_level": row.target_t_level,
        "current_t_level": row.current_t_level,
        "priority": row.priority,
        "status": finished if row.is_fully_factored else "composite",
    }


def _state_and_eligibility(row: Row) -> dict[str, Any]:
    wants = (("ecm", row.ecm_eligible), ("pm1", row.pm1_eligible), ("pp1", row.pp1_eligible))
    return {
        "composite_id": row.id,
        "state": row.listed_state,
        "is_prime": row.is_prime,
        "is_fully_factored": row.is_fully_factored,
        "progress": row.current_t_level / row.target_t_level if row.target_t_level else None,
        "pm1_b1": row.pm1_b1,
        "pp1_b1": row.pp1_b1,
        "open_leases": row.open_leases,
        "wants": [method for method, is_wanted in wants if is_wanted],
        "hold": row.hold,
        "hold_reason": row.hold_reason,
        "parent_id": row.parent_id,
        "created_at": row.created_at,
    }


def _tree(connection: Connection, composite_id: int) -> Sequence[Row]:
    columns = (
        Factor.id,
        Factor.factor,
        Factor.digit_length,
        Factor.multiplicity,
        Factor.is_prime,
        Factor.origin,
        Factor.client_id,
        Factor.split_from_id,
        Factor.child_composite_id,
    )
    mine = select(*columns).where(Factor.composite_id == composite_id).order_by(Factor.id)
    return connection.execute(mine).all()


def _leaves(rows: Sequence[Row]) -> list[str]:
    """The values of the leaves of a factor tree given by its rows, each as often as it divides, smallest first."""
    split = {row.split_from_id for row in rows}
    times: dict[int, int] = {}
    leaves: list[str] = []
    for row in rows:  # parents have smaller ids
        times[row.id] = row.multiplicity * times.get(row.split_from_id, 1)
        if row.id not in split:
            leaves += [row.factor] * times[row.id]
    return sorted(leaves, key=lambda text: (len(text), text))


def _sums(connection: Connection, composite_id: int) -> list[Row]:
    of_level = (CompositeEffort.b1, CompositeEffort.b2, CompositeEffort.parametrization)
    mine = select(*of_level, CompositeEffort.curves, CompositeEffort.prior_curves)
    some = CompositeEffort.curves + CompositeEffort.prior_curves > 0  # others were superseded, or taken back
    mine = mine.where(CompositeEffort.composite_id == composite_id, some)
    return list(connection.execute(mine.order_by(*of_level)))


def _work(row: Row, sums: Sequence[Row]) -> dict[str, Any]:
    levels: defaultdict[int, int] = defaultdict(int)
    for one in sums:
        levels[one.b1] += one.curves + one.prior_curves
    return {
        "total_attempts": row.attempt_count,
        "total_curves": sum(levels.values()),
        "effort_by_level": [{"b1": b1, "curves": curves} for b1, curves in levels.items()],
        "last_attempt": row.last_attempt_at and row.last_attempt_at.isoformat(),
    }


def _projects(connection: Connection, composite_id: int) -> list[str]:
    names = (
        select(Project.name)
        .join(ProjectComposite, ProjectComposite.project_id == Project.id)
        .where(ProjectComposite.composite_id == composite_id)
        .order_by(Project.name)
    )
    return list(connection.execute(names).scalars())


def composite_effort(engine: Engine, composite_id: int) -> dict[str, Any]:
    """For 10 to 100 digits the chance that a factor of so many, if there is one, has been missed; and the curves.

    Raises Unknown.
    """
    columns = (Composite.effort, Composite.current_t_level, Composite.target_t_level, Composite.digit_length)
    with engine.connect() as connection:
        row = _row(connection, composite_id, columns)
        curves = _sums(connection, composite_id)
    chances = zip(effort.DIGITS.tolist(), effort.missed(row.effort).tolist(), strict=True)
    return {
        "composite_id": composite_id,
        "digit_length": row.digit_length,
        "current_t_level": row.current_t_level,
        "target_t_level": row.target_t_level,
        "points": [{"digits": digits, "missed": missed} for digits, missed in chances],
        "curves": [one._asdict() for one in curves],
    }


def _last_attempts(connection: Connection, composite_id: int, limit: int) -> list[Row]:
    columns = (
        EcmAttempt.id,
        EcmAttempt.created_at,
        EcmAttempt.client_id,
        EcmAttempt.method,
        EcmAttempt.b1,
        EcmAttempt.b2,
        EcmAttempt.parametrization,
        EcmAttempt.curves,
        EcmAttempt.superseded_curves,
        EcmAttempt.voided_at,
        EcmAttempt.program,
        EcmAttempt.program_version,
    )
    newest = select(*columns).where(EcmAttempt.composite_id == composite_id).order_by(EcmAttempt.id.desc())
    return list(connection.execute(newest.limit(limit)))


def _open_work(connection: Connection, composite_id: int, limit: int) -> list[Row]:
    columns = (
        WorkAssignment.client_id,
        WorkAssignment.method,
        WorkAssignment.b1,
        WorkAssignment.curves,
        WorkAssignment.curves_completed,
        WorkAssignment.status,
        WorkAssignment.expires_at,
    )
    mine = (WorkAssignment.composite_id == composite_id, WorkAssignment.closed_at.is_(None))
    oldest = select(*columns).where(*mine).order_by(WorkAssignment.created_at)
    return list(connection.execute(oldest.limit(limit)))
