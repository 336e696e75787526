"""Options that have expired, put together from what the broker tells of those near the money; against a real server."""

import asyncio
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.feeds.dhan.history import DhanHistory, RollingOptionBars
from dhan_pipeline.feeds.simulator.history import ROLLING_OPTION_PATH
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.rest import RestServer
from dhan_pipeline.ingest.broker_bars import EXPIRED, BrokerBarsError, Fetch, fetch_day
from dhan_pipeline.ingest.expired_options import _flag
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token, split_instrument_token
from dhan_pipeline.quality.days import reconcile_day
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline_tests.broker import AT_ONCE, DAY, NIFTY, at, insert_instruments, ns, serving
from dhan_pipeline_tests.feeds.simulator.trading import SetClock

CALL, PUT = (generate_instrument_token(ExchangeSegment.NSE_FNO, number) for number in (50_001, 50_002))
EXPIRY = date(2026, 11, 24)


@pytest.fixture
def clock() -> SetClock:
    return SetClock(at("12:00", date(2026, 11, 26)))


@pytest.fixture
def broker(
    database_url: str, clock: SetClock, conn: connection, tmp_path: Path
) -> Iterator[tuple[RestServer, Settings]]:
    """NIFTY; its call and its put of a strike of that day, expired, of which there were ticks."""
    insert_instruments(conn, [NIFTY])
    settings = Settings(_env_file=None, data_dir=tmp_path / "data", database_url=database_url)
    with serving(settings, clock, Market([NIFTY], clock=clock), tmp_path) as (rest, online):
        strike = float(at_the_money(online, clock, "CALL").strike[0])
        ensure_partitions(conn, ns("09:00"), ns("10:00"))
        with conn, conn.cursor() as cursor:
            cursor.execute("UPDATE instruments SET trading_symbol = 'NIFTY'")
            for token, side in ((CALL, "CE"), (PUT, "PE")):
                cursor.execute(
                    "INSERT INTO instruments (instrument_token, source, security_id, exchange, exchange_segment, "
                    "trading_symbol, instrument_type, underlying_symbol, expiry, strike, option_type, is_active) "
                    "VALUES (%s, 'dhan', %s, 'NSE', 'NSE_FNO', %s, 'OPTIDX', 'NIFTY', %s, %s, %s, false)",
                    (token, split_instrument_token(token)[1], f"NIFTY-{side}", EXPIRY, strike, side),
                )
                cursor.execute(
                    "INSERT INTO tick_rows (tick_id, time, instrument_token, tradable, mode) "
                    "VALUES (%s, %s, %s, true, 'full')",
                    (token, at("09:21"), token),
                )
        rest.asked.clear()
        yield rest, online


def at_the_money(settings: Settings, clock: SetClock, side: str) -> RollingOptionBars:
    async def ask() -> RollingOptionBars:
        async with DhanHistory(settings, clock, AT_ONCE) as history:
            return await history.rolling_option_bars(
                ExchangeSegment.NSE_FNO,
                13,
                "OPTIDX",
                side,
                "ATM",
                "MONTH",
                1,
                DAY,
                DAY,  # type: ignore[arg-type]
            )

    return asyncio.run(ask())


def insert_candles(conn: connection, token: int, rolling: RollingOptionBars, factor: float = 1.0) -> int:
    """Our candles of the option, equal to the broker's while its strike is at the money. Returns how many."""
    bars = rolling.bars
    of = np.flatnonzero(rolling.strike == rolling.strike[0])[:20]
    with conn, conn.cursor() as cursor:
        for i in of.tolist():
            prices = [factor * float(getattr(bars, name)[i]) for name in ("open", "high", "low", "close")]
            cursor.execute(
                "INSERT INTO candles_1m (instrument_token, time, open, high, low, close, volume, ticks, touches_gap, "
                "starts_late, source) VALUES (%s, to_timestamp(%s), %s, %s, %s, %s, %s, 9, false, false, 'ticks')",
                (token, int(bars.time_s[i]), *prices, int(bars.volume[i])),
            )
    return len(of)


def fetch(settings: Settings, clock: SetClock) -> Fetch:
    assert settings.database_url
    return fetch_day(settings, settings.database_url, DAY, clock, lambda words: None, policy=AT_ONCE)


def test_bars_of_one_strike_are_put_together_and_believed_where_ours_are_near(
    broker: tuple[RestServer, Settings], conn: connection, clock: SetClock
) -> None:
    rest, settings = broker
    assert settings.database_url
    rolling = at_the_money(settings, clock, "CALL")
    ours = insert_candles(conn, CALL, rolling)
    insert_candles(conn, PUT, at_the_money(settings, clock, "PUT"), factor=2.0)  # what is far from ours is another's
    rest.asked.clear()
    fetched = fetch(settings, clock)
    assert (fetched.wanted, fetched.done, fetched.failed) == (2, 1, {EXPIRED: 1})
    assert rest.asked == {ROLLING_OPTION_PATH: 42}
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT instrument_token, partial FROM broker_fetches")
        assert cursor.fetchall() == [(CALL, True)]
        cursor.execute("SELECT count(*), count(DISTINCT time) FROM broker_candles WHERE instrument_token = %s", (CALL,))
        [(count, minutes)] = cursor.fetchall()
    assert count == minutes == fetched.bars >= ours


def test_only_the_minutes_that_the_broker_gave_of_it_are_compared(
    broker: tuple[RestServer, Settings], conn: connection, clock: SetClock
) -> None:
    _, settings = broker
    assert settings.database_url
    insert_candles(conn, CALL, at_the_money(settings, clock, "CALL"))
    fetch(settings, clock)
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "DELETE FROM broker_candles WHERE time IN (SELECT time FROM broker_candles ORDER BY time LIMIT 5)"
        )
        cursor.execute(
            "UPDATE candles_1m SET instrument_token = %s WHERE time IN (SELECT max(time) FROM candles_1m)", (PUT,)
        )
    result, _ = reconcile_day(settings, settings.database_url, DAY)
    assert result.by_field().keys() == {"missing"}
    assert result.left_out == 1


def test_without_candles_of_ours_nothing_is_believed(broker: tuple[RestServer, Settings], clock: SetClock) -> None:
    with pytest.raises(BrokerBarsError, match=f"Of 2 instruments, none could be had: {EXPIRED}"):
        fetch(broker[1], clock)


@pytest.mark.parametrize(
    ("expiry", "flag"), [(0, "WEEK"), (7, None), (14, "MONTH"), (42, None)], ids=["week", "next", "month", "next month"]
)
def test_expiries_are_known_as_the_nearest_weekly_or_monthly_one(expiry: int, flag: str | None) -> None:
    first = date(2026, 11, 10)
    expiries = [first + timedelta(days=days) for days in (0, 7, 14, 21, 42)]
    assert _flag(expiries, first + timedelta(days=expiry)) == flag
