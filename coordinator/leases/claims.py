"""Handing out leases: which number, how much of it, to whom.

A claim is one unit of work:

 1. claims of the same client wait for one another, so that none gets more than MAX_WORK_PER_CLIENT leases;
 2. the first numbers in the order that the client asked for come from an index of those that want such work;
 3. of these the first that no other claim is at just now (an advisory lock) is locked and looked at again: a result
    that is being applied to it is waited for, which takes milliseconds, not skipped;
 4. the lease is planned and written, and what the number wants from now on with it.

When other claims are at all of those numbers, the claim waits for any one of them, and then looks anew. No wait is
longer than LOCK_PATIENCE_MS. "No work" is said only when there is none.
"""

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Row, bindparam, func, insert, select, text
from sqlalchemy.exc import DBAPIError

from config.settings import Settings
from coordinator import effort
from coordinator.base.advisory_locks import CLIENT_LOCK, COMPOSITE_LOCK
from coordinator.base.unit_of_work import savepoint, unit_of_work
from coordinator.composites import eligibility, lease_lifecycle, registry
from coordinator.composites.eligibility import BOTH_P1, ECM, PM1, PP1
from coordinator.effort import planning
from coordinator.effort.planning import Plan, PlanRequest
from coordinator.leases import candidates
from coordinator.leases.speeds import measured_speed
from coordinator.numbers.expressions import shorten
from models.limits import DEFAULT_B2, STAGE1_ONLY
from models.tables import Composite, CompositeEffort, WorkAssignment

LOCK_TIMEOUT_MS = 250
# How many numbers are passed over that something longer than a result's unit of work has.
MAX_PASSED = 10
# How long a claim goes on when others are at every number there is.
CLAIM_TIMEOUT = 5.0
LOCK_NOT_AVAILABLE = "55P03"

SECONDS_PER_DAY = 86_400
DEFAULT_DAYS = 5.0
# A shared lease lasts several times as long as it should take, for machines sleep and have other things to do.
SLACK, SHORTEST_LEASE = 3.0, 1800
# A lease is not planned for less than this share of its target length, or claims would be most of the work.
SHORTEST_SHARE = 1 / 60
# Seconds after which to ask again; while leases are out, any of them may end and leave work at any time.
ASK_AGAIN_SOONEST, ASK_AGAIN_WHILE_LEASED, ASK_AGAIN_LATEST = 30, 120, 600

# What of a wish is a filter as it stands.
FILTERED = ("min_digits", "max_digits", "min_priority", "min_target", "max_target", "max_current")
NO_PROJECT = -1


@dataclass(frozen=True)
class WorkRequest:
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

    @property
    def wants(self) -> tuple[str, ...]:
        """The columns any of which says that a number wants such work: what is wanted most first."""
        methods = (PM1, PP1) if self.method == BOTH_P1 else (self.method,)
        return tuple(f"{method}_eligible" for method in methods)


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


class _ClaimAttempt(NamedTuple):
    """What one look came to: an answer, or none (look again), `crowded` if others were at all of the numbers."""

    answer: Claim | NoWork | None = None
    crowded: bool = False


class _ClaimFilters(NamedTuple):
    """What a number must be like but for wanting such work: filters of coordinator/leases/candidates.py and their values."""

    filters: tuple[str, ...]
    values: dict[str, Any]


class ContendedError(Exception):
    """Other claims were at every number for CLAIM_PATIENCE seconds: ask again at once."""


def claim(engine: Engine, wanted: WorkRequest, settings: Settings) -> Claim | NoWork:
    """Lease the first number in the wanted order that wants such work. Raises Busy, ExpressionError."""
    deadline = monotonic() + CLAIM_TIMEOUT
    crowded = False
    while True:
        with unit_of_work(engine, "claim", client=wanted.client_id, method=wanted.method) as connection:
            look = _attempt_claim(connection, wanted, settings, crowded=crowded)
        if look.answer is not None:
            return look.answer
        if monotonic() > deadline:
            raise ContendedError(f"others were at all of the numbers for {CLAIM_TIMEOUT:g} s")
        crowded = look.crowded


