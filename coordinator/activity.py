"""What clients do, by the hour and in all: added up by upkeep as it comes in, so that no page counts the attempts.

Attempts and factors are added once, in the unit of work that notes up to when that was done. A moment is only looked at
when everything of it is committed: `late` after it, which is longer than applying a result may take. What is taken back
(voided, deleted) goes from these sums too; a factor that was found remains in them. They are of runs, not of effort: a
curve whose stages two clients ran is in the account of both.
"""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, Engine, Row, func, select, text
from sqlalchemy.dialects.postgresql import insert

from coordinator.unit_of_work import unit_of_work
from models.tables import Activity, Client, EcmAttempt, Factor, Noted

WHAT = "activity"
# A history of years is added up in pieces, each a unit of work.
PIECE = timedelta(days=30)

_NEW = """
WITH attempts AS (
    SELECT date_trunc('hour', created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS hour, client_id, count(*) AS results,
        sum(CASE WHEN method = 'ecm' THEN curves ELSE 0 END)::bigint AS curves,
        sum(coalesce(execution_time, 0)) AS seconds, 0::bigint AS factors, min(created_at) AS first,
        max(created_at) AS last
    FROM ecm_attempts WHERE created_at > :since AND created_at <= :until AND voided_at IS NULL GROUP BY 1, 2
), found AS (
    SELECT date_trunc('hour', created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS hour, client_id,
        0::bigint AS results, 0::bigint AS curves, 0::double precision AS seconds, count(*) AS factors,
        min(created_at) AS first, max(created_at) AS last
    FROM factors
    WHERE created_at > :since AND created_at <= :until AND client_id IS NOT NULL AND origin = 'submitted' GROUP BY 1, 2
), new AS (
    SELECT hour, client_id, sum(results)::bigint AS results, sum(curves)::bigint AS curves, sum(seconds) AS seconds,
        sum(factors)::bigint AS factors, min(first) AS first, max(last) AS last
    FROM (SELECT * FROM attempts UNION ALL SELECT * FROM found) both_of_them GROUP BY 1, 2
), hours AS (
    INSERT INTO activity (hour, client_id, results, curves, seconds, factors)
    SELECT hour, client_id, results, curves, seconds, factors FROM new ORDER BY hour, client_id
    ON CONFLICT (hour, client_id) DO UPDATE SET results = activity.results + excluded.results,
        curves = activity.curves + excluded.curves, seconds = activity.seconds + excluded.seconds,
        factors = activity.factors + excluded.factors
)
INSERT INTO clients (name, first_seen, last_seen, results, curves, seconds, factors)
SELECT client_id, min(first), max(last), sum(results), sum(curves), sum(seconds), sum(factors)
FROM new GROUP BY client_id ORDER BY client_id
ON CONFLICT (name) DO UPDATE SET results = clients.results + excluded.results,
    curves = clients.curves + excluded.curves, seconds = clients.seconds + excluded.seconds,
    factors = clients.factors + excluded.factors
"""

_TAKE_BACK = """
WITH gone AS (
    SELECT date_trunc('hour', created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS hour, client_id, count(*) AS results,
        sum(CASE WHEN method = 'ecm' THEN curves ELSE 0 END)::bigint AS curves,
        sum(coalesce(execution_time, 0)) AS seconds
    FROM ecm_attempts WHERE id = ANY(:ids) AND created_at <= :until GROUP BY 1, 2
), hours AS (
    UPDATE activity SET results = activity.results - gone.results, curves = activity.curves - gone.curves,
        seconds = greatest(activity.seconds - gone.seconds, 0)
    FROM gone WHERE activity.hour = gone.hour AND activity.client_id = gone.client_id
)
UPDATE clients SET results = clients.results - gone.results, curves = clients.curves - gone.curves,
    seconds = greatest(clients.seconds - gone.seconds, 0)
FROM (
    SELECT client_id, sum(results)::bigint AS results, sum(curves)::bigint AS curves, sum(seconds) AS seconds
    FROM gone GROUP BY client_id
) gone WHERE clients.name = gone.client_id
"""


