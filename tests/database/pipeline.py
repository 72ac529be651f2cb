"""The pipeline without HTTP and broker: store a result, apply it, run its jobs."""

import uuid
from collections.abc import Callable, Iterable
from time import monotonic, sleep
from typing import Any

from sqlalchemy import Engine, func, select, text, update

from config.settings import Settings
from coordinator.composites import lease_lifecycle, targets
from coordinator.housekeeping import job_runner
from coordinator.reading import invariants
from coordinator.results import applying, batches, inbox
from coordinator.results.applying import Applied
from coordinator.results.inbox import Receipt
from models.tables import Base, Composite, Job, Target
from models.wire.results import SubmitResult

SETTINGS = Settings(max_digits=20_000)
Apply = Callable[[Engine, int, Settings], Applied | None]


def result(
    composite: str,
    *factors: Any,
    client: str = "alice",
    b1: int | None = 50_000,
    b2: int | None = None,
    curves: int = 100,
    sigma: Any = None,
    parametrization: int | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return a body as clients send it; factors are strings or (factor, sigma)."""
    found = [
        {"factor": claim} if isinstance(claim, str) else {"factor": claim[0], "sigma": claim[1]} for claim in factors
    ]
    return {
        "client_id": client,
        "composite": composite,
        "parameters": {"b1": b1, "b2": b2, "curves": curves, "sigma": sigma, "parametrization": parametrization},
        "results": {"factors_found": found},
        **fields,
    }


def receive(
    engine: Engine,
    body: dict[str, Any],
    key: str | None = None,
    window: float = SETTINGS.implicit_key_window,
    request_id: str | None = None,
) -> Receipt:
    """Store a body in the inbox."""
    return inbox.receive(
        engine,
        SubmitResult.model_validate(body),
        key=key,
        max_raw_output=SETTINGS.max_raw_output,
        implicit_key_window=window,
        request_id=request_id,
    )


def submit(engine: Engine, body: dict[str, Any], key: str | None = None, apply: Apply = applying.apply_result) -> Any:
    """Store and apply a result; returns the row of its submission."""
    receipt = receive(engine, body, key)
    apply(engine, receipt.submission_id, SETTINGS)
    return inbox.submission_row(engine, receipt.submission_id)


def apply_in_batches(engine: Engine, submission_id: int, settings: Settings, seconds: float = 30) -> Applied | None:
    """Apply what waits, as workers do, until this submission is settled; returns None if it does not exist."""
    until = monotonic() + seconds
    to_publish = []
    while True:
        row = inbox.submission_row(engine, submission_id)
        if row is None or row.state != "received":
            return (
                None
                if row is None
                else Applied(row.state, (row.outcome or {}).get("factor_status"), row.detail, to_publish)
            )
        assert monotonic() < until, f"submission {submission_id} still waits: {row}"
        report = batches.apply_waiting(engine, settings, uuid.uuid4(), lambda ids, jobs: to_publish.extend(jobs))
        if submission_id not in {one.submission_id for one in report.attempted if one.state != "received"}:
            sleep(0.02)


def run_jobs(engine: Engine) -> int:
    """Run waiting jobs until none is left; returns their number."""
    done = 0
    while waiting := rows(engine, select(Job.id).where(Job.state == "waiting").order_by(Job.id)):
        for job in waiting:
            job_runner.run_job(engine, job.id, max_deliveries=SETTINGS.max_deliveries, max_digits=SETTINGS.max_digits)
            done += 1
    return done


def rows(engine: Engine, statement: Any, **parameters: Any) -> list[Any]:
    """Return the rows that a statement (or SQL text) selects."""
    if isinstance(statement, str):
        statement = text(statement)
    with engine.connect() as connection:
        return list(connection.execute(statement, parameters))


def scalar(engine: Engine, statement: Any, **parameters: Any) -> Any:
    """Return the one value of the one row that a statement (or SQL text) selects."""
    ((value,),) = rows(engine, statement, **parameters)
    return value


def run_sql(engine: Engine, statement: str, **parameters: Any) -> None:
    """Run a statement that changes the database directly, without the application."""
    with engine.begin() as connection:
        connection.execute(text(statement), parameters)


def counts(engine: Engine, names: Iterable[str]) -> dict[str, int]:
    """Return the number of rows of each of these tables."""
    return {name: scalar(engine, select(func.count()).select_from(Base.metadata.tables[name])) for name in names}


def leaves(engine: Engine, number: str) -> list[tuple[str, bool | None]]:
    """Return (factor, is prime) of the leaves of a number's tree, each as often as it divides, smallest first."""
    found = rows(
        engine,
        "SELECT f.id, f.factor, f.multiplicity, f.is_prime, f.split_from_id FROM factors f"
        " JOIN composites c ON c.id = f.composite_id WHERE c.number = :number ORDER BY f.id",
        number=number,
    )
    split = {row.split_from_id for row in found}
    times: dict[Any, int] = {None: 1}
    found_leaves: list[tuple[str, bool | None]] = []
    for row in found:
        times[row.id] = row.multiplicity * times[row.split_from_id]
        if row.id not in split:
            found_leaves += [(row.factor, row.is_prime)] * times[row.id]
    return sorted(found_leaves, key=lambda leaf: (len(leaf[0]), leaf[0]))


# The columns that only targets have, beside those of their composites.
_OF_TARGETS = [column for column in Target.__table__.columns if column.key not in Composite.__table__.columns]


def composite(engine: Engine, number: str | int) -> Any:
    """Return the composite that was registered with this text, or has this id, with the columns of its target."""
    chosen = Composite.number == number if isinstance(number, str) else Composite.id == number
    both = select(*Composite.__table__.columns, *_OF_TARGETS).outerjoin(Target, Target.id == Composite.target_id)
    (row,) = rows(engine, both.where(chosen))
    return row


def set_targets(engine: Engine, composite_ids: Iterable[int], **columns: Any) -> None:
    """Set columns of the targets of composites directly, without the application."""
    of_composites = select(Composite.target_id).where(Composite.id.in_(list(composite_ids)))
    with engine.begin() as connection:
        connection.execute(update(Target).where(Target.id.in_(of_composites)).values(columns))


def lease(
    engine: Engine,
    composite_id: int,
    client: str = "alice",
    curves: int | None = None,
    expires: str = "now() + interval '1 day'",
) -> Any:
    """Insert an open lease as a claim does; returns its id."""
    insert = (
        "INSERT INTO work_assignments"
        " (id, composite_id, target_id, client_id, method, b1, b2, parametrization, curves, expires_at)"
        " SELECT gen_random_uuid(), id, target_id, :client, 'ecm', 50000, -1, 1, CAST(:curves AS bigint),"
        f" {expires} FROM composites WHERE id = :composite RETURNING id"
    )
    with engine.begin() as connection:
        values = {"composite": composite_id, "client": client, "curves": curves}
        lease_id = connection.execute(text(insert), values).scalar_one()
        lease_lifecycle.refresh_eligibility(connection, targets.ids_of(connection, [composite_id]))
        return lease_id


def empty(engine: Engine) -> None:
    """Empty all tables, for the next example of a property test."""
    run_sql(engine, f"TRUNCATE {', '.join(Base.metadata.tables)} RESTART IDENTITY CASCADE")


def assert_sound(engine: Engine) -> None:
    """Check that every invariant holds."""
    found = invariants.violations(engine, max_digits=SETTINGS.max_digits)
    assert not found, found
