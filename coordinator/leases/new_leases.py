"""Planning a lease of a locked target and inserting it."""

import uuid
from typing import Any, NamedTuple

from sqlalchemy import Connection, Label, Row, Select, Uuid, bindparam, select, text

from config.settings import Settings
from coordinator import effort
from coordinator.base.json_rows import json_rows
from coordinator.composites import eligibility, lease_lifecycle, target_changes
from coordinator.composites.eligibility import BOTH_P1, ECM, PM1, PP1
from coordinator.effort import planning
from coordinator.effort.planning import PlanRequest
from coordinator.leases import candidates
from coordinator.leases.speeds import TIMED_RUNS, TimedRun, speed_of
from coordinator.leases.work_request import Claim, WorkRequest
from models.limits import DEFAULT_B2, STAGE1_ONLY
from models.tables import TargetSource, ValueEffort

SECONDS_PER_DAY = 86_400
DEFAULT_DAYS = 5.0
# A shared lease lasts SLACK times as long as its curves should take: machines sleep and have other things to do.
SLACK, SHORTEST_LEASE = 3.0, 1800
# The plan of a lease takes at least this share of LEASE_TARGET_MINUTES, or clients would spend their time on claims.
SHORTEST_SHARE = 1 / 60


class NamedBy(NamedTuple):
    """Which composite names a lease: the one with this id, or one of this project; both None: any with the target."""

    composite_id: int | None = None
    project_id: int | None = None


class LeaseTerms(NamedTuple):
    """The columns of an open lease that decide what it leaves to others (eligibility.OpenLease)."""

    method: str
    b1: int | None
    b2: int | None
    parametrization: int | None
    curves: int | None
    curves_submitted: int = 0


def make_lease(
    connection: Connection, row: Row[Any], request: WorkRequest, settings: Settings, named: NamedBy
) -> Claim | None:
    """Lease the locked target `row` and update its eligibility; None if it is no longer eligible for such work.

    The lease names the composite `named`; of several, the oldest unfinished number that has the target.
    """
    composite = _read_facts(connection, row.id, request, named)
    if composite is None:  # it is finished, or it has left the target since the target was found
        if named == NamedBy():
            # Only finished numbers have this target. Left open, it would be the first candidate of every claim.
            target_changes.finish(connection, row.id)
            lease_lifecycle.refresh_eligibility(connection, [row.id])
        return None
    leases = [LeaseTerms(*terms) for terms in composite.open_leases]
    columns = eligibility.compute_eligibility(row, leases)
    planned = None
    if any(columns[column] for column in request.eligibility_columns):
        if request.method == ECM:
            planned = _plan_ecm(row, composite, request, leases=leases, settings=settings)
        else:
            planned = _plan_p1(columns, request)
    if planned is None:  # the stored eligibility was out of date
        lease_lifecycle.refresh_eligibility(connection, [row.id])
        return None
    stored = {
        **planned.terms._asdict(),
        **eligibility.compute_eligibility(row, [*leases, planned.terms]),
        "id": uuid.uuid4(),
        "composite_id": composite.id,
        "target_id": row.id,
        "client_id": request.client_id,
        "lease_seconds": max(1, int(planned.seconds)),
    }
    expires_at = connection.execute(_STORE_LEASE, stored).scalar_one()
    return Claim(stored["id"], composite, planned.terms.method, expires_at=expires_at, **planned.fields)


class _Planned(NamedTuple):
    """A lease that is to be inserted: its terms, how many seconds it lasts, and further fields of its Claim."""

    terms: LeaseTerms
    seconds: float
    fields: dict[str, Any]


def _plan_p1(columns: dict[str, Any], request: WorkRequest) -> _Planned:
    """Plan the requested methods of P-1/P+1 that the target still needs, by its eligibility `columns`."""
    b1 = columns["p1_target_b1"]
    bounds: dict[str, int] = {
        method: b1
        for method, column in ((PM1, "pm1_eligible"), (PP1, "pp1_eligible"))
        if request.method in (method, BOTH_P1) and columns[column]
    }
    # The lease has the methods that it really contains: of a target that lacks one, the other may be out on lease.
    method = BOTH_P1 if len(bounds) == 2 else next(iter(bounds))
    fields = {"plan": None, "shared": False, "pm1_b1": bounds.get(PM1), "pp1_b1": bounds.get(PP1)}
    seconds = (request.days or DEFAULT_DAYS) * SECONDS_PER_DAY
    return _Planned(LeaseTerms(method, b1, DEFAULT_B2, None, None), seconds, fields)


