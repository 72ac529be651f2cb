"""The audit trail: each change that an operator makes is recorded in the unit of work that makes it."""

from typing import Any, NamedTuple

import structlog
from sqlalchemy import Connection, Engine, insert, select

from models.tables import AdminEvent
from models.types import AnyRow

log = structlog.get_logger("audit")

# The name of every holder of the admin key over HTTP; on the command line the actor is the name of the account.
ADMIN = "admin"


class Actor(NamedTuple):
    """The name of whoever makes a change, and the id of the HTTP request for it (None on the command line)."""

    name: str
    request_id: str | None = None


# The actor where the operator's name is not known.
OPERATOR = Actor("operator")


def record(
    connection: Connection,
    actor: Actor,
    action: str,
    target: str,
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Insert the record that `actor` did `action` to `target` ("composite 17"), with JSON-able values before and after.

    The row is committed or rolled back together with the change. The log line is written at once: the change is
    committed only if the line `Transaction committed` of its unit of work follows.
    """
    connection.execute(
        insert(AdminEvent).values(
            actor=actor.name,
            action=action,
            target=target,
            before=before,
            after=after,
            request_id=actor.request_id,
        )
    )
    log.info("Change by an operator", actor=actor.name, action=action, target=target, before=before, after=after)


def latest(engine: Engine, limit: int) -> list[AnyRow]:
    """Return the last `limit` records, newest first."""
    with engine.connect() as connection:
        return list(connection.execute(select(AdminEvent).order_by(AdminEvent.id.desc()).limit(limit)))
