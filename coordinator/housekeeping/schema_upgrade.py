"""Bringing a database up to date: its schema, and the work that migrations owe to it.

Each revision is a transaction. A revision that cannot lock a table soon is tried again after a pause, so that the
processes that use the table do not queue behind it. In a database with numbers, what a revision owes is done before the
next one: in chunks, each of which is committed together with the place up to which the work is done (`owed_work`). A
process that is killed anywhere thus leaves a database that the next one goes on with. The schema is at the newest
revision only when nothing is owed.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from sqlalchemy import Connection, Engine, delete, func, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import InstrumentedAttribute

from coordinator.base.unit_of_work import unit_of_work
from coordinator.housekeeping import eligibility_refresh, target_conversion
from models import migrate
from models.engine import check_sessions, make_engine
from models.tables import Composite, EcmAttempt, OwedWork, Target

# Seconds to wait after each time that a revision could not lock a table; after the last one the migration ends.
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0)

# Seconds between two reports about an index that is being built.
REPORT_EVERY = 5.0

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

    Raises MigrationError if other transactions hold a table for too long, alembic's CommandError for a database of a
    newer version, and OperationalError if the database cannot be used, as through a pooler that shares sessions.
    """
    # One connection has the lock of migrations, one the transaction, and one reads what the second waits for.
    engine = make_engine(database_url, pool_size=3)
    try:
        check_sessions(engine)
        with migrate.migration_lock(engine, lambda: progress("waiting for another process that migrates", None)):
            missing = migrate.missing_revisions(engine)
            do_owed_work(engine, progress)
            if not migrate.has_numbers(engine):
                _upgrade_schema(engine, "head", progress)
                return
            for revision in missing:
                _upgrade_schema(engine, revision, progress)
                do_owed_work(engine, progress)
    finally:
        engine.dispose()


def _upgrade_schema(engine: Engine, revision: str, progress: ReportProgress) -> None:
    """Upgrade the schema to `revision`; try again after each of the PAUSES if other transactions hold a table."""
    for pause in (*PAUSES, None):
        try:
            with _index_builds_reported(engine, progress):
                migrate.upgrade_schema(engine, revision)
        except OperationalError as error:
            if not migrate.is_locked_out(error):
                raise
            stuck = migrate.missing_revisions(engine)[0]
            holder = migrate.describe_oldest_transaction(engine)
            oldest = "" if holder is None else f"; the oldest open transaction is that of {holder}"
            if pause is None:
                raise migrate.MigrationError(
                    f"The migration to revision {stuck} could not lock a table for {sum(PAUSES):.0f} s, because other"
                    f" transactions use it{oldest}. End these transactions or wait for them, and migrate again."
                ) from error
            progress(f"revision {stuck} waits for a table that other transactions use{oldest}", None)
            time.sleep(pause)
        else:
            return


@contextmanager
def _index_builds_reported(engine: Engine, progress: ReportProgress) -> Iterator[None]:
    """Report every REPORT_EVERY seconds which index is being built: that takes minutes, or waits for transactions."""
    is_done = threading.Event()

    def report() -> None:
        while not is_done.wait(REPORT_EVERY):
            with suppress(DBAPIError):  # the migration itself meets the same fault
                for description in migrate.describe_index_builds(engine):
                    progress(description, None)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        is_done.set()
        reporter.join()


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
