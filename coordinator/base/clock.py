"""The database's clock, which decides everything that is stored or compared: the clocks of machines differ."""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, Engine, func, select

_NOW = select(func.clock_timestamp())


def now(database: Engine | Connection) -> datetime:
    """Return the time by the database's clock."""
    if isinstance(database, Engine):
        with database.connect() as connection:
            return now(connection)
    moment: datetime = database.execute(_NOW).scalar_one()
    return moment


def after(seconds: float | ColumnElement[float]) -> ColumnElement[datetime]:
    """Return the expression for the time that is `seconds` from now."""
    return func.clock_timestamp() + interval(seconds)


def interval(seconds: float | ColumnElement[float]) -> ColumnElement[timedelta]:
    """Return the expression for an interval of so many seconds."""
    length: ColumnElement[timedelta] = func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    return length
