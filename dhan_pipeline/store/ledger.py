"""The books: which blocks are stored, what an hour adds up to, and what each capture says of itself.

Functions that only read leave their transaction open, as psycopg2 does; those that write commit.
"""

import os
import socket
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg2.extensions import connection
from psycopg2.extras import Json

from dhan_pipeline.clock import Clock
from dhan_pipeline.journal.block import NUMBER_BITS
from dhan_pipeline.sessions import HOUR_NS, hour_key, parse_hour_key
from dhan_pipeline.store.digests import hour_digest
from dhan_pipeline.store.partitions import HOUR_LOCK, REDRIVE_COUNT_LOCK, WRITER_LOCK, instant
from dhan_pipeline.store.prepared import prepare

#: Real seconds over which rates and latencies count as recent.
RECENT_S = 10

_SUMS = ", ".join(
    f"coalesce(sum({name}), 0)::bigint"
    for name in ("messages", "packets", "ticks", "state", "control", "rejected", "payload_bytes")
)

# A block's latency stands for each of its rows, so percentiles are taken over rows.
_LATENCIES = """
WITH latencies AS (
    SELECT latency_ms, sum(ticks) OVER (ORDER BY latency_ms) AS up_to, sum(ticks) OVER () AS total
    FROM ingest_ledger WHERE {condition} AND ticks > 0 AND latency_ms IS NOT NULL
)
SELECT {percentiles} FROM latencies
"""


def _percentiles(*shares: float) -> str:
    return ", ".join(f"min(latency_ms) FILTER (WHERE up_to >= {share} * total)" for share in shares)


@dataclass(frozen=True, slots=True)
class HourTotals:
    """One hour: sums of its ledger rows, and what its tables hold."""

    blocks: int
    """That are stored whole."""
    messages: int
    packets: int
    ticks: int
    state: int
    control: int
    rejected: int
    payload_bytes: int
    rows: int
    """Rows in `ticks`, counted; equal to `ticks` unless something is wrong."""
    digest: str
    """Of these rows; see `digests`."""
    rejected_rows: int
    """Rows in `rejected_packets`, counted."""
    first_received: datetime | None
    last_received: datetime | None
    latency_p50_ms: float | None
    """Receive of a block's oldest message to its commit, over rows. None where only rebuilds stored anything."""
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    latency_p999_ms: float | None


@dataclass(frozen=True, slots=True)
class RecentTotals:
    """All that was ever stored, and how it goes now."""

    blocks: int
    messages: int
    packets: int
    ticks: int
    state: int
    control: int
    rejected: int
    payload_bytes: int
    last_received: datetime | None
    messages_per_second: float
    """Over the last `RECENT_S`, like the rest."""
    ticks_per_second: float
    latency_p50_ms: float | None
    latency_p99_ms: float | None


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """What a capture last said of itself."""

    capture: int
    source: str
    pid: int
    host: str
    started_at: datetime
    updated_at: datetime
    age_s: float
    """Seconds since then, by the database's clock, as is `updated_at`."""
    status: dict[str, Any]


def hour_bounds(hour: str) -> tuple[datetime, datetime]:
    """Start (inclusive) and end (exclusive) of an hour by its partition key. Raises ValueError."""
    start_ns = parse_hour_key(hour)
    return instant(start_ns), instant(start_ns + HOUR_NS)


def last_block(conn: connection, capture: int) -> int | None:
    """The highest block id that a capture's writer stored, None if it stored none.

    Blocks that only a rebuild stored (they have no latency) do not count: the writer may not have come to those before.
    """
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT max(block_id) FROM ingest_ledger WHERE block_id >= %s AND block_id < %s AND latency_ms IS NOT NULL",
            (capture << NUMBER_BITS, (capture + 1) << NUMBER_BITS),
        )
        found: int | None = cursor.fetchall()[0][0]
    return found


def last_whole_block(conn: connection, capture: int) -> int | None:
    """A block up to which workers have all of a capture's blocks, or the capture stored them itself; None for none.

    It is that of `last_block`, unless this one came in parts: then the last of the part that is furthest behind, since
    parts of a number come in order; or a later one that was written whole, since all before it were stored then.
    """
    last = last_block(conn, capture)
    if last is None:
        return None
    with conn.cursor() as cursor:
        cursor.execute("SELECT max(parts) FROM ingest_ledger WHERE block_id = %s", (last,))
        parts: int = cursor.fetchall()[0][0]
    if parts == 1:
        return last
    in_parts = _last_of_each(conn, capture, parts, None)
    directly = _last_block_of(conn, capture, 1, 1, in_parts)
    return in_parts if directly is None else directly


