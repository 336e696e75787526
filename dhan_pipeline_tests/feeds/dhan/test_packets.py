import struct
from datetime import UTC, datetime
from typing import Any

import pytest

from dhan_pipeline.feeds.dhan import (
    DhanMarketDepthLevel,
    DhanTick,
    PacketError,
    parse_disconnect_packet,
    parse_full_packet,
    parse_market_depth_level,
    parse_oi_packet,
    parse_prev_close_packet,
    parse_quote_packet,
    parse_ticker_packet,
)

# RELIANCE (NSE_EQ 2885) at 1294.50; the trade time was captured on 2026-08-06 at 13:20:57 IST.
TICKER = bytes.fromhex("02 1000 01 450b0000 00d0a144 398a746a")
PREVIOUS_CLOSE = bytes.fromhex("06 1000 02 4dc00000 6698cb46 07d30700")
OPEN_INTEREST = bytes.fromhex("05 0c00 02 4dc00000 999fd500")
DISCONNECT = bytes.fromhex("32 0a00 00 00000000 2503")
QUOTE = bytes.fromhex(
    "04 3200 02 4dc00000"  # header: code, length 50, NSE_FNO, security id 49229
    "cdedca46 4b00 4533296a 4df8ca46"  # price 25974.9, quantity 75, time, average 25980.15
    "005ed0b2 07d30700 319a0700"  # volume 3,000,000,000, sell, buy
    "0022cb46 6698cb46 9a79cb46 33aaca46"  # open, previous close, high, low
)
FULL = bytes.fromhex(
    "08 a200 02 4dc00000"
    "cdedca46 4b00 4533296a 4df8ca46"
    "482d4e00 07d30700 319a0700"
    "999fd500 c0acd800 e018d400"  # open interest, its high, its low
    "0022cb46 6698cb46 9a79cb46 33aaca46"
    "4b000000 96000000 0100 0200 9aedca46 00eeca46"
    "e1000000 2c010000 0300 0400 66edca46 66eeca46"
    "77010000 c2010000 0500 0600 33edca46 9aeeca46"
    "0d020000 58020000 0700 0800 00edca46 cdeeca46"
    "00000000 00000000 0000 0000 00000000 00000000"
)
FUTURE: dict[str, Any] = {"exchange_segment": "NSE_FNO", "exchange_segment_code": 2, "security_id": "49229"}
TRADE: dict[str, Any] = {
    "last_price": 25974.9,
    "last_traded_quantity": 75,
    "last_trade_time": datetime(2026, 6, 10, 4, 19, 57, tzinfo=UTC),
    "average_traded_price": 25980.15,
    "total_sell_quantity": 512_775,
    "total_buy_quantity": 498_225,
    "day_open": 26001.0,
    "day_close": 26060.2,
    "day_high": 26044.8,
    "day_low": 25941.1,
}


def test_ticker_packet() -> None:
    assert parse_ticker_packet(TICKER) == DhanTick(
        response_code=2,
        message_length=16,
        exchange_segment="NSE_EQ",
        exchange_segment_code=1,
        security_id="2885",
        last_price=1294.5,
        last_trade_time=datetime(2026, 8, 6, 7, 50, 57, tzinfo=UTC),
    )


def test_quote_packet_of_50_bytes() -> None:
    assert len(QUOTE) == 50
    assert parse_quote_packet(QUOTE) == DhanTick(
        response_code=4, message_length=50, volume_traded=3_000_000_000, **FUTURE, **TRADE
    )


def test_full_packet_of_162_bytes() -> None:
    assert len(FULL) == 162
    levels = [
        (75, 150, 1, 2, 25974.8, 25975.0),
        (225, 300, 3, 4, 25974.7, 25975.2),
        (375, 450, 5, 6, 25974.6, 25975.3),
        (525, 600, 7, 8, 25974.5, 25975.4),
        (0, 0, 0, 0, None, None),
    ]
    assert parse_full_packet(FULL) == DhanTick(
        response_code=8,
        message_length=162,
        volume_traded=5_123_400,
        oi=14_000_025,
        oi_day_high=14_200_000,
        oi_day_low=13_900_000,
        depth=tuple(
            DhanMarketDepthLevel(
                bid_quantity=bid_quantity,
                ask_quantity=ask_quantity,
                bid_orders=bid_orders,
                ask_orders=ask_orders,
                bid_price=bid_price,
                ask_price=ask_price,
            )
            for bid_quantity, ask_quantity, bid_orders, ask_orders, bid_price, ask_price in levels
        ),
        **FUTURE,
        **TRADE,
    )


def test_open_interest_packet() -> None:
    assert parse_oi_packet(OPEN_INTEREST) == DhanTick(response_code=5, message_length=12, oi=14_000_025, **FUTURE)


def test_previous_close_packet() -> None:
    assert parse_prev_close_packet(PREVIOUS_CLOSE) == DhanTick(
        response_code=6, message_length=16, prev_close=26060.2, prev_oi=512_775, **FUTURE
    )


def test_disconnect_packet() -> None:
    assert parse_disconnect_packet(DISCONNECT).reason_code == 805


