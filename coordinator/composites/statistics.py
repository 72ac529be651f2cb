"""Client statistics, per hour and in total: housekeeping adds up new attempts, so that no page counts all of them.

Each attempt and each factor is added once, in the unit of work that moves the watermark beyond its time. The watermark
stays `late` behind the present, which is longer than applying a result may take, so that everything before it is
committed. Voided and deleted attempts are subtracted again; factors stay in the sums. The statistics count runs and not
effort: a curve whose two stages were run by two clients counts for both.
"""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.dialects.postgresql import insert

from coordinator.base import clock
from coordinator.base.unit_of_work import unit_of_work
from models.tables import Client, ClientHourlyStats, EcmAttempt, Factor, Submission, Watermark
from models.types import AnyRow

WATERMARK = "client_hourly_stats"
# One unit of work adds up at most this much time.
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
        0::bigint AS results, 0::bigint AS curves, 0::double precision AS seconds,
        -- A factor that was found on a part is in the tree of the whole number, too.
        count(DISTINCT (factor_sha256, coalesce(attempt_id, -id))) AS factors,
        min(created_at) AS first, max(created_at) AS last
    FROM factors
    WHERE created_at > :since AND created_at <= :until AND client_id IS NOT NULL AND origin = 'submitted' GROUP BY 1, 2
), new AS (
    SELECT hour, client_id, sum(results)::bigint AS results, sum(curves)::bigint AS curves, sum(seconds) AS seconds,
        sum(factors)::bigint AS factors, min(first) AS first, max(last) AS last
    FROM (SELECT * FROM attempts UNION ALL SELECT * FROM found) both_sources GROUP BY 1, 2
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
WITH removed AS (
    SELECT date_trunc('hour', created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS hour, client_id, count(*) AS results,
        sum(CASE WHEN method = 'ecm' THEN curves ELSE 0 END)::bigint AS curves,
        sum(coalesce(execution_time, 0)) AS seconds
    FROM ecm_attempts WHERE id = ANY(:ids) AND created_at <= :until GROUP BY 1, 2
), hours AS (
    UPDATE client_hourly_stats stats SET results = stats.results - removed.results,
        curves = stats.curves - removed.curves, seconds = greatest(stats.seconds - removed.seconds, 0)
    FROM removed WHERE stats.hour = removed.hour AND stats.client_id = removed.client_id
)
UPDATE clients SET results = clients.results - removed.results, curves = clients.curves - removed.curves,
    seconds = greatest(clients.seconds - removed.seconds, 0)
FROM (
    SELECT client_id, sum(results)::bigint AS results, sum(curves)::bigint AS curves, sum(seconds) AS seconds
    FROM removed GROUP BY client_id
) removed WHERE clients.name = removed.client_id
"""


def update_clients(engine: Engine) -> None:
    """Insert and update the rows of `clients` from the submissions since the last call."""
    with unit_of_work(engine, "update_clients") as connection:
        # Calls overlap by some minutes, because the row of a slow request can become visible after a younger one.
        newest = select(func.coalesce(func.max(Client.last_seen), func.to_timestamp(0))).scalar_subquery()
        seen = (
            select(Submission.client_id, func.min(Submission.created_at), func.max(Submission.created_at))
            .where(Submission.created_at > newest - func.make_interval(0, 0, 0, 0, 0, 5))
            .group_by(Submission.client_id)
            .order_by(Submission.client_id)
        )
        new = insert(Client).from_select(["name", "first_seen", "last_seen"], seen)
        connection.execute(
            new.on_conflict_do_update(
                index_elements=[Client.name],
                set_={"last_seen": func.greatest(Client.last_seen, new.excluded.last_seen)},
            )
        )


def aggregate_attempts(engine: Engine, now: datetime, late: timedelta) -> None:
    """Add the attempts and factors from the watermark to `late` before `now`, and move the watermark."""
    end = now - late
    while True:
        with unit_of_work(engine, "aggregate_attempts") as connection:
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
    """Subtract these attempts, if they were added; the same unit of work has voided them or deletes them afterwards.

    `aggregate_attempts` waits until this unit of work ends, and then sees the attempts as they are.
    """
    until = _lock_watermark(connection)
    connection.execute(text(_SUBTRACT), {"ids": attempt_ids, "until": until})


def _lock_watermark(connection: Connection) -> datetime:
    """Lock the watermarks and return that of the statistics; at first, the time just before the oldest attempt."""
    # Two units of work would add the same attempts otherwise.
    connection.execute(text("LOCK TABLE watermarks IN SHARE ROW EXCLUSIVE MODE"))
    known = connection.execute(select(Watermark.until).where(Watermark.what == WATERMARK)).scalar_one_or_none()
    if known is not None:
        return known
    oldest = connection.execute(
        select(func.least(select(func.min(EcmAttempt.created_at)).scalar_subquery(), func.min(Factor.created_at)))
    ).scalar_one()
    return clock.now(connection) if oldest is None else oldest - timedelta(microseconds=1)


class HourlyStatistics(NamedTuple):
    """The sums over all clients of one hour that begins at `hour` (UTC); `clients` is their number."""

    hour: datetime
    results: int
    curves: int
    factors: int
    clients: int


def hourly_statistics(engine: Engine, hours: int, now: datetime) -> list[HourlyStatistics]:
    """Return the last `hours` hours up to `now`, the oldest first; hours without attempts have zeros."""
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
        hour: HourlyStatistics(hour, int(results), int(curves), int(factors), clients)
        for hour, results, curves, factors, clients in rows
    }
    return [
        known.get(first + timedelta(hours=n), HourlyStatistics(first + timedelta(hours=n), 0, 0, 0, 0))
        for n in range(hours)
    ]


def busiest_clients(engine: Engine, since: datetime, limit: int) -> list[AnyRow]:
    """Return (client_id, results, curves, factors, last_seen) of the clients with the most curves since then."""
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
    """Return the number of curves that each of these clients sent since then; clients without any are left out."""
    conditions = (ClientHourlyStats.hour >= since, ClientHourlyStats.client_id.in_(clients))
    sums = (
        select(ClientHourlyStats.client_id, func.sum(ClientHourlyStats.curves))
        .where(*conditions)
        .group_by(ClientHourlyStats.client_id)
    )
    with engine.connect() as connection:
        return {client: int(curves) for client, curves in connection.execute(sums)}


def rank_clients(engine: Engine, limit: int) -> list[AnyRow]:
    """Return all columns of the `limit` clients with the most curves in total, those with the most first."""
    with engine.connect() as connection:
        columns = Client.__table__.columns
        return list(
            connection.execute(select(*columns).order_by(Client.curves.desc(), Client.name.desc()).limit(limit))
        )
