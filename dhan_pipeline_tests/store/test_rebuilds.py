import os
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.store import ledger
from dhan_pipeline.store.digests import hour_digest
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.store.rebuilds import JournalIncompleteError, replace_blocks, replace_hour
from dhan_pipeline.store.ticks import RedrivenError, StoredBlocks, write_blocks
from dhan_pipeline_tests.store.blocks import count, fetch, make_block

HOUR = "2026-11-20T09:00"
NINE = parse_hour_key(HOUR)
CLOCK = Clock()


def test_a_rebuilt_hour_has_the_same_rows_and_remembers_when_it_was_first_stored(conn: connection) -> None:
    blocks = [make_block(number, rejected=1, at_s=number) for number in range(1, 30)]
    write_blocks(conn, [*blocks, make_block(99, hour="2026-11-20T10:00")], CLOCK)
    kept = "SELECT block_id, stored_at, latency_ms FROM ingest_ledger ORDER BY 1"
    before = (fetch(conn, kept), hour_digest(conn, HOUR), hour_digest(conn, "2026-11-20T10:00"))
    assert replace_hour(conn, HOUR, iter(blocks), CLOCK).rows == 29 * 6
    assert (fetch(conn, kept), hour_digest(conn, HOUR), hour_digest(conn, "2026-11-20T10:00")) == before
    assert count(conn, "rejected_packets") == 29
    assert fetch(conn, "SELECT block_id FROM ingest_ledger WHERE rebuilt_at IS NULL") == [(99,)]


