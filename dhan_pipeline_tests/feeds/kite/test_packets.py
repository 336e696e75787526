from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from kiteconnect import KiteTicker

from dhan_pipeline.feeds.kite import KiteDepthLevel, KiteTick, PacketError, parse_message, parse_packet
from dhan_pipeline.instruments import KiteSegment
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.feeds.kite.packed import HEARTBEAT, NIFTY, RELIANCE, USDINR, message, pack, packets

# Last price, close and change of the index, and both times, were captured.
LTP = bytes.fromhex("000b4501 0001f9aa")  # RELIANCE: exchange token 2885 of NSE; 1294.50
INDEX_QUOTE = bytes.fromhex(
    "0003e909 000e298b"  # NIFTY 50, 9281.39
    "000e2ce8 000e2130 000e36ac 000e34f0"  # high, low, open, previous close 9310.56
    "fffff49b"  # -29.17
)
INDEX_FULL = INDEX_QUOTE + bytes.fromhex("60e2947f")
QUOTE = bytes.fromhex(
    "000b4501 0001f9aa 0000004b 0001f9e8"  # token, 1294.50, quantity 75, average 1295.12
    "b2d05e00 00079a31 0007d307"  # volume 3,000,000,000, buy, sell
    "0001f7e8 0001fbd0 0001f626 0001f784"  # open, high, low, previous close
)
FULL = QUOTE + bytes.fromhex(
    "60e2947e 00d59f99 00d8acc0 00d418e0 60e2947f"  # trade, open interest, its high, its low, exchange's time
    "0000004b 0001f9aa 0001 0000"
    "000000e1 0001f9a5 0003 0000"
    "00000177 0001f9a0 0005 0000"
    "0000020d 0001f99b ffff ffff"
    "00000000 00000000 0000 0000"
    "00000096 0001f9af 0002 0000"
    "0000012c 0001f9b4 0004 0000"
    "000001c2 0001f9b9 0006 0000"
    "00000258 0001f9be 0008 0000"
    "00000000 00000000 0000 0000"
)
AT = datetime.fromisoformat("2021-07-05T10:41:27+05:30")
SHARE: dict[str, Any] = {"instrument_token": RELIANCE, "segment": KiteSegment.NSE, "tradable": True}
TRADE: dict[str, Any] = {
    "last_price": 1294.5,
    "last_traded_quantity": 75,
    "average_traded_price": 1295.12,
    "volume_traded": 3_000_000_000,
    "total_buy_quantity": 498_225,
    "total_sell_quantity": 512_775,
    "day_open": 1290.0,
    "day_high": 1300.0,
    "day_low": 1285.5,
    "day_close": 1289.0,
    "change": 5.5,
}
INDEX: dict[str, Any] = {
    "instrument_token": NIFTY,
    "segment": KiteSegment.INDICES,
    "tradable": False,
    "last_price": 9281.39,
    "day_high": 9290.0,
    "day_low": 9260.0,
    "day_open": 9315.0,
    "day_close": 9310.56,
    "change": -29.17,
}


def test_ltp_packet() -> None:
    assert parse_packet(LTP) == KiteTick(mode=Mode.TICKER, last_price=1294.5, **SHARE)


def test_quote_packet() -> None:
    assert len(QUOTE) == 44
    assert parse_packet(QUOTE) == KiteTick(mode=Mode.QUOTE, **SHARE, **TRADE)


def test_full_packet() -> None:
    assert len(FULL) == 184
    bids = [(75, 1294.5, 1), (225, 1294.45, 3), (375, 1294.4, 5), (525, 1294.35, 65_535), (0, None, 0)]
    asks = [(150, 1294.55, 2), (300, 1294.6, 4), (450, 1294.65, 6), (600, 1294.7, 8), (0, None, 0)]
    assert parse_packet(FULL) == KiteTick(
        mode=Mode.FULL,
        last_trade_time=AT.replace(second=26),
        exchange_timestamp=AT,
        oi=14_000_025,
        oi_day_high=14_200_000,
        oi_day_low=13_900_000,
        bids=tuple(KiteDepthLevel(quantity=q, price=p, orders=o) for q, p, o in bids),
        asks=tuple(KiteDepthLevel(quantity=q, price=p, orders=o) for q, p, o in asks),
        **SHARE,
        **TRADE,
    )


def test_index_packets() -> None:
    assert (len(INDEX_QUOTE), len(INDEX_FULL)) == (28, 32)
    assert parse_packet(INDEX_QUOTE) == KiteTick(mode=Mode.QUOTE, **INDEX)
    assert parse_packet(INDEX_FULL) == KiteTick(mode=Mode.FULL, exchange_timestamp=AT, **INDEX)


def test_packets_are_packed_as_they_are_parsed() -> None:
    assert pack(8, last_price=129_450) == LTP
    day = {"day_high": 929_000, "day_low": 926_000, "day_open": 931_500, "day_close": 931_056, "change": -2_917}
    assert pack(32, NIFTY, last_price=928_139, **day, exchange_timestamp=1_625_461_887) == INDEX_FULL


def test_messages_of_several_packets() -> None:
    assert parse_message(message(FULL, INDEX_FULL, LTP)) == [*map(parse_packet, (FULL, INDEX_FULL, LTP))]


