import pytest
from psycopg2.extensions import connection

from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.store.flow import LATENCY_LIMITS_MS, HourFlow, hour_flow, ticks_of_day
from dhan_pipeline.store.ticks import write_blocks
from dhan_pipeline_tests.store.blocks import StandingClock, make_block

HOUR = "2026-11-20T09:00"


def test_an_hour_without_blocks_has_no_flow(conn: connection) -> None:
    assert hour_flow(conn, HOUR) == HourFlow()


def test_ticks_count_in_the_minute_of_their_receipt_and_in_the_column_of_their_latency(conn: connection) -> None:
    write_blocks(conn, [make_block(1, ticks=10, at_s=59)], StandingClock(59.0045))
    write_blocks(conn, [make_block(2, ticks=20, at_s=60), make_block(3, ticks=1, at_s=61)], StandingClock(62))
    write_blocks(conn, [make_block(4, hour="2026-11-20T10:00")], StandingClock(3600))
    flow = hour_flow(conn, HOUR)
    assert flow.ticks_by_minute[:3] == (20, 42, 0)
    assert {limit: n for limit, n in zip(LATENCY_LIMITS_MS, flow.latency_counts, strict=False) if n} == {
        5: 20,
        2000: 2,
        5000: 40,
    }
    assert (flow.waited_ticks, flow.waited_s) == (0, 0)


def test_time_in_which_several_blocks_waited_counts_once(conn: connection) -> None:
    # All of them wait until 09:00:30; nothing waits then, until one is stored ten seconds after it came.
    write_blocks(conn, [make_block(n, ticks=5, at_s=n) for n in (1, 2, 3)], StandingClock(30))
    write_blocks(conn, [make_block(5, ticks=5, at_s=40)], StandingClock(50))
    flow = hour_flow(conn, HOUR)
    assert flow.waited_ticks == 40
    assert flow.waited_s == pytest.approx(29 + 10, abs=0.01)


def test_what_a_rebuild_stored_came_and_has_no_latency(conn: connection) -> None:
    write_blocks(conn, [make_block(1, ticks=5)], StandingClock(8))
    with conn, conn.cursor() as cursor:
        cursor.execute("UPDATE ingest_ledger SET latency_ms = NULL")
    flow = hour_flow(conn, HOUR)
    assert (sum(flow.ticks_by_minute), sum(flow.latency_counts), flow.waited_s) == (10, 0, 0)


def test_a_day_is_told_from_its_first_hour_with_ticks_to_the_end_of_an_hour(conn: connection) -> None:
    blocks = [
        make_block(1, hour="2026-11-19T23:00"),
        make_block(2, ticks=5, hour="2026-11-20T09:00", at_s=61),
        make_block(3, ticks=7, hour="2026-11-20T11:00", at_s=3599),
        make_block(4, hour="2026-11-20T12:00"),
    ]
    write_blocks(conn, blocks, StandingClock(4 * 3600))
    start_ns, by_minute = ticks_of_day(conn, "2026-11-20T11:00")
    assert start_ns == parse_hour_key(HOUR)
    assert len(by_minute) == 3 * 60
    assert {minute: ticks for minute, ticks in enumerate(by_minute) if ticks} == {1: 10, 179: 14}


def test_a_day_without_ticks_is_its_last_hour(conn: connection) -> None:
    assert ticks_of_day(conn, HOUR) == (parse_hour_key(HOUR), 60 * (0,))


def test_it_is_known_whether_workers_stored_what_waited(conn: connection) -> None:
    write_blocks(conn, [make_block(n, ticks=5, at_s=n) for n in (1, 2)], StandingClock(30))
    assert not hour_flow(conn, HOUR).waited_in_parts
    with conn, conn.cursor() as cursor:
        cursor.execute("UPDATE ingest_ledger SET parts = 4 WHERE block_id = (SELECT min(block_id) FROM ingest_ledger)")
    assert hour_flow(conn, HOUR).waited_in_parts
