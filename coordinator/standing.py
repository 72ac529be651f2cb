"""How numbers stand: one with its factors and effort, many at once, and those that are nearest to their targets."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    LargeBinary,
    Row,
    cast,
    column,
    func,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy.dialects import postgresql

from coordinator import effort, factors, listing, registry
from coordinator.effort import chart
from coordinator.expressions import ExpressionError, decimal, evaluate_number
from coordinator.refusals import no_composite
from models.tables import (
    Composite,
    CompositeAlias,
    CompositeEffort,
    EcmAttempt,
    Factor,
    Project,
    ProjectComposite,
    WorkAssignment,
)

# Computing expressions takes some milliseconds each at worst, and a request has a thousand of them at most.
EVALUATION_SECONDS = 1.0
TOO_LONG = "was not computed: those before it took too long; send it in decimal, or fewer at a time"


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
            **_of_row(row),
            "factors_found": _leaves(_tree(connection, row.id)),
            "ecm_work": _work(row, _sums(connection, row.id)),
            "projects": _projects(connection, row.id),
        }


def composite(engine: Engine, composite_id: int) -> dict[str, Any]:
    """As `composite_stats`, by id, with its state, its tree of factors and what work it has and wants.

    Raises Unknown.
    """
    with engine.connect() as connection:
        row = _row(connection, composite_id, _ALL_BUT_EFFORT)
        tree = _tree(connection, composite_id)
        return {
            **_of_row(row),
            **_what_it_wants(row),
            "factors_found": _leaves(tree),
            "factors": [factor._asdict() for factor in tree],
            "ecm_work": _work(row, _sums(connection, composite_id)),
            "projects": _projects(connection, composite_id),
        }


class Whole(NamedTuple):
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


def whole(engine: Engine, composite_id: int, *, most: int) -> Whole:
    """All of a number that its page shows, with `most` rows of a kind. Raises Unknown."""
    with engine.connect() as connection:
        row = _row(connection, composite_id, [*_ALL_BUT_EFFORT, Composite.effort])
        curves = _sums(connection, composite_id)
        rows = {
            "factors": factors.of_composite(connection, composite_id, most + 1),
            "curves": curves,
            "leases": _open_work(connection, composite_id, most + 1),
            "attempts": _last_attempts(connection, composite_id, most + 1),
        }
        number = {
            **_of_row(row),
            **_what_it_wants(row),
            "ecm_work": _work(row, curves),
            "projects": _projects(connection, composite_id),
        }
    return Whole(
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
        raise no_composite(composite_id)
    return row


def _of_row(row: Row) -> dict[str, Any]:
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


def _what_it_wants(row: Row) -> dict[str, Any]:
    wants = (("ecm", row.wants_ecm), ("pm1", row.wants_pm1), ("pp1", row.wants_pp1))
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


# Many at once ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Numbers as they were asked for: the hashes to look them up by, or why there are none of them."""

    written: list[bytes]
    evaluated: list[bytes | None]
    problems: list[str | None]


def ask(numbers: Sequence[str], max_digits: int) -> Asked:
    """What to look up for these numbers, in decimal or expressions; what cannot be read has its problem instead."""
    evaluated: list[bytes | None] = []
    problems: list[str | None] = []
    until = monotonic() + EVALUATION_SECONDS
    for number in numbers:
        value, problem = None, None
        if not (number.isascii() and number.isdigit()):
            if monotonic() > until:
                problem = TOO_LONG
            else:
                try:
                    value = registry.sha256(decimal(evaluate_number(number, max_digits)))
                except ExpressionError as error:
                    problem = error.detail
        evaluated.append(value)
        problems.append(problem)
    return Asked([registry.sha256(number) for number in numbers], evaluated, problems)


class Standing(NamedTuple):
    """How one of many numbers stands: listing.COLUMNS, or None, and why, if it could not be read."""

    asked: str
    row: Row | None
    problem: str | None


