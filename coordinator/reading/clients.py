"""Lists of clients from the rows that housekeeping keeps: by name, or the last seen first."""

from sqlalchemy import Engine, select, tuple_

from coordinator.base import cursors
from coordinator.base.cursors import Page
from models.tables import Client

BY_NAME, BY_LAST_SEEN = "name", "last_seen"


def list_clients(engine: Engine, *, order: str = BY_LAST_SEEN, limit: int = 100, cursor: str | None = None) -> Page:
    """Return a page of (name, first_seen, last_seen) of clients, by name or the last seen first.

    Raises cursors.InvalidCursorError.
    """
    question = f"clients {order}"
    statement = select(Client.name, Client.first_seen, Client.last_seen).limit(limit + 1)
    if order == BY_NAME:
        statement = statement.order_by(Client.name)
        if cursor is not None:
            (name,) = cursors.decode(question, cursor, (str,))
            statement = statement.where(Client.name > name)
    else:
        statement = statement.order_by(Client.last_seen.desc(), Client.name.desc())
        if cursor is not None:
            seen, name = cursors.decode(question, cursor, (str, str))
            statement = statement.where(tuple_(Client.last_seen, Client.name) < tuple_(cursors.parse_time(seen), name))
    with engine.connect() as connection:
        rows = list(connection.execute(statement))
    if len(rows) <= limit:
        return Page(rows, None)
    last = rows[limit - 1]
    place = (last.name,) if order == BY_NAME else (cursors.to_json_value(last.last_seen), last.name)
    return Page(rows[:limit], cursors.encode(question, place))
