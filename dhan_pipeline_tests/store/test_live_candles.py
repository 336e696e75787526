"""Candles of the ticks as they come: the same on both storages, before and after they are summed up."""

import time
from contextlib import closing
from datetime import datetime
from typing import Any

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.sessions import HOUR_NS, IST
from dhan_pipeline.store import timescale
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.partitions import drop_expired, ensure_partitions

SHARE = generate_instrument_token(ExchangeSegment.NSE_EQ, 2885)
OTHER = generate_instrument_token(ExchangeSegment.NSE_EQ, 11536)
INDEX = generate_instrument_token(ExchangeSegment.IDX_I, 13)

_INSERT = """
INSERT INTO tick_rows (tick_id, instrument_token, time, last_trade_time, last_price, volume_traded, oi, tradable, mode)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 'full')
"""


def at(clock: str, day: int = 20) -> datetime:
    """A time of day, IST."""
    return datetime.fromisoformat(f"2026-11-{day:02}T{clock}").replace(tzinfo=IST)


def ns(when: datetime) -> int:
    return int(when.timestamp()) * 1_000_000_000


class Ticks:
    """Stores ticks one after another, each with the next tick_id."""

    def __init__(self, conn: connection) -> None:
        self.conn = conn
        self.tick_id = 0

    def add(
        self,
        clock: str,
        price: float | None,
        volume: int | None,
        *,
        token: int = SHARE,
        traded: datetime | None = None,
        never: bool = False,
        oi: int | None = None,
        day: int = 20,
    ) -> None:
        received = at(clock, day)
        ensure_partitions(self.conn, ns(received), ns(received) + 1)
        self.tick_id += 1
        trade = None if never else traded or received
        with self.conn, self.conn.cursor() as cursor:
            cursor.execute(_INSERT, (self.tick_id, token, received, trade, price, volume, oi, token != INDEX))


@pytest.fixture
def ticks(conn: connection) -> Ticks:
    return Ticks(conn)


def bars(conn: connection, since: datetime, until: datetime | None = None, token: int = SHARE) -> list[tuple[Any, ...]]:
    """Minute, open, high, low, close, volume, open interest, ticks."""
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "SELECT * FROM live_candles_1m(%s, %s) WHERE instrument_token = %s ORDER BY time",
            (since, until or at("00:00", 22), token),
        )
        return [(f"{when.astimezone(IST):%H:%M}", *values) for _, when, *values in cursor.fetchall()]


def refresh(url: str) -> None:
    """What the policy does; nothing on a plain view."""
    with closing(connect(url)) as conn:
        found = [job.job_id for job in timescale.jobs(conn) if "Continuous" in job.name]
    for job_id in found:
        assert timescale.run_job(url, job_id) is None


def test_a_minute_has_the_prices_in_their_order_and_what_the_days_volume_grew_by(
    conn: connection, ticks: Ticks
) -> None:
    ticks.add("09:15:01", 100.0, 10, oi=5)
    ticks.add("09:15:30", 103.0, 12, oi=6)
    ticks.add("09:15:31", 99.0, 20)
    ticks.add("09:15:59.999999", 101.0, 25)
    ticks.add("09:17:00", 102.0, 40)
    assert bars(conn, at("09:00")) == [
        ("09:15", 100.0, 103.0, 99.0, 101.0, 15, 6, 4),  # what was traded before the first packet is in no bar
        ("09:17", 102.0, 102.0, 102.0, 102.0, 15, None, 1),
    ]


def test_a_step_back_of_the_volume_counts_nothing(conn: connection, ticks: Ticks) -> None:
    for minute, volume in enumerate((10, 30, 20, 35)):
        ticks.add(f"09:1{minute}:00", 100.0, volume)
    assert [bar[5] for bar in bars(conn, at("09:00"))] == [0, 20, 0, 5]


def test_a_snapshot_of_the_day_before_makes_no_bar_and_the_first_volume_counts_whole(
    conn: connection, ticks: Ticks
) -> None:
    ticks.add("08:50:00", 95.0, 5000, traded=at("15:29:59", 19))
    ticks.add("08:51:00", 95.0, 0, never=True)
    ticks.add("09:15:00", 96.0, 70)
    assert bars(conn, at("00:00")) == [("09:15", 96.0, 96.0, 96.0, 96.0, 70, None, 1)]


