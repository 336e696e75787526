"""What was fetched after gaps: quotes, and how far the bars of their minutes have come."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from psycopg2.extensions import connection
from psycopg2.extras import execute_values

from dhan_pipeline.feeds.history import Quote
from dhan_pipeline.gaps import Cause
from dhan_pipeline.sources import Source, source_of_capture
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.ticks import NULL_INT


@dataclass(frozen=True, slots=True)
class EndedGap:
    """A gap that is over, and what has been fetched after it. Times are ns since the Unix epoch, UTC."""

    capture: int
    gap_id: int
    started_ns: int
    ended_ns: int
    segments: tuple[int, ...]
    """The numbers of the exchange segments of its instruments; empty where it names none."""
    has_quotes: bool
    has_bars: bool
    failed: int
    """Instruments whose bars could not be had."""

    @property
    def source(self) -> Source:
        """Whose feed it was."""
        return source_of_capture(self.capture)


def ended_gaps(conn: connection, since_ns: int, shortest_s: float, with_failed: bool = False) -> list[EndedGap]:
    """The gaps of connections and segments that ended at `since_ns` (ns, UTC) or later, by start.

    Neither those for which somebody stopped the capture, nor those of a single silent instrument, nor those shorter
    than `shortest_s` seconds, nor those whose bars are complete; `with_failed`: but for instruments that could not be
    had. Leaves the transaction open.
    """
    with conn.cursor() as cur:
        cur.execute(
            "SELECT capture, gap_id, (extract(epoch FROM started_at) * 1e9)::bigint, "
            "(extract(epoch FROM ended_at) * 1e9)::bigint, "
            "ARRAY(SELECT DISTINCT exchange_segment_of(token) FROM unnest(gap.instruments) AS token), "
            "snapshot_at IS NOT NULL, bars_at IS NOT NULL, coalesce(failed, 0) "
            "FROM feed_gaps AS gap LEFT JOIN gap_recoveries USING (capture, gap_id) "
            "WHERE ended_at >= %s AND ended_at - started_at >= make_interval(secs => %s) AND cause <> %s "
            "AND NOT (cause = %s AND cardinality(gap.instruments) = 1) AND (bars_at IS NULL OR (failed > 0 AND %s)) "
            "ORDER BY started_at, capture, gap_id",
            (instant(since_ns), shortest_s, Cause.STOP.value, Cause.SILENT.value, with_failed),
        )
        return [
            EndedGap(capture, gap_id, started_ns, ended_ns, tuple(segments), *rest)
            for capture, gap_id, started_ns, ended_ns, segments, *rest in cur.fetchall()
        ]


def gap_instruments(conn: connection, gap: EndedGap) -> list[int]:
    """The instruments that it concerns, those with most ticks in the ten minutes before it first. No commit."""
    with conn.cursor() as cur:
        cur.execute(
            "SELECT concerned.token FROM feed_gaps, unnest(instruments) AS concerned (token) LEFT JOIN "
            "(SELECT instrument_token AS token, count(*) AS ticks FROM tick_rows "
            "WHERE time > %s AND time <= %s GROUP BY 1) AS lively USING (token) "
            "WHERE capture = %s AND gap_id = %s ORDER BY ticks DESC NULLS LAST, concerned.token",
            (instant(gap.started_ns - 600_000_000_000), instant(gap.started_ns), gap.capture, gap.gap_id),
        )
        return [token for (token,) in cur.fetchall()]


def write_gap_quotes(conn: connection, gap: EndedGap, quotes: Mapping[int, Quote], fetched_at: datetime) -> None:
    """Keep quotes that were fetched after a gap, and commit."""
    rows = [
        (
            gap.capture,
            gap.gap_id,
            token,
            _price(quote.last_price),
            _count(quote.volume),
            _count(quote.oi),
            _price(quote.previous_close),
            _time(quote.last_trade_time_us),
            fetched_at,
        )
        for token, quote in quotes.items()
    ]
    with conn, conn.cursor() as cur:
        execute_values(
            cur,
            "INSERT INTO gap_quotes VALUES %s ON CONFLICT (capture, gap_id, instrument_token) DO UPDATE SET "
            "last_price = excluded.last_price, volume = excluded.volume, oi = excluded.oi, "
            "previous_close = excluded.previous_close, last_trade_time = excluded.last_trade_time, "
            "fetched_at = excluded.fetched_at",
            rows,
        )


def note_quotes(conn: connection, gap: EndedGap, at: datetime) -> None:
    """Note that the quotes after a gap are complete, and commit."""
    with conn, conn.cursor() as cur:
        cur.execute(
            "INSERT INTO gap_recoveries (capture, gap_id, snapshot_at) VALUES (%s, %s, %s) "
            "ON CONFLICT (capture, gap_id) DO UPDATE SET snapshot_at = excluded.snapshot_at",
            (gap.capture, gap.gap_id, at),
        )


def note_bars(conn: connection, gap: EndedGap, at: datetime, instruments: int, failed: int, detail: str) -> int:
    """Note that the bars of a gap's minutes are as complete as they get, and commit. Returns how many there are."""
    start_ns, end_ns = minutes_of(gap)
    with conn, conn.cursor() as cur:
        cur.execute(
            "INSERT INTO gap_recoveries AS old (capture, gap_id, bars_at, instruments, bars, failed, detail) "
            "SELECT capture, gap_id, %s, %s, (SELECT count(*) FROM broker_candles WHERE minutes = 1 "
            "AND instrument_token = ANY (instruments) AND time >= %s AND time < %s), %s, %s "
            "FROM feed_gaps WHERE capture = %s AND gap_id = %s "
            "ON CONFLICT (capture, gap_id) DO UPDATE SET bars_at = excluded.bars_at, "
            "instruments = excluded.instruments, bars = excluded.bars, failed = excluded.failed, "
            "detail = excluded.detail RETURNING bars",
            (at, instruments, instant(start_ns), instant(end_ns), failed, detail, gap.capture, gap.gap_id),
        )
        return int(cur.fetchall()[0][0])


def minutes_of(gap: EndedGap) -> tuple[int, int]:
    """From the start of the gap's first minute to the end of its last (ns since the Unix epoch, UTC)."""
    minute = 60_000_000_000
    return gap.started_ns // minute * minute, (gap.ended_ns // minute + 1) * minute


def _price(value: float) -> float | None:
    return None if np.isnan(value) else value


def _count(value: int) -> int | None:
    return None if value == NULL_INT else value


def _time(at_us: int) -> datetime | None:
    return None if at_us == NULL_INT else instant(at_us * 1000)