def _attempt_claim(connection: Connection, wanted: WorkRequest, settings: Settings, *, crowded: bool) -> _ClaimAttempt:
    connection.execute(_LOCK_CLIENT, {"lock": CLIENT_LOCK, "client": wanted.client_id})
    patience = {"patience": f"{LOCK_TIMEOUT_MS}ms", "client": wanted.client_id}
    held = connection.execute(_COUNT_OPEN_LEASES, patience).one().held
    if held >= settings.max_work_per_client:
        message = f"You hold {held} leases, and {settings.max_work_per_client} is the most; complete or abandon some."
        return _ClaimAttempt(NoWork(message, ASK_AGAIN_SOONEST))
    like = _build_filters(connection, wanted)
    if wanted.composite is not None:
        return _claim_named(connection, wanted, like, settings)
    locked = _wait_for_one(connection, wanted, like) if crowded else _lock_first(connection, wanted, like)
    if locked is not None:
        return _ClaimAttempt(_plan_lease(connection, locked, wanted, settings))
    if crowded or _candidates(connection, wanted, like):
        return _ClaimAttempt(crowded=not crowded)
    return _ClaimAttempt(_no_work(connection))


# Before the patience is set: claims of one client wait for one another for as long as it takes.
_LOCK_CLIENT = text("SELECT pg_advisory_xact_lock(:lock, hashtext(:client))")
# Not in one statement with that lock: what others did while it was waited for must be seen.
_COUNT_OPEN_LEASES = text(
    "SELECT count(*) AS held, set_config('lock_timeout', :patience, true) FROM work_assignments"
    " WHERE client_id = :client AND closed_at IS NULL"
)


def _build_filters(connection: Connection, wanted: WorkRequest) -> _ClaimFilters:
    values = {name: value for name in FILTERED if (value := getattr(wanted, name)) is not None}
    if wanted.project is not None:
        # By its id, of which the query planner knows how many numbers it has.
        known = connection.execute(candidates.PROJECT_ID, {"project": wanted.project}).scalar_one_or_none()
        values["project_id"] = NO_PROJECT if known is None else known
    alone = ("alone",) if wanted.method == ECM and not wanted.shared else ()
    return _ClaimFilters((*values, *alone), values)


def _first_free(connection: Connection, wanted: WorkRequest, like: _ClaimFilters) -> Iterator[int]:
    """The numbers to try, in the wanted order, that no other claim is at: this one alone is at each from then on."""
    order = wanted.order if wanted.method == ECM else "standard"
    for wants in wanted.wants:
        free = connection.execute(
            candidates.lock_first_free(wants, order, like.filters), like.values
        ).scalar_one_or_none()
        passed: list[int] = []
        while free is not None:
            yield free
            passed.append(free)
            others = candidates.lock_first_free(wants, order, (*like.filters, "passed"))
            free = connection.execute(others, {**like.values, "passed": passed}).scalar_one_or_none()


def _lock_first(connection: Connection, wanted: WorkRequest, like: _ClaimFilters) -> list[Row] | None:
    """The first number that no other claim is at, locked (or none: not like that any more); None if there is none.

    A result that is being applied to it is waited for, which takes milliseconds. While something longer has it the next
    few are looked at, without waiting; and if those are busy too, it is waited for again.
    """
    first: int | None = None
    for tried, composite_id in enumerate(_first_free(connection, wanted, like)):
        locked = _lock(connection, composite_id, like, wait=first is None)
        if locked is not None:
            return locked
        if first is None:
            first = composite_id
        if tried == MAX_PASSED:
            break
    return None if first is None else _lock(connection, first, like, wait=True)


def _wait_for_one(connection: Connection, wanted: WorkRequest, like: _ClaimFilters) -> list[Row] | None:
    """One of the numbers that other claims are at, as soon as they leave it: any one, for all others wait too."""
    numbers = _candidates(connection, wanted, like)
    if not numbers:
        return None
    composite_id = random.choice(numbers)
    return _lock(connection, composite_id, like, wait=True) if _wait_for_claims(connection, composite_id) else None


def _candidates(connection: Connection, wanted: WorkRequest, like: _ClaimFilters) -> list[int]:
    """The first numbers that want such work, whoever is at them."""
    order = wanted.order if wanted.method == ECM else "standard"
    for wants in wanted.wants:
        found = connection.execute(candidates.candidate_ids(wants, order, like.filters), like.values)
        if ids := list(found.scalars()):
            return ids
    return []