def batch_status(engine: Engine, numbers: Sequence[str], max_digits: int) -> list[Standing]:
    """How each of these numbers stands, in their order, as `registry.find` finds them; one query for all."""
    asked = ask(numbers, max_digits)
    wanted = _table_of(asked)
    is_current = func.sha256(func.convert_to(Composite.current_composite, "UTF8")) == CompositeAlias.value_sha256
    found = (
        select(*listing.COLUMNS)
        .join(CompositeAlias, CompositeAlias.composite_id == Composite.id)
        .where(or_(CompositeAlias.value_sha256 == wanted.c.written, CompositeAlias.value_sha256 == wanted.c.evaluated))
        .order_by(
            (CompositeAlias.value_sha256 == wanted.c.written).desc(),
            (CompositeAlias.kind == registry.NUMBER).desc(),
            is_current.desc(),
            Composite.id,
        )
        .limit(1)
        .lateral("found")
    )
    statement = select(found).select_from(wanted.outerjoin(found, true())).order_by(wanted.c.place)
    with engine.connect() as connection:
        rows = connection.execute(statement).all()
    return [
        Standing(number, None if row.id is None else row, problem if row.id is None else None)
        for number, row, problem in zip(numbers, rows, asked.problems, strict=True)
    ]


def _table_of(asked: Asked) -> Any:
    columns = ((range(len(asked.written)), BigInteger), (asked.written, LargeBinary), (asked.evaluated, LargeBinary))
    arrays = (cast(literal(list(values), postgresql.ARRAY(kind)), postgresql.ARRAY(kind)) for values, kind in columns)
    table = func.unnest(*arrays).table_valued(column("place"), column("written"), column("evaluated"))
    return table.render_derived("wanted")


@dataclass(frozen=True)
class Nearest:
    """Which numbers to look for those nearest to their targets among; None leaves it open.

    A number's difficulty is that of its special form, if it has one, else its digits.
    """

    project: str | None = None
    min_priority: int | None = None
    include_factored: bool = False
    numbers: Sequence[str] | None = None
    min_difficulty: int | None = None
    max_difficulty: int | None = None


def top_progress(engine: Engine, chosen: Nearest, *, limit: int, max_digits: int) -> list[Row]:
    """The numbers (listing.COLUMNS) that are nearest to their targets, nearest first; one query.

    To be chosen among hundredths of the target count. Raises Unknown for a project that there is not.
    """
    difficulty = func.coalesce(Composite.snfs_difficulty, Composite.digit_length)
    nearest = select(Composite.id)
    if not chosen.include_factored:
        nearest = nearest.where(Composite.listed_state.in_(listing.UNFINISHED))
    if chosen.min_priority is not None:
        nearest = nearest.where(Composite.priority >= chosen.min_priority)
    if chosen.min_difficulty is not None:
        nearest = nearest.where(difficulty >= chosen.min_difficulty)
    if chosen.max_difficulty is not None:
        nearest = nearest.where(difficulty <= chosen.max_difficulty)
    with engine.connect() as connection:
        if chosen.project is not None:
            members = select(ProjectComposite.composite_id)
            known = select(Project.id).where(Project.name == chosen.project).scalar_subquery()
            nearest = nearest.where(Composite.id.in_(members.where(ProjectComposite.project_id == known)))
        if chosen.numbers is not None:
            asked = ask(chosen.numbers, max_digits)
            hashes = {one for one in (*asked.written, *asked.evaluated) if one is not None}
            named = select(CompositeAlias.composite_id).where(CompositeAlias.value_sha256.in_(hashes))
            nearest = nearest.where(Composite.id.in_(named))
        ids = nearest.order_by(Composite.listed_progress.desc(), Composite.id.desc()).limit(limit).subquery()
        statement = select(*listing.COLUMNS).join(ids, ids.c.id == Composite.id)
        order = (listing.progress().desc().nulls_last(), Composite.id.desc())
        rows = list(connection.execute(statement.order_by(*order)))
        if not rows and chosen.project is not None:
            listing.project_id(connection, chosen.project)
    return rows
