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

from coordinator.base.unit_of_work import unit_of_work
from models.tables import Client, ClientHourlyStats, EcmAttempt, Factor, Watermark

WATERMARK = "client_hourly_stats"
# A history of years is added up in pieces, each a unit of work.
AGGREGATION_SPAN = timedelta(days=30)

_ADD = """
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
    INSERT INTO client_hourly_stats (hour, client_id, results, curves, seconds, factors)
    SELECT hour, client_id, results, curves, seconds, factors FROM new ORDER BY hour, client_id
    ON CONFLICT (hour, client_id) DO UPDATE SET results = client_hourly_stats.results + excluded.results,
        curves = client_hourly_stats.curves + excluded.curves, seconds = client_hourly_stats.seconds + excluded.seconds,
        factors = client_hourly_stats.factors + excluded.factors
)
INSERT INTO clients (name, first_seen, last_seen, results, curves, seconds, factors)
SELECT client_id, min(first), max(last), sum(results), sum(curves), sum(seconds), sum(factors)
FROM new GROUP BY client_id ORDER BY client_id
ON CONFLICT (name) DO UPDATE SET results = clients.results + excluded.results,
    curves = clients.curves + excluded.curves, seconds = clients.seconds + excluded.seconds,
    factors = clients.factors + excluded.factors
"""

_SUBTRACT = """
WITH gone AS (
    SELECT date_trunc('hour', created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS hour, client_id, count(*) AS results,
        sum(CASE WHEN method = 'ecm' THEN curves ELSE 0 END)::bigint AS curves,
        sum(coalesce(execution_time, 0)) AS seconds
    FROM ecm_attempts WHERE id = ANY(:ids) AND created_at <= :until GROUP BY 1, 2
), hours AS (
    UPDATE client_hourly_stats stats SET results = stats.results - gone.results, curves = stats.curves - gone.curves,
        seconds = greatest(stats.seconds - gone.seconds, 0)
    FROM gone WHERE stats.hour = gone.hour AND stats.client_id = gone.client_id
)
UPDATE clients SET results = clients.results - gone.results, curves = clients.curves - gone.curves,
    seconds = greatest(clients.seconds - gone.seconds, 0)
FROM (
    SELECT client_id, sum(results)::bigint AS results, sum(curves)::bigint AS curves, sum(seconds) AS seconds
    FROM gone GROUP BY client_id
) gone WHERE clients.name = gone.client_id
"""


def aggregate_attempts(engine: Engine, now: datetime, late: timedelta) -> None:
    """Add what has come in since the last time, up to `late` before now."""
    end = now - late
    while True:
        with unit_of_work(engine, "note_activity") as connection:
            since = _lock_watermark(connection)
            if since >= end:
                return
            until = min(end, since + AGGREGATION_SPAN)
            connection.execute(text(_ADD), {"since": since, "until": until})
            connection.execute(
                insert(Watermark)
                .values(what=WATERMARK, until=until)
                .on_conflict_do_update(index_elements=[Watermark.what], set_={"until": until})
            )


def subtract_attempts(connection: Connection, attempt_ids: list[int]) -> None:
    """Take these attempts from what was added; they must be voided, or deleted after this, in this unit of work.

    Whatever adds is kept waiting until its end, and sees them as they are then.
    """
    until = _lock_watermark(connection)
    connection.execute(text(_SUBTRACT), {"ids": attempt_ids, "until": until})


def _lock_watermark(connection: Connection) -> datetime:
    """Up to when it is done; at first, from when there is anything."""
    # One at a time: two would add the same.
    connection.execute(text("LOCK TABLE watermarks IN SHARE ROW EXCLUSIVE MODE"))
    known = connection.execute(select(Watermark.until).where(Watermark.what == WATERMARK)).scalar_one_or_none()
    if known is not None:
        return known
    oldest = connection.execute(
        select(func.least(select(func.min(EcmAttempt.created_at)).scalar_subquery(), func.min(Factor.created_at)))
    ).scalar_one()
    before = timedelta(microseconds=1)
    return datetime.now(UTC) if oldest is None else oldest - before


class HourlyStatistics(NamedTuple):
    hour: datetime
    results: int
    curves: int
    factors: int
    clients: int


def hourly_statistics(engine: Engine, hours: int, now: datetime) -> list[HourlyStatistics]:
    """The last so many hours, the oldest first, also those in which nothing happened."""
    last = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    first = last - timedelta(hours=hours - 1)
    sums = (
        func.sum(ClientHourlyStats.results),
        func.sum(ClientHourlyStats.curves),
        func.sum(ClientHourlyStats.factors),
        func.count(),
    )
    with engine.connect() as connection:
        rows = connection.execute(
            select(ClientHourlyStats.hour, *sums)
            .where(ClientHourlyStats.hour >= first)
            .group_by(ClientHourlyStats.hour)
        ).all()
    known = {
        hour: HourlyStatistics(hour, int(results), int(curves), int(found), n)
        for hour, results, curves, found, n in rows
    }
    return [
        known.get(first + timedelta(hours=n), HourlyStatistics(first + timedelta(hours=n), 0, 0, 0, 0))
        for n in range(hours)
    ]


def busiest_clients(engine: Engine, since: datetime, limit: int) -> list[Row]:
    """(client_id, results, curves, factors, last_seen) of those that did most curves since then."""
    curves = func.sum(ClientHourlyStats.curves)
    columns = (
        ClientHourlyStats.client_id,
        func.sum(ClientHourlyStats.results).label("results"),
        curves.label("curves"),
    )
    with engine.connect() as connection:
        return list(
            connection.execute(
                select(*columns, func.sum(ClientHourlyStats.factors).label("factors"), Client.last_seen)
                .join(Client, Client.name == ClientHourlyStats.client_id)
                .where(ClientHourlyStats.hour >= since)
                .group_by(ClientHourlyStats.client_id, Client.last_seen)
                .order_by(curves.desc(), ClientHourlyStats.client_id)
                .limit(limit)
            )
        )


def curves_since(engine: Engine, since: datetime, clients: list[str]) -> dict[str, int]:
    """How many curves each of these clients has sent since then; those that have sent nothing are left out."""
    theirs = (ClientHourlyStats.hour >= since, ClientHourlyStats.client_id.in_(clients))
    sums = (
        select(ClientHourlyStats.client_id, func.sum(ClientHourlyStats.curves))
        .where(*theirs)
        .group_by(ClientHourlyStats.client_id)
    )
    with engine.connect() as connection:
        return {client: int(curves) for client, curves in connection.execute(sums)}


def rank_clients(engine: Engine, limit: int) -> list[Row]:
    """Clients, those with most curves first, with all that is known of them."""
    with engine.connect() as connection:
        columns = Client.__table__.columns
        return list(
            connection.execute(select(*columns).order_by(Client.curves.desc(), Client.name.desc()).limit(limit))
        )
