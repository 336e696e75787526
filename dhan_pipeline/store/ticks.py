"""Writes ticks: blocks as they come, each exactly once, and whole hours anew.

A block's rows, its rejected packets and its ledger row share one transaction, so the ledger row proves all of them.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2 import errors
from psycopg2.extensions import connection, cursor
from psycopg2.extras import execute_values

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.journal.block import NUMBER_BITS, split_block_id
from dhan_pipeline.journal.notes import Note
from dhan_pipeline.journal.stretch import Stretch
from dhan_pipeline.sessions import HOUR_NS, hour_key, hour_start_ns, parse_hour_key
from dhan_pipeline.store import differences, digests
from dhan_pipeline.store.copy import STORED, tick_copy
from dhan_pipeline.store.differences import Difference, Differences
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline.store.ledger import (
    begin_blocks,
    count_redrive,
    hour_bounds,
    last_block,
    last_ledger_block,
    last_whole_block,
    share_capture,
)
from dhan_pipeline.store.partitions import HOUR_LOCK, ensure_partitions, instant
from dhan_pipeline.store.prepared import prepare
from dhan_pipeline.store.timescale import unpack_without_limit
from dhan_pipeline.ticks import POSITION_BITS, Enriched, TickBatch

_COPY = f"COPY {{}} ({', '.join(STORED)}) FROM STDIN (FORMAT binary)"

#: First number of the advisory lock, beside those of `partitions`, that lets one redrive of a capture run at a time.
_REDRIVE_LOCK = 0x6468_0004

#: What the thread of a rebuild adds to its niceness. Linux keeps one for each thread.
_NICENESS = 10

#: What the ledger says of a block, and as what the server is told. Times are microseconds since the Unix epoch.
_BOOKS = {
    "block_id": "bigint",
    "capture": "smallint",
    "hour": "bigint",
    "messages": "integer",
    "packets": "integer",
    "ticks": "integer",
    "state": "integer",
    "control": "integer",
    "rejected": "integer",
    "payload_bytes": "integer",
    "first_received": "bigint",
    "last_received": "bigint",
    "part": "smallint",
    "parts": "smallint",
}
_TIMES = ("hour", "first_received", "last_received")

# An array a column, in words: of 800 blocks, each takes 12 us. As a row of values it takes 55, and alone no less.
_BOOKS_TYPES = ", ".join(("timestamptz", "timestamptz", *(f"{kind}[]" for kind in _BOOKS.values()), "real[]"))
_ADD_BOOKS = (
    f"INSERT INTO ingest_ledger ({', '.join(_BOOKS)}, latency_ms, stored_at, rebuilt_at) SELECT "
    + ", ".join(f"'epoch'::timestamptz + {name} * interval '1 us'" if name in _TIMES else name for name in _BOOKS)
    + f", latency_ms, $1, $2 FROM unnest({', '.join(f'${number}' for number in range(3, len(_BOOKS) + 4))})"
    + f" AS books ({', '.join(_BOOKS)}, latency_ms)"
)
_RENEW_BOOKS = f"{_ADD_BOOKS} ON CONFLICT (block_id, part) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in (*_BOOKS, "rebuilt_at") if name not in ("block_id", "capture", "hour")
)

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


class RedrivenError(PipelineError):
    """Rejected packets of the capture were driven again since: the rows of later blocks may be others now."""


class WrittenDirectlyError(PipelineError):
    """A capture writes its blocks itself, so no worker may."""


class JournalIncompleteError(PipelineError):
    """The journal lacks blocks whose rows the database holds, so a rebuild would lose them."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What blocks become in the database."""

    books: dict[str, NDArray[np.int64]]
    """The columns of `_BOOKS`."""
    ticks: bytes
    """COPY's; empty for none."""
    rejected: list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the blocks this is, and what the ledger says of them whole: shape (blocks,). Times in ns, UTC."""

    part: int
    parts: int
    messages: NDArray[np.int64]
    payload_bytes: NDArray[np.int64]
    first_received_ns: NDArray[np.int64]
    last_received_ns: NDArray[np.int64]


@dataclass(frozen=True)
class StoredBlocks:
    """Consecutive journal blocks of one hour as they are stored."""

    stretch: Stretch
    enriched: Enriched
    notes: tuple[tuple[int, Note], ...] = ()
    """What the capture noted in them, each with its receive time (ns since the Unix epoch, UTC)."""
    share: Share | None = None
    """None: they are whole. Else the stretch has their messages of one part alone, perhaps none."""

    @property
    def capture(self) -> int:
        """Number of the capture that received them."""
        return self.stretch.capture

    @cached_property
    def hour_ns(self) -> int:
        """Start of the hour of receipt (IST): ns since the Unix epoch, UTC."""
        return self.stretch.hour_ns if self.share is None else hour_start_ns(int(self.share.first_received_ns[0]))

    @property
    def hour(self) -> str:
        """Partition key of the hour of receipt (IST)."""
        return hour_key(self.hour_ns)

    @property
    def last_received_ns(self) -> int:
        """Receive time of the last message."""
        return self.stretch.last_received_ns if self.share is None else int(self.share.last_received_ns[-1])

    @cached_property
    def rows(self) -> Rows:
        """What they become; whoever asks ahead of time spares `write_blocks` from making it."""
        return _rows(self)


def write_blocks(
    conn: connection,
    blocks: Sequence[StoredBlocks],
    clock: Clock,
    redrives: int | None = None,
    turn: Callable[[], object] | None = None,
) -> list[int]:
    """Store those of a capture's blocks that are not stored yet, in one transaction, and commit. Returns their ids.

    All are whole, or all are the same part. What any transaction committed before is skipped: a redelivered or repeated
    block writes nothing, and its notes change nothing. A missing partition is made. Raises psycopg2.Error, having
    stored nothing; RedrivenError where `redrives`, the capture's number when its state was made, is no longer the
    ledger's; WrittenDirectlyError for parts while the capture writes whole blocks itself.

    `turn` is called when all rows are in: it returns once the transaction may commit, or raises.
    """
    if not blocks:
        return []
    try:
        return _write(conn, blocks, clock, redrives, turn)
    except errors.CheckViolation:  # no partition holds the rows
        for start_ns in {part.hour_ns for part in blocks}:
            ensure_partitions(conn, start_ns, start_ns + HOUR_NS)
    except errors.UniqueViolation:  # another transaction stored some of them meanwhile: those are skipped now
        pass
    return _write(conn, blocks, clock, redrives, turn)


def _write(
    conn: connection,
    blocks: Sequence[StoredBlocks],
    clock: Clock,
    redrives: int | None,
    turn: Callable[[], object] | None,
) -> list[int]:
    capture, share = blocks[0].capture, blocks[0].share
    block_ids = [block_id for part in blocks for block_id in part.stretch.block_ids.tolist()]
    with conn, conn.cursor() as cur:
        if share and not share_capture(conn, capture):
            raise WrittenDirectlyError(f"Capture {capture} writes its blocks itself, so none of them is stored here.")
        hours_ns = {part.hour_ns for part in blocks}
        count, skip = begin_blocks(conn, capture, hours_ns, block_ids, share.part if share else None)
        if redrives is not None and count != redrives:
            raise RedrivenError("Rejected packets of this capture were driven again.")
        new: list[Rows] = []
        for part in blocks:
            new.append(part.rows if skip.isdisjoint(part.stretch.block_ids.tolist()) else _rows(part, skip))
            skip.update(part.stretch.block_ids.tolist())
            _copy(cur, new[-1])
        if turn is not None:
            turn()
        # Measured after the rows are in, so that the latency leaves out nothing but the commit itself.
        now, now_ns = clock.now(), clock.now_ns()
        for rows in new:
            latency_ms = (now_ns - 1000 * rows.books["first_received"]) / (1e6 * clock.speed)
            _write_books(cur, "add_books", _ADD_BOOKS, (now, None), rows, _words(latency_ms))
        # Also of blocks that a rebuild stored before: it has no eye for notes.
        for part in blocks:
            apply_notes(cur, capture, part.notes)
    return [block_id for rows in new for block_id in rows.books["block_id"].tolist()]


def withdraw_parts(conn: connection, capture: int) -> None:
    """Take back what is there of blocks that workers have not stored whole, and commit: for who writes whole blocks.

    It holds the right to write the capture. What workers still get of these blocks is skipped once they are whole. Who
    rebuilds an hour of them is waited for.
    """
    whole = last_whole_block(conn, capture)
    first = capture << NUMBER_BITS if whole is None else whole + 1
    before = (capture + 1) << NUMBER_BITS
    with conn, conn.cursor() as cur:
        for start_ns in _hours(conn, first, before):
            cur.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", (HOUR_LOCK, start_ns // HOUR_NS))
        cur.execute(
            "WITH gone AS (DELETE FROM ingest_ledger WHERE block_id >= %s AND block_id < %s AND parts > 1 RETURNING *) "
            "SELECT array_agg(DISTINCT block_id), min(first_received), max(last_received) FROM gone",
            (first, before),
        )
        block_ids, first_received, last_received = cur.fetchall()[0]
        if block_ids:
            unpack_without_limit(cur)
            cur.execute(
                "DELETE FROM tick_rows WHERE time BETWEEN %s AND %s AND tick_id >> %s = ANY(%s)",
                (first_received, last_received, POSITION_BITS, block_ids),
            )
            cur.execute("DELETE FROM rejected_packets WHERE block_id = ANY(%s)", (block_ids,))


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
                # Before the writer waits, for it takes a second a million rows; afterwards the open hour is left.
                for start_ns in _hours(conn, first, last + 1):
                    digests.record_redrive(conn, hour_key(start_ns), clock.now())
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


def _replace_blocks(conn: connection, first: int, last: int, blocks: Iterable[StoredBlocks], now: datetime) -> int:
    with _rows_ahead(blocks) as new, conn.cursor() as cur:
        unpack_without_limit(cur)
        for start_ns in _hours(conn, first, last + 1):
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
    made = map(_rows, blocks)
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
        _copy(cur, rows, table)
        _write_books(cur, "renew_books", _RENEW_BOOKS, (now, now), rows, None)
        ticks += int(rows.books["ticks"].sum())
    return ticks


def _rows(part: StoredBlocks, skip: Collection[int] = ()) -> Rows:
    """What blocks become, but for some of them."""
    books, ticks, rejected = _books(part), part.enriched.ticks, part.enriched.rejected
    if skip:
        new = ~np.isin(books["block_id"], list(skip))
        if not new.all():
            books = {name: values[new] for name, values in books.items()}
            ticks = [_of_blocks(batch, books["block_id"]) for batch in ticks]
            rejected = [rejection for rejection in rejected if rejection.block_id not in skip]
    received_ns, connection_ = part.stretch.received_ns, part.stretch.connection
    return Rows(
        books=books,
        ticks=tick_copy(ticks) if any(map(len, ticks)) else b"",
        rejected=[
            (
                rejection.block_id,
                rejection.position,
                instant(int(received_ns[rejection.message])),
                int(connection_[rejection.message]),
                rejection.reason,
                rejection.payload,
            )
            for rejection in rejected
        ],
    )


def _books(part: StoredBlocks) -> dict[str, NDArray[np.int64]]:
    stretch, enriched, share = part.stretch, part.enriched, part.share
    firsts, ends = stretch.first_messages[:-1], stretch.first_messages[1:]
    rejected = np.zeros(len(firsts), np.int64)
    if enriched.rejected:
        block_ids = np.array([rejection.block_id for rejection in enriched.rejected])
        rejected += np.bincount(stretch.block_ids.searchsorted(block_ids), minlength=len(firsts))
    if share is None:
        share = Share(
            part=1,
            parts=1,
            messages=ends - firsts,
            payload_bytes=stretch.offsets[ends] - stretch.offsets[firsts],
            first_received_ns=stretch.received_ns[firsts],
            last_received_ns=stretch.received_ns[ends - 1],
        )
    first_part = int(share.part == 1)
    return {
        "block_id": stretch.block_ids,
        "capture": stretch.block_ids >> NUMBER_BITS,
        "hour": np.full(len(firsts), part.hour_ns // 1000),
        "messages": share.messages * first_part,
        "packets": enriched.packets,
        "ticks": enriched.rows,
        "state": enriched.state,
        "control": enriched.control,
        "rejected": rejected,
        "payload_bytes": share.payload_bytes * first_part,
        "first_received": share.first_received_ns // 1000,
        "last_received": share.last_received_ns // 1000,
        "part": np.full(len(firsts), share.part),
        "parts": np.full(len(firsts), share.parts),
    }


def _of_blocks(batch: TickBatch, block_ids: NDArray[np.int64]) -> TickBatch:
    """The rows of some blocks."""
    keep = np.isin(batch.columns["tick_id"] >> POSITION_BITS, block_ids)
    columns = {name: values[keep] for name, values in batch.columns.items()}
    return replace(batch, columns=columns, scale=None if batch.scale is None else batch.scale[keep])


def _write_books(
    cur: cursor, name: str, statement: str, times: tuple[datetime, datetime | None], rows: Rows, latency_ms: str | None
) -> None:
    """Write the ledger's rows of blocks, by the statement of that name."""
    prepare(cur, name, _BOOKS_TYPES, statement)
    values = (*times, *map(_words, rows.books.values()), latency_ms)
    cur.execute(f"EXECUTE {name} ({', '.join(['%s'] * len(values))})", values)


def _words(values: NDArray[Any]) -> str:
    """An array as PostgreSQL reads it."""
    return f"{{{str(values.tolist())[1:-1]}}}"


def _copy(cur: cursor, rows: Rows, table: str = "tick_rows") -> None:
    """Insert ticks and rejected packets."""
    if rows.ticks:
        # In one piece: for each, the interpreter would have to be had from the thread that makes the next.
        cur.copy_expert(_COPY.format(table), BytesIO(rows.ticks), size=len(rows.ticks))
    if rows.rejected:
        execute_values(
            cur,
            "INSERT INTO rejected_packets (block_id, position, received, connection, reason, payload) VALUES %s",
            rows.rejected,
            page_size=1000,
        )


def count_ticks(conn: connection) -> int:
    """Rows in `ticks`, counted, which takes about half a second a million. Leaves the transaction open."""
    with conn.cursor() as cur:
        cur.execute("SELECT count(*) FROM tick_rows")
        rows: int = cur.fetchall()[0][0]
    return rows
