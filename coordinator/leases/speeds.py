"""How fast a client is, computed from the attempts that it has sent."""

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import ARRAY, Connection, Engine, Text, bindparam, func, select, true

from coordinator.composites.eligibility import ECM
from coordinator.effort import planning
from models.limits import DEFAULT_B2
from models.tables import Composite, EcmAttempt

# The last timed runs show how fast a client is now; it may have sent older ones from another machine. Only its last
# attempts are searched for them, because some clients have thousands of attempts and never send a time.
MAX_TIMED_RUNS, MAX_ATTEMPTS = 10, 50
SLOWEST, FASTEST = 1 / 100, 1000.0


def measured_speed(connection: Connection, client_id: str) -> float:
    """Return how many seconds of an ordinary core's work (planning.seconds_per_curve) a client does per second; else 1.

    It is computed from the client's last ECM runs that have an execution time, with the present sizes of their numbers.
    """
    return measured_speeds(connection, [client_id]).get(client_id, 1.0)


def client_speeds(engine: Engine, client_ids: Sequence[str]) -> dict[str, float]:
    """Return `measured_speeds`, for callers without a transaction."""
    with engine.connect() as connection:
        return measured_speeds(connection, client_ids)


def measured_speeds(connection: Connection, client_ids: Sequence[str]) -> dict[str, float]:
    """Return the `measured_speed` of each of these clients that has sent timed runs."""
    ordinary: defaultdict[str, float] = defaultdict(float)
    own: defaultdict[str, float] = defaultdict(float)
    for row in connection.execute(_RECENT_TIMINGS, {"clients": list(client_ids)}):
        b2 = DEFAULT_B2 if row.b2 is None else row.b2
        ordinary[row.client] += row.curves * planning.seconds_per_curve(row.b1, b2, row.digit_length)
        own[row.client] += row.execution_time
    return {client: min(max(ordinary[client] / seconds, SLOWEST), FASTEST) for client, seconds in own.items()}


_clients = func.unnest(bindparam("clients", type_=ARRAY(Text))).table_valued("client").render_derived(name="clients")
_recent = (
    select(EcmAttempt)
    .where(EcmAttempt.client_id == _clients.c.client)
    .correlate(_clients)
    .order_by(EcmAttempt.id.desc())
    .limit(MAX_ATTEMPTS)
    .lateral("recent")
)
_timed = (
    select(_recent.c.b1, _recent.c.b2, _recent.c.curves, _recent.c.execution_time, Composite.digit_length)
    .join(Composite, Composite.id == _recent.c.composite_id)
    .where(_recent.c.method == ECM, _recent.c.curves > 0, _recent.c.execution_time > 0)
    .order_by(_recent.c.id.desc())
    .limit(MAX_TIMED_RUNS)
    .correlate(_clients)
    .lateral("timed")
)
_RECENT_TIMINGS = select(_clients.c.client, *_timed.c).select_from(_clients).join(_timed, true())
