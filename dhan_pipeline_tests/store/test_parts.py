"""Blocks that come to the database in parts."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.journal.block import make_block_id
from dhan_pipeline.store import ledger
from dhan_pipeline.store.digests import lock_hour
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.rebuilds import replace_blocks, replace_hour
from dhan_pipeline.store.ticks import Share, StoredBlocks, WrittenDirectlyError, withdraw_parts, write_blocks
from dhan_pipeline_tests.ingest.feed import query, until
from dhan_pipeline_tests.store.blocks import StandingClock, make_block

HOUR = "2026-11-20T09:00"
PARTS = 3
CLOCK = StandingClock(2)
LATER = StandingClock(7200)

WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def run(conn: connection, statement: str) -> list[tuple[object, ...]]:
    with conn, conn.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def make_part(number: int, part: int, capture: int = 0) -> StoredBlocks:
    """A part of the block that `make_whole` makes: its ticks of two rows each, and the second's rejected packet."""
    block = make_block(number, ticks=2 * PARTS, rejected=1, at_s=number / 100, capture=capture)
    ticks = [
        replace(
            batch,
            columns={name: values[2 * part - 2 : 2 * part] for name, values in batch.columns.items()},
            scale=batch.scale[:2] if batch.scale is not None else None,
        )
        for batch in block.enriched.ticks
    ]
    second = part == 2
    enriched = replace(
        block.enriched,
        ticks=ticks,
        rejected=block.enriched.rejected if second else [],
        packets=np.array([4 + second]),
        rows=np.array([4]),
        state=np.array([0]),
        control=np.array([0]),
    )
    stretch = block.stretch
    if part == PARTS:  # has nothing but the block's name
        none = np.zeros(0, np.int64)
        enriched = replace(enriched, ticks=[], packets=np.array([0]), rows=np.array([0]))
        stretch = replace(
            stretch,
            first_messages=np.array([0, 0]),
            received_ns=none,
            connection=none.astype(np.uint8),
            text=none.astype(np.bool_),
            payload=b"",
            offsets=np.array([0]),
        )
    share = Share(
        part,
        PARTS,
        np.array([2]),
        np.array([324]),
        block.stretch.received_ns[:1],
        block.stretch.received_ns[-1:],
    )
    return StoredBlocks(stretch, enriched, share=share)


def make_whole(number: int) -> StoredBlocks:
    """The same as all parts of a block."""
    block = make_block(number, ticks=2 * PARTS, rejected=1, at_s=number / 100)
    ticks = [
        replace(
            batch,
            columns={name: values[: 2 * PARTS - 2] for name, values in batch.columns.items()},
            scale=batch.scale[: 2 * PARTS - 2] if batch.scale is not None else None,
        )
        for batch in block.enriched.ticks
    ]
    counts = {"packets": np.array([9]), "rows": np.array([8]), "state": np.array([0]), "control": np.array([0])}
    return replace(block, enriched=replace(block.enriched, ticks=ticks, **counts))


def store(conn: connection, *blocks: StoredBlocks) -> list[int]:
    """Each in a transaction of its own; the ids of those that were new."""
    return [block_id for block in blocks for block_id in write_blocks(conn, [block], CLOCK)]


def ticks_stored(conn: connection) -> int:
    [(count,)] = run(conn, "SELECT count(*) FROM ticks")
    assert isinstance(count, int)
    return count


def ledger_rows(conn: connection) -> list[tuple[object, ...]]:
    return run(conn, "SELECT block_id, part, parts, messages, packets FROM ingest_ledger ORDER BY 1, 2")


def test_the_parts_of_a_block_add_up_to_it(conn: connection) -> None:
    assert store(conn, *(make_part(1, part) for part in (2, 1, 3))) == [1, 1, 1]
    assert ledger_rows(conn) == [(1, 1, 3, 2, 4), (1, 2, 3, 0, 5), (1, 3, 3, 0, 0)]
    totals = ledger.hour_totals(conn, HOUR)
    assert (totals.blocks, totals.messages, totals.packets, totals.ticks, totals.rejected) == (1, 2, 9, 8, 1)
    assert (totals.rows, totals.rejected_rows, totals.payload_bytes) == (8, 1, 324)


def test_a_part_that_comes_again_is_skipped_and_the_others_are_not(conn: connection) -> None:
    assert store(conn, make_part(1, 1), make_part(1, 1), make_part(1, 2), make_part(1, 1)) == [1, 1]
    assert ticks_stored(conn) == 8


def test_a_part_of_a_block_that_is_stored_whole_is_skipped(conn: connection) -> None:
    assert store(conn, make_whole(1), make_part(1, 1), make_part(1, 2)) == [1]
    assert ticks_stored(conn) == 8


def test_a_block_counts_as_stored_when_all_of_its_parts_are(conn: connection) -> None:
    store(conn, make_part(1, 1), make_part(1, 2))
    assert ledger.hour_totals(conn, HOUR).blocks == 0
    store(conn, make_part(1, 3))
    assert ledger.hour_totals(conn, HOUR).blocks == 1


