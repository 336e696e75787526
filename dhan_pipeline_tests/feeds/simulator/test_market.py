"""Packets are read here with struct formats written out from the documentation, not with the package's own table."""

import struct
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.simulator.market import Market, frame_header
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.sessions import IST

TICKER = "<BHBIfI"
QUOTE = "<BHBIfHIfIIIffff"
FULL = "<BHBIfHIfIIIIIIffff" + "IIHHff" * 5
OI = "<BHBII"
PREV_CLOSE = "<BHBIfI"

NAMES = (
    *("code", "length", "segment", "id", "ltp", "ltq", "ltt", "atp", "volume", "sell", "buy"),
    *("oi", "oi_high", "oi_low", "open", "close", "high", "low"),
)

NOON = datetime(2026, 11, 20, 12, 0, 0, tzinfo=IST)

NIFTY = generate_instrument_token("IDX_I", 13)
RELIANCE = generate_instrument_token("NSE_EQ", 2885)
NIFTY_FUTURE = generate_instrument_token("NSE_FNO", 68407)
CRUDE = generate_instrument_token("MCX_COMM", 569900)
EURINR = generate_instrument_token("NSE_CURRENCY", 2885)


class StoppedClock(Clock):
    """Shows `at` until told otherwise."""

    def __init__(self, at: datetime = NOON) -> None:
        super().__init__()
        self.at = at

    def now_ns(self) -> int:
        return int(self.at.timestamp()) * 1_000_000_000


def run(market: Market, events: int) -> None:
    for _ in market.step(events):
        pass


def stream(market: Market, *steps: int) -> bytes:
    return b"".join(market.frames(ResponseCode.FULL, index) for events in steps for index, _ in market.step(events))


def one(market: Market, code: ResponseCode, token: int = RELIANCE) -> bytes:
    index = market.index_of(token)
    assert index is not None
    return market.packets(code, np.array([index])).tobytes()


def fulls(market: Market) -> Iterator[tuple[int, dict[str, float], NDArray[np.float64]]]:
    """Every instrument's full packet: segment, fields, depth (level; bid/ask qty, bid/ask orders, bid/ask price)."""
    for packet in market.packets(ResponseCode.FULL, np.arange(len(market))):
        values = struct.unpack(FULL, packet.tobytes())
        yield values[2], dict(zip(NAMES, values[:18], strict=True)), np.array(values[18:]).reshape(5, 6)


@pytest.mark.parametrize(
    ("code", "header"),
    [
        (ResponseCode.TICKER, "02 1000 01 450b0000"),
        (ResponseCode.QUOTE, "04 3200 01 450b0000"),
        (ResponseCode.OPEN_INTEREST, "05 0c00 01 450b0000"),
        (ResponseCode.PREVIOUS_CLOSE, "06 1000 01 450b0000"),
        (ResponseCode.FULL, "08 a200 01 450b0000"),
    ],
    ids=lambda value: value.name if isinstance(value, ResponseCode) else "",
)
def test_a_packet_has_the_documented_header_and_the_size_that_it_says(code: ResponseCode, header: str) -> None:
    packet = one(Market([RELIANCE]), code)
    assert packet[:8] == bytes.fromhex(header)
    assert len(packet) == packet[1]


@pytest.mark.parametrize(
    ("size", "header"), [(16, "82 10"), (50, "82 32"), (125, "82 7d"), (126, "82 7e 007e"), (162, "82 7e 00a2")]
)
def test_a_frame_is_unmasked_and_binary(size: int, header: str) -> None:
    assert frame_header(size) == bytes.fromhex(header)


def test_frames_are_the_packets_each_behind_its_header() -> None:
    market = Market([RELIANCE, NIFTY])
    index = np.array([1, 0])
    packets = market.packets(ResponseCode.FULL, index)
    assert market.frames(ResponseCode.FULL, index) == b"".join(b"\x82\x7e\x00\xa2" + p.tobytes() for p in packets)


def test_the_packets_of_an_instrument_agree() -> None:
    market = Market([NIFTY_FUTURE], clock=StoppedClock())
    run(market, 100)
    full = struct.unpack(FULL, one(market, ResponseCode.FULL, NIFTY_FUTURE))
    ticker = struct.unpack(TICKER, one(market, ResponseCode.TICKER, NIFTY_FUTURE))
    quote = struct.unpack(QUOTE, one(market, ResponseCode.QUOTE, NIFTY_FUTURE))
    oi = struct.unpack(OI, one(market, ResponseCode.OPEN_INTEREST, NIFTY_FUTURE))
    previous = struct.unpack(PREV_CLOSE, one(market, ResponseCode.PREVIOUS_CLOSE, NIFTY_FUTURE))
    assert ticker[4:] == (full[4], full[6])
    assert quote[4:] == full[4:11] + full[14:18]
    assert oi[4] == full[11] > 0
    assert previous[4] == full[15]


