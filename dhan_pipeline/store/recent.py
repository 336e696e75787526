"""What instruments did last: the last tick of each; of one, as a person looks at it, its last minutes by the second."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg2.extensions import connection

from dhan_pipeline.sessions import DAY_NS, HOUR_NS
from dhan_pipeline.store.partitions import instant, partition_starts

#: How far back it looks for an instrument that is silent now: over a long weekend.
_DAYS_BACK = 4

# The index is on the instrument alone: a look at all hours would read every row of it, which took a second where they
# were 60,000. So it is looked for from the latest hour back, until there is one.
_LATEST = """
SELECT token, (extract(epoch FROM last.time) * 1e9)::bigint, last.last_price,
    (SELECT max(latency_ms) FROM ingest_ledger WHERE block_id = last.tick_id >> 16)
FROM unnest(%(tokens)s::bigint[]) AS token, LATERAL (
    SELECT of_hour.* FROM unnest(%(hours)s::timestamptz[]) AS hour, LATERAL (
        SELECT time, tick_id, last_price FROM tick_rows
        WHERE instrument_token = token AND time >= greatest(hour, %(since)s) AND time < hour + interval '1 hour'
        ORDER BY time DESC, tick_id DESC LIMIT 1
    ) AS of_hour LIMIT 1
) AS last
"""

# There is an index on the instrument alone. So the rows of its hours are read, once: 10 ms where they are 15,000.
_RECENT = """
WITH recent AS MATERIALIZED (
    SELECT * FROM tick_rows WHERE instrument_token = %(token)s AND time > %(since)s AND time <= %(until)s
), seconds AS (
    SELECT DISTINCT ON (date_trunc('second', time)) extract(epoch FROM date_trunc('second', time))::bigint AS second,
        last_price, volume_traded
    FROM recent WHERE last_price IS NOT NULL ORDER BY date_trunc('second', time), tick_id DESC
), last AS (
    SELECT * FROM recent ORDER BY tick_id DESC LIMIT 1
), depth AS (
    SELECT depth FROM recent WHERE depth IS NOT NULL ORDER BY tick_id DESC LIMIT 1
)
SELECT time, last_trade_time, last_price, last_traded_quantity, average_traded_price, volume_traded, oi,
    day_open, day_high, day_low, day_close, round((last_price - day_close) * 10000) / 10000 AS change,
    round((last_price - day_close) / day_close * 1000000) / 10000 AS change_percent, mode,
    depth_prices(d.depth, 2) AS bid_prices, depth_quantities(d.depth, 42) AS bid_quantities,
    depth_orders(d.depth, 82) AS bid_orders, depth_prices(d.depth, 22) AS ask_prices,
    depth_quantities(d.depth, 62) AS ask_quantities, depth_orders(d.depth, 92) AS ask_orders,
    (SELECT coalesce(json_agg(json_build_array(second, last_price, volume_traded) ORDER BY second), '[]') FROM seconds)
        AS points
FROM last LEFT JOIN depth d ON true
"""


@dataclass(frozen=True, slots=True)
class LatestTick:
    """The last row of an instrument."""

    received_ns: int
    """Receive time, ns since the Unix epoch, UTC, cut to the microsecond."""
    last_price: float | None
    """Rupees."""
    latency_ms: float | None
    """From the receipt of its block's oldest message to its commit; None where only a rebuild stored it."""


def latest_ticks(conn: connection, tokens: Collection[int], since_ns: int) -> dict[int, LatestTick]:
    """The last row of each instrument of which one was received since (ns, UTC). Leaves the transaction open."""
    hours = [instant(start_ns) for start_ns in reversed(partition_starts(conn)) if start_ns + HOUR_NS > since_ns]
    with conn.cursor() as cursor:
        cursor.execute(_LATEST, {"tokens": list(tokens), "hours": hours, "since": instant(since_ns)})
        return {token: LatestTick(*found) for token, *found in cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class Recent:
    """What an instrument did last."""

    tick: dict[str, Any]
    """Columns of `ticks` of the last one; depth is that of the last one that has any."""
    points: list[tuple[int, float, int | None]]
    """Of each second in which there was a tick: Unix seconds, last price, cumulative volume of the day."""


def recent(conn: connection, token: int, now_ns: int, window: timedelta) -> Recent | None:
    """What an instrument did in the window before now; or before its last tick, where that was in the last four days.

    None where there is none.
    """
    if found := _recent(conn, token, instant(now_ns), window):
        return found
    last = latest_ticks(conn, [token], now_ns - _DAYS_BACK * DAY_NS).get(token)
    return None if last is None else _recent(conn, token, instant(last.received_ns), window)


def _recent(conn: connection, token: int, until: datetime, window: timedelta) -> Recent | None:
    with conn.cursor() as cursor:
        cursor.execute(_RECENT, {"token": token, "since": until - window, "until": until})
        names = [column.name for column in cursor.description or ()]
        for row in cursor.fetchall():
            tick = dict(zip(names, row, strict=True))
            return Recent(tick, [tuple(point) for point in tick.pop("points")])
    return None
