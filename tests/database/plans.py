"""What is sent to the database, and how it would find its rows."""

import re
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, event


def executed(engine: Engine, call: Callable[[], Any]) -> list[str]:
    """The statements that a call executes, in order, with their parameters in place."""
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        # Several statements may be sent together.
        statements.extend(re.split("; (?=SELECT )", cursor.mogrify(statement, parameters).decode()))

    event.listen(engine, "before_cursor_execute", note)
    try:
        call()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return statements


def plan(engine: Engine, statement: str) -> str:
    """The plan of a statement for a large table: reading all of it is the last resort."""
    with engine.connect() as connection:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        # A driver's statement: a % stands for itself when it has no parameters.
        return "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}").scalars())
