import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.ingest.process import BlockProcessor
from dhan_pipeline.journal.stretch import join
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.store import ledger
from dhan_pipeline.store.digests import hour_digest
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.partitions import ensure_partitions, instant, partition_starts
from dhan_pipeline.store.ticks import (
    JournalIncompleteError,
    RedrivenError,
    StoredBlocks,
    replace_blocks,
    replace_hour,
    write_blocks,
)
from dhan_pipeline_tests.ingest.feed import TOKENS, market_messages, record
from dhan_pipeline_tests.store.blocks import StandingClock, make_block

HOUR = "2026-11-20T09:00"
NINE = parse_hour_key(HOUR)
CLOCK = Clock()

_KILLED_WRITER = """
import os, signal, sys
from dhan_pipeline.clock import Clock
from dhan_pipeline.store.digests import hour_digest
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.ticks import write_blocks
from dhan_pipeline_tests.store.blocks import make_block

class Killed(Clock):
    asked = 0
    def now(self):  # asked after the COPY, before the commit
        os.kill(os.getpid(), signal.SIGKILL)

write_blocks(connect(sys.argv[1]), [make_block(1, rejected=1)], Killed())
"""


def _all(conn: connection, query: str) -> list[tuple[Any, ...]]:
    with conn, conn.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def _count(conn: connection, table: str) -> int:
    return int(_all(conn, f"SELECT count(*) FROM {table}")[0][0])


def test_a_block_becomes_rows_a_ledger_row_and_rejected_packets(conn: connection) -> None:
    block = make_block(1, ticks=2, rejected=2, at_s=5)
    assert write_blocks(conn, [block], CLOCK) == [1]
    assert _all(conn, "SELECT tick_id, time, instrument_token, last_price, mode FROM ticks ORDER BY tick_id") == [
        (1 << 16, instant(NINE + 5 * 10**9), 1 << 40, None, "full"),
        (1 << 16 | 1, instant(NINE + 5 * 10**9), 1 << 40 | 1, 104.05, "full"),
        (1 << 16 | 2, instant(NINE + 5 * 10**9), 1 << 40, None, "ticker"),
        (1 << 16 | 3, instant(NINE + 5 * 10**9), 1 << 40 | 1, 104.05, "ticker"),
    ]
    assert _all(
        conn, "SELECT position, received, connection, reason, encode(payload, 'hex') FROM rejected_packets ORDER BY 1"
    ) == [
        (4, instant(NINE + 5 * 10**9 + 10**6), 3, "reason 0", "00"),
        (5, instant(NINE + 5 * 10**9 + 10**6), 3, "reason 1", "01"),
    ]
    assert _all(conn, "SELECT * FROM ingest_ledger")[0][:12] == (
        *(1, 0, instant(NINE), 2, 9, 4, 2, 1, 2, 324),
        *(instant(NINE + 5 * 10**9), instant(NINE + 5 * 10**9 + 10**6)),
    )


def test_redelivered_blocks_write_nothing_and_new_ones_beside_them_are_written(conn: connection) -> None:
    one, two, three = make_block(1, rejected=1), make_block(2), make_block(3)
    assert write_blocks(conn, [one, two, one], CLOCK) == [1, 2]
    assert write_blocks(conn, [one, two], CLOCK) == []
    assert write_blocks(conn, [two, three, one], CLOCK) == [3]
    assert write_blocks(conn, [], CLOCK) == []
    assert (_count(conn, "ticks"), _count(conn, "ingest_ledger"), _count(conn, "rejected_packets")) == (18, 3, 1)