def _last_of_each(conn: connection, capture: int, parts: int, after: int | None) -> int | None:
    """The last block, after another one, of the part that is furthest behind; None where one of them has none."""
    last = [_last_block_of(conn, capture, part, parts, after) for part in range(1, parts + 1)]
    known = [block_id for block_id in last if block_id is not None]
    return min(known) if len(known) == parts else None


def _last_block_of(conn: connection, capture: int, part: int, parts: int, after: int | None) -> int | None:
    first = capture << NUMBER_BITS if after is None else after + 1
    with conn.cursor() as cursor:
        # Walks the index back from the end. A part that is 100,000 blocks behind the others takes 10 ms.
        cursor.execute(
            "SELECT max(block_id) FROM ingest_ledger WHERE block_id >= %s AND block_id < %s AND latency_ms IS NOT NULL "
            "AND part = %s AND parts = %s",
            (first, (capture + 1) << NUMBER_BITS, part, parts),
        )
        found: int | None = cursor.fetchall()[0][0]
    return found


@dataclass(frozen=True, slots=True)
class StoredTotals:
    """What the ledger says of consecutive blocks of a capture, all of them whole."""

    blocks: int
    packets: int
    ticks: int
    state: int
    control: int
    rejected: int
    received_through_ns: int
    """All of their messages were received by then: ns since the Unix epoch, UTC."""
    hours: list[str]
    """Partition keys of the hours that they lie in."""
    latencies: list[tuple[float, int]]
    """Milliseconds from receipt to commit, and how many packets took that long."""


def stored_in_parts(conn: connection, capture: int, after: int | None) -> tuple[int, StoredTotals] | None:
    """The last of the blocks after a whole one up to which all are whole now, and what these add up to. None for none.

    Only blocks that come in parts are looked at: those of a part come in order.
    """
    first = capture << NUMBER_BITS if after is None else after + 1
    bounds = {"first": first, "before": (capture + 1) << NUMBER_BITS}
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT parts FROM ingest_ledger WHERE block_id >= %(first)s AND block_id < %(before)s AND parts > 1 "
            "ORDER BY block_id DESC LIMIT 1",
            bounds,
        )
        last = None
        for (parts,) in cursor.fetchall():
            last = _last_of_each(conn, capture, parts, after)
        if last is None:
            return None
        bounds["before"] = last + 1
        cursor.execute(
            "SELECT count(DISTINCT block_id), sum(packets)::bigint, sum(ticks)::bigint, sum(state)::bigint, "
            "sum(control)::bigint, sum(rejected)::bigint, "
            # PostgreSQL cuts times to the microsecond.
            "(extract(epoch FROM max(last_received)) * 1e9)::bigint + 999, "
            "array_agg(DISTINCT (extract(epoch FROM hour) * 1e9)::bigint) FROM ingest_ledger "
            "WHERE block_id >= %(first)s AND block_id < %(before)s",
            bounds,
        )
        *sums, hours_ns = cursor.fetchall()[0]
        cursor.execute(
            "SELECT latency_ms, packets FROM ingest_ledger "
            "WHERE block_id >= %(first)s AND block_id < %(before)s AND latency_ms IS NOT NULL AND packets > 0",
            bounds,
        )
        latencies = cursor.fetchall()
    fields: tuple[Any, ...] = (*sums, [hour_key(start_ns) for start_ns in hours_ns], latencies)
    return last, StoredTotals(*fields)


def last_received_ns(conn: connection, block_id: int) -> int:
    """Receive time of a stored block's last message, ns since the Unix epoch, UTC, cut to the microsecond."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT (extract(epoch FROM last_received) * 1e9)::bigint FROM ingest_ledger WHERE block_id = %s",
            (block_id,),
        )
        found: int = cursor.fetchall()[0][0]
    return found


def redrives(conn: connection, capture: int) -> int:
    """How often rejected packets of the capture were driven again. Leaves the transaction open."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT coalesce(max(redrives), 0) FROM redrives WHERE capture = %s", (capture,))
        found: int = cursor.fetchall()[0][0]
    return found


