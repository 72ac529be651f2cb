"""Planning a lease of a locked target and inserting it."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select

from config.settings import Settings
from coordinator import effort
from coordinator.composites import eligibility, lease_lifecycle, target_changes
from coordinator.composites.eligibility import BOTH_P1, ECM, PM1, PP1
from coordinator.effort import planning
from coordinator.effort.planning import PlanRequest
from coordinator.leases import candidates
from coordinator.leases.speeds import measured_speed
from coordinator.leases.work_request import Claim, WorkRequest
from models.limits import DEFAULT_B2, STAGE1_ONLY
from models.tables import TargetSource, ValueEffort

SECONDS_PER_DAY = 86_400
DEFAULT_DAYS = 5.0
# A shared lease lasts SLACK times as long as its curves should take: machines sleep and have other things to do.
SLACK, SHORTEST_LEASE = 3.0, 1800
# The plan of a lease takes at least this share of LEASE_TARGET_MINUTES, or clients would spend their time on claims.
SHORTEST_SHARE = 1 / 60

LeaseRow = Row[Any]


def make_lease(
    connection: Connection, row: Row[Any], request: WorkRequest, settings: Settings, named_id: int | None
) -> Claim | None:
    """Lease the locked target `row` and update its eligibility; None if it is no longer eligible for such work.

    The lease names the composite `named_id`; if that is None, the oldest unfinished number that has the target, of the
    project if the request names one.
    """
    composite = _named_composite(connection, row.id, request, named_id)
    if composite is None:  # it is finished, or it has left the target since the target was found
        if named_id is None and request.project is None:
            # Only finished numbers have this target. Left open, it would be the first candidate of every claim.
            target_changes.finish(connection, row.id)
            lease_lifecycle.refresh_eligibility(connection, [row.id])
        return None
    leases = lease_lifecycle.open_leases(connection, [row.id]).get(row.id, [])
    columns = eligibility.compute_eligibility(row, leases)
    made = None
    if any(columns[column] for column in request.eligibility_columns):
        if request.method == ECM:
            made = _make_ecm(connection, row, composite, request, leases=leases, settings=settings)
        else:
            made = _make_p1(connection, row, composite, columns, request)
    if made is None:  # the stored eligibility was out of date
        lease_lifecycle.refresh_eligibility(connection, [row.id])
        return None
    claim, lease = made
    lease_lifecycle.store_eligibility(connection, row, [*leases, lease])
    return claim


def _make_p1(
    connection: Connection, row: Row[Any], composite: Row[Any], columns: dict[str, Any], request: WorkRequest
) -> tuple[Claim, LeaseRow]:
    """Insert a P-1/P+1 lease for the requested methods that the target still needs, by its eligibility `columns`."""
    b1 = columns["p1_target_b1"]
    bounds: dict[str, int] = {
        method: b1
        for method, column in ((PM1, "pm1_eligible"), (PP1, "pp1_eligible"))
        if request.method in (method, BOTH_P1) and columns[column]
    }
    # The lease has the methods that it really contains: of a target that lacks one, the other may be out on lease.
    method = BOTH_P1 if len(bounds) == 2 else next(iter(bounds))
    seconds = int((request.days or DEFAULT_DAYS) * SECONDS_PER_DAY)
    run = {"b1": b1, "b2": DEFAULT_B2}
    lease = _insert_lease(connection, composite, row.id, request.client_id, method=method, seconds=seconds, **run)
    claim = Claim(
        lease.id, composite, method, None, False, lease.expires_at, pm1_b1=bounds.get(PM1), pp1_b1=bounds.get(PP1)
    )
    return claim, lease


def _make_ecm(
    connection: Connection,
    row: Row[Any],
    composite: Row[Any],
    request: WorkRequest,
    *,
    leases: list[LeaseRow],
    settings: Settings,
) -> tuple[Claim, LeaseRow] | None:
    """Plan curves and insert an ECM lease; None if the target, with all leased curves, is at its target."""
    most = settings.lease_target_minutes * 60
    speed = measured_speed(connection, request.client_id)
    b2 = STAGE1_ONLY if request.stage1_only else DEFAULT_B2
    plan_request = PlanRequest(most * SHORTEST_SHARE, most, speed, b1=request.b1, b2=b2)
    vector = eligibility.add_leased_curves(row.effort, leases)
    plan = planning.plan_curves(vector, row.digit_length, row.target_t_level, plan_request)
    if plan is None:
        return None
    own_seconds = plan.seconds / speed
    if request.shared:
        run = {"b1": plan.b1, "b2": plan.b2, "parametrization": plan.parametrization, "curves": plan.curves}
        usual = max(SHORTEST_LEASE, SLACK * own_seconds)
    else:
        run, usual = {}, DEFAULT_DAYS * SECONDS_PER_DAY
    seconds = int(usual if request.days is None else request.days * SECONDS_PER_DAY)
    lease = _insert_lease(connection, composite, row.id, request.client_id, method=ECM, seconds=seconds, **run)
    claim = Claim(
        lease.id,
        composite,
        ECM,
        plan,
        request.shared,
        lease.expires_at,
        prior_t_level=_prior_t_level(connection, row.id),
        minutes=own_seconds / 60,
    )
    return claim, lease


def _insert_lease(
    connection: Connection,
    composite: Row[Any],
    target_id: int,
    client_id: str,
    *,
    method: str,
    seconds: int,
    **run: int,
) -> LeaseRow:
    lease = {
        "id": uuid.uuid4(),
        "composite_id": composite.id,
        "target_id": target_id,
        "client_id": client_id,
        "method": method,
        "expires_at": datetime.now(UTC) + timedelta(seconds=max(1, seconds)),
        "lease_seconds": max(1, seconds),
    }
    return connection.execute(_INSERT_LEASE, {**_NO_RUN, **run, **lease}).one()


_NO_RUN = dict.fromkeys(("b1", "b2", "parametrization", "curves"))
_INSERT_LEASE = insert(candidates.LEASES).values(created_at=func.clock_timestamp()).returning(candidates.LEASES)


def _named_composite(
    connection: Connection, target_id: int, request: WorkRequest, named_id: int | None
) -> Row[Any] | None:
    """Return the composite under whose name a target is leased (candidates.NAMED_COLUMNS)."""
    if named_id is not None:
        chosen = connection.execute(candidates.NAMED_BY_ID, {"id": named_id, "target": target_id})
    elif request.project is None:
        chosen = connection.execute(candidates.NAMED, {"target": target_id})
    else:
        project_id = connection.execute(candidates.PROJECT_ID, {"project": request.project}).scalar_one_or_none()
        chosen = connection.execute(candidates.NAMED_OF_PROJECT, {"target": target_id, "project_id": project_id})
    named: Row[Any] | None = chosen.one_or_none()
    return named


def _prior_t_level(connection: Connection, target_id: int) -> float:
    """Return the t-level of the prior work alone that counts for a target."""
    runs = connection.execute(_PRIOR_RUNS, {"id": target_id}).all()
    if not runs:
        return 0.0
    return effort.t_level(effort.effort_of((run.b1, run.b2, run.parametrization, run.prior_curves) for run in runs))


_PRIOR_RUNS = (
    select(ValueEffort.b1, ValueEffort.b2, ValueEffort.parametrization, ValueEffort.prior_curves)
    .join(TargetSource, TargetSource.value_id == ValueEffort.value_id)
    .where(TargetSource.target_id == bindparam("id"), ValueEffort.prior_curves > 0)
)