def test_an_hour_rebuilt_in_several_chunks_is_whole(conn: connection, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [make_block(number) for number in range(1, 12)]
    assert replace_hour(conn, HOUR, blocks, CLOCK).rows == 66
    assert ledger.hour_totals(conn, HOUR).rows == 66


def test_a_rebuild_mends_rows_and_adds_blocks_that_were_never_stored(conn: connection) -> None:
    write_blocks(conn, [make_block(1, price=1.0)], CLOCK)
    replace_hour(conn, HOUR, [make_block(1, price=2.0), make_block(2)], CLOCK)
    assert fetch(conn, "SELECT max(last_price) FROM ticks WHERE tick_id < 2 << 16") == [(6.0,)]
    assert fetch(conn, "SELECT block_id, latency_ms IS NULL FROM ingest_ledger ORDER BY 1") == [(1, False), (2, True)]


def test_a_reader_sees_the_old_rows_until_the_rebuild_commits_and_never_waits(
    database_url: str, conn: connection
) -> None:
    write_blocks(conn, [make_block(1, price=1.0), make_block(2, price=1.0)], CLOCK)
    seen: list[tuple[Any, ...]] = []
    with closing(connect(database_url)) as reader:

        def look() -> None:
            seen.extend(fetch(reader, "SELECT count(*), min(last_price), max(last_price) FROM ticks"))

        def blocks() -> Iterator[StoredBlocks]:
            yield make_block(1, ticks=20_000, price=2.0)
            look()
            yield make_block(2, ticks=20_000, price=2.0)
            look()

        replace_hour(conn, HOUR, blocks(), CLOCK)
        look()
    assert seen == [(12, 5.0, 5.0), (12, 5.0, 5.0), (80_000, 6.0, 6.0)]


def test_the_work_of_a_rebuild_has_a_low_priority_and_the_process_keeps_its_own(conn: connection) -> None:
    seen: list[int] = []

    def blocks() -> Iterator[StoredBlocks]:
        seen.append(os.nice(0))
        yield make_block(1)

    own = os.nice(0)
    replace_hour(conn, HOUR, blocks(), CLOCK)
    assert (seen, os.nice(0)) == ([min(own + 10, 19)], own)


def test_a_failing_rebuild_changes_nothing(conn: connection) -> None:
    write_blocks(conn, [make_block(1), make_block(2)], CLOCK)
    before = (hour_digest(conn, HOUR), fetch(conn, "SELECT * FROM ingest_ledger ORDER BY 1"))

    def breaks() -> Iterator[StoredBlocks]:
        yield make_block(1, ticks=30_000)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        replace_hour(conn, HOUR, breaks(), CLOCK)
    with pytest.raises(ValueError, match="belongs to 2026-11-20T10:00"):
        replace_hour(conn, HOUR, [make_block(1), make_block(2, hour="2026-11-20T10:00")], CLOCK)
    assert (hour_digest(conn, HOUR), fetch(conn, "SELECT * FROM ingest_ledger ORDER BY 1")) == before


def test_rows_that_the_journal_has_lost_are_not_deleted_by_a_rebuild(conn: connection) -> None:
    write_blocks(conn, [make_block(1), make_block(2), make_block(3)], CLOCK)
    before = hour_digest(conn, HOUR)
    with pytest.raises(JournalIncompleteError, match="lacks 2 blocks of 2026-11-20T09:00"):
        replace_hour(conn, HOUR, [make_block(2)], CLOCK)
    assert hour_digest(conn, HOUR) == before


def test_a_late_writer_of_the_hour_waits_for_the_rebuild_and_then_writes_nothing_twice(
    database_url: str, conn: connection
) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    late = threading.Thread(target=lambda: written.extend(write_blocks(other, [make_block(1), make_block(2)], CLOCK)))
    written: list[int] = []
    with closing(connect(database_url)) as other, closing(connect(database_url)) as watcher:

        def blocks() -> Iterator[StoredBlocks]:
            late.start()
            while not fetch(watcher, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
                pass
            yield make_block(1)

        replace_hour(conn, HOUR, blocks(), CLOCK)
        late.join()
    assert written == [2]
    assert count(conn, "ticks") == 12


def test_rows_are_renewed_while_the_writer_goes_on_and_it_learns_of_it(database_url: str, conn: connection) -> None:
    redrives = ledger.redrives(conn, 0)
    conn.commit()
    write_blocks(conn, [make_block(1), make_block(2)], CLOCK, redrives)
    asked: list[tuple[int, int]] = []
    late: list[threading.Thread] = []
    outdated: list[type[Exception]] = []

    with closing(connect(database_url)) as other, closing(connect(database_url)) as watcher:

        def write_late() -> None:
            try:
                write_blocks(other, [make_block(4)], CLOCK, redrives)
            except RedrivenError as error:
                outdated.append(type(error))

        def renew(first: int, last: int) -> Iterator[StoredBlocks]:
            asked.append((first, last))
            if first == 2:  # the same hour: nobody waits
                assert write_blocks(other, [make_block(3)], CLOCK, redrives) == [3]
            else:
                late.append(threading.Thread(target=write_late))
                late[0].start()
                while not fetch(watcher, "SELECT 1 FROM pg_locks WHERE NOT granted"):
                    pass
            yield from (make_block(number, price=5.0) for number in range(first, last + 1))

        assert replace_blocks(conn, 2, 1 << 20, renew, CLOCK) == 12
        late[0].join()
    assert asked == [(2, 2), (3, 3)]
    assert outdated == [RedrivenError]
    renewed = "SELECT DISTINCT tick_id >> 16 FROM ticks WHERE last_price < 50 ORDER BY 1"
    assert fetch(conn, renewed) == [(2,), (3,)]
    assert count(conn, "ingest_ledger") == 3
    assert ledger.redrives(conn, 0) == redrives + 1


def test_rows_of_an_earlier_day_are_renewed_without_a_word_to_the_writer(conn: connection) -> None:
    redrives = ledger.redrives(conn, 0)
    conn.commit()
    write_blocks(conn, [make_block(1), make_block(9)], CLOCK, redrives)
    assert replace_blocks(conn, 1, 5, lambda first, last: [make_block(1, price=5.0)], CLOCK) == 6
    assert ledger.redrives(conn, 0) == redrives