def note(engine: Engine, now: datetime, late: timedelta) -> None:
    """Add what has come in since the last time, up to `late` before now."""
    end = now - late
    while True:
        with unit_of_work(engine, "note_activity") as connection:
            since = _noted(connection)
            if since >= end:
                return
            until = min(end, since + PIECE)
            connection.execute(text(_NEW), {"since": since, "until": until})
            connection.execute(
                insert(Noted)
                .values(what=WHAT, until=until)
                .on_conflict_do_update(index_elements=[Noted.what], set_={"until": until})
            )


def take_back(connection: Connection, attempt_ids: list[int]) -> None:
    """Take these attempts from what was added; they must be voided, or deleted after this, in this unit of work.

    Whatever adds is kept waiting until its end, and sees them as they are then.
    """
    until = _noted(connection)
    connection.execute(text(_TAKE_BACK), {"ids": attempt_ids, "until": until})


def _noted(connection: Connection) -> datetime:
    """Up to when it is done; at first, from when there is anything."""
    # One at a time: two would add the same.
    connection.execute(text("LOCK TABLE noted IN SHARE ROW EXCLUSIVE MODE"))
    known = connection.execute(select(Noted.until).where(Noted.what == WHAT)).scalar_one_or_none()
    if known is not None:
        return known
    oldest = connection.execute(
        select(func.least(select(func.min(EcmAttempt.created_at)).scalar_subquery(), func.min(Factor.created_at)))
    ).scalar_one()
    before = timedelta(microseconds=1)
    return datetime.now(UTC) if oldest is None else oldest - before


class Hour(NamedTuple):
    hour: datetime
    results: int
    curves: int
    factors: int
    clients: int


def by_hour(engine: Engine, hours: int, now: datetime) -> list[Hour]:
    """The last so many hours, the oldest first, also those in which nothing happened."""
    last = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    first = last - timedelta(hours=hours - 1)
    sums = (func.sum(Activity.results), func.sum(Activity.curves), func.sum(Activity.factors), func.count())
    with engine.connect() as connection:
        rows = connection.execute(
            select(Activity.hour, *sums).where(Activity.hour >= first).group_by(Activity.hour)
        ).all()
    known = {hour: Hour(hour, int(results), int(curves), int(found), n) for hour, results, curves, found, n in rows}
    return [known.get(first + timedelta(hours=n), Hour(first + timedelta(hours=n), 0, 0, 0, 0)) for n in range(hours)]


def busiest(engine: Engine, since: datetime, limit: int) -> list[Row]:
    """(client_id, results, curves, factors, last_seen) of those that did most curves since then."""
    curves = func.sum(Activity.curves)
    columns = (Activity.client_id, func.sum(Activity.results).label("results"), curves.label("curves"))
    with engine.connect() as connection:
        return list(
            connection.execute(
                select(*columns, func.sum(Activity.factors).label("factors"), Client.last_seen)
                .join(Client, Client.name == Activity.client_id)
                .where(Activity.hour >= since)
                .group_by(Activity.client_id, Client.last_seen)
                .order_by(curves.desc(), Activity.client_id)
                .limit(limit)
            )
        )


def curves_since(engine: Engine, since: datetime, clients: list[str]) -> dict[str, int]:
    """How many curves each of these clients has sent since then; those that have sent nothing are left out."""
    theirs = (Activity.hour >= since, Activity.client_id.in_(clients))
    sums = select(Activity.client_id, func.sum(Activity.curves)).where(*theirs).group_by(Activity.client_id)
    with engine.connect() as connection:
        return {client: int(curves) for client, curves in connection.execute(sums)}


def ranking(engine: Engine, limit: int) -> list[Row]:
    """Clients, those with most curves first, with all that is known of them."""
    with engine.connect() as connection:
        columns = Client.__table__.columns
        return list(
            connection.execute(select(*columns).order_by(Client.curves.desc(), Client.name.desc()).limit(limit))
        )