def _wait_for_claims(connection: Connection, composite_id: int) -> bool:
    """Whether this claim alone is at that number now, having waited for others."""
    keys = {"lock": COMPOSITE_LOCK, "id": composite_id}
    return _execute_with_lock_timeout(connection, _LOCK_COMPOSITE, keys) is not None


_LOCK_COMPOSITE = text("SELECT pg_advisory_xact_lock(:lock, hashint8(:id))")


def _execute_with_lock_timeout(connection: Connection, statement: Any, parameters: dict[str, Any]) -> list[Row] | None:
    """The rows of a statement that waits for a lock; None if it did not get it within LOCK_PATIENCE_MS."""
    try:
        with savepoint(connection):
            return list(connection.execute(statement, parameters))
    except DBAPIError as error:
        if getattr(error.orig, "pgcode", None) != LOCK_NOT_AVAILABLE:
            raise
        return None


def _lock(connection: Connection, composite_id: int, like: _ClaimFilters, *, wait: bool) -> list[Row] | None:
    """The number's row, locked, or none if it is not like what is wanted any more; None while somebody has it."""
    which = {**like.values, "id": composite_id}
    at_once = connection.execute(candidates.lock_candidate(like.filters, wait=False), which).all()
    if at_once or not wait:
        return list(at_once) or None
    return _execute_with_lock_timeout(connection, candidates.lock_candidate(like.filters, wait=True), which)


def _plan_lease(connection: Connection, locked: list[Row], wanted: WorkRequest, settings: Settings) -> Claim | None:
    """Lease the number that only this claim is at; None if it turns out to want no such work any more."""
    if not locked:
        return None
    (row,) = locked
    leases = lease_lifecycle.open_leases(connection, [row.id]).get(row.id, [])
    now = eligibility.compute_eligibility(row, leases)
    made = None
    if any(now[column] for column in wanted.wants):
        if wanted.method == ECM:
            made = _make_ecm(connection, row, leases, wanted, settings)
        else:
            made = _make_p1(connection, row, now, wanted)
    if made is None:  # the row said something that is not true any more
        lease_lifecycle.refresh_eligibility(connection, [row.id])
        return None
    claim, lease = made
    lease_lifecycle.store_eligibility(connection, row, [*leases, lease])
    return claim


def _make_p1(connection: Connection, row: Row, now: dict[str, Any], wanted: WorkRequest) -> tuple[Claim, Row]:
    """What the client is told, and the lease: of what the number wants `now` of P-1 and P+1."""
    b1 = now["p1_target_b1"]
    lacking: dict[str, int] = {
        method: b1
        for method, column in ((PM1, "pm1_eligible"), (PP1, "pp1_eligible"))
        if wanted.method in (method, BOTH_P1) and now[column]
    }
    # What is leased is what is written: of a number that lacks one of them, the other may be out on lease.
    method = BOTH_P1 if len(lacking) == 2 else next(iter(lacking))
    seconds = int((wanted.days or DEFAULT_DAYS) * SECONDS_PER_DAY)
    lease = _insert(connection, row.id, wanted.client_id, method, seconds, b1=b1, b2=DEFAULT_B2)
    made = Claim(lease.id, row, method, None, False, lease.expires_at, pm1_b1=lacking.get(PM1), pp1_b1=lacking.get(PP1))
    return made, lease


def _make_ecm(
    connection: Connection, row: Row, leases: list[Row], wanted: WorkRequest, settings: Settings
) -> tuple[Claim, Row] | None:
    most = settings.lease_target_minutes * 60
    speed = measured_speed(connection, wanted.client_id)
    wish = PlanRequest(
        most * SHORTEST_SHARE, most, speed, b1=wanted.b1, b2=STAGE1_ONLY if wanted.stage1_only else DEFAULT_B2
    )
    vector = eligibility.add_leased_curves(row.effort, leases)
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
    lease = _insert(connection, row.id, wanted.client_id, ECM, seconds, **run)
    made = Claim(
        lease.id,
        row,
        ECM,
        plan,
        wanted.shared,
        lease.expires_at,
        prior_t_level=_prior_t_level(connection, row.id),
        minutes=own_seconds / 60,
    )
    return made, lease


