"""Measuring a complete hour: one reading of its journal files, its ledger rows, its gaps and its rows in the table."""

from collections import Counter
from contextlib import closing

from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.journal.reader import captures, hour_summary
from dhan_pipeline.quality.completeness import measure_completeness
from dhan_pipeline.quality.due import due_in_hour
from dhan_pipeline.quality.gaps import GapPart, parts
from dhan_pipeline.quality.measures import HourMeasures
from dhan_pipeline.quality.pictures import Picture, latency_picture, ticks_picture
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import digests, ledger
from dhan_pipeline.store.digests import Digest
from dhan_pipeline.store.engine import connect, database_url
from dhan_pipeline.store.flow import hour_flow, ticks_of_day
from dhan_pipeline.store.gaps import read_gaps
from dhan_pipeline.store.partitions import has_expired
from dhan_pipeline.store.subscribed import subscribed_during


def measure_hour(settings: Settings, hour: str, clock: Clock) -> HourMeasures:
    """What is known of an IST hour, given by its partition key, over all captures.

    Every block of the journal's hour is verified. The digest of an hour that is over is put on record if none was, or
    if nothing but late blocks came to the rows since, unless they have expired; who would write into that hour waits
    meanwhile. Raises ValueError for what is not the key of an hour, OSError where the journal cannot be read,
    psycopg2.Error where the database cannot be asked.
    """
    always = settings.sessions == "always"
    journal = [hour_summary(settings.journal_dir, capture, hour) for capture in captures(settings.journal_dir)]
    with closing(connect(database_url(settings))) as conn:
        with conn:
            over = clock.now_ns() >= parse_hour_key(hour) + HOUR_NS
            if over:
                digests.lock_hour(conn, hour)
            totals = ledger.hour_totals(conn, hour)
            old = has_expired(parse_hour_key(hour), settings.retention_days, clock.now_ns())
            expired = old and totals.ticks > 0 and not totals.rows
            if over and totals.blocks and not expired:
                digests.record_capture(conn, hour, Digest(totals.rows, totals.digest), clock.now())
            recorded = digests.records(conn, hour, 2)
            flow = hour_flow(conn, hour)
            waits = _waits(conn, hour)
            due = due_in_hour(subscribed_during(conn, *ledger.hour_bounds(hour)), parse_hour_key(hour), always)
        completeness = None if expired else measure_completeness(conn, hour, due, always)
        gaps = _gaps(conn, settings, hour)
        day = _day(conn, settings, hour)
    return HourMeasures(
        hour=hour,
        journal_blocks=sum(summary.blocks for summary in journal),
        journal_messages=sum(summary.messages for summary in journal),
        journal_bytes=sum(summary.payload_bytes for summary in journal),
        journal_damage=tuple(str(corruption) for summary in journal for corruption in summary.corruptions),
        first_received_ns=min((s.first_received_ns for s in journal if s.first_received_ns is not None), default=None),
        last_received_ns=max((s.last_received_ns for s in journal if s.last_received_ns is not None), default=None),
        blocks=totals.blocks,
        messages=totals.messages,
        packets=totals.packets,
        ticks=totals.ticks,
        state=totals.state,
        control=totals.control,
        rejected=totals.rejected,
        rows=totals.rows,
        digest=totals.digest,
        recorded=recorded,
        expired=expired,
        latency_p50_ms=totals.latency_p50_ms,
        latency_p95_ms=totals.latency_p95_ms,
        latency_p99_ms=totals.latency_p99_ms,
        latency_p999_ms=totals.latency_p999_ms,
        flow=flow,
        waits=waits,
        trading=tuple(due.by_minute.tolist()) if len(due.tokens) and not expired else None,
        completeness=completeness,
        gaps=gaps,
        latencies=latency_picture(flow.latency_counts, settings.latency_p99_ms_warn),
        day=day,
    )


def _waits(conn: connection, hour: str) -> Counter[str]:
    waits = Counter[str]()
    for found in ledger.statuses(conn):
        waits.update(found.status.get("waits", {}).get(hour, {}))
    return waits


def hour_gaps(settings: Settings, hour: str) -> tuple[GapPart, ...]:
    """The gaps of an IST hour in session, as they are known now. Raises ValueError, psycopg2.Error."""
    with closing(connect(database_url(settings))) as conn:
        return _gaps(conn, settings, hour)


def _gaps(conn: connection, settings: Settings, hour: str) -> tuple[GapPart, ...]:
    start_ns = parse_hour_key(hour)
    return _gaps_between(conn, settings, start_ns, start_ns + HOUR_NS)


def _day(conn: connection, settings: Settings, hour: str) -> Picture | None:
    start_ns, by_minute = ticks_of_day(conn, hour)
    return ticks_picture(by_minute, start_ns, _gaps_between(conn, settings, start_ns, parse_hour_key(hour) + HOUR_NS))


def _gaps_between(conn: connection, settings: Settings, start_ns: int, end_ns: int) -> tuple[GapPart, ...]:
    return tuple(parts(read_gaps(conn, start_ns, end_ns), start_ns, end_ns, settings.sessions == "always"))
