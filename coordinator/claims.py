"""Handing out leases: which number, how much of it, to whom.

A claim is one unit of work:

 1. claims of the same client wait for one another, so that none gets more than MAX_WORK_PER_CLIENT leases;
 2. the first numbers in the order that the client asked for come from an index of those that want such work;
 3. of these the first that no other claim is at just now (an advisory lock) is locked and looked at again: a result
    that is being applied to it is waited for, which takes milliseconds, not skipped;
 4. the lease is planned and written, and what the number wants from now on with it.

When other claims are at all of those numbers, the claim waits for one of them, and then looks again. "No work" is said
only when there is none.
"""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import ge, le
from time import monotonic
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute

from config.settings import Settings
from coordinator import demand, effort, planning, registry, work
from coordinator.demand import BOTH_P1, ECM, PM1, PP1
from coordinator.expressions import shorten
from coordinator.planning import Plan, Wish
from coordinator.speeds import measured_speed
from coordinator.unit_of_work import savepoint, unit_of_work
from models.limits import DEFAULT_B2, STAGE1_ONLY
from models.tables import Composite, CompositeEffort, Project, ProjectComposite, WorkAssignment

# The first keys of our advisory locks: any two numbers that nobody else takes.
CLIENT_LOCK, NUMBER_LOCK = 0x436C69, 0x4E756D
# As many claims at a time find a number of their own without waiting.
CANDIDATES = 40
LOCK_PATIENCE_MS = 400
# How long a claim goes on when others are at every number there is.
CLAIM_PATIENCE = 5.0
LOCK_NOT_AVAILABLE = "55P03"

SECONDS_PER_DAY = 86_400
DEFAULT_DAYS = 5.0
# A shared lease lasts several times as long as it should take, for machines sleep and have other things to do.
SLACK, SHORTEST_LEASE = 3.0, 1800
# A lease is not planned for less than this share of its target length, or claims would be most of the work.
SHORTEST_SHARE = 1 / 60
ASK_AGAIN_SOONEST, ASK_AGAIN_LATEST = 30, 600

ORDERS: dict[str, tuple[ColumnElement[Any], ...]] = {
    "standard": (Composite.digit_length.asc(), Composite.id.asc()),
    "progressive": (Composite.planned_t_level.asc(), Composite.id.asc()),
    "priority": (Composite.priority.desc(), Composite.digit_length.asc(), Composite.id.asc()),
    "best": (Composite.work_value.desc(), Composite.id.asc()),
}

_ECM_LEASES = (
    select(func.count())
    .where(
        WorkAssignment.composite_id == Composite.id, WorkAssignment.closed_at.is_(None), WorkAssignment.method == ECM
    )
    .correlate(Composite)
    .scalar_subquery()
)


@dataclass(frozen=True)
class Wanted:
    """What a client asks for; None leaves it open. `composite` names one number, which must be like the rest, too.

    `method`: ecm, pm1, pp1 or p1 (both). `days` is how long a lease lasts; `shared` asks for a number of curves of a
    number that others work on too, instead of all of it.
    """

    client_id: str
    method: str = ECM
    order: str = "standard"
    shared: bool = False
    composite: str | None = None
    min_digits: int | None = None
    max_digits: int | None = None
    min_priority: int | None = None
    project: str | None = None
    min_target: float | None = None
    max_target: float | None = None
    max_current: float | None = None
    b1: int | None = None
    stage1_only: bool = False
    days: float | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """What a number must satisfy but for wanting such work."""
        bounds: tuple[tuple[Any, Any, Callable[..., Any]], ...] = (
            (self.min_digits, Composite.digit_length, ge),
            (self.max_digits, Composite.digit_length, le),
            (self.min_priority, Composite.priority, ge),
            (self.min_target, Composite.target_t_level, ge),
            (self.max_target, Composite.target_t_level, le),
            (self.max_current, Composite.current_t_level, le),
        )
        chosen: list[ColumnElement[bool]] = [
            within(column, bound) for bound, column, within in bounds if bound is not None
        ]
        if self.project is not None:
            members = (
                select(ProjectComposite.composite_id)
                .join(Project, Project.id == ProjectComposite.project_id)
                .where(Project.name == self.project)
            )
            chosen.append(Composite.id.in_(members))
        if self.method == ECM and not self.shared:
            # All of a number is leased only when nobody has curves of it; P-1 and P+1 are something else. Counted for
            # the few numbers that have leases at all.
            chosen.append((Composite.open_leases == 0) | (_ECM_LEASES == 0))
        return chosen


