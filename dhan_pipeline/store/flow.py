"""How the ticks of an hour came, and how they were stored: what the ledger says, without a look at any tick."""

from dataclasses import dataclass
from datetime import timedelta

from psycopg2.extensions import connection

from dhan_pipeline.sessions import HOUR_NS, day_start_ns, parse_hour_key
from dhan_pipeline.store.partitions import instant

MINUTES = 60

#: Where the columns of a latency's histogram end, in milliseconds. One more follows, of all that took longer.
LATENCY_LIMITS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

#: Ticks wait when they are not stored after so many seconds. A database that takes all that comes has nothing to prove.
WAITING_S = 5.0

_COUNTS = """
SELECT floor(extract(epoch FROM first_received - hour) / 60)::integer,
    width_bucket(latency_ms::float8, %(limits)s::float8[]), sum(ticks)::bigint
FROM ingest_ledger WHERE hour = %(hour)s AND ticks > 0 GROUP BY 1, 2
"""

# What waits does so from its receipt until it is stored: the time in which anything did, each second counted once.
_WAITING = """
WITH late AS (
    SELECT ticks, parts, first_received, stored_at, max(stored_at) OVER (
        ORDER BY first_received, block_id, part ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS covered
    FROM ingest_ledger WHERE hour = %(hour)s AND latency_ms > %(waiting_ms)s
)
SELECT coalesce(sum(ticks), 0)::bigint,
    coalesce(sum(greatest(stored_at - greatest(first_received, covered), interval '0')), interval '0'),
    coalesce(bool_or(parts > 1), false)
FROM late
"""

_OF_HOURS = """
SELECT floor(extract(epoch FROM first_received - %(start)s) / 60)::integer, sum(ticks)::bigint
FROM ingest_ledger WHERE hour >= %(start)s AND hour < %(end)s AND ticks > 0 GROUP BY 1
"""


@dataclass(frozen=True, slots=True)
class HourFlow:
    """Of one IST hour."""

    ticks_by_minute: tuple[int, ...] = MINUTES * (0,)
    """By the minute of their receipt."""
    latency_counts: tuple[int, ...] = (len(LATENCY_LIMITS_MS) + 1) * (0,)
    """Ticks by the time from receipt to commit, a number for each of `LATENCY_LIMITS_MS` and one for what took longer.
    Those that only a rebuild stored are in none."""
    waited_ticks: int = 0
    """Ticks that were not stored within `WAITING_S`."""
    waited_s: float = 0.0
    """How long some of them waited."""
    waited_in_parts: bool = False
    """Whether workers stored some of these."""


def hour_flow(conn: connection, hour: str) -> HourFlow:
    """Of the hour of a partition key. Leaves the transaction open. Raises ValueError for what is no hour."""
    by_minute, by_latency = MINUTES * [0], (len(LATENCY_LIMITS_MS) + 1) * [0]
    start = instant(parse_hour_key(hour))
    with conn.cursor() as cursor:
        cursor.execute(_COUNTS, {"hour": start, "limits": list(LATENCY_LIMITS_MS)})
        for minute, bucket, ticks in cursor.fetchall():
            by_minute[min(max(minute, 0), MINUTES - 1)] += ticks
            if bucket is not None:
                by_latency[bucket] += ticks
        cursor.execute(_WAITING, {"hour": start, "waiting_ms": 1000 * WAITING_S})
        waited: tuple[int, timedelta, bool] = cursor.fetchall()[0]
    return HourFlow(tuple(by_minute), tuple(by_latency), waited[0], waited[1].total_seconds(), waited[2])


def ticks_of_day(conn: connection, hour: str) -> tuple[int, tuple[int, ...]]:
    """The ticks of each minute of an IST day to the end of the hour of a partition key, and from which instant on.

    That is the start of the first hour that has some (ns since the Unix epoch, UTC), or of the hour itself. Leaves the
    transaction open. Takes a second for 1.5 million blocks.
    """
    start_ns, end_ns = day_start_ns(parse_hour_key(hour)), parse_hour_key(hour) + HOUR_NS
    by_minute = (end_ns - start_ns) // HOUR_NS * MINUTES * [0]
    with conn.cursor() as cursor:
        cursor.execute(_OF_HOURS, {"start": instant(start_ns), "end": instant(end_ns)})
        for minute, ticks in cursor.fetchall():
            by_minute[min(max(minute, 0), len(by_minute) - 1)] += ticks
    first = next((minute for minute, ticks in enumerate(by_minute) if ticks), len(by_minute) - 1)
    skipped = first // MINUTES
    return start_ns + skipped * HOUR_NS, tuple(by_minute[skipped * MINUTES :])