def test_of_blocks_that_come_together_those_that_are_stored_are_skipped(conn: connection, tmp_path: Path) -> None:
    with closing(JournalWriter(tmp_path, 0)) as journal:
        blocks = record(journal, market_messages(100), NINE, in_block=20)
    one_by_one, at_once = BlockProcessor(np.array(TOKENS)), BlockProcessor(np.array(TOKENS))
    parts = [one_by_one.process(join([block])) for block in blocks]
    together = at_once.process(join(blocks))
    ids = [block.block_id for block in blocks]
    assert write_blocks(conn, [parts[1], parts[3]], CLOCK) == [ids[1], ids[3]]
    assert write_blocks(conn, [together, parts[0], together], CLOCK) == [ids[0], ids[2], ids[4]]
    everything = "SELECT {} FROM {} ORDER BY 1, 2"
    kept = [("tick_id, last_price, oi", "ticks"), ("block_id, position, reason", "rejected_packets")]
    found = [_all(conn, everything.format(*names)) for names in kept]
    books = _all(
        conn, "SELECT block_id, messages, packets, ticks, state, control, rejected FROM ingest_ledger ORDER BY 1"
    )
    _all(conn, "TRUNCATE tick_rows, rejected_packets, ingest_ledger; SELECT 1")
    write_blocks(conn, parts, CLOCK)
    assert found == [_all(conn, everything.format(*names)) for names in kept]
    assert books == _all(
        conn, "SELECT block_id, messages, packets, ticks, state, control, rejected FROM ingest_ledger ORDER BY 1"
    )
    assert min(map(len, found)) > 5


def test_a_block_of_nothing_but_state_is_booked(conn: connection) -> None:
    assert write_blocks(conn, [make_block(1, ticks=0)], CLOCK) == [1]
    assert ledger.last_block(conn, 0) == 1


def test_a_missing_partition_is_made_on_demand(conn: connection) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    blocks = [make_block(1), make_block(2, hour="2026-11-20T10:00")]
    assert write_blocks(conn, blocks, CLOCK) == [1, 2]
    assert partition_starts(conn) == [NINE, NINE + HOUR_NS]
    assert _count(conn, "ticks WHERE time < '2026-11-20 10:00+05:30'") == 6
    assert _count(conn, "ticks WHERE time >= '2026-11-20 10:00+05:30'") == 6


def test_latency_reaches_from_the_oldest_message_to_the_commit(conn: connection) -> None:
    write_blocks(conn, [make_block(1, at_s=0.5)], StandingClock(2))
    assert _all(conn, "SELECT stored_at, latency_ms FROM ingest_ledger") == [(instant(NINE + 2 * 10**9), 1500)]


