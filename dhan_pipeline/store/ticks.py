"""Writes ticks: blocks as they come, each exactly once, and whole hours anew.

A block's rows, its rejected packets and its ledger row share one transaction, so the ledger row proves all of them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2 import errors
from psycopg2.extensions import connection, cursor
from psycopg2.extras import execute_values

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.journal.block import split_block_id
from dhan_pipeline.journal.notes import Note
from dhan_pipeline.sessions import HOUR_NS, hour_key, hour_start_ns, parse_hour_key
from dhan_pipeline.store.copy import STORED, tick_copy
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline.store.ledger import begin_blocks, count_redrive, hour_bounds, last_block, last_ledger_block
from dhan_pipeline.store.partitions import HOUR_LOCK, ensure_partitions, instant
from dhan_pipeline.ticks import POSITION_BITS, Enriched

_COPY = f"COPY tick_rows ({', '.join(STORED)}) FROM STDIN (FORMAT binary)"
_COPY_BUFFER_BYTES = 1 << 20

#: First number of the advisory lock, beside those of `partitions`, that lets one redrive of a capture run at a time.
_REDRIVE_LOCK = 0x6468_0004

#: Rows that a rebuild copies at once: enough for full speed, a few megabytes of memory.
_REBUILD_ROWS = 20_000

_LEDGER_COLUMNS = (
    "block_id, capture, hour, messages, packets, ticks, state, control, rejected, payload_bytes, "
    "first_received, last_received, stored_at, rebuilt_at, latency_ms"
)


class RedrivenError(PipelineError):
    """Rejected packets of the capture were driven again since: the rows of later blocks may be others now."""


class JournalIncompleteError(PipelineError):
    """The journal lacks blocks whose rows the database holds, so a rebuild would lose them."""


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """One journal block as it is stored. Times are nanoseconds since the Unix epoch, UTC."""

    block_id: int
    messages: int
    payload_bytes: int
    first_received_ns: int
    last_received_ns: int
    enriched: Enriched
    received_ns: NDArray[np.int64] | None = None
    """Receive time of each message; without it, rejected packets carry that of the first."""
    connection: NDArray[np.uint8] | None = None
    """Connection of each message; without it, rejected packets carry none."""
    notes: tuple[tuple[int, Note], ...] = ()
    """What the capture noted in it, each with its receive time."""

    @property
    def capture(self) -> int:
        """Number of the capture that received it."""
        return split_block_id(self.block_id)[0]

    @property
    def hour(self) -> str:
        """Partition key of the hour in which all of it was received."""
        return hour_key(self.first_received_ns)


def write_blocks(
    conn: connection, blocks: Sequence[StoredBlock], clock: Clock, redrives: int | None = None
) -> list[int]:
    """Store the blocks that are not stored yet, in one transaction, and commit. Returns their ids.

    Blocks that any transaction committed before are skipped: a redelivered or repeated block writes nothing, and its
    notes change nothing. A missing partition is made. Raises psycopg2.Error, having stored nothing; and RedrivenError
    where `redrives`, the capture's number when its state was made, is no longer the ledger's.
    """
    unique = {block.block_id: block for block in blocks}
    while unique:
        try:
            return _write(conn, unique, clock, redrives)
        except errors.CheckViolation:  # no partition holds the rows
            for start_ns in {hour_start_ns(block.first_received_ns) for block in unique.values()}:
                ensure_partitions(conn, start_ns, start_ns + HOUR_NS)
        except errors.UniqueViolation:  # another transaction stored some of them meanwhile: those are skipped next
            continue
    return []


def _write(conn: connection, blocks: dict[int, StoredBlock], clock: Clock, redrives: int | None) -> list[int]:
    first = next(iter(blocks.values()))
    starts_ns = {hour_start_ns(block.first_received_ns) for block in blocks.values()}
    with conn, conn.cursor() as cur:
        count, stored = begin_blocks(conn, first.capture, starts_ns, blocks)
        if redrives is not None and count != redrives:
            raise RedrivenError("Rejected packets of this capture were driven again.")
        written = sorted(blocks.keys() - stored)
        if written:
            _copy(cur, [blocks[block_id] for block_id in written])
            # Measured after the rows are in, so that the latency leaves out nothing but the commit itself.
            now = clock.now()
            execute_values(
                cur,
                f"INSERT INTO ingest_ledger ({_LEDGER_COLUMNS}) VALUES %s",
                [
                    (*_ledger_row(blocks[block_id]), now, None, _latency_ms(blocks[block_id], clock))
                    for block_id in written
                ],
                page_size=len(written),
            )
        # Also of blocks that a rebuild stored before: it has no eye for notes.
        for block in blocks.values():
            apply_notes(cur, block.capture, block.notes)
    return written


def replace_hour(conn: connection, hour: str, blocks: Iterable[StoredBlock], clock: Clock) -> int:
    """Replace all rows of an hour, of every capture, by those of `blocks`, in one transaction. Returns the new rows.

    Readers see the old rows or the new ones, and never wait; writers of the same hour wait. The ledger keeps when each
    block was first stored. `blocks` is consumed a few megabytes at a time.

    Raises JournalIncompleteError where the ledger has blocks of the hour that are not among `blocks`, ValueError for a
    block of another hour, and whatever `blocks` raises; nothing is changed then.
    """
    start, end = hour_bounds(hour)
    start_ns = parse_hour_key(hour)
    ensure_partitions(conn, start_ns, start_ns + HOUR_NS)
    with conn, conn.cursor() as cur:
        cur.execute("SELECT pg_advisory_xact_lock(%s, %s)", (HOUR_LOCK, start_ns // HOUR_NS))
        cur.execute("DELETE FROM tick_rows WHERE time >= %s AND time < %s", (start, end))
        cur.execute("DELETE FROM rejected_packets WHERE received >= %s AND received < %s", (start, end))
        now = clock.now()
        rows = _rebuild(cur, (_of_hour(block, hour) for block in blocks), now)
        cur.execute(
            "SELECT count(*) FROM ingest_ledger WHERE hour = %s AND rebuilt_at IS DISTINCT FROM %s", (start, now)
        )
        if lost := cur.fetchall()[0][0]:
            raise JournalIncompleteError(
                f"The journal lacks {lost} blocks of {hour} whose ticks the database holds; nothing was changed."
            )
    return rows


def replace_blocks(
    conn: connection,
    first_block_id: int,
    before_block_id: int,
    renew: Callable[[int, int], Iterable[StoredBlock]],
    clock: Clock,
) -> int:
    """Replace the rows of one capture's stored blocks from the first id on, in one transaction. Returns the new rows.

    `before_block_id` ends the day, and so what its blocks say about later ones. `renew` makes the blocks from an id to
    another as the journal has them; it is asked twice. The writer goes on meanwhile: while it is in that day, it waits
    only until those blocks are replaced that it stored since, and then gets RedrivenError.

    Raises JournalIncompleteError where the ledger has blocks of that range that are not among the renewed, and whatever
    `renew` raises; nothing is changed then.
    """
    capture, _ = split_block_id(first_block_id)
    starts_ns = _hours(conn, first_block_id, before_block_id)
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
                first = last + 1
    return rows


def _hours(conn: connection, first_block_id: int, before_block_id: int) -> list[int]:
    """Starts (ns) of the hours that stored blocks from the first id on and below the other lie in, in order."""
    with conn.cursor() as cur:
        cur.execute(
            "SELECT DISTINCT hour FROM ingest_ledger WHERE block_id >= %s AND block_id < %s ORDER BY hour",
            (first_block_id, before_block_id),
        )
        return [int(hour.timestamp()) * 1_000_000_000 for (hour,) in cur.fetchall()]


def _replace_blocks(conn: connection, first: int, last: int, blocks: Iterable[StoredBlock], now: datetime) -> int:
    with conn.cursor() as cur:
        for start_ns in _hours(conn, first, last + 1):
            # Shared: it keeps out who rebuilds the hour, and not the writer, who only adds newer blocks.
            cur.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", (HOUR_LOCK, start_ns // HOUR_NS))
            cur.execute(
                "DELETE FROM tick_rows WHERE time >= %s AND time < %s AND tick_id >= %s AND tick_id < %s",
                (instant(start_ns), instant(start_ns + HOUR_NS), first << POSITION_BITS, (last + 1) << POSITION_BITS),
            )
        cur.execute("DELETE FROM rejected_packets WHERE block_id BETWEEN %s AND %s", (first, last))
        rows = _rebuild(cur, blocks, now)
        cur.execute(
            "SELECT count(*) FROM ingest_ledger WHERE block_id BETWEEN %s AND %s AND rebuilt_at IS DISTINCT FROM %s",
            (first, last, now),
        )
        if lost := cur.fetchall()[0][0]:
            raise JournalIncompleteError(
                f"The journal lacks {lost} blocks whose ticks the database holds; nothing was changed."
            )
    return rows


def _of_hour(block: StoredBlock, hour: str) -> StoredBlock:
    if block.hour != hour:
        raise ValueError(f"block {block.block_id} belongs to {block.hour}, not to {hour}")
    return block


def _rebuild(cur: cursor, blocks: Iterable[StoredBlock], now: Any) -> int:
    """Write the blocks, a few megabytes at a time. Returns the rows."""
    rows = 0
    chunk: list[StoredBlock] = []
    chunk_rows = 0
    for block in blocks:
        chunk.append(block)
        chunk_rows += block.enriched.rows
        if chunk_rows >= _REBUILD_ROWS:
            rows += _rebuild_chunk(cur, chunk, now)
            chunk, chunk_rows = [], 0
    return rows + _rebuild_chunk(cur, chunk, now)


def _rebuild_chunk(cur: cursor, blocks: list[StoredBlock], now: Any) -> int:
    if not blocks:
        return 0
    counts = "messages packets ticks state control rejected payload_bytes first_received last_received rebuilt_at"
    execute_values(
        cur,
        f"INSERT INTO ingest_ledger ({_LEDGER_COLUMNS}) VALUES %s ON CONFLICT (block_id) DO UPDATE SET "
        + ", ".join(f"{name} = excluded.{name}" for name in counts.split()),
        [(*_ledger_row(block), now, now, None) for block in blocks],
        page_size=len(blocks),
    )
    _copy(cur, blocks)
    return sum(block.enriched.rows for block in blocks)


def _ledger_row(block: StoredBlock) -> tuple[Any, ...]:
    enriched = block.enriched
    return (
        block.block_id,
        block.capture,
        instant(hour_start_ns(block.first_received_ns)),
        block.messages,
        enriched.packets,
        enriched.rows,
        enriched.state,
        enriched.control,
        len(enriched.rejected),
        block.payload_bytes,
        instant(block.first_received_ns),
        instant(block.last_received_ns),
    )


def _latency_ms(block: StoredBlock, clock: Clock) -> float:
    return (clock.now_ns() - block.first_received_ns) / (1e6 * clock.speed)


def _copy(cur: cursor, blocks: Sequence[StoredBlock]) -> None:
    """Insert the ticks and the rejected packets of blocks."""
    batches = [batch for block in blocks for batch in block.enriched.ticks if len(batch)]
    if batches:
        cur.copy_expert(_COPY, BytesIO(tick_copy(batches)), size=_COPY_BUFFER_BYTES)
    rejected = [
        (
            block.block_id,
            rejection.position,
            instant(
                block.first_received_ns if block.received_ns is None else int(block.received_ns[rejection.message])
            ),
            None if block.connection is None else int(block.connection[rejection.message]),
            rejection.reason,
            rejection.payload,
        )
        for block in blocks
        for rejection in block.enriched.rejected
    ]
    if rejected:
        execute_values(
            cur,
            "INSERT INTO rejected_packets (block_id, position, received, connection, reason, payload) VALUES %s",
            rejected,
            page_size=1000,
        )


def count_ticks(conn: connection) -> int:
    """Rows in `ticks`, counted, which takes about half a second a million. Leaves the transaction open."""
    with conn.cursor() as cur:
        cur.execute("SELECT count(*) FROM tick_rows")
        rows: int = cur.fetchall()[0][0]
    return rows


def hour_digest(conn: connection, hour: str) -> str:
    """A fingerprint of an hour's rows: the same exactly when the same rows hold the same bytes in every column.

    It depends neither on the order of the rows on disk nor on the session. Takes 5 to 10 seconds a million rows.
    """
    with conn.cursor() as cur:
        cur.execute(
            "SELECT count(*), coalesce(sum(('x' || left(md5(record_send(t)), 16))::bit(64)::bigint), 0) "
            "FROM tick_rows t WHERE time >= %s AND time < %s",
            hour_bounds(hour),
        )
        return "{}:{}".format(*cur.fetchall()[0])