def test_the_trade_time_is_the_wall_clock_in_india_read_as_utc() -> None:
    market = Market([RELIANCE], clock=StoppedClock())
    run(market, 100)
    ltt = struct.unpack(TICKER, one(market, ResponseCode.TICKER))[5]
    assert datetime.fromtimestamp(ltt, IST).isoformat() == "2026-11-20T17:30:00+05:30"
    assert ltt == 1795176000


def test_the_same_seed_gives_the_same_bytes_however_they_are_sliced() -> None:
    tokens = [RELIANCE, NIFTY, NIFTY_FUTURE, CRUDE, EURINR]
    clock = StoppedClock()
    whole = stream(Market(tokens, seed=7, clock=clock), 20_000)
    sliced = stream(Market(tokens, seed=7, clock=clock), 3, 4_000, 1, 15_990, 6)
    assert len(whole) == 20_000 * 166
    assert whole == sliced
    assert whole != stream(Market(tokens, seed=8, clock=clock), 20_000)


def test_an_instrument_opens_the_same_whoever_its_neighbours_are() -> None:
    clock = StoppedClock()
    alone, among = Market([RELIANCE], clock=clock), Market([NIFTY, RELIANCE, CRUDE], clock=clock)
    for code in (ResponseCode.FULL, ResponseCode.PREVIOUS_CLOSE):
        assert one(alone, code) == one(among, code)


def test_volume_grows_over_a_restart() -> None:
    clock = StoppedClock()
    before = Market([RELIANCE], clock=clock)
    run(before, 100)
    clock.at = NOON.replace(hour=13)
    after = Market([RELIANCE], clock=clock)
    assert (
        struct.unpack(FULL, one(before, ResponseCode.FULL))[8] < struct.unpack(FULL, one(after, ResponseCode.FULL))[8]
    )


def test_every_selected_instrument_moves_once_a_round_and_no_other() -> None:
    market = Market([generate_instrument_token("NSE_EQ", number) for number in range(1, 101)])
    market.select(np.arange(10, 40))
    moved = [index for index, _ in market.step(60)]
    assert [sorted(part) for part in moved] == [list(range(10, 40))] * 2
    assert moved[0].tolist() != moved[1].tolist()


def test_nothing_moves_where_nothing_is_selected() -> None:
    market = Market([RELIANCE])
    market.select(np.arange(0))
    assert list(market.step(10)) == []


def test_an_instrument_cannot_be_in_the_market_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        Market([RELIANCE, NIFTY, RELIANCE])


def test_a_trade_adds_its_quantity_to_the_volume_and_other_packets_leave_it() -> None:
    market = Market([RELIANCE], clock=StoppedClock())
    _, before, _ = next(fulls(market))
    unchanged = 0
    for _ in market.step(1000):
        _, after, _ = next(fulls(market))
        if after["volume"] == before["volume"]:
            unchanged += 1
            assert [after[name] for name in ("ltp", "ltq", "ltt", "atp")] == [
                before[name] for name in ("ltp", "ltq", "ltt", "atp")
            ]
        else:
            assert after["volume"] - before["volume"] == after["ltq"] > 0
        before = after
    assert 450 < unchanged < 650


def test_open_interest_is_reported_as_changed_when_it_changes() -> None:
    market = Market([NIFTY_FUTURE, RELIANCE])
    changes = 0
    before = struct.unpack(OI, one(market, ResponseCode.OPEN_INTEREST, NIFTY_FUTURE))[4]
    for _, changed in market.step(2000):
        after = struct.unpack(OI, one(market, ResponseCode.OPEN_INTEREST, NIFTY_FUTURE))[4]
        assert changed.tolist() == ([0] if after != before else [])
        changes += len(changed)
        before = after
    assert changes > 5