@dataclass(frozen=True)
class Claim:
    """A lease just made: what to run on which number. `curves` None: the whole number, of which `plan` is the start."""

    work_id: uuid.UUID
    composite: Row[Any]
    method: str
    plan: Plan | None
    shared: bool
    expires_at: datetime
    prior_t_level: float = 0.0
    pm1_b1: int | None = None
    pp1_b1: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class NoWork:
    """There is no such work now; `retry_after` (seconds) is when there may be."""

    message: str
    retry_after: int


@dataclass
class _Look:
    """What one look at the candidates came to: a claim, or that there is none, or neither (look again)."""

    answer: Claim | NoWork | None = None
    busy: list[int] = field(default_factory=list)


class Busy(Exception):
    """Other claims were at every number for CLAIM_PATIENCE seconds: ask again at once."""


def claim(engine: Engine, wanted: Wanted, settings: Settings) -> Claim | NoWork:
    """Lease the first number in the wanted order that wants such work. Raises Busy, ExpressionError."""
    deadline = monotonic() + CLAIM_PATIENCE
    wait_for: list[int] = []
    while True:
        with unit_of_work(engine, "claim", client=wanted.client_id, method=wanted.method) as connection:
            look = _look(connection, wanted, settings, wait_for)
        if look.answer is not None:
            return look.answer
        if monotonic() > deadline:
            raise Busy(f"others were at all of the numbers for {CLAIM_PATIENCE:g} s")
        wait_for = look.busy


def _look(connection: Connection, wanted: Wanted, settings: Settings, wait_for: list[int]) -> _Look:
    connection.execute(_BEGIN, {"patience": f"{LOCK_PATIENCE_MS}ms", "lock": CLIENT_LOCK, "client": wanted.client_id})
    held = connection.execute(_HELD, {"client": wanted.client_id}).scalar_one()
    if held >= settings.max_work_per_client:
        message = f"You hold {held} leases, and {settings.max_work_per_client} is the most; complete or abandon some."
        return _Look(NoWork(message, ASK_AGAIN_SOONEST))
    if wanted.composite is not None:
        return _look_at_named(connection, wanted, settings)
    look = _Look()
    for composite_id in wait_for or _candidates(connection, wanted):
        if not _get_to(connection, composite_id, wait=bool(wait_for)):
            look.busy.append(composite_id)
            continue
        locked = _lock(connection, composite_id, wanted)
        if locked is None:
            look.busy.append(composite_id)
            continue
        look.answer = _lease(connection, locked, wanted, settings)
        return look
    if not look.busy and not wait_for:
        look.answer = _none(connection)
    return look


_BEGIN = text("SELECT set_config('lock_timeout', :patience, true), pg_advisory_xact_lock(:lock, hashtext(:client))")
_HELD = text("SELECT count(*) FROM work_assignments WHERE client_id = :client AND closed_at IS NULL")


def _wants(method: str) -> tuple[InstrumentedAttribute[bool], ...]:
    """By method, the columns any of which says that a number wants it: what is wanted most first."""
    return {
        ECM: (Composite.wants_ecm,),
        PM1: (Composite.wants_pm1,),
        PP1: (Composite.wants_pp1,),
        BOTH_P1: (Composite.wants_pm1, Composite.wants_pp1),
    }[method]


def _candidates(connection: Connection, wanted: Wanted) -> list[int]:
    order = ORDERS[wanted.order if wanted.method == ECM else "standard"]
    for wants in _wants(wanted.method):
        found = select(Composite.id).where(wants, *wanted.conditions()).order_by(*order).limit(CANDIDATES)
        if ids := list(connection.execute(found).scalars()):
            return ids
    return []