def test_each_day_begins_anew(conn: connection, ticks: Ticks) -> None:
    ticks.add("15:29:00", 100.0, 900)
    ticks.add("09:15:00", 101.0, 0, day=21)
    ticks.add("09:15:01", 101.0, 8, day=21)
    assert [(bar[0], bar[5]) for bar in bars(conn, at("00:00"))] == [("15:29", 0), ("09:15", 8)]


def test_an_index_and_packets_without_a_volume_have_none(conn: connection, ticks: Ticks) -> None:
    ticks.add("09:15:00", 24000.0, 0, token=INDEX)
    ticks.add("09:15:00", 100.0, None)
    ticks.add("09:15:30", None, None)
    assert bars(conn, at("09:00"), token=INDEX) == [("09:15", 24000.0, 24000.0, 24000.0, 24000.0, None, None, 1)]
    assert bars(conn, at("09:00")) == [("09:15", 100.0, 100.0, 100.0, 100.0, None, None, 1)]


def test_a_range_has_the_bars_that_begin_in_it_as_the_whole_day_has_them(conn: connection, ticks: Ticks) -> None:
    for minute in range(5):
        ticks.add(f"09:1{minute}:20", 100.0 + minute, 10 * minute)
        ticks.add(f"09:1{minute}:40", 100.5 + minute, 10 * minute + 5)
    day = bars(conn, at("00:00"))
    assert [bar[5] for bar in day] == [5, 10, 10, 10, 10]
    assert bars(conn, at("09:12"), at("09:14")) == day[2:4]
    assert bars(conn, at("09:11:30"), at("09:13:30")) == day[2:4]


def test_bars_are_the_same_once_they_are_summed_up(database_url: str, conn: connection, ticks: Ticks) -> None:
    for minute in range(3):
        ticks.add(f"09:1{minute}:20", 100.0 + minute, 10 * minute)
    before = bars(conn, at("09:00"))
    refresh(database_url)
    assert bars(conn, at("09:00")) == before
    # Of a minute that was summed up: a late block, a rebuild, a redrive.
    ticks.add("09:11:30", 200.0, 19)
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM tick_rows WHERE time = %s", (at("09:10:20"),))
    refresh(database_url)
    assert bars(conn, at("09:00")) == [
        ("09:11", 101.0, 200.0, 101.0, 200.0, 9, None, 2),
        ("09:12", 102.0, 102.0, 102.0, 102.0, 1, None, 1),
    ]


def test_bars_go_with_their_ticks(database_url: str, conn: connection, ticks: Ticks) -> None:
    ticks.add("09:15:00", 100.0, 1, day=19)
    ticks.add("09:15:00", 100.0, 1)
    refresh(database_url)
    assert drop_expired(conn, 1, ns(at("00:00", 21))).dropped
    refresh(database_url)
    assert [bar[0] for bar in bars(conn, at("00:00", 18))] == ["09:15"]


def test_only_the_hours_from_that_days_start_are_read(conn: connection, ticks: Ticks) -> None:
    if timescale.is_hypertable(conn):
        pytest.skip("a continuous aggregate reads sums")
    for day in (19, 20):
        ticks.add("10:00:00", 100.0, 1, day=day)
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "EXPLAIN SELECT * FROM live_candles_1m(%s) WHERE instrument_token = %s", (at("09:30").isoformat(), SHARE)
        )
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "ticks_20261120_10" in plan
    assert "ticks_20261119" not in plan
    assert f"instrument_token = '{SHARE}'" in plan  # it reaches the ticks


def test_the_views_are_of_today(conn: connection) -> None:
    ensure_partitions(conn, time.time_ns() - HOUR_NS, time.time_ns() + HOUR_NS)
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT now()")  # of the transaction: midnight can not come between
        [(now,)] = cursor.fetchall()
        cursor.execute(_INSERT, (1, SHARE, now, now, 100.0, 5, 3, True))
        cursor.execute(_INSERT, (2, SHARE, now, now, 101.0, 9, 4, True))
        for view in ("candles_live_1m", "candles_live_5m", "candles_live_15m"):
            cursor.execute(f"SELECT open, high, low, close, volume, oi, ticks FROM {view}")
            assert cursor.fetchall() == [(100.0, 101.0, 100.0, 101.0, 4, 4, 2)], view
        cursor.execute("SELECT time FROM candles_live_15m")
        [(start,)] = cursor.fetchall()
    assert start <= now
    assert start.astimezone(IST).minute % 15 == 0
