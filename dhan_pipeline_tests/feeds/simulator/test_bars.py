from datetime import timedelta

import numpy as np
import pytest

from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.simulator.bars import BAR, MinuteBars
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline_tests.feeds.simulator.trading import NOON, Bar, SetClock, Watcher

TOKENS = [generate_instrument_token(segment, number) for segment in ExchangeSegment for number in range(1, 41)]


def of(market: Market, token: int) -> dict[int, Bar]:
    index = market.index_of(token)
    assert index is not None
    return {bar["time_s"]: Bar(*list(bar)[1:]) for bar in market.minute_bars(index)}


def rounded(bars: dict[int, Bar]) -> dict[int, Bar]:
    """Float32 has seven digits, which is less than four decimals of an index."""
    return {
        time_s: Bar(*(float(np.float32(p)) for p in (bar.open, bar.high, bar.low, bar.close)), bar.volume, bar.oi)
        for time_s, bar in bars.items()
    }


def test_the_bars_are_those_of_the_packets_of_every_instrument_and_minute() -> None:
    clock = SetClock()
    market = Market(TOKENS, clock=clock)
    watcher = Watcher(market)
    for seconds in (20, 1, 38, 1, 59, 1, 200, 10):  # within a minute, over its end, and over several
        watcher.trade(1100)
        clock.at += timedelta(seconds=seconds)
    watcher.trade(700)
    assert sum(map(len, watcher.bars.values())) > 3 * len(TOKENS)
    for token in TOKENS:
        assert rounded(of(market, token)) == rounded(watcher.bars[token])


def test_a_new_day_begins_its_volume_at_zero() -> None:
    clock = SetClock(NOON.replace(hour=23, minute=59))
    market = Market(TOKENS, clock=clock)
    watcher = Watcher(market)
    watcher.trade(2000)
    clock.at += timedelta(minutes=1)
    watcher.trade(2000)
    for token in TOKENS:
        assert rounded(of(market, token)) == rounded(watcher.bars[token])


def test_bars_follow_the_true_time_whatever_the_wire_says() -> None:
    clock = SetClock()
    market = Market(TOKENS[:40], clock=clock)
    market.trade_time_offset_s = 0
    for _ in market.step(400):
        pass
    for index in range(40):
        assert market.minute_bars(index)["time_s"].tolist() == [NOON.timestamp()]


def test_the_day_s_bar_is_what_the_packets_say_of_the_day() -> None:
    clock = SetClock()
    market = Market(TOKENS[40:80], clock=clock)
    index = np.arange(40)
    for _ in market.step(4000):
        pass
    for number, packet in enumerate(market.packets(ResponseCode.FULL, index)):
        (bar,) = market.day_bar(number)
        assert bar["time_s"] == NOON.replace(hour=0).timestamp()
        for name, field in (("open", "day_open"), ("high", "day_high"), ("low", "day_low"), ("close", "last_price")):
            assert np.float32(bar[name]) == packet[field]
        assert (bar["volume"], bar["oi"]) == (packet["volume_traded"], packet["oi"])


def test_there_is_no_bar_of_what_was_never_traded() -> None:
    tokens = [generate_instrument_token("NSE_EQ", number) for number in range(1, 1001)]
    market = Market(tokens, clock=SetClock())
    bars = [(len(market.minute_bars(index)), len(market.day_bar(index))) for index in range(1000)]
    assert set(bars) == {(0, 0), (1, 1)}


def test_the_first_of_several_trades_opens_the_bar_and_the_last_closes_it() -> None:
    volume, oi = np.array([10, 20]), np.array([7, 8])
    bars = MinuteBars(5, volume)
    for ticks in (50, 70, 40, 60):
        bars.note(np.array([1]), np.array([ticks]))
    minutes, found = bars.of(1, np.array([99, 60]), np.array([10, 29]), oi)
    assert minutes.tolist() == [5]
    assert found.tolist() == [(1, 50, 70, 40, 60, 9, 8)]
    assert len(bars.of(0, np.array([99, 60]), volume, oi)[1]) == 0


@pytest.mark.parametrize("kept", [1, 3])
def test_the_oldest_minutes_are_forgotten_when_memory_is_full(kept: int) -> None:
    state = np.array([10, 20])
    bars = MinuteBars(0, state, memory_bytes=kept * 2 * BAR.itemsize)
    for minute in range(1, 11):
        bars.note(np.arange(2), state)
        bars.end_minute(minute, state, state, state)
    assert bars.of(0, state, state, state)[0].tolist() == list(range(10 - kept, 10))