def test_at_midnight_in_india_the_last_price_becomes_the_previous_close() -> None:
    clock = StoppedClock(NOON.replace(hour=23, minute=59, second=59))
    market = Market([RELIANCE], clock=clock)
    run(market, 100)
    _, evening, _ = next(fulls(market))
    clock.at = NOON.replace(day=21, hour=0)
    for _ in range(100):
        run(market, 1)
        _, morning, _ = next(fulls(market))
        if morning["volume"] > 0:
            break
        assert [morning[name] for name in ("open", "high", "low", "atp")] == [0.0] * 4
    assert morning["close"] == evening["ltp"]
    assert struct.unpack(PREV_CLOSE, one(market, ResponseCode.PREVIOUS_CLOSE))[4] == morning["close"]
    assert morning["open"] == morning["high"] == morning["low"] == morning["ltp"]
    assert morning["volume"] == morning["ltq"]


def test_some_instruments_have_not_traded_today_until_they_do() -> None:
    market = Market([generate_instrument_token("NSE_EQ", number) for number in range(1, 1001)], clock=StoppedClock())
    untraded = [fields for _, fields, _ in fulls(market) if fields["volume"] == 0]
    assert 0 < len(untraded) < 50
    for fields in untraded:
        assert [fields[name] for name in ("ltt", "ltq", "open", "high", "low", "atp")] == [0] * 6
        assert fields["ltp"] == fields["close"] > 0
    run(market, 20_000)
    assert all(fields["volume"] > 0 for _, fields, _ in fulls(market))


@pytest.mark.parametrize("code", [ResponseCode.TICKER, ResponseCode.QUOTE, ResponseCode.FULL])
def test_the_decoder_takes_every_packet(code: ResponseCode) -> None:
    market = Market([generate_instrument_token(segment, 7) for segment in ExchangeSegment])
    payload = b"".join(market.packets(code, index).tobytes() for index, _ in market.step(1000))
    decoded = decode(payload, np.array([0, len(payload)]))
    assert decoded.packets == sum(map(len, decoded.ticks)) == 1000
    assert decoded.rejected == []


TOKENS = st.lists(
    st.builds(generate_instrument_token, st.sampled_from(ExchangeSegment), st.integers(1, 2**32 - 1)),
    min_size=1,
    max_size=40,
    unique=True,
)


@settings(max_examples=60)
@given(tokens=TOKENS, seed=st.integers(0, 2**32), events=st.integers(0, 5000))
def test_what_a_packet_says_is_consistent(tokens: list[int], seed: int, events: int) -> None:
    market = Market(tokens, seed=seed, clock=StoppedClock())
    run(market, events)
    for segment, full, depth in fulls(market):
        tick = {0: 0.05, 1: 0.05, 2: 0.05, 3: 0.0025, 4: 0.05, 5: 1.0, 7: 0.0025, 8: 0.05}[segment]
        assert abs(full["ltp"] / full["close"] - 1) < 0.21
        traded = full["open"] > 0
        if traded:
            assert full["low"] <= min(full["open"], full["ltp"]) <= max(full["open"], full["ltp"]) <= full["high"]
        else:
            assert full["low"] == full["high"] == full["volume"] == 0
        for name in ("ltp", "open", "close", "high", "low"):
            on_tick(full[name], tick)
        if full["volume"]:
            assert full["low"] * 0.999999 <= full["atp"] <= full["high"] * 1.000001
        assert (full["oi"] > 0) <= (segment not in (0, 1, 4))
        assert full["oi_low"] <= full["oi"] * (segment == 2) <= full["oi_high"]
        bid_quantity, ask_quantity, bid_orders, ask_orders, bids, asks = depth.T
        if segment == 0:
            assert [full[name] for name in ("ltq", "volume", "buy", "sell", "oi", "atp")] == [0] * 6
            assert not depth.any()
            continue
        levels = np.count_nonzero(bids)
        assert levels in (3, 5)
        for column in depth.T:
            assert np.count_nonzero(column) == levels
            assert (column[:levels] > 0).all()
        assert (np.diff(bids[:levels]) < 0).all()
        assert (np.diff(asks[:levels]) > 0).all()
        assert bids[0] <= full["ltp"] <= asks[0]
        assert bids[0] < asks[0]
        for price in (*bids, *asks):
            on_tick(price, tick)
        assert full["buy"] >= bid_quantity.sum()
        assert full["sell"] >= ask_quantity.sum()
        assert (bid_orders <= bid_quantity).all()
        assert (ask_orders <= ask_quantity).all()


def on_tick(price: float, tick: float) -> None:
    assert np.float32(round(price / tick) * tick) == np.float32(price)
