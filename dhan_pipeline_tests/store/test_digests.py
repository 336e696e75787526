from datetime import timedelta
from typing import Any

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.store import digests
from dhan_pipeline.store.digests import Digest, hour_digest, table_digest
from dhan_pipeline.store.rebuilds import replace_blocks, replace_hour
from dhan_pipeline.store.ticks import write_blocks
from dhan_pipeline_tests.store.blocks import StandingClock, make_block

HOUR, NEXT_HOUR = "2026-11-20T09:00", "2026-11-20T10:00"
CLOCK = StandingClock(7200)


def run(conn: connection, statement: str) -> list[tuple[Any, ...]]:
    with conn, conn.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def seal(conn: connection, seconds: float) -> None:
    """What is done of an hour that is over, so many seconds after nine."""
    with conn:
        digests.lock_hour(conn, HOUR)
        digests.record_capture(conn, HOUR, hour_digest(conn, HOUR), StandingClock(seconds).now())


def recorded(conn: connection) -> list[tuple[str, int]]:
    return [(record.origin, record.rows) for record in digests.records(conn, HOUR, 10)]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE tick_rows SET last_price = last_price + 0.01 WHERE tick_id = 1 << 16 | 1",
        "UPDATE tick_rows SET depth = set_byte(depth, 13, 1) WHERE tick_id = 1 << 16",
        "UPDATE tick_rows SET day_low = 'NaN' WHERE tick_id = 1 << 16",
        "UPDATE tick_rows SET tick_id = tick_id + 7 WHERE tick_id = 1 << 16",
        # A bigint's own hash is that of its upper half xor its lower.
        "UPDATE tick_rows SET instrument_token = (3::bigint << 32) + (257 # 3) WHERE tick_id = 1 << 16 | 1",
        "UPDATE tick_rows SET day_low = NULL WHERE tick_id = 1 << 16",
        "UPDATE tick_rows SET oi = NULL WHERE tick_id = 1 << 16",
        "UPDATE tick_rows SET instrument_token = (1::bigint << 41) + 3 WHERE tick_id = 1 << 16 | 1",
        "UPDATE tick_rows SET time = time + '1 microsecond' WHERE tick_id = 1 << 16",
        "DELETE FROM tick_rows WHERE tick_id = 1 << 16",
        "INSERT INTO tick_rows SELECT * FROM tick_rows WHERE tick_id = 1 << 16",
    ],
)
def test_the_digest_notices_any_difference(conn: connection, change: str) -> None:
    write_blocks(conn, [make_block(1)], CLOCK)
    run(conn, "UPDATE tick_rows SET day_low = 0, volume_traded = tick_id")
    before = hour_digest(conn, HOUR)
    run(conn, change)
    assert hour_digest(conn, HOUR) != before


def test_only_zeros_of_either_sign_are_the_same_to_the_digest(conn: connection) -> None:
    write_blocks(conn, [make_block(1)], CLOCK)
    run(conn, "UPDATE tick_rows SET day_low = 0")
    before = hour_digest(conn, HOUR)
    run(conn, "UPDATE tick_rows SET day_low = '-0'")
    assert hour_digest(conn, HOUR) == before


def test_the_digest_notices_rows_that_swap_their_values(conn: connection) -> None:
    write_blocks(conn, [make_block(1)], CLOCK)
    run(conn, "UPDATE tick_rows SET oi = tick_id")
    before = hour_digest(conn, HOUR)
    for at in range(5):
        pair = (1 << 16 | at) + (1 << 16 | at + 1)
        run(conn, f"UPDATE tick_rows SET oi = {pair} - tick_id WHERE tick_id & 7 IN ({at}, {at + 1})")
        assert hour_digest(conn, HOUR) != before
        run(conn, "UPDATE tick_rows SET oi = tick_id")
        assert hour_digest(conn, HOUR) == before