def _plan_ecm(
    row: Row[Any], composite: Row[Any], request: WorkRequest, *, leases: list[LeaseTerms], settings: Settings
) -> _Planned | None:
    """Plan curves; None if the target, with all leased curves, is at its target, or is not free as a whole."""
    if not request.shared and any(lease.method == ECM for lease in leases):
        return None  # this lease is newer than the statement that found the target
    most = settings.lease_target_minutes * 60
    speed = speed_of(TimedRun(*run) for run in composite.timed_runs)
    b2 = STAGE1_ONLY if request.stage1_only else DEFAULT_B2
    plan_request = PlanRequest(most * SHORTEST_SHARE, most, speed, b1=request.b1, b2=b2)
    vector = eligibility.add_leased_curves(row.effort, leases)
    plan = planning.plan_curves(vector, row.digit_length, row.target_t_level, plan_request)
    if plan is None:
        return None
    own_seconds = plan.seconds / speed
    if request.shared:
        terms = LeaseTerms(ECM, plan.b1, plan.b2, plan.parametrization, plan.curves)
        usual = max(SHORTEST_LEASE, SLACK * own_seconds)
    else:
        terms, usual = LeaseTerms(ECM, None, None, None, None), DEFAULT_DAYS * SECONDS_PER_DAY
    seconds = usual if request.days is None else request.days * SECONDS_PER_DAY
    prior = effort.effort_of(tuple(run) for run in composite.prior_runs)
    fields = {
        "plan": plan,
        "shared": request.shared,
        "prior_t_level": effort.t_level(prior) if composite.prior_runs else 0.0,
        "minutes": own_seconds / 60,
    }
    return _Planned(terms, seconds, fields)


def _read_facts(connection: Connection, target_id: int, request: WorkRequest, named: NamedBy) -> Row[Any] | None:
    """Return the composite that names a lease (candidates.NAMED_COLUMNS), with what planning the lease needs.

    That is `open_leases` (LeaseTerms) of the target, and for ECM `timed_runs` of the client (speeds.TimedRun) and
    `prior_runs`, the prior work that counts for the target.
    """
    values = {"target": target_id, "id": named.composite_id, "project_id": named.project_id}
    statements = _ECM_FACTS if request.method == ECM else _P1_FACTS
    if named.composite_id is not None:
        statement = statements.by_id
    else:
        statement = statements.any if named.project_id is None else statements.of_project
    facts: Row[Any] | None = connection.execute(statement, values | {"client": request.client_id}).one_or_none()
    return facts


class _Facts(NamedTuple):
    """The statement of `_read_facts` for each way in which a lease can be named."""

    any: Select[Any]
    by_id: Select[Any]
    of_project: Select[Any]


def _facts(*columns: Label[Any]) -> _Facts:
    named = (candidates.NAMED, candidates.NAMED_BY_ID, candidates.NAMED_OF_PROJECT)
    return _Facts(*(statement.add_columns(*columns) for statement in named))


_leases, _effort, _sources = (
    candidates.leases,
    ValueEffort.__table__.c,
    TargetSource.__table__.c,
)
_OPEN_LEASES = json_rows(
    select(*(_leases[name] for name in LeaseTerms._fields)).where(
        _leases.target_id == bindparam("target"), _leases.closed_at.is_(None)
    ),
    "open_leases",
)
_PRIOR_RUNS = json_rows(
    select(_effort.b1, _effort.b2, _effort.parametrization, _effort.prior_curves)
    .join(TargetSource.__table__, _sources.value_id == _effort.value_id)
    .where(_sources.target_id == bindparam("target"), _effort.prior_curves > 0),
    "prior_runs",
)
_P1_FACTS = _facts(_OPEN_LEASES)
_ECM_FACTS = _facts(_OPEN_LEASES, _PRIOR_RUNS, TIMED_RUNS)

_LEASE_COLUMNS = ("id", "composite_id", "target_id", "client_id", *LeaseTerms._fields, "lease_seconds")
# A lease lasts by the database's clock, which also decides when its time has run out.
_STORE_LEASE = text(
    f"""
WITH eligibility AS (
    UPDATE targets SET {", ".join(f"{name} = :{name}" for name in eligibility.Eligibility._fields)}
    WHERE id = :target_id
)
INSERT INTO work_assignments ({", ".join(_LEASE_COLUMNS)}, created_at, expires_at)
VALUES ({", ".join(f":{name}" for name in _LEASE_COLUMNS)},
        clock_timestamp(), clock_timestamp() + make_interval(secs => :lease_seconds))
RETURNING expires_at
"""  # noqa: S608 - only names of columns are inserted
).bindparams(bindparam("id", type_=Uuid))
