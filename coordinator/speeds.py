"""How fast a client is, from the attempts it has sent."""

from sqlalchemy import Connection, bindparam, select

from coordinator import planning
from coordinator.demand import ECM
from models.limits import DEFAULT_B2
from models.tables import Composite, EcmAttempt

# A client's last timed runs say how fast it is now; older ones were perhaps run on another machine. They are looked for
# among its last attempts only: a client that never says how long it took is not searched to its beginning.
TIMED, LOOKED_AT = 10, 50
SLOWEST, FASTEST = 1 / 100, 1000.0


def measured_speed(connection: Connection, client_id: str) -> float:
    """Seconds of ordinary work (planning.seconds_per_curve) that a client does in a second of its own; 1 if unknown.

    From its last ECM runs that say how long they took; their number's size is taken as it is now.
    """
    ordinary = own = 0.0
    for row in connection.execute(_LAST, {"client": client_id}):
        b2 = DEFAULT_B2 if row.b2 is None else row.b2
        ordinary += row.curves * planning.seconds_per_curve(row.b1, b2, row.digit_length)
        own += row.execution_time
    return min(max(ordinary / own, SLOWEST), FASTEST) if own else 1.0


_recent = (
    select(EcmAttempt)
    .where(EcmAttempt.client_id == bindparam("client"))
    .order_by(EcmAttempt.id.desc())
    .limit(LOOKED_AT)
    .subquery()
    .c
)
# Built once: building a statement costs more than running it.
_LAST = (
    select(_recent.b1, _recent.b2, _recent.curves, _recent.execution_time, Composite.digit_length)
    .join(Composite, Composite.id == _recent.composite_id)
    .where(_recent.method == ECM, _recent.curves > 0, _recent.execution_time > 0)
    .order_by(_recent.id.desc())
    .limit(TIMED)
)
