"""How fast work is claimed, and whether that depends on how many numbers there are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Engine, text

from coordinator import demand, effort, planning
from coordinator.demand import ECM
from models.limits import DEFAULT_B2

DIGITS = range(90, 251)
PROJECT = "one number in a hundred"
# Of twenty numbers of each size so many are in this state, and have had this share of their target's t-level.
STATES = (
    *(("wanting", 0.0),) * 4,
    *(("wanting", 0.3), ("wanting", 0.6), ("wanting", 0.8), ("wanting", 0.9)),
    *(("leased by curves", 0.3), ("leased as a whole", 0.6), ("reserved", 0.9)),
    *(("paused", 0.0), ("untested", 0.0)),
    *(("at its target", 1.01),) * 3,
    *(("finished", 0.6),) * 4,
)


@dataclass(frozen=True)
class Kind:
    """Numbers that are alike: what coordinator/demand.py asks of a composite."""

    digit_length: int
    state: str
    effort: np.ndarray
    run: tuple[int, int | None, int, int]
    target_t_level: float
    pm1_b1: int = 0
    pp1_b1: int = 0

    @property
    def is_prime(self) -> bool | None:
        return None if self.state == "untested" else self.is_fully_factored

    @property
    def is_fully_factored(self) -> bool:
        return self.state == "finished"

    @property
    def hold(self) -> str | None:
        return "paused" if self.state == "paused" else None


@dataclass(frozen=True)
class Lease:
    """What coordinator/demand.py asks of a lease; `curves` None: the whole number."""

    method: str
    b1: int | None = None
    curves: int | None = None
    b2: int = DEFAULT_B2
    parametrization: int = planning.PARAMETRIZATION
    curves_submitted: int = 0


LEASES = {
    "leased by curves": Lease(ECM, b1=50_000, curves=10),
    "leased as a whole": Lease(ECM),
    "reserved": Lease("nfs"),
}


def kinds() -> list[dict[str, Any]]:
    """A row for each kind of number, its work columns by the coordinator's own rules."""
    rows: list[dict[str, Any]] = []
    for digits in DIGITS:
        target = effort.target_t_level(digits)
        by_share = {}
        for state, share in STATES:
            if share not in by_share:
                run = effort.curves_of_t_level(share * target)
                by_share[share] = run, effort.effort_of([run])
            run, vector = by_share[share]
            kind = Kind(digits, state, vector, run, target)
            lease = LEASES.get(state)
            rows.append(
                demand.wants(kind, [lease] if lease else [])
                | {
                    "kind": len(rows),
                    "digits": digits,
                    "is_prime": kind.is_prime,
                    "finished": kind.is_fully_factored,
                    "hold": kind.hold,
                    "target": target,
                    "t_level": effort.t_level(vector),
                    "effort": vector.astype("<f8").tobytes(),
                    "b1": run[0],
                    "curves": run[3],
                    "lease_method": lease and lease.method,
                    "lease_b1": lease and lease.b1,
                    "lease_curves": lease and lease.curves,
                }
            )
    return rows


_KINDS = """
CREATE TEMP TABLE kinds (
    kind integer PRIMARY KEY, digits integer, is_prime boolean, finished boolean, hold text, target double precision,
    t_level double precision, effort bytea, b1 bigint, curves bigint, lease_method text, lease_b1 bigint,
    lease_curves bigint, open_leases smallint, wants_ecm boolean, wants_pm1 boolean, wants_pp1 boolean,
    wanted_p1_b1 bigint, planned_t_level double precision, work_value double precision
) ON COMMIT DROP
"""
_NUMBERS = """
CREATE TEMP TABLE loaded ON COMMIT DROP AS
SELECT n AS id, '1' || lpad(n::text, 12, '0') || repeat('7', k.digits - 13) AS number, k.*
FROM generate_series(:first, :last) n
JOIN kinds k ON k.kind = (hashint8(n)::bigint & 2147483647) % (SELECT count(*) FROM kinds)
"""
_LOAD = (
    """
INSERT INTO composites (
    id, number, value_sha256, current_composite, digit_length, is_prime, is_fully_factored, priority, target_t_level,
    current_t_level, effort, hold, held_at, open_leases, wants_ecm, wants_pm1, wants_pp1, wanted_p1_b1, planned_t_level,
    work_value
)
SELECT id, number, sha256(number::bytea), CASE WHEN finished THEN '1' ELSE number END, digits, is_prime, finished,
       id % 7, target, t_level, effort, hold, CASE WHEN hold IS NOT NULL THEN now() END, open_leases, wants_ecm,
       wants_pm1, wants_pp1, wanted_p1_b1, planned_t_level, work_value
FROM loaded ORDER BY id
""",
    """
INSERT INTO composite_effort (composite_id, b1, b2, parametrization, prior_curves)
SELECT id, b1, -1, 1, curves FROM loaded WHERE curves > 0
""",
    """
INSERT INTO work_assignments (id, composite_id, client_id, method, b1, b2, parametrization, curves, expires_at)
SELECT gen_random_uuid(), id, 'holder-' || id % 1000, lease_method, lease_b1, -1, 1, lease_curves,
       now() + interval '5 days'
FROM loaded WHERE lease_method IS NOT NULL
""",
    """
INSERT INTO work_assignments (id, composite_id, client_id, method, status, created_at, expires_at, closed_at)
SELECT gen_random_uuid(), id, 'holder-' || id % 1000, 'ecm', 'completed', now() - interval '9 days',
       now() - interval '4 days', now() - interval '5 days'
FROM loaded WHERE id % 4 = 0
""",
    """
INSERT INTO project_composites (project_id, composite_id)
SELECT p.id, loaded.id FROM loaded JOIN projects p ON p.name = :project WHERE loaded.id % 100 = 0
""",
    "SELECT setval('composites_id_seq', :last)",
)


def load(engine: Engine, first: int, last: int) -> None:
    """Register the numbers `first` to `last` in every state, a row each by SQL, and tell the query planner."""
    names = {"first": first, "last": last, "project": PROJECT}
    with engine.begin() as connection:
        connection.execute(text(_KINDS))
        rows = kinds()
        columns = ", ".join(rows[0])
        values = ", ".join(f":{name}" for name in rows[0])
        connection.execute(text(f"INSERT INTO kinds ({columns}) VALUES ({values})"), rows)
        connection.execute(text("INSERT INTO projects (name) VALUES (:project) ON CONFLICT DO NOTHING"), names)
        for statement in (_NUMBERS, *_LOAD):
            connection.execute(text(statement), names)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
