import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhan_pipeline.enrich import MarketState, derived, enrich, fold
from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.instruments import InstrumentIndex, split_instrument_token
from dhan_pipeline.instruments import generate_instrument_token as token_of
from dhan_pipeline.store.copy import tick_copy
from dhan_pipeline.ticks import COLUMNS, NULL_INT, Decoded, Enriched

NIFTY = token_of("IDX_I", 13)
RELIANCE = token_of("NSE_EQ", 2885)
FUTURE = token_of("NSE_FNO", 68407)
USDINR = token_of("NSE_CURRENCY", 1)
STRANGER = token_of("NSE_EQ", 2886)
KNOWN = [NIFTY, RELIANCE, FUTURE, USDINR]

AT_S = 1_795_147_200  # 2026-11-20 10:30 IST
IST_S = 19_800
BLOCK = 1_795_147_200_000
INDEX = InstrumentIndex(KNOWN)


def head(code: int, size: int, token: int) -> bytes:
    segment, security_id = split_instrument_token(token)
    return struct.pack("<BHBI", code, size, segment, security_id)


def ticker(token: int, price: float, traded_s: int = AT_S) -> bytes:
    return head(2, 16, token) + struct.pack("<fI", price, traded_s + IST_S if traded_s else 0)


def quote(
    token: int,
    price: float,
    close: float = 0.0,
    traded_s: int = AT_S,
    *,
    average: float = 0.0,
    buy: int = 0,
    sell: int = 0,
    volume: int = 0,
    day: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> bytes:
    raw = traded_s + IST_S if traded_s else 0
    trade = struct.pack("<fHIfIII", price, 7, raw, average, volume, sell, buy)
    return head(4, 50, token) + trade + struct.pack("<ffff", day[0], close, day[1], day[2])


Level = tuple[int, int, int, int, float, float]
NO_LEVEL: Level = (0, 0, 0, 0, 0.0, 0.0)


def full(
    token: int,
    price: float,
    close: float = 0.0,
    traded_s: int = AT_S,
    *,
    average: float = 0.0,
    buy: int = 0,
    sell: int = 0,
    volume: int = 0,
    oi: int = 0,
    day: tuple[float, float, float] = (0.0, 0.0, 0.0),
    depth: tuple[Level, ...] = (),
) -> bytes:
    raw = traded_s + IST_S if traded_s else 0
    trade = struct.pack(
        "<fHIfIIIIII", price, 7, raw, average, volume, sell, buy, oi, min(oi + 1, 2**32 - 1), max(oi - 1, 0)
    )
    levels = b"".join(struct.pack("<IIHHff", *level) for level in (*depth, *[NO_LEVEL] * 5)[:5])
    return head(8, 162, token) + trade + struct.pack("<ffff", day[0], close, day[1], day[2]) + levels


def open_interest(token: int, value: int) -> bytes:
    return head(5, 12, token) + struct.pack("<I", value)


def previous_close(token: int, value: float) -> bytes:
    return head(6, 16, token) + struct.pack("<fI", value, 0)


HEARTBEAT = struct.pack("<BHBI", 0, 8, 0, 0)


def decoded(messages: list[bytes]) -> Decoded:
    return decode(b"".join(messages), np.cumsum([0, *map(len, messages)]))


def received(messages: list[bytes]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return AT_S * 10**9 + 1_500 * np.arange(len(messages)) + 999


class Day:
    """A day of blocks, enriched one after another."""

    def __init__(self, index: InstrumentIndex = INDEX) -> None:
        self.index = index
        self.state = MarketState(len(index))
        self.block_id = BLOCK

    def block(self, *messages: bytes) -> Enriched:
        sent = list(messages)
        result = enrich(
            decoded(sent), np.array([self.block_id]), np.array([0, len(sent)]), received(sent), self.index, self.state
        )
        self.block_id += 1
        assert result.packets == result.rows + result.state + result.control + len(result.rejected)
        return result

    def rows(self, *messages: bytes) -> list[dict[str, Any]]:
        return rows_of(self.block(*messages))


def rows_of(enriched: Enriched) -> list[dict[str, Any]]:
    """Every column of every row, None where NULL, in order of position; with those that follow from others."""
    rows = []
    for batch in enriched.ticks:
        columns = {**batch.columns, **derived(batch.columns)}
        for at in range(len(batch)):
            row: dict[str, Any] = {column.name: None for column in COLUMNS} | {"mode": batch.mode.value}
            for name, values in columns.items():
                value = values[at].tolist()
                row[name] = [plain(item) for item in value] if isinstance(value, list) else plain(value)
            rows.append(row)
    return sorted(rows, key=lambda row: row["tick_id"])


def plain(value: Any) -> Any:
    return None if value == NULL_INT or value != value else value


def test_a_full_packet_fills_every_column() -> None:
    depth: tuple[Level, ...] = tuple((10 + k, 20 + k, 1 + k, 2 + k, 2500.1 - k, 2500.35 + k) for k in range(5))
    day = (2480.1, 2510.15, 2475.3)
    (row,) = Day().rows(
        full(
            RELIANCE, 2500.2, 2450.05, AT_S - 3, average=2499.87, buy=300, sell=100, volume=2**32 - 1, oi=5,
            day=day, depth=depth,
        )
    )  # fmt: skip
    assert row == {
        "tick_id": BLOCK << 16,
        "time": AT_S * 10**6,
        "last_trade_time": (AT_S - 3) * 10**6,
        "instrument_token": RELIANCE,
        "last_price": 2500.2,
        "last_traded_quantity": 7,
        "average_traded_price": 2499.87,
        "volume_traded": 2**32 - 1,
        "oi": 5,
        "oi_day_high": 6,
        "oi_day_low": 4,
        "day_open": 2480.1,
        "day_high": 2510.15,
        "day_low": 2475.3,
        "day_close": 2450.05,
        "change": 50.15,
        "change_percent": 2.0469,
        "total_buy_quantity": 300,
        "total_sell_quantity": 100,
        "bid_prices": [2500.1, 2499.1, 2498.1, 2497.1, 2496.1],
        "bid_quantities": [10, 11, 12, 13, 14],
        "bid_orders": [1, 2, 3, 4, 5],
        "ask_prices": [2500.35, 2501.35, 2502.35, 2503.35, 2504.35],
        "ask_quantities": [20, 21, 22, 23, 24],
        "ask_orders": [2, 3, 4, 5, 6],
        "tradable": True,
        "mode": "full",
        "bid_ask_spread": 0.25,
        "mid_price": 2500.225,
        "order_imbalance": 0.5,
    }


def test_zero_prices_are_null_and_zero_quantities_are_zeros() -> None:
    (row,) = Day().rows(full(FUTURE, 0.0, depth=((5, 0, 1, 0, 99.95, 0.0),)))
    assert (
        row["last_price"] is row["day_open"] is row["day_close"] is row["change"] is row["average_traded_price"] is None
    )
    assert row["bid_prices"] == [99.95, None, None, None, None]
    assert row["ask_prices"] == [None] * 5
    assert row["bid_quantities"] == [5, 0, 0, 0, 0]
    assert row["ask_orders"] == [0] * 5
    assert row["bid_ask_spread"] is row["mid_price"] is row["order_imbalance"] is None
    assert row["volume_traded"] == row["oi"] == row["total_buy_quantity"] == 0


def test_float32_noise_is_removed_to_the_decimals_of_the_segment() -> None:
    rows = Day().rows(ticker(FUTURE, 25974.900390625), ticker(USDINR, 83.2475), ticker(NIFTY, 24837.05))
    assert [row["last_price"] for row in rows] == [25974.9, 83.2475, 24837.05]


def test_an_average_price_keeps_two_decimals_more_where_the_wire_has_them() -> None:
    rows = Day().rows(
        quote(FUTURE, 100.0, average=25974.900390625),
        quote(FUTURE, 100.0, average=100.1234),
        full(USDINR, 83.0, average=83.12345),
    )
    assert [row["average_traded_price"] for row in rows] == [25974.9, 100.1234, 83.1235]


def test_an_index_is_not_tradable() -> None:
    assert [row["tradable"] for row in Day().rows(ticker(NIFTY, 24000.0), ticker(FUTURE, 24000.0))] == [False, True]


def test_a_previous_close_packet_gives_ticker_rows_their_change() -> None:
    day = Day()
    before, after = day.rows(ticker(NIFTY, 101.0), previous_close(NIFTY, 100.0), ticker(NIFTY, 101.0))
    assert (before["day_close"], before["change"], before["change_percent"]) == (None, None, None)
    assert (after["day_close"], after["change"], after["change_percent"]) == (100.0, 1.0, 1.0)
    (later,) = day.rows(ticker(NIFTY, 99.0))
    assert (later["day_close"], later["change"], later["change_percent"]) == (100.0, -1.0, -1.0)


def test_a_previous_close_packet_outranks_every_close_field() -> None:
    day = Day()
    rows = day.rows(quote(FUTURE, 101.0, 90.0), previous_close(FUTURE, 100.0), quote(FUTURE, 101.0, 91.0))
    assert [row["day_close"] for row in rows] == [90.0, 100.0]
    assert [row["day_close"] for row in day.rows(full(FUTURE, 101.0, 92.0), ticker(FUTURE, 1.0))] == [100.0, 100.0]
    assert [row["day_close"] for row in day.rows(previous_close(FUTURE, 99.0), ticker(FUTURE, 1.0))] == [99.0]


def test_a_previous_close_of_zero_says_nothing() -> None:
    day = Day()
    assert day.block(previous_close(FUTURE, 100.0), previous_close(FUTURE, 0.0)).state == 2
    assert day.rows(ticker(FUTURE, 101.0))[0]["change"] == 1.0


def test_a_row_without_a_close_takes_the_latest_close_field_before_it() -> None:
    day = Day()
    rows = day.rows(
        ticker(FUTURE, 1.0), quote(FUTURE, 1.0, 90.0), ticker(FUTURE, 1.0), full(FUTURE, 1.0, 91.0),
        ticker(FUTURE, 1.0), quote(FUTURE, 1.0), quote(FUTURE, 1.0, 90.0), full(FUTURE, 1.0), ticker(USDINR, 1.0),
    )  # fmt: skip
    assert [row["day_close"] for row in rows] == [None, 90.0, 90.0, 91.0, 91.0, 91.0, 90.0, 90.0, None]
    assert [row["day_close"] for row in day.rows(ticker(FUTURE, 1.0))] == [90.0]


def test_quote_rows_carry_the_open_interest_that_came_before_them() -> None:
    day = Day()
    rows = day.rows(
        quote(FUTURE, 1.0), open_interest(FUTURE, 0), quote(FUTURE, 1.0), open_interest(FUTURE, 2**32 - 1),
        quote(FUTURE, 1.0), quote(RELIANCE, 1.0), full(FUTURE, 1.0, oi=3), ticker(FUTURE, 1.0),
    )  # fmt: skip
    assert [row["oi"] for row in rows] == [None, 0, 2**32 - 1, None, 3, None]
    assert [row["oi"] for row in day.rows(quote(FUTURE, 1.0))] == [2**32 - 1]


def test_never_traded_has_no_trade_time() -> None:
    rows = Day().rows(ticker(FUTURE, 1.0, 0), ticker(FUTURE, 1.0, 315_532_800 - IST_S), ticker(FUTURE, 1.0, AT_S))
    assert [row["last_trade_time"] for row in rows] == [None, None, AT_S * 10**6]


def test_a_trade_time_is_rejected_when_it_is_more_than_two_minutes_ahead() -> None:
    enriched = Day().block(ticker(FUTURE, 1.0, AT_S + 120), ticker(FUTURE, 1.0, AT_S + 121), ticker(FUTURE, 1.0, AT_S))
    assert [row["last_trade_time"] for row in rows_of(enriched)] == [(AT_S + 120) * 10**6, AT_S * 10**6]
    (rejection,) = enriched.rejected
    assert (rejection.position, rejection.message) == (1, 1)
    assert rejection.reason == "trade time in the future"
    assert rejection.payload == ticker(FUTURE, 1.0, AT_S + 121)


def test_a_trade_long_ago_is_no_reason_to_reject() -> None:
    assert Day().rows(ticker(FUTURE, 1.0, AT_S - 30 * 86_400))[0]["last_trade_time"] == (AT_S - 30 * 86_400) * 10**6


@pytest.mark.parametrize("price", [math.nan, math.inf, -math.inf, -0.05])
@pytest.mark.parametrize("place", ["last", "close", "average", "day", "bid", "ask"])
def test_an_impossible_price_anywhere_rejects_the_packet_whole(price: float, place: str) -> None:
    packet = full(
        FUTURE,
        price if place == "last" else 1.0,
        price if place == "close" else 1.0,
        average=price if place == "average" else 1.0,
        day=(1.0, 1.0, price if place == "day" else 1.0),
        depth=(NO_LEVEL, (1, 1, 1, 1, price if place == "bid" else 1.0, price if place == "ask" else 1.0)),
    )
    enriched = Day().block(HEARTBEAT, full(FUTURE, 2.0), packet, full(FUTURE, 3.0))
    assert [row["last_price"] for row in rows_of(enriched)] == [2.0, 3.0]
    (rejection,) = enriched.rejected
    assert (rejection.position, rejection.reason, rejection.payload) == (2, "impossible price", packet)


#: The 4-byte floats on both sides of 2^32 paise, and of 2^32 hundredths of a paisa, in which currencies are priced.
BELOW, ABOVE = bytes.fromhex("0ad7234c"), bytes.fromhex("0bd7234c")
CURRENCY_BELOW, CURRENCY_ABOVE = bytes.fromhex("17b7d148"), bytes.fromhex("18b7d148")


def as_price(literal: bytes) -> float:
    return float(struct.unpack("<f", literal)[0])


@pytest.mark.parametrize("kind", [ticker, quote, full])
@pytest.mark.parametrize(
    ("token", "below", "above"),
    [
        (FUTURE, BELOW, ABOVE),
        (RELIANCE, BELOW, ABOVE),
        (NIFTY, BELOW, ABOVE),
        (USDINR, CURRENCY_BELOW, CURRENCY_ABOVE),
    ],
)
def test_a_price_is_impossible_from_what_depth_cannot_hold(
    kind: Callable[[int, float], bytes], token: int, below: bytes, above: bytes
) -> None:
    price = as_price(below)
    highest, packet = kind(token, price), kind(token, as_price(above))
    assert (highest[8:12], packet[8:12]) == (below, above)
    enriched = Day().block(HEARTBEAT, highest, packet, kind(token, 3.0))
    assert [row["last_price"] for row in rows_of(enriched)] == [round(price, 4 if token == USDINR else 2), 3.0]
    (rejection,) = enriched.rejected
    assert (rejection.position, rejection.reason, rejection.payload) == (2, "impossible price", packet)


def test_the_highest_price_of_a_currency_is_none_of_others() -> None:
    rows = Day().rows(ticker(FUTURE, as_price(CURRENCY_ABOVE)), ticker(NIFTY, 10 * as_price(CURRENCY_ABOVE)))
    assert [row["last_price"] for row in rows] == [429496.75, 4294967.5]


@pytest.mark.parametrize(
    ("token", "below", "above"), [(FUTURE, BELOW, ABOVE), (USDINR, CURRENCY_BELOW, CURRENCY_ABOVE)]
)
@pytest.mark.parametrize("place", ["close", "average", "open", "high", "low", "bid", "ask", "last bid", "last ask"])
def test_a_price_that_depth_cannot_hold_is_impossible_anywhere(
    token: int, below: bytes, above: bytes, place: str
) -> None:
    def with_price(price: float) -> bytes:
        there = dict.fromkeys(("close", "average", "open", "high", "low", "bid", "ask", "last bid", "last ask"), 1.0)
        there[place] = price
        return full(
            token,
            1.0,
            there["close"],
            average=there["average"],
            day=(there["open"], there["high"], there["low"]),
            depth=(
                (1, 1, 1, 1, there["bid"], there["ask"]),
                *[(1, 1, 1, 1, 1.0, 1.0)] * 3,
                (1, 1, 1, 1, there["last bid"], there["last ask"]),
            ),
        )

    price, packet = as_price(below), with_price(as_price(above))
    enriched = Day().block(with_price(price), packet, full(token, 3.0))
    first, _ = rows_of(enriched)
    (rejection,) = enriched.rejected
    assert (rejection.position, rejection.reason, rejection.payload) == (1, "impossible price", packet)
    level = {"bid": ("bid_prices", 0), "ask": ("ask_prices", 0), "last bid": ("bid_prices", 4)}
    level["last ask"] = ("ask_prices", 4)
    if place in level:
        name, at = level[place]
        assert first[name][at] == round(price, 4 if token == USDINR else 2)
    else:
        name = "average_traded_price" if place == "average" else f"day_{place}"
        assert first[name] == round(price, 4 if token == USDINR else 2)


def test_a_signalling_nan_is_rejected_without_a_warning() -> None:
    packet = head(2, 16, FUTURE) + struct.pack("<II", 0x7F800001, 0)
    assert [rejection.payload for rejection in Day().block(packet).rejected] == [packet]


def test_unknown_instruments_are_rejected_whatever_they_say() -> None:
    packets = [ticker(STRANGER, 1.0), quote(STRANGER, 1.0), full(STRANGER, 1.0), open_interest(STRANGER, 1),
               previous_close(STRANGER, 1.0)]  # fmt: skip
    enriched = Day().block(*packets)
    assert [(r.position, r.reason, r.payload) for r in enriched.rejected] == [
        (position, "unknown instrument", packet) for position, packet in enumerate(packets)
    ]
    assert (enriched.rows, enriched.state) == (0, 0)


def test_an_empty_instrument_table_rejects_everything() -> None:
    enriched = Day(InstrumentIndex([])).block(ticker(FUTURE, 1.0), open_interest(FUTURE, 1), full(FUTURE, 1.0))
    assert [rejection.position for rejection in enriched.rejected] == [0, 1, 2]


def test_impossible_previous_closes_are_rejected_and_forgotten() -> None:
    day = Day()
    bad = [previous_close(FUTURE, price) for price in (math.nan, -1.0, math.inf)]
    enriched = day.block(previous_close(FUTURE, 100.0), *bad)
    assert [rejection.payload for rejection in enriched.rejected] == bad
    assert enriched.state == 1
    assert day.rows(ticker(FUTURE, 101.0))[0]["change"] == 1.0


def test_the_close_of_a_rejected_packet_is_not_remembered() -> None:
    day = Day()
    day.block(quote(FUTURE, -1.0, 90.0))
    assert day.rows(ticker(FUTURE, 1.0))[0]["day_close"] is None


def test_rejections_of_the_decoder_are_kept_in_order() -> None:
    enriched = Day().block(ticker(FUTURE, -1.0), b"\xff\x00", ticker(STRANGER, 1.0), HEARTBEAT)
    assert [rejection.position for rejection in enriched.rejected] == [0, 1, 2]
    assert (enriched.rows, enriched.control) == (0, 1)


def test_a_block_of_nothing_is_nothing() -> None:
    enriched = Day().block()
    assert (enriched.packets, enriched.rows, enriched.state, enriched.control) == (0, 0, 0, 0)
    assert (enriched.ticks, enriched.rejected) == ([], [])


# A slow twin: one packet after another, one number after another, decimal arithmetic.


@dataclass
class Twin:
    closes: dict[int, float] = field(default_factory=dict)
    announced: dict[int, float] = field(default_factory=dict)
    interest: dict[int, int] = field(default_factory=dict)

    def packet(self, tick_id: int, received_ns: int, data: bytes) -> dict[str, Any] | str:
        """A row, or what else became of the packet."""
        code, _, segment, security_id = struct.unpack_from("<BHBI", data)
        if code == 0:
            return "control"
        token = token_of(segment, security_id)
        if token not in KNOWN:
            return "unknown instrument"
        places = 4 if segment in (3, 7) else 2
        if code == 5:
            self.interest[token] = struct.unpack_from("<I", data, 8)[0]
            return "state"
        if code == 6:
            (price,) = struct.unpack_from("<f", data, 8)
            if not possible(price):
                return "impossible price"
            if rounded(price, places):
                self.announced[token] = rounded(price, places)  # type: ignore[assignment]
            return "state"

        row: dict[str, Any] = {column.name: None for column in COLUMNS}
        row |= {"tick_id": tick_id, "time": received_ns // 1000, "instrument_token": token}
        row |= {"tradable": segment != 0, "mode": {2: "ticker", 4: "quote", 8: "full"}[code]}
        close = 0.0
        prices: dict[str, float] = {}
        depth: list[Level] = []
        if code == 2:
            prices["last_price"], traded = struct.unpack_from("<fI", data, 8)
        else:
            prices["last_price"], row["last_traded_quantity"], traded, average, row["volume_traded"], sell, buy = (
                struct.unpack_from("<fHIfIII", data, 8)
            )
            row |= {"total_buy_quantity": buy, "total_sell_quantity": sell}
            row["order_imbalance"] = (buy - sell) / (buy + sell) if buy + sell else None
            at = 34
            if code == 8:
                row["oi"], row["oi_day_high"], row["oi_day_low"] = struct.unpack_from("<III", data, 34)
                at = 46
                depth = list(struct.iter_unpack("<IIHHff", data[62:]))
            else:
                row["oi"] = self.interest.get(token)
            prices["day_open"], close, prices["day_high"], prices["day_low"] = struct.unpack_from("<ffff", data, at)
            prices["average_traded_price"] = average
        stated = (*prices.values(), close, *(price for level in depth for price in level[4:]))
        if not all(possible(price) and storable(price, places) for price in stated):
            return "impossible price"

        if code != 2 and rounded(close, places):
            self.closes[token] = rounded(close, places)  # type: ignore[assignment]
        if traded > 315_532_800:
            row["last_trade_time"] = (traded - IST_S) * 10**6
            if row["last_trade_time"] * 1000 > received_ns + 120 * 10**9:
                return "trade time in the future"
        row |= {name: rounded(price, places) for name, price in prices.items()}
        if "average_traded_price" in prices:
            row["average_traded_price"] = average_price(prices["average_traded_price"], places)
        last, before = row["last_price"], self.announced.get(token) or self.closes.get(token)
        row["day_close"] = before
        if last and before:
            change = Decimal(repr(last)) - Decimal(repr(before))
            row["change"] = float(change)
            row["change_percent"] = RoundedTo4(float(change * 100 / Decimal(repr(before))))
        if depth:
            row["bid_quantities"], row["ask_quantities"], row["bid_orders"], row["ask_orders"] = (
                [level[part] for level in depth] for part in range(4)
            )
            row["bid_prices"], row["ask_prices"] = (
                [rounded(level[part], places) for level in depth] for part in (4, 5)
            )
            bid, ask = row["bid_prices"][0], row["ask_prices"][0]
            if bid and ask:
                row["bid_ask_spread"] = float(Decimal(repr(ask)) - Decimal(repr(bid)))
                row["mid_price"] = float((Decimal(repr(ask)) + Decimal(repr(bid))) / 2)
        return row


class RoundedTo4(float):
    """Equal to the number rounded to four decimals; what lies halfway may go either way."""

    __hash__ = float.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and round(other, 4) == other and abs(other - float(self)) < 0.5000001e-4


def possible(price: float) -> bool:
    return math.isfinite(price) and price >= 0


def storable(price: float, places: int) -> bool:
    return Decimal(price).scaleb(places).to_integral_value(ROUND_HALF_EVEN) < 2**32


def to_places(number: Decimal, places: int) -> Decimal:
    return number.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)


def rounded(price: float, places: int) -> float | None:
    return float(to_places(Decimal(price), places)) or None


def average_price(price: float, places: int) -> float | None:
    coarse = float(to_places(Decimal(price), places))
    same = struct.unpack("<f", struct.pack("<f", coarse))[0] == price
    return (coarse if same else float(to_places(Decimal(price), 4))) or None


tokens = st.sampled_from([*KNOWN, STRANGER])
ordinary = st.sampled_from([0.0, 0.004, 0.05, 99.95, 100.0, 100.05, 83.2475, 2500.2, 24843.6, 74999.95])
strange = st.sampled_from([math.nan, math.inf, -0.05, -0.0, 429496.75, 42949676.0, 2.0**127])


@st.composite
def any_price(draw: st.DrawFn) -> float:
    dice = draw(st.integers(0, 99))
    return draw(strange if dice == 99 else ordinary if dice < 70 else st.floats(0, 1e5, width=32))


prices = any_price()
closes = st.sampled_from([0.0, 0.0, 90.0, 90.0, 91.0])
quantities = st.sampled_from([0, 1, 2**31, 2**32 - 1])
traded = st.sampled_from([0, AT_S, AT_S, AT_S, AT_S - 10**6, AT_S + 120, AT_S + 121])
days = st.tuples(prices, prices, prices)
levels = st.tuples(quantities, quantities, st.integers(0, 65535), st.integers(0, 65535), prices, prices)
packets = st.one_of(
    st.builds(ticker, tokens, prices, traded),
    st.builds(quote, tokens, prices, closes, traded, average=prices, buy=quantities, sell=quantities, day=days),
    st.builds(
        full, tokens, prices, closes, traded,
        average=prices, buy=quantities, sell=quantities, volume=quantities, oi=quantities, day=days,
        depth=st.lists(levels, max_size=2).map(tuple),
    ),
    st.builds(open_interest, tokens, quantities),
    st.builds(previous_close, tokens, st.sampled_from([0.0, 95.0, 96.0, -1.0, math.nan])),
    st.just(HEARTBEAT),
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.lists(packets, max_size=12), max_size=4))
def test_blocks_agree_with_reading_packet_by_packet(blocks: list[list[bytes]]) -> None:
    day, folded, twin = Day(), MarketState(len(INDEX)), Twin()
    for messages in blocks:
        block_id = day.block_id
        enriched = day.block(*messages)
        times = received(messages).tolist()
        expected = [twin.packet((block_id << 16) + at, times[at], data) for at, data in enumerate(messages)]

        assert rows_of(enriched) == [row for row in expected if isinstance(row, dict)]
        assert enriched.state == expected.count("state")
        assert enriched.control == expected.count("control")
        assert [(r.position, r.message, r.reason, r.payload) for r in enriched.rejected] == [
            (at, at, reason, messages[at])
            for at, reason in enumerate(expected)
            if isinstance(reason, str) and reason not in ("state", "control")
        ]
        fold(decoded(messages), INDEX, folded)
        for name, values in vars(day.state).items():
            np.testing.assert_array_equal(values, getattr(folded, name))


@settings(max_examples=50)
@given(st.lists(packets, max_size=30), st.integers(0, 30))
def test_where_blocks_begin_does_not_change_what_the_rows_say(messages: list[bytes], cut: int) -> None:
    def said(*parts: list[bytes]) -> list[dict[str, Any]]:
        day = Day()
        rows = [row for part in parts for row in day.rows(*part)]
        return [{name: row[name] for name in row if name not in ("tick_id", "time")} for row in rows]

    assert said(messages) == said(messages[:cut], messages[cut:])


@settings(max_examples=50)
@given(st.lists(packets, max_size=30))
def test_the_same_block_makes_the_same_bytes(messages: list[bytes]) -> None:
    assert tick_copy(Day().block(*messages).ticks) == tick_copy(Day().block(*messages).ticks)


def test_segments_without_a_known_number_do_not_disturb_the_rest() -> None:
    odd = struct.pack("<BHBIfI", 2, 16, 6, 13, 1.0, 0), struct.pack("<BHBIfI", 2, 16, 255, 13, 1.0, 0)
    enriched = Day().block(odd[0], ticker(RELIANCE, 2.0), odd[1])
    assert [rejection.reason for rejection in enriched.rejected] == ["unknown instrument"] * 2
    assert [row["last_price"] for row in rows_of(enriched)] == [2.0]
