"""One composite with its factors, effort and work: a single reader of its parts, and the answers built from them.

`composite_stats`, `read_composite` and `read_detail` answer by the names that clients and pages know; `read_columns`
answers operators by the names of the columns.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from sqlalchemy import BigInteger, ColumnElement, Connection, Engine, Row, func, select

from coordinator import effort
from coordinator.base.errors import composite_not_found
from coordinator.composites import registry
from coordinator.effort import chart
from coordinator.reading import factors, search
from models.tables import (
    Composite,
    EcmAttempt,
    Factor,
    Project,
    ProjectComposite,
    Target,
    TargetSource,
    ValueEffort,
    WorkAssignment,
)


def _or_default(column: Any) -> ColumnElement[Any]:
    """Return the expression for a column of a target; its default where there is no target."""
    default = column.server_default
    if default is None or column.key == "target_set_at":
        return cast(ColumnElement[Any], column)
    return func.coalesce(column, default.arg).label(column.key)


_OF_COMPOSITE = Composite.__table__.columns
# A number that was finished when it was registered has no target. The effort is 91 doubles, which only a number's page
# and its chart need.
_OF_TARGET = [
    _or_default(column)
    for column in Target.__table__.columns
    if column.key not in _OF_COMPOSITE and column.key not in ("effort", "is_finished")
]
# So many other numbers with the same cofactor are named.
MAX_SHARING = 10
_TREE_COLUMNS = (
    "id",
    "factor",
    "digit_length",
    "multiplicity",
    "is_prime",
    "origin",
    "client_id",
    "split_from_id",
    "child_composite_id",
)


class CompositeParts(NamedTuple):
    """A composite's row with what every answer about it shows.

    `sums` are the curve sums of its target; those without any curves were superseded or voided. `sharing` are at most
    MAX_SHARING other composites (id, number) with the same target, of `sharing_count`.
    """

    row: Row[Any]
    sums: list[Row[Any]]
    projects: list[str]
    sharing: list[Row[Any]]
    sharing_count: int

    @property
    def curves(self) -> list[Row[Any]]:
        """The sums that have curves."""
        return [own for own in self.sums if own.curves + own.prior_curves > 0]


class ShownComposite(NamedTuple):
    """What the page of a composite shows: `number` is the answer of `read_composite` without its factors.

    `factors` (factors.COLUMNS, each after the factor that it was split from), `curves`, `leases` (oldest first) and
    `attempts` (newest first) are cut after a number of rows; `is_cut` names the lists that have more.
    """

    number: dict[str, Any]
    factors: list[Row[Any]]
    chart: str
    curves: list[Row[Any]]
    leases: list[Row[Any]]
    attempts: list[Row[Any]]
    is_cut: frozenset[str]


def composite_stats(engine: Engine, written: str, max_digits: int) -> dict[str, Any] | None:
    """Return everything about the composite that `written` names (any value it has ever had); None if it is unknown.

    Factors are the leaves of its tree, with multiplicity, smallest first; curves are summed by B1.
    """
    registry.evaluate_ahead(written, max_digits)
    with engine.connect() as connection:
        found = registry.find(connection, written, max_digits)
        if found is None:
            return None
        parts = _read_parts(connection, found.id)
        leaves = _leaves(_tree(connection, found.id))
    return {**_row_fields(parts.row), "factors_found": leaves, **_work_and_projects(parts)}


def read_composite(engine: Engine, composite_id: int) -> dict[str, Any]:
    """Return what `composite_stats` does, by id, with its state, its tree of factors, open work and eligibility.

    Raises NotFoundError.
    """
    with engine.connect() as connection:
        parts = _read_parts(connection, composite_id)
        tree = _tree(connection, composite_id)
    return {
        **_row_fields(parts.row),
        **_state_and_eligibility(parts),
        "factors_found": _leaves(tree),
        "factors": [{name: getattr(factor, name) for name in _TREE_COLUMNS} for factor in tree],
        **_work_and_projects(parts),
    }


def read_columns(engine: Engine, composite_id: int) -> dict[str, Any]:
    """Return a composite by the names of its columns, with the rows of its factors, curve sums and open leases.

    Operators read this; `projects` are names, `parts` are the ids of the composites split off. Raises NotFoundError.
    """
    with engine.connect() as connection:
        parts = _read_parts(connection, composite_id)
        tree = _tree(connection, composite_id)
        leases = _open_leases(connection, parts.row)
        split_off = select(Composite.id).where(Composite.parent_id == composite_id).order_by(Composite.id)
        children = list(connection.execute(split_off).scalars())
    return {
        **_without(parts.row, "value_sha256"),
        "factors": [_without(factor, "factor_sha256", "composite_id") for factor in tree],
        "effort": [_without(own) for own in parts.sums],
        "open_work": [_without(lease, "composite_id") | {"id": str(lease.id)} for lease in leases],
        "projects": parts.projects,
        "parts": children,
    }


def read_detail(engine: Engine, composite_id: int, *, most: int) -> ShownComposite:
    """Return all that the page of a composite shows, with at most `most` rows of a kind. Raises NotFoundError."""
    with engine.connect() as connection:
        parts = _read_parts(connection, composite_id, with_effort=True)
        rows = {
            "factors": factors.composite_factors(connection, composite_id, most + 1),
            "curves": parts.curves,
            "leases": _open_leases(connection, parts.row, most + 1),
            "attempts": _last_attempts(connection, parts.row, most + 1),
        }
    return ShownComposite(
        {**_row_fields(parts.row), **_state_and_eligibility(parts), **_work_and_projects(parts)},
        chart=chart.svg(_vector(parts.row), "Has a factor been missed?", parts.row.target_t_level),
        is_cut=frozenset(name for name, found in rows.items() if len(found) > most),
        **{name: found[:most] for name, found in rows.items()},
    )


def composite_effort(engine: Engine, composite_id: int) -> dict[str, Any]:
    """Return the chance that a factor of 10 to 100 digits was missed, for each number of digits, and the curves.

    Raises NotFoundError.
    """
    with engine.connect() as connection:
        parts = _read_parts(connection, composite_id, with_effort=True)
    chances = zip(effort.DIGITS.tolist(), effort.missed(_vector(parts.row)).tolist(), strict=True)
    return {
        "composite_id": composite_id,
        "digit_length": parts.row.digit_length,
        "current_t_level": parts.row.current_t_level,
        "target_t_level": parts.row.target_t_level,
        "points": [{"digits": digits, "missed": missed} for digits, missed in chances],
        "curves": [own._asdict() for own in parts.curves],
    }


# Parts ----------------------------------------------------------------------------------------------------------------


def _read_parts(connection: Connection, composite_id: int, *, with_effort: bool = False) -> CompositeParts:
    """Read the parts of a composite; its row has its effort vector only on request. Raises NotFoundError."""
    columns = [*_OF_COMPOSITE, *_OF_TARGET, *([Target.effort] if with_effort else [])]
    both = select(*columns).outerjoin(Target, Target.id == Composite.target_id)
    row = connection.execute(both.where(Composite.id == composite_id)).one_or_none()
    if row is None:
        raise composite_not_found(composite_id)
    account = (ValueEffort.b1, ValueEffort.b2, ValueEffort.parametrization)
    counted = (
        func.sum(column).cast(BigInteger).label(column.key) for column in (ValueEffort.curves, ValueEffort.prior_curves)
    )
    sums = (
        select(*account, *counted)
        .join(TargetSource, TargetSource.value_id == ValueEffort.value_id)
        .where(TargetSource.target_id == row.target_id)
        .group_by(*account)
        .order_by(*account)
    )
    names = (
        select(Project.name)
        .join(ProjectComposite, ProjectComposite.project_id == Project.id)
        .where(ProjectComposite.composite_id == composite_id)
        .order_by(Project.name)
    )
    sharing, sharing_count = _sharing(connection, row)
    return CompositeParts(
        row, list(connection.execute(sums)), list(connection.execute(names).scalars()), sharing, sharing_count
    )


def _sharing(connection: Connection, row: Row[Any]) -> tuple[list[Row[Any]], int]:
    """Return (at most MAX_SHARING of the other composites with a composite's target, the number of all of them)."""
    if row.target_id is None:
        return [], 0
    shares = (Composite.target_id == row.target_id, Composite.id != row.id)
    columns: tuple[Any, ...] = (Composite.id, search.shortened(Composite.number).label("number"))
    others = select(*columns).where(*shares)
    sharing = list(connection.execute(others.order_by(Composite.id).limit(MAX_SHARING)))
    if len(sharing) < MAX_SHARING:
        return sharing, len(sharing)
    return sharing, connection.execute(select(func.count()).select_from(Composite).where(*shares)).scalar_one()


def _vector(row: Row[Any]) -> np.ndarray:
    vector: np.ndarray = effort.no_effort() if row.effort is None else row.effort
    return vector


def _tree(connection: Connection, composite_id: int) -> list[Row[Any]]:
    """The rows of a composite's factor tree, each after the factor that it was split from."""
    own = select(*Factor.__table__.columns).where(Factor.composite_id == composite_id).order_by(Factor.id)
    return list(connection.execute(own))


def _open_leases(connection: Connection, row: Row[Any], limit: int | None = None) -> list[Row[Any]]:
    """Return the open leases of a composite's target, under whichever number's name they are."""
    if row.target_id is None:
        return []
    is_own = (WorkAssignment.target_id == row.target_id, WorkAssignment.closed_at.is_(None))
    oldest = select(*WorkAssignment.__table__.columns).where(*is_own).order_by(WorkAssignment.created_at)
    return list(connection.execute(oldest.limit(limit)))


def _last_attempts(connection: Connection, row: Row[Any], limit: int) -> list[Row[Any]]:
    """Return the newest attempts that count for a composite's target, and its other own ones."""
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
    # One query for each source: the index of a value gives its newest attempts, however many there are.
    sources = select(TargetSource.value_id).where(TargetSource.target_id == row.target_id)
    chosen = [EcmAttempt.value_id == value_id for value_id in connection.execute(sources).scalars()]
    newest: dict[int, Row[Any]] = {}
    for condition in [*chosen, EcmAttempt.composite_id == row.id]:
        statement = select(*columns).where(condition).order_by(EcmAttempt.id.desc()).limit(limit)
        newest |= {attempt.id: attempt for attempt in connection.execute(statement)}
    return [newest[attempt_id] for attempt_id in sorted(newest, reverse=True)[:limit]]


# Answers --------------------------------------------------------------------------------------------------------------


def _row_fields(row: Row[Any]) -> dict[str, Any]:
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


def _state_and_eligibility(parts: CompositeParts) -> dict[str, Any]:
    row = parts.row
    eligible = (("ecm", row.ecm_eligible), ("pm1", row.pm1_eligible), ("pp1", row.pp1_eligible))
    return {
        "composite_id": row.id,
        "state": row.listed_state,
        "is_prime": row.is_prime,
        "is_fully_factored": row.is_fully_factored,
        "progress": row.current_t_level / row.target_t_level if row.target_t_level else None,
        "pm1_b1": row.pm1_b1,
        "pp1_b1": row.pp1_b1,
        "open_leases": row.open_leases,
        "wants": [method for method, is_eligible in eligible if is_eligible],
        "hold": row.hold,
        "hold_reason": row.hold_reason,
        "parent_id": row.parent_id,
        "shares_cofactor_with": [{"composite_id": other.id, "composite": other.number} for other in parts.sharing],
        "sharing_count": parts.sharing_count,
        "created_at": row.created_at,
    }


def _leaves(rows: Sequence[Row[Any]]) -> list[str]:
    """Return the values of the leaves of a factor tree, each as often as it divides the number, smallest first."""
    split = {row.split_from_id for row in rows}
    times: dict[int, int] = {}
    leaves: list[str] = []
    for row in rows:  # parents have smaller ids
        times[row.id] = row.multiplicity * times.get(row.split_from_id, 1)
        if row.id not in split:
            leaves += [row.factor] * times[row.id]
    return sorted(leaves, key=lambda text: (len(text), text))


def _work_and_projects(parts: CompositeParts) -> dict[str, Any]:
    levels: defaultdict[int, int] = defaultdict(int)
    for own in parts.curves:
        levels[own.b1] += own.curves + own.prior_curves
    last = parts.row.last_attempt_at
    work = {
        "total_attempts": parts.row.attempt_count,
        "total_curves": sum(levels.values()),
        "effort_by_level": [{"b1": b1, "curves": curves} for b1, curves in levels.items()],
        "last_attempt": None if last is None else last.isoformat(),
    }
    return {"ecm_work": work, "projects": parts.projects}


def _without(row: Row[Any], *names: str) -> dict[str, Any]:
    return {name: _json_value(value) for name, value in row._asdict().items() if name not in names}


def _json_value(value: Any) -> Any:
    """A value that orjson can write: it refuses integers past 64 bits, which a B2 can be; such a B2 becomes a float."""
    return float(value) if isinstance(value, int) and value >= 2**63 else value