def begin_blocks(
    conn: connection, capture: int, starts_ns: Collection[int], block_ids: Iterable[int], part: int | None = None
) -> tuple[int, set[int]]:
    """Begin to store blocks of hours by their starts: (`redrives` of the capture, which of the blocks are stored).

    With `part`, that part of the blocks: stored are those of which it is there, or the whole. Until the transaction
    ends, nobody rebuilds the hours, and nobody counts another redrive.
    """
    with conn.cursor() as cursor:
        prepare(
            cursor,
            "lock_blocks",
            "integer, integer[]",
            f"SELECT pg_advisory_xact_lock_shared({HOUR_LOCK}, hour), "
            f"pg_advisory_xact_lock_shared({REDRIVE_COUNT_LOCK}, $1) FROM unnest($2) AS hour",
        )
        prepare(
            cursor,
            "stored_blocks",
            "integer, bigint[], integer",
            "SELECT coalesce((SELECT redrives FROM redrives WHERE capture = $1), 0), "
            "ARRAY(SELECT block_id FROM ingest_ledger WHERE block_id = ANY($2) "
            "AND ($3 IS NULL OR part = $3 OR parts = 1))",
        )
        # One message to the server; yet each of the two statements sees what was committed when it began.
        cursor.execute(
            "EXECUTE lock_blocks (%(capture)s, %(hours)s); EXECUTE stored_blocks (%(capture)s, %(blocks)s, %(part)s)",
            {
                "capture": capture,
                "hours": [start_ns // HOUR_NS for start_ns in sorted(starts_ns)],
                "blocks": list(block_ids),
                "part": part,
            },
        )
        count, stored = cursor.fetchall()[0]
    return count, set(stored)


def count_redrive(conn: connection, capture: int) -> None:
    """Count one more. Writers of the capture wait until the transaction ends, which is left open."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", (REDRIVE_COUNT_LOCK, capture))
        cursor.execute(
            "INSERT INTO redrives AS old VALUES (%s, 1) "
            "ON CONFLICT (capture) DO UPDATE SET redrives = old.redrives + 1",
            (capture,),
        )


def hours_of_blocks(conn: connection, first_block_id: int, before_block_id: int) -> list[int]:
    """Starts (ns) of the hours that stored blocks from the first id on and below the other lie in, in order."""
    with conn.cursor() as cur:
        cur.execute(
            "SELECT DISTINCT hour FROM ingest_ledger WHERE block_id >= %s AND block_id < %s ORDER BY hour",
            (first_block_id, before_block_id),
        )
        return [int(hour.timestamp()) * 1_000_000_000 for (hour,) in cur.fetchall()]


def hours(conn: connection) -> list[str]:
    """Partition keys of the hours that hold stored blocks, in order."""
    with conn.cursor() as cursor:
        # Walks the index from hour to hour instead of over every block.
        cursor.execute(
            "WITH RECURSIVE walk AS (SELECT min(hour) AS hour FROM ingest_ledger UNION ALL "
            "SELECT (SELECT min(hour) FROM ingest_ledger WHERE hour > walk.hour) FROM walk WHERE walk.hour IS NOT NULL)"
            " SELECT (extract(epoch FROM hour) * 1e9)::bigint FROM walk WHERE hour IS NOT NULL ORDER BY hour"
        )
        return [hour_key(start_ns) for (start_ns,) in cursor.fetchall()]


def rejections(conn: connection, since_ns: int, reason: str | None = None) -> list[tuple[int, int]]:
    """(block id, rejected packets) of the blocks with rejected packets received since (ns, UTC), in order.

    Those of one `reason`, or of any.
    """
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT block_id, count(*) FROM rejected_packets "
            "WHERE received >= %(since)s AND (%(reason)s IS NULL OR reason = %(reason)s) "
            "GROUP BY block_id ORDER BY block_id",
            {"since": instant(since_ns), "reason": reason},
        )
        return cursor.fetchall()


@dataclass(frozen=True, slots=True)
class Rejections:
    """Rejected packets that have a reason in common."""

    reason: str
    packets: int
    last_ns: int
    """When the last was received: ns since the Unix epoch, UTC."""


def rejections_of(conn: connection, since_ns: int, offset: int, mark: bytes) -> list[Rejections]:
    """The rejected packets received since (ns, UTC) that have these bytes at the offset, by reason, most first."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT reason, count(*), (extract(epoch FROM max(received)) * 1e9)::bigint FROM rejected_packets "
            "WHERE received >= %s AND substring(payload FROM %s FOR %s) = %s GROUP BY 1 ORDER BY 2 DESC, 1",
            (instant(since_ns), offset + 1, len(mark), mark),
        )
        return [Rejections(*row) for row in cursor.fetchall()]


def rejected_positions(conn: connection, block_ids: list[int], reason: str | None = None) -> dict[int, set[int]]:
    """Positions of the rejected packets of each block, of one `reason` or of any."""
    found: dict[int, set[int]] = {block_id: set() for block_id in block_ids}
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT block_id, position FROM rejected_packets WHERE block_id = ANY(%(blocks)s) "
            "AND (%(reason)s IS NULL OR reason = %(reason)s)",
            {"blocks": block_ids, "reason": reason},
        )
        for block_id, position in cursor.fetchall():
            found[block_id].add(position)
    return found


