"""How fast a client is, computed from the attempts that it has sent."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Engine,
    FromClause,
    Select,
    Table,
    Text,
    bindparam,
    func,
    select,
    true,
)

from coordinator.base.json_rows import json_rows
from coordinator.composites.eligibility import ECM
from coordinator.effort import planning
from models.limits import DEFAULT_B2
from models.tables import Composite, EcmAttempt

# The last timed runs show how fast a client is now; it may have sent older ones from another machine. Only its last
# attempts are searched for them, because some clients have thousands of attempts and never send a time.
MAX_TIMED_RUNS, MAX_ATTEMPTS = 10, 50
SLOWEST, FASTEST = 1 / 100, 1000.0


class TimedRun(NamedTuple):
    """A run that a client has timed, and the present number of digits of its composite."""

    b1: int
    b2: int | None
    curves: int
    execution_time: float
    digit_length: int


def speed_of(runs: Iterable[TimedRun]) -> float:
    """Return how many seconds of an ordinary core's work (planning.seconds_per_curve) a client does per second.

    It is computed from its `runs`; without any it is 1.
    """
    ordinary = own = 0.0
    for run in runs:
        b2 = DEFAULT_B2 if run.b2 is None else run.b2
        ordinary += run.curves * planning.seconds_per_curve(run.b1, b2, run.digit_length)
        own += run.execution_time
    return min(max(ordinary / own, SLOWEST), FASTEST) if own else 1.0


def client_speeds(engine: Engine, client_ids: Sequence[str]) -> dict[str, float]:
    """Return the speed of each of these clients that has sent timed runs, from its last ECM runs with a time."""
    runs: defaultdict[str, list[TimedRun]] = defaultdict(list)
    with engine.connect() as connection:
        for client, *run in connection.execute(_RECENT_TIMINGS, {"clients": list(client_ids)}):
            runs[client].append(TimedRun(*run))
    return {client: speed_of(of_client) for client, of_client in runs.items()}


_attempts = cast(Table, EcmAttempt.__table__)
_composites = cast(Table, Composite.__table__)


def _recent_runs(client: ColumnElement[str], *correlated: FromClause) -> Select[Any]:
    """Return SQL for the last timed runs of a client."""
    recent = (
        select(_attempts)
        .where(_attempts.c.client_id == client)
        .correlate(*correlated)
        .order_by(_attempts.c.id.desc())
        .limit(MAX_ATTEMPTS)
        .lateral("recent")
    )
    return (
        select(recent.c.b1, recent.c.b2, recent.c.curves, recent.c.execution_time, _composites.c.digit_length)
        .join(_composites, _composites.c.id == recent.c.composite_id)
        .where(recent.c.method == ECM, recent.c.curves > 0, recent.c.execution_time > 0)
        .order_by(recent.c.id.desc())
        .limit(MAX_TIMED_RUNS)
        .correlate(*correlated)
    )


_clients = func.unnest(bindparam("clients", type_=ARRAY(Text))).table_valued("client").render_derived(name="clients")
_timed = _recent_runs(_clients.c.client, _clients).lateral("timed")
_RECENT_TIMINGS = select(_clients.c.client, *_timed.c).select_from(_clients).join(_timed, true())
# The fields of TimedRun of the client `client`, as an array of arrays.
TIMED_RUNS = json_rows(_recent_runs(bindparam("client", type_=Text)), "timed_runs")