def test_depth_level_at_an_offset() -> None:
    level = parse_market_depth_level(FULL, 82)
    assert level.model_dump() == {
        "bid_quantity": 225,
        "ask_quantity": 300,
        "bid_orders": 3,
        "ask_orders": 4,
        "bid_price": 25974.7,
        "ask_price": 25975.2,
    }


@pytest.mark.parametrize("offset", [-1, 143, 162])
def test_depth_level_outside_the_bytes(offset: int) -> None:
    with pytest.raises(PacketError, match="20 bytes"):
        parse_market_depth_level(FULL, offset)


def test_a_tick_as_dictionary_has_the_columns_of_old() -> None:
    tick = parse_full_packet(FULL).model_dump()
    assert tick["exchange_segment"] == "NSE_FNO"
    assert tick["security_id"] == "49229"
    assert tick["depth"][0]["bid_price"] == 25974.8
    assert tick["prev_close"] is None


@pytest.mark.parametrize(
    ("raw", "wall_clock"),
    [
        (1_786_022_457, "2026-08-06T13:20:57+05:30"),
        (1_781_084_997, "2026-06-10T09:49:57+05:30"),
        (0x68839A58, "2025-07-25T14:53:12+05:30"),
    ],
)
def test_trade_times_are_seconds_of_the_indian_wall_clock(raw: int, wall_clock: str) -> None:
    tick = parse_ticker_packet(TICKER[:12] + struct.pack("<I", raw))
    assert tick.last_trade_time == datetime.fromisoformat(wall_clock)
    assert tick.last_trade_time.tzinfo is UTC


@pytest.mark.parametrize(("raw", "traded"), [(0, False), (1, False), (315_532_800, False), (315_532_801, True)])
def test_trade_times_up_to_1980_mean_never_traded(raw: int, traded: bool) -> None:
    tick = parse_ticker_packet(TICKER[:12] + struct.pack("<I", raw))
    assert (tick.last_trade_time is not None) == traded


def test_zero_is_no_price_but_a_quantity() -> None:
    tick = parse_quote_packet(QUOTE[:8] + bytes(42))
    assert tick.last_price is tick.average_traded_price is tick.day_open is tick.day_close is None
    assert tick.volume_traded == tick.last_traded_quantity == tick.total_buy_quantity == 0


def test_float_noise_is_rounded_to_paise_and_for_currency_to_four_decimals() -> None:
    price = struct.pack("<f", 83.1225)
    assert parse_ticker_packet(bytes.fromhex("02 1000 01 450b0000") + price + bytes(4)).last_price == 83.12
    assert parse_ticker_packet(bytes.fromhex("02 1000 03 450b0000") + price + bytes(4)).last_price == 83.1225


def test_an_average_price_keeps_four_decimals_where_two_are_not_enough() -> None:
    average = struct.pack("<f", 412.3371)
    assert parse_quote_packet(QUOTE[:18] + average + QUOTE[22:]).average_traded_price == 412.3371


@pytest.mark.parametrize("size", [51, 163, 171])
def test_sizes_that_circulate_in_older_write_ups_are_not_demanded(size: int) -> None:
    real = QUOTE if size == 51 else FULL
    parse = parse_quote_packet if size == 51 else parse_full_packet
    claimed = real[:1] + struct.pack("<H", size) + real[3:]
    expected = parse(real).model_dump(exclude={"message_length"})
    assert parse(claimed).model_dump(exclude={"message_length"}) == expected
    assert parse(claimed.ljust(size, b"\0")).model_dump(exclude={"message_length"}) == expected


@pytest.mark.parametrize("length", [0, 7, 65535])
def test_a_senseless_length_does_not_matter(length: int) -> None:
    assert parse_ticker_packet(TICKER[:1] + struct.pack("<H", length) + TICKER[3:]).last_price == 1294.5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected one ticker packet, got nothing"),
        (TICKER[:5], "5 bytes, too few for a header"),
        (TICKER[:15], "torn ticker packet: 15 of 16 bytes"),
        (QUOTE, r"expected a ticker packet \(code 2\), got quote \(code 4\)"),
        (TICKER + TICKER, "expected one ticker packet, got 16 bytes more after its 16"),
        (TICKER + b"\0", "got 1 bytes more after its 16"),
        (bytes.fromhex("63 1000 01 450b0000 00d0a144 398a746a"), "unknown code 99"),
        (bytes.fromhex("02 1000 06 450b0000 00d0a144 398a746a"), "exchange segment 6 is not assigned"),
        (bytes.fromhex("02 1000 01 450b0000 0000c07f 398a746a"), "last_price of nan is impossible"),
        (bytes.fromhex("02 1000 01 450b0000 0000807f 398a746a"), "last_price of inf is impossible"),
        (bytes.fromhex("02 1000 01 450b0000 0000a0c1 398a746a"), "last_price of -20.0 is impossible"),
    ],
)
def test_packets_that_cannot_be_accepted(data: bytes, message: str) -> None:
    with pytest.raises(PacketError, match=message):
        parse_ticker_packet(data)


def test_the_error_is_a_value_error() -> None:
    assert issubclass(PacketError, ValueError)
