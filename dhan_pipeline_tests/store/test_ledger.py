from contextlib import closing
from datetime import timedelta

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.store import ledger
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.store.ticks import write_blocks
from dhan_pipeline_tests.store.blocks import StandingClock, make_block

NINE = parse_hour_key("2026-11-20T09:00")


def test_the_last_block_is_known_for_each_capture(conn: connection) -> None:
    assert ledger.last_block(conn, 0) is None
    write_blocks(conn, [make_block(5), make_block(9), make_block(7, capture=1)], StandingClock(1))
    assert ledger.last_block(conn, 0) == 9
    assert ledger.last_block(conn, 1) == 1 << 42 | 7
    assert ledger.last_block(conn, 2) is None


def test_hours_are_listed_in_order_and_complete_once_they_are_over(conn: connection) -> None:
    assert ledger.hours(conn) == []
    for number, hour in enumerate(("2026-11-20T10:00", "2026-11-20T09:00", "2026-11-21T00:00"), start=1):
        write_blocks(conn, [make_block(number, hour=hour), make_block(number + 10, hour=hour)], StandingClock(1))
    assert ledger.hours(conn) == ["2026-11-20T09:00", "2026-11-20T10:00", "2026-11-21T00:00"]
    assert ledger.complete_hours(conn, NINE + HOUR_NS) == ["2026-11-20T09:00"]
    assert ledger.complete_hours(conn, NINE + 2 * HOUR_NS) == ["2026-11-20T09:00", "2026-11-20T10:00"]


def test_an_hour_adds_up_and_its_rows_are_counted(conn: connection) -> None:
    blocks = [
        make_block(1, at_s=0),
        make_block(2, ticks=10, rejected=4, at_s=7),
        make_block(3, hour="2026-11-20T10:00"),
    ]
    write_blocks(conn, blocks, StandingClock(8))
    totals = ledger.hour_totals(conn, "2026-11-20T09:00")
    assert (totals.blocks, totals.messages, totals.packets) == (2, 4, 9 + 27)
    assert totals.packets == totals.ticks + totals.state + totals.control + totals.rejected
    assert totals.rows == totals.ticks == 26
    assert totals.rejected_rows == totals.rejected == 4
    assert totals.payload_bytes == 162 * 13
    assert totals.first_received == instant(NINE)
    assert totals.last_received == instant(NINE) + timedelta(seconds=7, milliseconds=1)


def test_an_hour_without_blocks_adds_up_to_nothing(conn: connection) -> None:
    totals = ledger.hour_totals(conn, "2026-11-20T09:00")
    assert (totals.blocks, totals.ticks, totals.rows) == (0, 0, 0)
    assert (totals.first_received, totals.latency_p50_ms, totals.latency_p99_ms) == (None, None, None)


def test_latency_percentiles_are_taken_over_rows_not_blocks(conn: connection) -> None:
    # 100 ms for one block of 980 rows, 5 s for ten blocks of 2.
    write_blocks(conn, [make_block(1, ticks=490)], StandingClock(0.1))
    write_blocks(conn, [make_block(number, ticks=1) for number in range(2, 12)], StandingClock(5))
    totals = ledger.hour_totals(conn, "2026-11-20T09:00")
    assert totals.latency_p50_ms == pytest.approx(100, abs=1)
    assert totals.latency_p99_ms == pytest.approx(5000, abs=1)


def test_latency_is_real_time_on_an_accelerated_clock(conn: connection) -> None:
    write_blocks(conn, [make_block(1)], Clock(NINE + 1000_000_000_000, speed=1000))
    latency = ledger.hour_totals(conn, "2026-11-20T09:00").latency_p50_ms
    assert latency is not None
    assert 1000 < latency < 60_000


def test_recent_totals_count_everything_but_rate_only_the_last_seconds(conn: connection) -> None:
    write_blocks(conn, [make_block(1, ticks=50)], StandingClock(60))
    write_blocks(conn, [make_block(2, ticks=20, at_s=100)], StandingClock(100.25))
    totals = ledger.recent_totals(conn, StandingClock(105))
    assert (totals.blocks, totals.ticks, totals.messages) == (2, 140, 4)
    assert totals.ticks_per_second == 4.0
    assert totals.messages_per_second == 0.2
    assert totals.latency_p99_ms == pytest.approx(250, abs=1)
    later = ledger.recent_totals(conn, StandingClock(200))
    assert (later.ticks, later.ticks_per_second, later.latency_p99_ms) == (140, 0, None)


def test_one_connection_at_a_time_may_write_a_capture(database_url: str, conn: connection) -> None:
    assert ledger.lock_writer(conn, 0)
    with closing(connect(database_url)) as other:
        assert not ledger.lock_writer(other, 0)
        assert ledger.lock_writer(other, 1)
        conn.close()
        with other.cursor() as cursor:  # the server notices the end of a session a moment later
            cursor.execute("SELECT pg_advisory_lock(%s, 0)", (0x6468_0003,))


def test_a_capture_keeps_one_row_with_its_latest_status(conn: connection) -> None:
    ledger.write_status(conn, 3, "dhan", {"ticks": 1})
    (first,) = ledger.statuses(conn)
    conn.commit()
    ledger.write_status(conn, 3, "dhan", {"ticks": 2})
    (second,) = ledger.statuses(conn)
    assert (second.capture, second.source, second.status) == (3, "dhan", {"ticks": 2})
    assert second.started_at == first.started_at
    assert second.updated_at > first.updated_at


def test_the_last_receive_time_of_a_block_is_kept_to_the_microsecond(conn: connection) -> None:
    block = make_block(5, at_s=0.123456)
    write_blocks(conn, [block], StandingClock(1))
    assert ledger.last_received_ns(conn, 5) == block.stretch.last_received_ns // 1000 * 1000


def test_redrives_are_counted_from_none_for_each_capture(conn: connection) -> None:
    assert ledger.redrives(conn, 0) == 0
    ledger.count_redrive(conn, 0)
    ledger.count_redrive(conn, 3)
    assert [ledger.redrives(conn, capture) for capture in (0, 1, 3)] == [1, 0, 1]
