from collections.abc import Callable
from datetime import timedelta

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.store.partitions import ensure_partitions, instant
from dhan_pipeline.store.recent import LatestTick, latest_ticks, recent
from dhan_pipeline_tests.broker import RELIANCE, TCS

START_NS = parse_hour_key("2026-11-20T10:00")
SECOND_NS = 1_000_000_000
WINDOW = timedelta(minutes=15)

Add = Callable[..., None]


@pytest.fixture
def add(conn: connection) -> Add:
    """Stores a tick of RELIANCE, so many seconds after ten."""
    ensure_partitions(conn, START_NS - HOUR_NS, START_NS + HOUR_NS)
    ids = iter(range(1, 1000))

    def add(second: float, price: float | None, volume: int = 0, depth: bytes | None = None) -> None:
        at = instant(START_NS + int(second * SECOND_NS))
        with conn, conn.cursor() as cursor:
            cursor.execute(
                "INSERT INTO tick_rows (tick_id, time, instrument_token, last_price, volume_traded, day_close, "
                "tradable, mode, depth) VALUES (%s, %s, %s, %s, %s, 100, true, 'full', %s)",
                (next(ids), at, RELIANCE, price, volume, depth),
            )

    return add


def five(width: int, *numbers: int) -> bytes:
    return b"".join(number.to_bytes(width, "big") for number in numbers)


DEPTH = (
    five(2, 100)
    + five(4, 10100, 10095, 10090, 10085, 10080)
    + five(4, 10105, 10110, 10115, 10120, 10125)
    + five(4, 1, 2, 3, 4, 5)
    + five(4, 6, 7, 8, 9, 10)
    + five(2, 1, 1, 1, 1, 1)
    + five(2, 2, 2, 2, 2, 2)
)


def test_a_second_has_its_last_price_and_volume(conn: connection, add: Add) -> None:
    add(-3, 100.0, 10)
    add(0.1, 101.0, 20)
    add(0.9, 102.0, 30)
    add(5, None, 40)
    found = recent(conn, RELIANCE, START_NS + 10 * SECOND_NS, WINDOW)
    assert found is not None
    second = START_NS // SECOND_NS
    assert found.points == [(second - 3, 100.0, 10), (second, 102.0, 30)]
    assert found.tick["volume_traded"] == 40


def test_the_last_tick_has_its_change_and_the_depth_of_the_last_that_has_any(conn: connection, add: Add) -> None:
    add(0, 101.0, 20, DEPTH)
    add(1, 98.765, 21)
    found = recent(conn, RELIANCE, START_NS + 10 * SECOND_NS, WINDOW)
    assert found is not None
    tick = found.tick
    assert (tick["last_price"], tick["change"], tick["change_percent"]) == (98.765, -1.235, -1.235)
    assert tick["bid_prices"] == [101.0, 100.95, 100.9, 100.85, 100.8]
    assert (tick["ask_quantities"], tick["ask_orders"]) == ([6, 7, 8, 9, 10], [2, 2, 2, 2, 2])


def test_what_is_older_than_the_window_is_not_drawn(conn: connection, add: Add) -> None:
    add(-1000, 100.0)
    add(0, 101.0)
    found = recent(conn, RELIANCE, START_NS + SECOND_NS, WINDOW)
    assert found is not None
    assert [point[1] for point in found.points] == [101.0]


def test_after_the_close_the_last_minutes_of_the_day_are_shown(conn: connection, add: Add) -> None:
    add(-500, 99.0)
    add(0, 101.0)
    found = recent(conn, RELIANCE, START_NS + 40 * HOUR_NS, WINDOW)
    assert found is not None
    assert [point[1] for point in found.points] == [99.0, 101.0]
    assert recent(conn, RELIANCE, START_NS + 400 * HOUR_NS, WINDOW) is None


def test_of_an_instrument_without_ticks_there_is_nothing(conn: connection, add: Add) -> None:
    add(0, 101.0)
    assert recent(conn, TCS, START_NS + SECOND_NS, WINDOW) is None


def test_the_last_tick_is_found_in_whatever_hour_it_is(conn: connection, add: Add) -> None:
    add(-2, 99.0)
    add(-1, 100.0)
    before = LatestTick(START_NS - SECOND_NS, 100.0, None)
    assert latest_ticks(conn, [RELIANCE, TCS], START_NS - SECOND_NS) == {RELIANCE: before}
    assert latest_ticks(conn, [RELIANCE], START_NS - SECOND_NS + 1000) == {}
    add(5, 101.0)
    add(5, 102.0)
    assert latest_ticks(conn, [RELIANCE], 0) == {RELIANCE: LatestTick(START_NS + 5 * SECOND_NS, 102.0, None)}


def test_the_last_tick_is_found_without_a_look_at_earlier_hours(conn: connection, add: Add) -> None:
    for second in range(-50, 0):
        add(second, 100.0)
    add(1, 101.0)
    read = (
        "SELECT sum(pg_stat_get_xact_tuples_returned(inhrelid) + pg_stat_get_xact_tuples_fetched(inhrelid)) "
        "FROM pg_inherits WHERE inhparent = 'tick_rows'::regclass"
    )
    with conn.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        latest_ticks(conn, [RELIANCE], 0)
        cursor.execute(read)
        assert cursor.fetchall() == [(1,)]