def _get_to(connection: Connection, composite_id: int, *, wait: bool) -> bool:
    """Whether this claim alone is at that number now."""
    keys = {"lock": NUMBER_LOCK, "id": composite_id}
    if not wait:
        found: bool = connection.execute(_TRY_NUMBER, keys).scalar_one()
        return found
    return _in_time(connection, _WAIT_FOR_NUMBER, keys) is not None


_TRY_NUMBER = text("SELECT pg_try_advisory_xact_lock(:lock, hashint8(:id))")
_WAIT_FOR_NUMBER = text("SELECT pg_advisory_xact_lock(:lock, hashint8(:id))")


def _in_time(connection: Connection, statement: Any, parameters: dict[str, Any]) -> list[Row] | None:
    """The rows of a statement that waits for a lock; None if it did not get it within LOCK_PATIENCE_MS."""
    try:
        with savepoint(connection):
            return list(connection.execute(statement, parameters))
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) != LOCK_NOT_AVAILABLE:
            raise
        return None


def _lock(connection: Connection, composite_id: int, wanted: Wanted) -> list[Row] | None:
    """The number's row, locked, or none if it is not like what is wanted any more; None while something long has it.

    A result that is being applied has it for milliseconds; one with a factor to split for some tenths of a second.
    """
    found = select(Composite).where(Composite.id == composite_id, *wanted.conditions())
    return _in_time(connection, found.with_for_update(key_share=True), {})


def _lease(connection: Connection, locked: list[Row], wanted: Wanted, settings: Settings) -> Claim | None:
    """Lease the number that only this claim is at; None if it turns out to want no such work any more."""
    if not locked:
        return None
    (row,) = locked
    leases = work.open_leases(connection, [row.id]).get(row.id, [])
    made = None
    now = demand.wants(row, leases)
    if any(now[column.key] for column in _wants(wanted.method)):
        made = _make(connection, row, leases, wanted, settings)
    # With the new lease in it, or because the row said something that is not true any more.
    work.refresh(connection, [row.id])
    return made


def _make(connection: Connection, row: Row, leases: list[Row], wanted: Wanted, settings: Settings) -> Claim | None:
    if wanted.method == ECM:
        return _make_ecm(connection, row, leases, wanted, settings)
    lacking: dict[str, int] = {
        method: row.wanted_p1_b1
        for method, reached in ((PM1, row.pm1_b1), (PP1, row.pp1_b1))
        if wanted.method in (method, BOTH_P1) and reached < row.wanted_p1_b1
    }
    seconds = int((wanted.days or DEFAULT_DAYS) * SECONDS_PER_DAY)
    work_id, expires_at = _insert(connection, row.id, wanted, seconds, b1=row.wanted_p1_b1, b2=DEFAULT_B2)
    return Claim(work_id, row, wanted.method, None, False, expires_at, pm1_b1=lacking.get(PM1), pp1_b1=lacking.get(PP1))


def _make_ecm(connection: Connection, row: Row, leases: list[Row], wanted: Wanted, settings: Settings) -> Claim | None:
    most = settings.lease_target_minutes * 60
    speed = measured_speed(connection, wanted.client_id)
    wish = Wish(most * SHORTEST_SHARE, most, speed, b1=wanted.b1, b2=STAGE1_ONLY if wanted.stage1_only else DEFAULT_B2)
    vector = demand.planned(row.effort, leases)
    plan = planning.plan_curves(vector, row.digit_length, row.target_t_level, wish)
    if plan is None:
        return None
    own_seconds = plan.seconds / speed
    if wanted.shared:
        run = {"b1": plan.b1, "b2": plan.b2, "parametrization": plan.parametrization, "curves": plan.curves}
        usual = max(SHORTEST_LEASE, SLACK * own_seconds)
    else:
        run, usual = {}, DEFAULT_DAYS * SECONDS_PER_DAY
    seconds = int(usual if wanted.days is None else wanted.days * SECONDS_PER_DAY)
    work_id, expires_at = _insert(connection, row.id, wanted, seconds, **run)
    return Claim(
        work_id,
        row,
        ECM,
        plan,
        wanted.shared,
        expires_at,
        prior_t_level=_prior_t_level(connection, row.id),
        minutes=own_seconds / 60,
    )