def test_a_rebuild_makes_blocks_whole_and_what_is_pending_of_them_is_skipped_then(conn: connection) -> None:
    store(conn, *(make_part(number, part) for number in (1, 2) for part in (1, 2)), make_part(1, 3))
    rebuilt = replace_hour(conn, HOUR, [make_whole(1), make_whole(2)], LATER)
    assert rebuilt.same
    assert ledger_rows(conn) == [(1, 1, 1, 2, 9), (2, 1, 1, 2, 9)]
    # Who comes later than the one has a latency to show; the other was never whole before.
    assert run(conn, "SELECT latency_ms IS NULL, stored_at < rebuilt_at FROM ingest_ledger ORDER BY block_id") == [
        (False, True),
        (True, True),
    ]
    assert store(conn, make_part(2, 3), make_part(2, 1)) == []
    assert ticks_stored(conn) == 16


def test_a_redrive_makes_blocks_whole(conn: connection) -> None:
    store(conn, *(make_part(1, part) for part in (1, 2, 3)), make_part(2, 1))
    rows = replace_blocks(conn, 1, 10, lambda first, last: [make_whole(n) for n in range(first, last + 1)], LATER)
    assert rows == 16
    assert ledger_rows(conn) == [(1, 1, 1, 2, 9), (2, 1, 1, 2, 9)]
    assert ticks_stored(conn) == 16


def test_all_is_whole_up_to_the_last_block_of_the_part_that_is_furthest_behind(conn: connection) -> None:
    assert ledger.last_whole_block(conn, 0) is None
    store(conn, make_whole(1))
    assert ledger.last_whole_block(conn, 0) == 1
    store(conn, make_part(2, 1))  # the others have yet to come for the first time
    assert ledger.last_whole_block(conn, 0) == 1
    store(conn, make_part(2, 2), make_part(2, 3), make_part(3, 3), make_part(4, 3), make_part(3, 1))
    assert ledger.last_whole_block(conn, 0) == 2
    store(conn, make_part(3, 2), make_part(4, 1))
    assert ledger.last_whole_block(conn, 0) == 3
    store(conn, make_whole(9))
    assert ledger.last_whole_block(conn, 0) == 9
    store(conn, make_part(10, 2))  # parts of old say nothing of what was written whole since
    assert ledger.last_whole_block(conn, 0) == 9
    store(conn, make_part(10, 1), make_part(10, 3))
    assert ledger.last_whole_block(conn, 0) == 10
    assert ledger.last_whole_block(conn, 1) is None


def test_what_has_become_whole_is_summed_up_once(conn: connection) -> None:
    store(conn, *(make_part(number, part) for number in (1, 2) for part in (1, 2, 3)), make_part(3, 1))
    found = ledger.stored_in_parts(conn, 0, None)
    assert found is not None
    last, totals = found
    assert last == 2
    assert (totals.blocks, totals.packets, totals.ticks, totals.rejected) == (2, 18, 16, 2)
    assert totals.hours == [HOUR]
    received_ns = int(make_part(2, 1).share.last_received_ns[-1])  # type: ignore[union-attr]
    assert totals.received_through_ns == received_ns // 1000 * 1000 + 999
    assert sorted(totals.latencies) == [(1980.0, 4), (1980.0, 5), (1990.0, 4), (1990.0, 5)]
    assert ledger.stored_in_parts(conn, 0, last) is None
    store(conn, make_part(3, 2), make_part(3, 3))
    assert ledger.stored_in_parts(conn, 0, last) is not None


def test_who_writes_whole_blocks_takes_back_those_that_are_not(conn: connection) -> None:
    store(conn, *(make_part(1, part) for part in (1, 2, 3)), make_part(2, 1), make_part(2, 2), make_part(3, 2))
    store(conn, make_part(2, 1, capture=1))
    withdraw_parts(conn, 0)
    other = make_block_id(1, 2)
    assert ledger_rows(conn) == [(1, 1, 3, 2, 4), (1, 2, 3, 0, 5), (1, 3, 3, 0, 0), (other, 1, 3, 2, 4)]
    assert (ticks_stored(conn), run(conn, "SELECT count(*) FROM rejected_packets")) == (12, [(1,)])
    assert store(conn, make_whole(2), make_whole(3), make_part(3, 1)) == [2, 3]
    withdraw_parts(conn, 0)
    assert ticks_stored(conn) == 28


def test_who_takes_back_parts_waits_for_who_rebuilds_their_hour(conn: connection, database_url: str) -> None:
    """Else rows would go that the rebuild has just found to be right."""
    store(conn, make_part(1, 1))
    with (
        closing(connect(database_url)) as rebuild,
        closing(connect(database_url)) as writer,
        ThreadPoolExecutor() as pool,
    ):
        lock_hour(rebuild, HOUR)
        withdrawn = pool.submit(withdraw_parts, writer, 0)
        until(lambda: run(conn, WAITING) == [(1,)])
        replace_hour(rebuild, HOUR, [make_whole(1)], LATER)
        withdrawn.result()
    assert ledger_rows(conn) == [(1, 1, 1, 2, 9)]
    assert ticks_stored(conn) == 8


LOCKS = """
SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database
WHERE locktype = 'advisory' AND datname = current_database()
"""


def test_no_part_is_stored_while_the_capture_writes_whole_blocks(conn: connection, database_url: str) -> None:
    with closing(connect(database_url)) as writer:
        assert ledger.lock_writer(writer, 0)
        with pytest.raises(WrittenDirectlyError, match="Capture 0 writes its blocks itself"):
            store(conn, make_part(1, 1))
        assert store(conn, make_part(1, 1, capture=1)) == [make_block_id(1, 1)]
    # The server hears of the end of a session when it comes to it.
    until(lambda: query(database_url, LOCKS) == [])
    assert store(conn, make_part(1, 1)) == [1]
