"""Bringing a database up to date: its schema, and the work that migrations owe to it.

A database without numbers is migrated in one transaction. In a database with numbers each revision is a transaction,
and what it owes is done before the next one: in chunks, each of which is committed together with the place up to which
the work is done (`owed_work`). A process that is killed anywhere thus leaves a database that the next one goes on with.
The schema is at the newest revision only when nothing is owed.
"""

from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Connection, Engine, delete, func, select, text, update
from sqlalchemy.orm import InstrumentedAttribute

from coordinator.base.unit_of_work import unit_of_work
from coordinator.housekeeping import eligibility_refresh, target_conversion
from models import migrate
from models.engine import make_engine
from models.tables import Composite, EcmAttempt, OwedWork, Target

# Called with a description of the work, and how much of it is done (from 0 to 1; None: it has not begun).
ReportProgress = Callable[[str, float | None], None]


class OwedStep(NamedTuple):
    """Work on the rows of a table in the order of their ids.

    `run` does a part of it in a unit of work, after the row with the given id. It returns the id of the last row that
    it has done, or None if no row was left.
    """

    description: str
    ids: InstrumentedAttribute[int]
    run: Callable[[Connection, int], int | None]


# By the name that a migration inserts into `owed_work`, in the order in which they are done.
STEPS = {
    "convert_attempts": OwedStep("values of attempts", EcmAttempt.id, target_conversion.convert_attempts),
    "convert_prior_work": OwedStep("prior work", Composite.id, target_conversion.convert_prior_work),
    "point_unfinished": OwedStep("unfinished values", Composite.id, target_conversion.point_unfinished),
    "point_finished": OwedStep("finished numbers", Composite.id, target_conversion.point_finished),
    "link_sources": OwedStep("curves that count", Target.id, target_conversion.link_sources),
    "compute_effort": OwedStep("effort", Target.id, target_conversion.compute_effort),
    "refresh_eligibility": OwedStep("eligibility", Target.id, eligibility_refresh.refresh_after),
}


def bring_up_to_date(database_url: str, progress: ReportProgress = lambda description, share: None) -> None:
    """Upgrade a database to the newest revision, and do all work that is owed, one process at a time.

    Raises alembic's CommandError for a database of a newer version.
    """
    engine = make_engine(database_url, pool_size=2)
    try:
        with migrate.migration_lock(engine, lambda: progress("waiting for another process that migrates", None)):
            missing = migrate.missing_revisions(engine)
            do_owed_work(engine, progress)
            if not migrate.has_numbers(engine):
                migrate.upgrade_schema(engine)
                return
            for revision in missing:
                migrate.upgrade_schema(engine, revision)
                do_owed_work(engine, progress)
    finally:
        engine.dispose()


def do_owed_work(engine: Engine, progress: ReportProgress) -> None:
    """Do all work that is owed to a database; the caller holds the lock of migrations."""
    with engine.connect() as connection:
        if connection.execute(text("SELECT to_regclass('owed_work')")).scalar_one() is None:
            return
        owed = set(connection.execute(select(OwedWork.name)).scalars())
    for name, step in STEPS.items():
        if name in owed:
            _do(engine, name, step, progress)


def _do(engine: Engine, name: str, step: OwedStep, progress: ReportProgress) -> None:
    with engine.connect() as connection:
        last_id = connection.execute(select(func.max(step.ids))).scalar_one() or 0
    own = OwedWork.name == name
    while True:
        with unit_of_work(engine, name) as connection:
            migrate.remove_limits(connection)
            # Locked, so that no chunk is done twice even if the connection that holds the lock of migrations breaks.
            after = connection.execute(select(OwedWork.done_until).where(own).with_for_update()).scalar_one_or_none()
            if after is None:
                return
            done_until = step.run(connection, after)
            if done_until is None:
                connection.execute(delete(OwedWork).where(own))
            else:
                connection.execute(update(OwedWork).where(own).values(done_until=done_until))
        if done_until is None:
            progress(step.description, 1.0)
            return
        progress(step.description, min(1.0, done_until / last_id) if last_id else 1.0)
