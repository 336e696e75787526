"""The last minutes of one instrument, as a person looks at them: its last tick, and a price and a volume a second."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg2.extensions import connection

from dhan_pipeline.sessions import HOUR_NS, hour_start_ns
from dhan_pipeline.store.partitions import instant

#: How far back it looks for an instrument that is silent now: over a long weekend.
_HOURS_BACK = 96

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
_LAST = "SELECT max(time) FROM tick_rows WHERE instrument_token = %s AND time >= %s AND time < %s"


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
    hour_ns = hour_start_ns(now_ns)
    with conn.cursor() as cursor:
        for back in range(_HOURS_BACK):
            start_ns = hour_ns - back * HOUR_NS
            cursor.execute(_LAST, (token, instant(start_ns), instant(start_ns + HOUR_NS)))
            for (last,) in cursor.fetchall():
                if last is not None:
                    return _recent(conn, token, last, window)
    return None


def _recent(conn: connection, token: int, until: datetime, window: timedelta) -> Recent | None:
    with conn.cursor() as cursor:
        cursor.execute(_RECENT, {"token": token, "since": until - window, "until": until})
        names = [column.name for column in cursor.description or ()]
        for row in cursor.fetchall():
            tick = dict(zip(names, row, strict=True))
            return Recent(tick, [tuple(point) for point in tick.pop("points")])
    return None