def _insert(
    connection: Connection, composite_id: int, wanted: Wanted, seconds: int, **run: int
) -> tuple[uuid.UUID, datetime]:
    work_id = uuid.uuid4()
    expires_at = datetime.now(UTC) + timedelta(seconds=max(1, seconds))
    connection.execute(
        insert(WorkAssignment).values(
            id=work_id,
            composite_id=composite_id,
            client_id=wanted.client_id,
            method=wanted.method,
            created_at=func.clock_timestamp(),
            expires_at=expires_at,
            lease_seconds=max(1, seconds),
            **run,
        )
    )
    return work_id, expires_at


def _prior_t_level(connection: Connection, composite_id: int) -> float:
    """The t-level that work from before the registry gives by itself."""
    rows = connection.execute(
        select(
            CompositeEffort.b1, CompositeEffort.b2, CompositeEffort.parametrization, CompositeEffort.prior_curves
        ).where(CompositeEffort.composite_id == composite_id, CompositeEffort.prior_curves > 0)
    ).all()
    return (
        effort.t_level(effort.effort_of([(row.b1, row.b2, row.parametrization, row.prior_curves) for row in rows]))
        if rows
        else 0.0
    )


def _look_at_named(connection: Connection, wanted: Wanted, settings: Settings) -> _Look:
    """Lease the number that the client names, or say why not."""
    written = wanted.composite or ""
    found = registry.find(connection, written, settings.max_digits)
    if found is None:
        return _Look(NoWork(f"{shorten(written)} is not a number of this server.", ASK_AGAIN_LATEST))
    locked = _lock(connection, found.id, wanted) if _get_to(connection, found.id, wait=True) else None
    if locked is None:
        return _Look()
    made = _lease(connection, locked, wanted, settings)
    if made is not None:
        return _Look(made)
    row = connection.execute(select(Composite).where(Composite.id == found.id)).one()
    return _Look(NoWork(f"{shorten(written)} {next(_reasons(connection, row, wanted))}.", ASK_AGAIN_LATEST))


def _reasons(connection: Connection, row: Row, wanted: Wanted) -> Iterator[str]:
    """Why a number has no work for this client, each the end of a sentence, the plainest first."""
    if row.is_fully_factored:
        yield "is fully factored"
    if row.is_prime is None:
        yield "waits for a primality test"
    if not demand.needs_curves(row):
        yield "has no composite cofactor left that needs curves"
    if row.hold is not None:
        yield f"is {row.hold}: {row.hold_reason or 'no reason given'}"
    leases = work.open_leases(connection, [row.id]).get(row.id, [])
    if any(lease.method in demand.RESERVING for lease in leases):
        yield "is reserved for another method"
    if wanted.method != ECM:
        yield f"has had P-1 and P+1 up to B1 = {row.wanted_p1_b1:,}, or they are out on lease"
    if row.current_t_level >= row.target_t_level:
        yield f"has reached its target of t{row.target_t_level:.1f}"
    curves_out = sum(lease.method == ECM for lease in leases)
    if curves_out and not (wanted.shared and row.wants_ecm):
        yield f"has open leases ({curves_out}), which leave nothing for one like this"
    yield "does not match the other filters"


def _none(connection: Connection) -> NoWork:
    """No work: ask again when the next lease runs out, within bounds."""
    soonest = select(func.min(WorkAssignment.expires_at)).where(WorkAssignment.closed_at.is_(None))
    expires_at = connection.execute(soonest).scalar_one()
    seconds = ASK_AGAIN_LATEST if expires_at is None else (expires_at - datetime.now(UTC)).total_seconds()
    retry_after = int(min(max(seconds, ASK_AGAIN_SOONEST), ASK_AGAIN_LATEST))
    return NoWork(f"There is no work like this now; ask again in {retry_after} seconds.", retry_after)
