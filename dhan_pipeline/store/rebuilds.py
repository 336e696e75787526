"""Writes ticks anew: whole hours as the journal says they are, and blocks whose packets were rejected before.

What differs is written, in one transaction; readers see the old rows or the new ones.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection, cursor

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.journal.block import split_block_id
from dhan_pipeline.sessions import HOUR_NS, hour_key, parse_hour_key
from dhan_pipeline.store import differences, digests
from dhan_pipeline.store.differences import Difference, Differences
from dhan_pipeline.store.ledger import count_redrive, hour_bounds, hours_of_blocks, last_block, last_ledger_block
from dhan_pipeline.store.partitions import HOUR_LOCK, ensure_partitions, instant
from dhan_pipeline.store.ticks import Rows, StoredBlocks, copy_rows, rows_of, write_books
from dhan_pipeline.store.timescale import unpack_without_limit
from dhan_pipeline.ticks import POSITION_BITS

#: First number of the advisory lock, beside those of `partitions`, that lets one redrive of a capture run at a time.
_REDRIVE_LOCK = 0x6468_0004

#: What the thread of a rebuild adds to its niceness. Linux keeps one for each thread.
_NICENESS = 10

# Blocks that came in parts become whole in the ledger before they are renewed, so that what has yet to come of them is
# skipped. When they were first stored stays; and how long that took, where all of their parts were there.
_MERGE_PARTS = """
WITH gone AS (DELETE FROM ingest_ledger WHERE parts > 1 AND {condition} RETURNING *)
INSERT INTO ingest_ledger (block_id, capture, hour, messages, packets, ticks, state, control, rejected, payload_bytes,
    first_received, last_received, stored_at, latency_ms)
SELECT block_id, min(capture), min(hour), 0, 0, 0, 0, 0, 0, 0, min(first_received), max(last_received), min(stored_at),
    CASE WHEN count(*) = min(parts) THEN max(latency_ms) END
