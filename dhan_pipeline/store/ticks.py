"""Writes ticks: blocks as they come, each exactly once. `rebuilds` writes them anew.

A block's rows, its rejected packets and its ledger row share one transaction, so the ledger row proves all of them.
"""

from collections.abc import Callable, Collection, Sequence
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
from dhan_pipeline.journal.block import NUMBER_BITS
from dhan_pipeline.journal.notes import Note
from dhan_pipeline.journal.stretch import Stretch
from dhan_pipeline.sessions import HOUR_NS, hour_key, hour_start_ns
from dhan_pipeline.store.copy import STORED, tick_copy
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline.store.ledger import begin_blocks, hours_of_blocks, last_whole_block, share_capture
from dhan_pipeline.store.partitions import HOUR_LOCK, ensure_partitions, instant
from dhan_pipeline.store.prepared import prepare
from dhan_pipeline.store.timescale import unpack_without_limit
from dhan_pipeline.ticks import POSITION_BITS, Enriched, TickBatch

_COPY = f"COPY {{}} ({', '.join(STORED)}) FROM STDIN (FORMAT binary)"

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


class RedrivenError(PipelineError):
    """Rejected packets of the capture were driven again since: the rows of later blocks may be others now."""


class WrittenDirectlyError(PipelineError):
    """A capture writes its blocks itself, so no worker may."""


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
        return rows_of(self)


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
            new.append(part.rows if skip.isdisjoint(part.stretch.block_ids.tolist()) else rows_of(part, skip))
            skip.update(part.stretch.block_ids.tolist())
            copy_rows(cur, new[-1])
        if turn is not None:
            turn()
        # Measured after the rows are in, so that the latency leaves out nothing but the commit itself.
        now, now_ns = clock.now(), clock.now_ns()
        for rows in new:
            latency_ms = (now_ns - 1000 * rows.books["first_received"]) / (1e6 * clock.speed)
            write_books(cur, rows, now, latency_ms=latency_ms)
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
        for start_ns in hours_of_blocks(conn, first, before):
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


def rows_of(part: StoredBlocks, skip: Collection[int] = ()) -> Rows:
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


def write_books(
    cur: cursor,
    rows: Rows,
    stored_at: datetime,
    *,
    latency_ms: NDArray[np.float64] | None = None,
    rebuilt_at: datetime | None = None,
) -> None:
    """Insert the ledger's rows of blocks; of a rebuild those that are there are renewed, and keep `stored_at`."""
    name, statement = ("add_books", _ADD_BOOKS) if rebuilt_at is None else ("renew_books", _RENEW_BOOKS)
    prepare(cur, name, _BOOKS_TYPES, statement)
    latency = None if latency_ms is None else _words(latency_ms)
    values = (stored_at, rebuilt_at, *map(_words, rows.books.values()), latency)
    cur.execute(f"EXECUTE {name} ({', '.join(['%s'] * len(values))})", values)


def _words(values: NDArray[Any]) -> str:
    """An array as PostgreSQL reads it."""
    return f"{{{str(values.tolist())[1:-1]}}}"


def copy_rows(cur: cursor, rows: Rows, table: str = "tick_rows") -> None:
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