def _insert(connection: Connection, composite_id: int, client_id: str, method: str, seconds: int, **run: int) -> Row:
    lease = {
        "id": uuid.uuid4(),
        "composite_id": composite_id,
        "client_id": client_id,
        "method": method,
        "expires_at": datetime.now(UTC) + timedelta(seconds=max(1, seconds)),
        "lease_seconds": max(1, seconds),
    }
    return connection.execute(_INSERT, {**_NO_RUN, **run, **lease}).one()


_NO_RUN = dict.fromkeys(("b1", "b2", "parametrization", "curves"))
_INSERT = insert(candidates.LEASES).values(created_at=func.clock_timestamp()).returning(candidates.LEASES)


def _prior_t_level(connection: Connection, composite_id: int) -> float:
    """The t-level that work from before the registry gives by itself."""
    runs = connection.execute(_PRIOR, {"id": composite_id}).all()
    return (
        effort.t_level(effort.effort_of([(run.b1, run.b2, run.parametrization, run.prior_curves) for run in runs]))
        if runs
        else 0.0
    )


_PRIOR = select(
    CompositeEffort.b1, CompositeEffort.b2, CompositeEffort.parametrization, CompositeEffort.prior_curves
).where(CompositeEffort.composite_id == bindparam("id"), CompositeEffort.prior_curves > 0)


def _claim_named(connection: Connection, wanted: WorkRequest, like: _ClaimFilters, settings: Settings) -> _ClaimAttempt:
    """Lease the number that the client names, or say why not."""
    written = wanted.composite or ""
    found = registry.find(connection, written, settings.max_digits)
    if found is None:
        return _ClaimAttempt(NoWork(f"{shorten(written)} is not a number of this server.", ASK_AGAIN_LATEST))
    locked = _lock(connection, found.id, like, wait=True) if _wait_for_claims(connection, found.id) else None
    if locked is None:
        return _ClaimAttempt()
    made = _plan_lease(connection, locked, wanted, settings)
    if made is not None:
        return _ClaimAttempt(made)
    row = connection.execute(select(Composite).where(Composite.id == found.id)).one()
    return _ClaimAttempt(NoWork(f"{shorten(written)} {next(_reasons(connection, row, wanted))}.", ASK_AGAIN_LATEST))


def _reasons(connection: Connection, row: Row, wanted: WorkRequest) -> Iterator[str]:
    """Why a number has no work for this client, each the end of a sentence, the plainest first."""
    if row.is_fully_factored:
        yield "is fully factored"
    if row.is_prime is None:
        yield "waits for a primality test"
    if not eligibility.needs_curves(row):
        yield "has no composite cofactor left that needs curves"
    if row.hold is not None:
        yield f"is {row.hold}: {row.hold_reason or 'no reason given'}"
    leases = lease_lifecycle.open_leases(connection, [row.id]).get(row.id, [])
    if any(lease.method in eligibility.RESERVATION_METHODS for lease in leases):
        yield "is reserved for another method"
    if wanted.method != ECM and not any(getattr(row, column) for column in wanted.wants):
        yield f"has had P-1 and P+1 up to B1 = {row.p1_target_b1:,}, or they are out on lease"
    if wanted.method == ECM:
        if row.current_t_level >= row.target_t_level:
            yield f"has reached its target of t{row.target_t_level:.1f}"
        curves_out = sum(lease.method == ECM for lease in leases)
        if curves_out and not (wanted.shared and row.ecm_eligible):
            yield f"has open leases ({curves_out}), which leave nothing for one like this"
    yield "does not match the other filters"


def _no_work(connection: Connection) -> NoWork:
    """No work: ask again when the next lease runs out, or soon, for leases end before that too."""
    soonest = select(func.min(WorkAssignment.expires_at)).where(WorkAssignment.closed_at.is_(None))
    expires_at = connection.execute(soonest).scalar_one()
    seconds = ASK_AGAIN_LATEST if expires_at is None else (expires_at - datetime.now(UTC)).total_seconds()
    latest = ASK_AGAIN_LATEST if expires_at is None else ASK_AGAIN_WHILE_LEASED
    retry_after = int(min(max(seconds, ASK_AGAIN_SOONEST), latest))
    return NoWork(f"There is no work like this now; ask again in {retry_after} seconds.", retry_after)