@pytest.mark.parametrize("data", [HEARTBEAT, message()])
def test_a_heartbeat_has_no_ticks(data: bytes) -> None:
    assert parse_message(data) == []


def test_times_are_utc() -> None:
    time = parse_packet(FULL).exchange_timestamp
    assert time == AT
    assert time.tzinfo is UTC


@pytest.mark.parametrize(("raw", "traded"), [(0, False), (315_532_800, False), (315_532_801, True)])
def test_times_up_to_1980_mean_that_there_was_none(raw: int, traded: bool) -> None:
    tick = parse_packet(pack(184, last_trade_time=raw, exchange_timestamp=raw))
    assert (tick.last_trade_time is not None) == (tick.exchange_timestamp is not None) == traded


def test_zero_is_no_price_but_a_quantity() -> None:
    tick = parse_packet(pack(44))
    assert tick.last_price is tick.average_traded_price is tick.day_open is tick.day_close is tick.change is None
    assert tick.volume_traded == tick.last_traded_quantity == tick.total_buy_quantity == 0


@pytest.mark.parametrize(
    ("segment", "wire", "price"),
    [
        (KiteSegment.CDS, 831_225_000, 83.1225),
        (KiteSegment.BCD, 831_225, 83.1225),
        (KiteSegment.NCO, 5_012_300, 501.23),
        (KiteSegment.MCX, 50_123, 501.23),
        (KiteSegment.MCXSX, 8_312, 83.12),
    ],
)
def test_prices_are_in_units_of_their_segment(segment: KiteSegment, wire: int, price: float) -> None:
    assert parse_packet(pack(8, 77 << 8 | segment, last_price=wire)).last_price == price


def test_an_average_price_keeps_four_decimals_where_the_wire_has_them() -> None:
    nco = 77 << 8 | KiteSegment.NCO
    assert parse_packet(pack(44, nco, average_traded_price=5_012_371)).average_traded_price == 501.2371
    assert parse_packet(pack(44, USDINR, average_traded_price=831_225_678)).average_traded_price == 83.1226


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "packet of 0 bytes"),
        (LTP[:7], "packet of 7 bytes"),
        (message(LTP), "packet of 12 bytes"),
        (bytes.fromhex("000b450a 0001f9aa"), "segment 10 is not assigned"),
        (bytes.fromhex("000b4501 ffffffff"), "last_price of -1 is impossible"),
        (FULL[:68] + b"\x80" + FULL[69:], "depth price of -2147.* is impossible"),
    ],
)
def test_packets_that_cannot_be_accepted(data: bytes, error: str) -> None:
    with pytest.raises(PacketError, match=error):
        parse_packet(data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "empty message"),
        (message(LTP)[:-1], "torn packet: 7 of 8 bytes"),
        (message(LTP, count=2), "2 packets announced, 1 came"),
        (message(LTP) + b"\0", "1 bytes after the last of 1 packets"),
        (message(LTP, bytes(9)), "packet of 9 bytes"),
        (message(LTP, bytes(8), b"\0\0\0\x0a" + bytes(4)), "segment 0 is not assigned"),
    ],
)
def test_messages_that_cannot_be_accepted(data: bytes, error: str) -> None:
    with pytest.raises(PacketError, match=error):
        parse_message(data)


def test_the_error_is_a_value_error() -> None:
    assert issubclass(PacketError, ValueError)


#: What the official client and we call by the same name, and what is not rounded.
SAME = {
    "instrument_token",
    "tradable",
    "last_traded_quantity",
    "volume_traded",
    "total_buy_quantity",
    "total_sell_quantity",
    "oi",
    "oi_day_high",
    "oi_day_low",
}


@pytest.fixture(scope="module")
def official() -> KiteTicker:
    return KiteTicker("key", "token")


@given(data=packets())
def test_we_say_what_the_official_client_says(official: KiteTicker, data: bytes) -> None:
    (theirs,) = official._parse_binary(message(data))
    tick = parse_packet(data)
    ours = tick.model_dump()
    four_decimals = tick.segment in (KiteSegment.CDS, KiteSegment.BCD, KiteSegment.MCXSX)

    def same(price: float, our_price: float | None) -> bool:
        """Theirs has all digits of the wire: ours has those that the exchange means."""
        return abs(price - (our_price or 0)) <= (0.0000501 if four_decimals else 0.00501)

    assert {name: theirs[name] for name in SAME & theirs.keys()} == {name: ours[name] for name in SAME & theirs.keys()}
    assert {"ltp": Mode.TICKER, "quote": Mode.QUOTE, "full": Mode.FULL}[theirs["mode"]] is tick.mode
    for name in ("last_price", "average_traded_price"):
        assert same(theirs.get(name, 0), ours[name])
    for name, price in theirs.get("ohlc", {}).items():
        assert same(price, ours[f"day_{name}"])
    for side, levels in (("buy", tick.bids), ("sell", tick.asks)):
        for level, our_level in zip(theirs.get("depth", {}).get(side, ()), levels or (), strict=True):
            assert (level["quantity"], level["orders"]) == (our_level.quantity, our_level.orders)
            assert same(level["price"], our_level.price)
    for name in ("last_trade_time", "exchange_timestamp"):
        if ours[name] is not None:
            assert theirs[name].timestamp() == ours[name].timestamp()
        elif theirs.get(name) is not None:
            assert theirs[name].timestamp() <= 315_532_800