def test_the_digest_depends_neither_on_order_nor_on_the_session_nor_on_the_table(conn: connection) -> None:
    blocks = [make_block(number) for number in range(1, 5)]
    write_blocks(conn, blocks, CLOCK)
    before = hour_digest(conn, HOUR)
    run(conn, "CREATE TABLE others (LIKE tick_rows); INSERT INTO others SELECT * FROM tick_rows ORDER BY tick_id DESC")
    run(conn, "SET TimeZone = 'America/New_York'; SET DateStyle = 'German'; SET extra_float_digits = -15")
    assert table_digest(conn, "others") == hour_digest(conn, HOUR) == before
    assert (before.rows, len(before.digest)) == (24, 16)
    assert hour_digest(conn, NEXT_HOUR) == Digest(0, 16 * "0")


def test_what_the_capture_left_is_recorded_once(conn: connection) -> None:
    write_blocks(conn, [make_block(1)], StandingClock(10))
    seal(conn, 3601)
    seal(conn, 3700)
    assert recorded(conn) == [("capture", 6)]
    (record,) = digests.records(conn, HOUR, 2)
    assert (record.made_at, record.of) == (StandingClock(3601).now(), hour_digest(conn, HOUR))
    assert digests.records(conn, NEXT_HOUR, 2) == ()


def test_late_blocks_are_taken_into_the_record(conn: connection) -> None:
    write_blocks(conn, [make_block(1)], StandingClock(10))
    seal(conn, 3601)
    write_blocks(conn, [make_block(2), make_block(3)], StandingClock(3650))
    seal(conn, 3700)
    assert recorded(conn) == [("capture", 6), ("capture", 18)]


@pytest.mark.parametrize("late", [False, True])
def test_rows_that_anybody_else_changed_are_not(conn: connection, late: bool) -> None:
    write_blocks(conn, [make_block(1)], StandingClock(10))
    seal(conn, 3601)
    if late:
        write_blocks(conn, [make_block(2)], StandingClock(3650))
    run(conn, "UPDATE tick_rows SET oi = 5 WHERE tick_id = 1 << 16")
    seal(conn, 3700)
    assert recorded(conn) == [("capture", 6)]


def test_each_rebuild_is_recorded_with_what_it_changed_and_what_it_found(conn: connection) -> None:
    write_blocks(conn, [make_block(1), make_block(2)], StandingClock(10))
    replace_hour(conn, HOUR, [make_block(1), make_block(2, price=7.0)], CLOCK)
    replace_hour(conn, HOUR, [make_block(1), make_block(2, price=7.0)], CLOCK)
    found = digests.records(conn, HOUR, 3)
    assert [(r.origin, r.rows, r.added, r.removed, r.changed) for r in found] == [
        ("capture", 12, None, None, None),
        ("rebuild", 12, 0, 0, 5),
        ("rebuild", 12, 0, 0, 0),
    ]
    assert found[0].of != found[1].of == found[2].of
    # On a clock that stands they come one after another all the same.
    assert [r.made_at - CLOCK.now() for r in found] == [timedelta(microseconds=n) for n in range(3)]
    assert [r.origin for r in digests.records(conn, HOUR, 2)] == ["rebuild", "rebuild"]


def test_a_redrive_is_recorded_of_hours_on_record_that_it_changed(conn: connection) -> None:
    write_blocks(conn, [make_block(1), make_block(2), make_block(3, hour=NEXT_HOUR)], StandingClock(10))
    seal(conn, 3601)
    renewed = {1: make_block(1), 2: make_block(2, price=7.0), 3: make_block(3, price=7.0, hour=NEXT_HOUR)}
    for _ in range(2):
        replace_blocks(conn, 1, 1 << 20, lambda first, last: [renewed[n] for n in range(first, last + 1)], CLOCK)
        assert recorded(conn) == [("capture", 12), ("redrive", 12)]
    assert digests.records(conn, NEXT_HOUR, 2) == ()
