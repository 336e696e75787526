"""What only a hypertable has. Without TimescaleDB on the server (TEST_DATABASE_URL) most of it is skipped."""

import threading
from contextlib import closing
from typing import Any

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.store import digests, timescale
from dhan_pipeline.store.digests import Digest, hour_digest
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.partitions import drop_expired, ensure_partitions, partition_starts
from dhan_pipeline.store.rebuilds import replace_blocks, replace_hour
from dhan_pipeline.store.ticks import write_blocks
from dhan_pipeline_tests.store.blocks import StandingClock, make_block
from dhan_pipeline_tests.store.chunks import compress

HOUR = "2026-11-20T09:00"
NINE = parse_hour_key(HOUR)
CLOCK = StandingClock(3)

#: Blocks of the hour, of two captures.
BLOCKS = [make_block(n, capture=capture, at_s=n, ticks=40) for capture in (0, 1) for n in range(1, 11)]


def run(conn: connection, query: str) -> list[tuple[Any, ...]]:
    with conn, conn.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def digest(conn: connection) -> Digest:
    with conn:
        return hour_digest(conn, HOUR)


@pytest.fixture
def compressed_hour(conn: connection) -> connection:
    """A connection to a database with the hour in a compressed chunk, and little patience for unpacking it."""
    if timescale.licence(conn) != "timescale":
        pytest.skip("the server has no TimescaleDB with compression")
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    for capture in (0, 1):
        write_blocks(conn, [block for block in BLOCKS if block.stretch.capture == capture], CLOCK)
    compress(conn)
    run(conn, "SET timescaledb.max_tuples_decompressed_per_dml_transaction = 1")
    return conn


def test_the_storage_says_what_it_is(conn: connection) -> None:
    ensure_partitions(conn, NINE, NINE + HOUR_NS)
    write_blocks(conn, BLOCKS[:1], CLOCK)
    found = timescale.storage(conn)
    assert (found.version is None) == (found.licence is None) == (not timescale.is_hypertable(conn))
    assert found.licence == timescale.licence(conn)
    assert found.partitions == 1
    assert found.size > 0
    assert (found.compressed, found.size_before, found.size_after) == (0, 0, 0)


def test_the_jobs_are_those_of_our_tables(database_url: str, conn: connection) -> None:
    names = [job.name.partition(" [")[0] for job in timescale.jobs(conn)]
    if timescale.licence(conn) != "timescale":
        assert names == []
        return
    assert names == ["Columnstore Policy", "Refresh Continuous Aggregate Policy"]
    for job in timescale.jobs(conn):
        assert timescale.run_job(database_url, job.job_id) is None


def test_a_job_that_fails_says_why(database_url: str, conn: connection) -> None:
    said = timescale.run_job(database_url, 4711)
    assert said is not None
    assert "\n" not in said


def test_unpacking_without_limit_is_harmless_anywhere(conn: connection) -> None:
    with conn, conn.cursor() as cursor:
        timescale.unpack_without_limit(cursor)


def test_rows_that_come_for_an_hour_without_a_chunk_never_share_one_with_another_hour(conn: connection) -> None:
    if not timescale.is_hypertable(conn):
        pytest.skip("a native partition is an hour")
    for number, (hour, at_s) in enumerate((("09", 3599), ("10", 0), ("10", 1799), ("10", 1800)), 1):
        write_blocks(conn, [make_block(number, hour=f"2026-11-20T{hour}:00", at_s=at_s)], CLOCK)
    chunks = run(conn, timescale.CHUNKS)
    assert [(end - start).seconds for _, start, end in chunks] == [1800, 1800, 1800]
    assert partition_starts(conn) == [NINE, NINE + HOUR_NS]
    assert ensure_partitions(conn, NINE, NINE + 2 * HOUR_NS) == []
    assert len(drop_expired(conn, 1, NINE + 48 * HOUR_NS).dropped) == 3
    assert partition_starts(conn) == []


def test_a_day_and_no_more_is_dropped_with_compressed_hours(compressed_hour: connection) -> None:
    conn, midnight = compressed_hour, NINE + 15 * HOUR_NS
    ensure_partitions(conn, midnight - HOUR_NS, midnight + HOUR_NS)
    assert drop_expired(conn, 1, midnight + 24 * HOUR_NS).dropped == ["ticks_20261120_09", "ticks_20261120_23"]
    assert partition_starts(conn) == [midnight]


def test_a_compressed_hour_has_the_digest_that_it_had(compressed_hour: connection) -> None:
    conn = compressed_hour
    assert timescale.storage(conn).compressed == 1
    packed = digest(conn)
    run(conn, "SELECT decompress_chunk(chunk) FROM show_chunks('tick_rows') AS chunk")
    assert digest(conn) == packed
    assert packed.rows == 20 * 80


def test_a_rebuild_of_a_compressed_hour_that_is_right_leaves_it_compressed(compressed_hour: connection) -> None:
    conn = compressed_hour
    assert replace_hour(conn, HOUR, BLOCKS, CLOCK).same
    assert run(conn, "SELECT count(*) FROM ONLY ticks_20261120_09") == [(0,)]


@pytest.mark.parametrize("price", ["tick_id % 3", "1"])
def test_a_rebuild_of_a_compressed_hour_restores_every_row(compressed_hour: connection, price: str) -> None:
    conn = compressed_hour
    right = digest(conn)
    run(
        conn,
        "SET timescaledb.max_tuples_decompressed_per_dml_transaction = 0;"
        f"UPDATE tick_rows SET last_price = {price} WHERE tick_id % 2 = 1;"
        "DELETE FROM tick_rows WHERE tick_id % 8 = 0",
    )
    compress(conn)
    run(conn, "SET timescaledb.max_tuples_decompressed_per_dml_transaction = 1")
    assert digest(conn) != right
    rebuilt = replace_hour(conn, HOUR, BLOCKS, CLOCK)
    assert (rebuilt.same, rebuilt.digest, digest(conn)) == (False, right.digest, right)
    compress(conn)
    assert digest(conn) == right


def test_readers_of_a_compressed_hour_do_not_wait_for_its_rebuild(
    database_url: str, compressed_hour: connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = compressed_hour
    right = digest(conn)
    seen: list[Digest] = []
    record = digests.record

    def read() -> None:
        with closing(connect(database_url)) as reader:
            run(reader, "SET lock_timeout = '2s'")
            seen.append(digest(reader))

    def record_and_read(*args: Any) -> None:
        record(*args)
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()

    monkeypatch.setattr(digests, "record", record_and_read)  # the last of what a rebuild writes
    renewed = [make_block(n, capture=c, at_s=n, ticks=40, price=200.05) for c in (0, 1) for n in range(1, 11)]
    rebuilt = replace_hour(conn, HOUR, renewed, CLOCK)
    assert seen
    assert set(seen) == {right}
    assert digest(conn) == Digest(right.rows, rebuilt.digest) != right


def test_a_redrive_of_compressed_hours_replaces_the_blocks_that_it_should(compressed_hour: connection) -> None:
    conn = compressed_hour
    right = digest(conn)
    renewed = [make_block(n, at_s=n, ticks=40) for n in range(4, 11)]
    first, last = (block.stretch.last_block_id for block in (renewed[0], renewed[-1]))
    assert replace_blocks(conn, first, last + 1, lambda _, __: renewed, CLOCK) == 7 * 80
    assert digest(conn) == right