def most_ticks_a_day(conn: connection, since_ns: int) -> int | None:
    """The most ticks that a day (IST) from an instant (ns, UTC) on has in the ledger; None for no block of any."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT max(ticks)::bigint FROM (SELECT sum(ticks) AS ticks FROM ingest_ledger WHERE hour >= %s "
            "GROUP BY (hour AT TIME ZONE 'Asia/Kolkata')::date) AS days",
            (instant(since_ns),),
        )
        found: int | None = cursor.fetchall()[0][0]
    return found


def last_ledger_block(conn: connection, first: int, before: int) -> int | None:
    """The highest stored block id from `first` on and below `before`, None without any."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT max(block_id) FROM ingest_ledger WHERE block_id >= %s AND block_id < %s", (first, before)
        )
        found: int | None = cursor.fetchall()[0][0]
    return found


def complete_hours(conn: connection, now_ns: int) -> list[str]:
    """Those of `hours` that were over at `now_ns` (nanoseconds since the Unix epoch)."""
    open_hour = hour_key(now_ns)
    return [hour for hour in hours(conn) if hour < open_hour]


def hour_totals(conn: connection, hour: str) -> HourTotals:
    """What the hour of a partition key adds up to; one scan counts and digests its rows, in a second a million."""
    start, end = hour_bounds(hour)
    with conn.cursor() as cursor:
        cursor.execute(f"SELECT {_SUMS} FROM ingest_ledger WHERE hour = %s", (start,))
        sums = cursor.fetchall()[0]
        cursor.execute(
            "SELECT count(*) FROM (SELECT FROM ingest_ledger WHERE hour = %s GROUP BY block_id "
            "HAVING count(*) = min(parts)) AS whole",
            (start,),
        )
        blocks = cursor.fetchall()[0][0]
        found = hour_digest(conn, hour)
        cursor.execute(
            "SELECT (SELECT count(*) FROM rejected_packets WHERE received >= %(start)s AND received < %(end)s), "
            "min(first_received), max(last_received) FROM ingest_ledger WHERE hour = %(start)s",
            {"start": start, "end": end},
        )
        rest = cursor.fetchall()[0]
        percentiles = _percentiles(0.5, 0.95, 0.99, 0.999)
        cursor.execute(_LATENCIES.format(condition="hour = %s", percentiles=percentiles), (start,))
        fields: tuple[Any, ...] = (blocks, *sums, found.rows, found.digest, *rest, *cursor.fetchall()[0])
    return HourTotals(*fields)


def recent_totals(conn: connection, clock: Clock) -> RecentTotals:
    """Totals for a live line: one pass over the ledger (no tick is touched) and the last seconds of it."""
    since = clock.now() - timedelta(seconds=RECENT_S * clock.speed)
    with conn.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FILTER (WHERE part = 1), {_SUMS}, max(last_received) FROM ingest_ledger")
        totals = cursor.fetchall()[0]
        cursor.execute("SELECT sum(messages), sum(ticks) FROM ingest_ledger WHERE stored_at > %s", (since,))
        rates = [(count or 0) / RECENT_S for count in cursor.fetchall()[0]]
        percentiles = _percentiles(0.5, 0.99)
        cursor.execute(_LATENCIES.format(condition="stored_at > %s", percentiles=percentiles), (since,))
        latencies = cursor.fetchall()[0]
    return RecentTotals(*totals, *rates, *latencies)


def lock_writer(conn: connection, capture: int) -> bool:
    """Take the right to write a capture's blocks, held until the connection closes. False if another holds it."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (WRITER_LOCK, capture))
        return bool(cursor.fetchall()[0][0])


def share_capture(conn: connection, capture: int) -> bool:
    """Keep out who would write a capture's blocks whole, until the transaction ends. False if somebody does already."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock_shared(%s, %s)", (WRITER_LOCK, capture))
        return bool(cursor.fetchall()[0][0])


def write_status(conn: connection, capture: int, source: str, status: Mapping[str, Any]) -> None:
    """Renew this process's row in `captures`, and commit."""
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO captures AS old (capture, source, pid, host, started_at, updated_at, status) "
            "VALUES (%s, %s, %s, %s, now(), now(), %s) ON CONFLICT (capture) DO UPDATE SET "
            "source = excluded.source, pid = excluded.pid, host = excluded.host, updated_at = excluded.updated_at, "
            "status = excluded.status, started_at = CASE WHEN (old.pid, old.host) = (excluded.pid, excluded.host) "
            "THEN old.started_at ELSE excluded.started_at END",
            (capture, source, os.getpid(), socket.gethostname(), Json(dict(status))),
        )


def statuses(conn: connection) -> list[CaptureStatus]:
    """The latest status of every capture, by number."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT capture, source, pid, host, started_at, updated_at, "
            "extract(epoch FROM now() - updated_at)::float8, status FROM captures ORDER BY capture"
        )
        return [CaptureStatus(*row) for row in cursor.fetchall()]
