"""The audit trail: what operators change, recorded in the unit of work that changes it."""

from typing import Any, NamedTuple

import structlog
from sqlalchemy import Connection, Engine, Row, insert, select

from models.tables import AdminEvent

log = structlog.get_logger("audit")

# Over HTTP there is one key, and whoever holds it is this; on the command line it is the account's name.
ADMIN = "admin"


class Actor(NamedTuple):
    """Who makes a change, and the id of the HTTP request that asked for it (None on the command line)."""

    name: str
    request_id: str | None = None


# An operator whose name is not known.
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
    """Record that `actor` did `action` to `target` ("composite 17"): JSON-able values before and after it.

    The row stands or falls with the change. The log line is written at once: what it announces is committed if the
    line `Transaction committed` of its unit of work follows.
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
    log.info("Administration", actor=actor.name, action=action, target=target, before=before, after=after)


def latest(engine: Engine, limit: int) -> list[Row[Any]]:
    """What was done last, the newest first."""
    with engine.connect() as connection:
        return list(connection.execute(select(AdminEvent).order_by(AdminEvent.id.desc()).limit(limit)))