def test_a_writer_killed_between_copy_and_commit_leaves_nothing_and_the_retry_writes_once(
    database_url: str, conn: connection
) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    block = make_block(1, rejected=1)

    killed = subprocess.run([sys.executable, "-c", _KILLED_WRITER, database_url], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert write_blocks(conn, [block], CLOCK) == [1]
    assert (_count(conn, "ticks"), _count(conn, "ingest_ledger"), _count(conn, "rejected_packets")) == (6, 1, 1)


def test_a_lost_connection_stores_nothing_and_the_retry_stores_all(database_url: str, conn: connection) -> None:
    victim = connect(database_url)
    _all(conn, f"SELECT pg_terminate_backend({victim.get_backend_pid()}, 5000)")
    with pytest.raises(psycopg2.Error):
        write_blocks(victim, [make_block(1)], CLOCK)
    victim.close()
    assert write_blocks(conn, [make_block(1)], CLOCK) == [1]
    assert _count(conn, "ticks") == 6


def test_competing_writers_store_every_block_exactly_once(database_url: str, conn: connection) -> None:
    blocks = [make_block(number, ticks=20, rejected=1) for number in range(1, 41)]
    written: list[int] = []

    def work(order: list[StoredBlocks]) -> None:
        with closing(connect(database_url)) as own:
            for start in range(0, len(order), 4):
                written.extend(write_blocks(own, order[start : start + 4], CLOCK))

    threads = [threading.Thread(target=work, args=(blocks[offset:] + blocks[:offset],)) for offset in (0, 4, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written) == list(range(1, 41))
    assert (_count(conn, "ticks"), _count(conn, "rejected_packets")) == (40 * 40, 40)


def test_a_rebuilt_hour_has_the_same_rows_and_remembers_when_it_was_first_stored(conn: connection) -> None:
    blocks = [make_block(number, rejected=1, at_s=number) for number in range(1, 30)]
    write_blocks(conn, [*blocks, make_block(99, hour="2026-11-20T10:00")], CLOCK)
    kept = "SELECT block_id, stored_at, latency_ms FROM ingest_ledger ORDER BY 1"
    before = (_all(conn, kept), hour_digest(conn, HOUR), hour_digest(conn, "2026-11-20T10:00"))
    assert replace_hour(conn, HOUR, iter(blocks), CLOCK).rows == 29 * 6
    assert (_all(conn, kept), hour_digest(conn, HOUR), hour_digest(conn, "2026-11-20T10:00")) == before
    assert _count(conn, "rejected_packets") == 29
    assert _all(conn, "SELECT block_id FROM ingest_ledger WHERE rebuilt_at IS NULL") == [(99,)]


def test_an_hour_rebuilt_in_several_chunks_is_whole(conn: connection, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [make_block(number) for number in range(1, 12)]
    assert replace_hour(conn, HOUR, blocks, CLOCK).rows == 66
    assert ledger.hour_totals(conn, HOUR).rows == 66


def test_a_rebuild_mends_rows_and_adds_blocks_that_were_never_stored(conn: connection) -> None:
    write_blocks(conn, [make_block(1, price=1.0)], CLOCK)
    replace_hour(conn, HOUR, [make_block(1, price=2.0), make_block(2)], CLOCK)
    assert _all(conn, "SELECT max(last_price) FROM ticks WHERE tick_id < 2 << 16") == [(6.0,)]
    assert _all(conn, "SELECT block_id, latency_ms IS NULL FROM ingest_ledger ORDER BY 1") == [(1, False), (2, True)]


def test_a_reader_sees_the_old_rows_until_the_rebuild_commits_and_never_waits(
    database_url: str, conn: connection
) -> None:
    write_blocks(conn, [make_block(1, price=1.0), make_block(2, price=1.0)], CLOCK)
    seen: list[tuple[Any, ...]] = []
    with closing(connect(database_url)) as reader:

        def look() -> None:
            seen.extend(_all(reader, "SELECT count(*), min(last_price), max(last_price) FROM ticks"))

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
    before = (hour_digest(conn, HOUR), _all(conn, "SELECT * FROM ingest_ledger ORDER BY 1"))

    def breaks() -> Iterator[StoredBlocks]:
        yield make_block(1, ticks=30_000)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        replace_hour(conn, HOUR, breaks(), CLOCK)
    with pytest.raises(ValueError, match="belongs to 2026-11-20T10:00"):
        replace_hour(conn, HOUR, [make_block(1), make_block(2, hour="2026-11-20T10:00")], CLOCK)
    assert (hour_digest(conn, HOUR), _all(conn, "SELECT * FROM ingest_ledger ORDER BY 1")) == before


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
            while not _all(watcher, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
                pass
            yield make_block(1)

        replace_hour(conn, HOUR, blocks(), CLOCK)
        late.join()
    assert written == [2]
    assert _count(conn, "ticks") == 12


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
                while not _all(watcher, "SELECT 1 FROM pg_locks WHERE NOT granted"):
                    pass
            yield from (make_block(number, price=5.0) for number in range(first, last + 1))

        assert replace_blocks(conn, 2, 1 << 20, renew, CLOCK) == 12
        late[0].join()
    assert asked == [(2, 2), (3, 3)]
    assert outdated == [RedrivenError]
    renewed = "SELECT DISTINCT tick_id >> 16 FROM ticks WHERE last_price < 50 ORDER BY 1"
    assert _all(conn, renewed) == [(2,), (3,)]
    assert _count(conn, "ingest_ledger") == 3
    assert ledger.redrives(conn, 0) == redrives + 1


def test_rows_of_an_earlier_day_are_renewed_without_a_word_to_the_writer(conn: connection) -> None:
    redrives = ledger.redrives(conn, 0)
    conn.commit()
    write_blocks(conn, [make_block(1), make_block(9)], CLOCK, redrives)
    assert replace_blocks(conn, 1, 5, lambda first, last: [make_block(1, price=5.0)], CLOCK) == 6
    assert ledger.redrives(conn, 0) == redrives