FROM gone GROUP BY block_id
"""


class JournalIncompleteError(PipelineError):
    """The journal lacks blocks whose rows the database holds, so a rebuild would lose them."""


@dataclass(frozen=True, slots=True)
class HourRebuild:
    """What a rebuild of an hour found, and left."""

    hour: str
    rows: int
    """That the journal says; so does `digest`."""
    digest: str
    digest_before: str
    """Of the rows that were there."""
    differences: Differences
    """Between these and those."""

    @property
    def same(self) -> bool:
        """Whether the rows were those that the journal says already."""
        return not (self.differences.added or self.differences.removed or self.differences.changed)


def replace_hour(
    conn: connection,
    hour: str,
    blocks: Iterable[StoredBlocks],
    clock: Clock,
    *,
    compare_only: bool = False,
    each_row: Callable[[Sequence[Difference]], object] | None = None,
) -> HourRebuild:
    """Make the rows of an hour, of every capture, those of `blocks`, in one transaction.

    Only rows that differ are written: an hour that is right already keeps every row. With `compare_only` nothing is
    changed at all. `each_row` gets the differences of one row after another. What was found and left goes on record in
    `hour_digests`, and the ledger keeps when each block was first stored.

    Readers see the old rows or the new ones, and never wait; writers of the same hour wait, of others they do not.
    `blocks` is consumed in another thread, one at most before it is needed.

    Raises JournalIncompleteError where the ledger has blocks of the hour that are not among `blocks`, ValueError for a
    block of another hour, and whatever `blocks` raises; nothing is changed then.
    """
    start, end = hour_bounds(hour)
    start_ns = parse_hour_key(hour)
    if not compare_only:
        ensure_partitions(conn, start_ns, start_ns + HOUR_NS)
    with conn, conn.cursor() as cur:
        digests.lock_hour(conn, hour)
        with _rows_ahead(_of_hour(part, hour) for part in blocks) as new:
            before = digests.hour_digest(conn, hour)
            # Nothing to compare with: straight into the table.
            directly = not before.rows and not compare_only
            if not directly:
                differences.begin(conn)
            cur.execute("DELETE FROM rejected_packets WHERE received >= %s AND received < %s", (start, end))
            cur.execute(_MERGE_PARTS.format(condition="hour = %s"), (start,))
            now = clock.now()
            _renew(cur, new, now, "tick_rows" if directly else differences.RENEWED)
        cur.execute(
            "SELECT count(*) FROM ingest_ledger WHERE hour = %s AND rebuilt_at IS DISTINCT FROM %s", (start, now)
        )
        if lost := cur.fetchall()[0][0]:
            raise JournalIncompleteError(
                f"The journal lacks {lost} blocks of {hour} whose ticks the database holds; nothing was changed."
            )
        if directly:
            after = digests.hour_digest(conn, hour)
            found = Differences(added=after.rows)
        else:
            after = digests.table_digest(conn, differences.RENEWED)
            found = Differences() if after == before else differences.compare(conn, hour, each_row)
        if compare_only:
            conn.rollback()
        else:
            if before.rows:
                digests.record_capture(conn, hour, before, now)
            if not directly and after != before:
                unpack_without_limit(cur)
                differences.apply(conn, hour)
            digests.record(conn, hour, "rebuild", after, now, (found.added, found.removed, found.changed))
    return HourRebuild(hour, after.rows, after.digest, before.digest, found)


def replace_blocks(
    conn: connection,
    first_block_id: int,
    before_block_id: int,
    renew: Callable[[int, int], Iterable[StoredBlocks]],
    clock: Clock,
) -> int:
    """Replace the rows of one capture's stored blocks from the first id on, in one transaction. Returns the new rows.

    `before_block_id` ends the day, and so what its blocks say about later ones. `renew` makes the blocks from an id to
    another as the journal has them, in another thread; it is asked twice. The writer goes on meanwhile: while it is in
    that day, it waits only until those blocks are replaced that it stored since, and then gets RedrivenError.

    Raises JournalIncompleteError where the ledger has blocks of that range that are not among the renewed, and whatever
    `renew` raises; nothing is changed then.
    """
    capture, _ = split_block_id(first_block_id)
    starts_ns = hours_of_blocks(conn, first_block_id, before_block_id)
    conn.commit()
    for start_ns in starts_ns:
        ensure_partitions(conn, start_ns, start_ns + HOUR_NS)
    now = clock.now()
    with conn, conn.cursor() as cur:
        cur.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_REDRIVE_LOCK, capture))
        rows = 0
        first = first_block_id
        for writer_waits in (False, True):
            if writer_waits and (last_block(conn, capture) or 0) < before_block_id:
                count_redrive(conn, capture)
            last = last_ledger_block(conn, first, before_block_id)
            if last is not None:
                rows += _replace_blocks(conn, first, last, renew(first, last), now)
                # Before the writer waits, for it takes a second a million rows; afterwards the open hour is left.
                for start_ns in hours_of_blocks(conn, first, last + 1):
                    digests.record_redrive(conn, hour_key(start_ns), clock.now())
                first = last + 1
    return rows


def _replace_blocks(conn: connection, first: int, last: int, blocks: Iterable[StoredBlocks], now: datetime) -> int:
    with _rows_ahead(blocks) as new, conn.cursor() as cur:
        unpack_without_limit(cur)
        for start_ns in hours_of_blocks(conn, first, last + 1):
            # Shared: it keeps out who rebuilds the hour, and not the writer, who only adds newer blocks.
            cur.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", (HOUR_LOCK, start_ns // HOUR_NS))
            cur.execute(
                "DELETE FROM tick_rows WHERE time >= %s AND time < %s AND tick_id >= %s AND tick_id < %s",
                (instant(start_ns), instant(start_ns + HOUR_NS), first << POSITION_BITS, (last + 1) << POSITION_BITS),
            )
        cur.execute("DELETE FROM rejected_packets WHERE block_id BETWEEN %s AND %s", (first, last))
        cur.execute(_MERGE_PARTS.format(condition="block_id BETWEEN %s AND %s"), (first, last))
        rows = _renew(cur, new, now)
        cur.execute(
            "SELECT count(*) FROM ingest_ledger WHERE block_id BETWEEN %s AND %s AND rebuilt_at IS DISTINCT FROM %s",
            (first, last, now),
        )
        if lost := cur.fetchall()[0][0]:
            raise JournalIncompleteError(
                f"The journal lacks {lost} blocks whose ticks the database holds; nothing was changed."
            )
    return rows


def _of_hour(part: StoredBlocks, hour: str) -> StoredBlocks:
    if part.hour != hour:
        raise ValueError(f"block {part.stretch.block_ids[0]} belongs to {part.hour}, not to {hour}")
    return part


@contextmanager
def _rows_ahead(blocks: Iterable[StoredBlocks]) -> Iterator[Iterator[Rows]]:
    """What blocks become, each made by a thread while the server takes the one before.

    Most of the work of a rebuild is done there, at low priority: a capture on the same machine goes first.
    """
    made = map(rows_of, blocks)
    with ThreadPoolExecutor(1, "rebuild", os.nice, (_NICENESS,)) as pool:
        following = pool.submit(next, made, None)

        def each() -> Iterator[Rows]:
            nonlocal following
            while (rows := following.result()) is not None:
                following = pool.submit(next, made, None)
                yield rows

        yield each()


def _renew(cur: cursor, new: Iterable[Rows], now: datetime, table: str = "tick_rows") -> int:
    """Write what blocks become, whether or not they were stored before. Returns the rows of ticks, now in `table`."""
    ticks = 0
    for rows in new:
        copy_rows(cur, rows, table)
        write_books(cur, rows, now, rebuilt_at=now)
        ticks += int(rows.books["ticks"].sum())
    return ticks
