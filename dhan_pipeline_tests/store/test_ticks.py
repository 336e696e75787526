import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

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
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.partitions import ensure_partitions, instant, partition_starts
from dhan_pipeline.store.ticks import StoredBlocks, write_blocks
from dhan_pipeline_tests.ingest.feed import TOKENS, market_messages, record
from dhan_pipeline_tests.store.blocks import StandingClock, count, fetch, make_block

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


def test_a_block_becomes_rows_a_ledger_row_and_rejected_packets(conn: connection) -> None:
    block = make_block(1, ticks=2, rejected=2, at_s=5)
    assert write_blocks(conn, [block], CLOCK) == [1]
    assert fetch(conn, "SELECT tick_id, time, instrument_token, last_price, mode FROM ticks ORDER BY tick_id") == [
        (1 << 16, instant(NINE + 5 * 10**9), 1 << 40, None, "full"),
        (1 << 16 | 1, instant(NINE + 5 * 10**9), 1 << 40 | 1, 104.05, "full"),
        (1 << 16 | 2, instant(NINE + 5 * 10**9), 1 << 40, None, "ticker"),
        (1 << 16 | 3, instant(NINE + 5 * 10**9), 1 << 40 | 1, 104.05, "ticker"),
    ]
    assert fetch(
        conn, "SELECT position, received, connection, reason, encode(payload, 'hex') FROM rejected_packets ORDER BY 1"
    ) == [
        (4, instant(NINE + 5 * 10**9 + 10**6), 3, "reason 0", "00"),
        (5, instant(NINE + 5 * 10**9 + 10**6), 3, "reason 1", "01"),
    ]
    assert fetch(conn, "SELECT * FROM ingest_ledger")[0][:12] == (
        *(1, 0, instant(NINE), 2, 9, 4, 2, 1, 2, 324),
        *(instant(NINE + 5 * 10**9), instant(NINE + 5 * 10**9 + 10**6)),
    )


def test_redelivered_blocks_write_nothing_and_new_ones_beside_them_are_written(conn: connection) -> None:
    one, two, three = make_block(1, rejected=1), make_block(2), make_block(3)
    assert write_blocks(conn, [one, two, one], CLOCK) == [1, 2]
    assert write_blocks(conn, [one, two], CLOCK) == []
    assert write_blocks(conn, [two, three, one], CLOCK) == [3]
    assert write_blocks(conn, [], CLOCK) == []
    assert (count(conn, "ticks"), count(conn, "ingest_ledger"), count(conn, "rejected_packets")) == (18, 3, 1)


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
    found = [fetch(conn, everything.format(*names)) for names in kept]
    books = fetch(
        conn, "SELECT block_id, messages, packets, ticks, state, control, rejected FROM ingest_ledger ORDER BY 1"
    )
    fetch(conn, "TRUNCATE tick_rows, rejected_packets, ingest_ledger; SELECT 1")
    write_blocks(conn, parts, CLOCK)
    assert found == [fetch(conn, everything.format(*names)) for names in kept]
    assert books == fetch(
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
    assert count(conn, "ticks WHERE time < '2026-11-20 10:00+05:30'") == 6
    assert count(conn, "ticks WHERE time >= '2026-11-20 10:00+05:30'") == 6


def test_latency_reaches_from_the_oldest_message_to_the_commit(conn: connection) -> None:
    write_blocks(conn, [make_block(1, at_s=0.5)], StandingClock(2))
    assert fetch(conn, "SELECT stored_at, latency_ms FROM ingest_ledger") == [(instant(NINE + 2 * 10**9), 1500)]


def test_a_writer_killed_between_copy_and_commit_leaves_nothing_and_the_retry_writes_once(
    database_url: str, conn: connection
) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    block = make_block(1, rejected=1)

    killed = subprocess.run([sys.executable, "-c", _KILLED_WRITER, database_url], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert write_blocks(conn, [block], CLOCK) == [1]
    assert (count(conn, "ticks"), count(conn, "ingest_ledger"), count(conn, "rejected_packets")) == (6, 1, 1)


def test_a_lost_connection_stores_nothing_and_the_retry_stores_all(database_url: str, conn: connection) -> None:
    victim = connect(database_url)
    fetch(conn, f"SELECT pg_terminate_backend({victim.get_backend_pid()}, 5000)")
    with pytest.raises(psycopg2.Error):
        write_blocks(victim, [make_block(1)], CLOCK)
    victim.close()
    assert write_blocks(conn, [make_block(1)], CLOCK) == [1]
    assert count(conn, "ticks") == 6


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
    assert (count(conn, "ticks"), count(conn, "rejected_packets")) == (40 * 40, 40)
