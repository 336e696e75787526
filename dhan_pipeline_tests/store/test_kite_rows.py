"""What a packet of Kite's becomes in the database, column by column."""

from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.enrich import MarketState, derived, enrich
from dhan_pipeline.feeds.kite.decode import decode
from dhan_pipeline.instruments import InstrumentIndex
from dhan_pipeline.store.copy import STORED, tick_copy
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.ticks import COLUMNS
from dhan_pipeline_tests.feeds.kite.packed import NIFTY, RELIANCE, USDINR, message, pack

AT_NS = 1_795_147_200_123_456_000
AT = datetime(2026, 11, 20, 4, 0, 0, 123456, tzinfo=UTC)
TRADED_S = AT_NS // 10**9 - 1
TRADED = datetime(2026, 11, 20, 3, 59, 59, tzinfo=UTC)

INDEX_DAY = {"day_high": 2_610_000, "day_low": 2_590_000, "day_open": 2_600_000, "day_close": 2_606_020}
PRICES = {"day_open": 129_000, "day_high": 130_000, "day_low": 128_550, "day_close": 128_900}
QUANTITIES = {"last_traded_quantity": 75, "volume_traded": 2**32 - 1, "total_buy_quantity": 3, "total_sell_quantity": 1}
OPEN_INTEREST = {"oi": 14_000_025, "oi_day_high": 2**31, "oi_day_low": 0}
BIDS = [(2**32 - 1, 129_450, 1), (225, 129_445, 65_535), (375, 129_440, 5), (525, 129_435, 7), (0, 0, 0)]
ASKS = [(150, 129_455, 2), (300, 129_460, 4), (450, 129_465, 6), (600, 129_470, 8), (0, 0, 0)]

LTP = pack(8, last_price=129_450)
QUOTE = pack(44, last_price=129_450, average_traded_price=129_512, **PRICES, **QUANTITIES)
FULL = QUOTE + b"".join(
    [
        pack(184, **OPEN_INTEREST, last_trade_time=TRADED_S, exchange_timestamp=TRADED_S + 1)[44:64],
        *(
            quantity.to_bytes(4, "big") + price.to_bytes(4, "big") + orders.to_bytes(2, "big") + b"\xff\xff"
            for quantity, price, orders in BIDS + ASKS
        ),
    ]
)
INDEX_QUOTE = pack(28, NIFTY, last_price=2_597_490, change=-8_530, **INDEX_DAY)
INDEX_FULL = pack(32, NIFTY, last_price=2_597_490, change=-8_530, **INDEX_DAY, exchange_timestamp=TRADED_S)

SHARE_QUOTE = {
    "time": AT,
    "instrument_token": RELIANCE,
    "last_price": 1294.5,
    "last_traded_quantity": 75,
    "average_traded_price": 1295.12,
    "volume_traded": 2**32 - 1,
    "day_open": 1290.0,
    "day_high": 1300.0,
    "day_low": 1285.5,
    "day_close": 1289.0,
    "change": 5.5,
    "change_percent": 0.4267,
    "total_buy_quantity": 3,
    "total_sell_quantity": 1,
    "tradable": True,
    "mode": "quote",
    "order_imbalance": 0.5,
}
SHARE_FULL = SHARE_QUOTE | {
    "last_trade_time": TRADED,
    "oi": 14_000_025,
    "oi_day_high": 2**31,
    "oi_day_low": 0,
    "bid_prices": [1294.5, 1294.45, 1294.4, 1294.35, None],
    "bid_quantities": [2**32 - 1, 225, 375, 525, 0],
    "bid_orders": [1, 65_535, 5, 7, 0],
    "ask_prices": [1294.55, 1294.6, 1294.65, 1294.7, None],
    "ask_quantities": [150, 300, 450, 600, 0],
    "ask_orders": [2, 4, 6, 8, 0],
    "mode": "full",
    "bid_ask_spread": 0.05,
    "mid_price": 1294.525,
}
INDEX_ROW = {
    "time": AT,
    "instrument_token": NIFTY,
    "last_price": 25974.9,
    "day_open": 26000.0,
    "day_high": 26100.0,
    "day_low": 25900.0,
    "day_close": 26060.2,
    "change": -85.3,
    "change_percent": -0.3273,
    "tradable": False,
    "mode": "quote",
}
NO_DEPTH: dict[str, Any] = {f"{side}_{name}": [0] * 5 for side in ("bid", "ask") for name in ("quantities", "orders")}
INDEX_FULL_ROW = INDEX_ROW | {
    "last_trade_time": TRADED,
    "bid_prices": [None] * 5,
    "ask_prices": [None] * 5,
    "mode": "full",
    **NO_DEPTH,
}


def stored(conn: connection, *messages: bytes) -> list[dict[str, Any]]:
    """The rows that PostgreSQL makes of the messages of a block, in order, without what is NULL; nothing stays."""
    instruments = InstrumentIndex([NIFTY, RELIANCE, USDINR])
    enriched = enrich(
        decode(b"".join(messages), np.cumsum([0, *map(len, messages)])),
        np.array([1]),
        np.array([0, len(messages)]),
        np.full(len(messages), AT_NS),
        instruments,
        MarketState(len(instruments)),
    )
    assert enriched.rejected == []
    names = [column.name for column in COLUMNS]
    with conn.cursor() as cursor:
        ensure_partitions(conn, AT_NS, AT_NS + 1)
        cursor.copy_expert(
            f"COPY tick_rows ({', '.join(STORED)}) FROM STDIN (FORMAT binary)", BytesIO(tick_copy(enriched.ticks))
        )
        cursor.execute(f"SELECT {', '.join(names)} FROM ticks ORDER BY tick_id")
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    conn.rollback()
    for batch in enriched.ticks:
        for name, values in derived(batch.columns).items():
            by_id = dict(zip(batch.columns["tick_id"].tolist(), values.tolist(), strict=True))
            for row in rows:
                if row["tick_id"] in by_id:
                    assert row[name] == by_id[row["tick_id"]] or (row[name] is None and np.isnan(by_id[row["tick_id"]]))
    assert [row.pop("tick_id") for row in rows] == [(1 << 16) + position for position in range(len(rows))]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


@pytest.mark.parametrize(
    ("packet", "row"),
    [
        (LTP, {name: SHARE_QUOTE[name] for name in ("time", "instrument_token", "last_price", "tradable")}),
        (QUOTE, SHARE_QUOTE),
        (FULL, SHARE_FULL),
        (INDEX_QUOTE, INDEX_ROW),
        (INDEX_FULL, INDEX_FULL_ROW),
    ],
    ids=["ltp", "quote", "full", "index quote", "index full"],
)
def test_a_packet_of_each_kind_becomes_exactly_this_row(conn: connection, packet: bytes, row: dict[str, Any]) -> None:
    assert stored(conn, message(packet)) == [{"mode": "ticker"} | row]


def test_an_index_and_what_is_traded_share_a_message_and_leave_each_other_alone(conn: connection) -> None:
    expected = [INDEX_FULL_ROW, SHARE_FULL, INDEX_ROW, SHARE_QUOTE, INDEX_FULL_ROW]
    packets = [INDEX_FULL, FULL, INDEX_QUOTE, QUOTE, INDEX_FULL]
    assert stored(conn, message(*packets)) == expected
    assert stored(conn, *map(message, packets)) == expected


def test_currencies_keep_four_decimals(conn: connection) -> None:
    prices = [831_225_000, 831_250_000, 831_200_000, 831_175_000, 831_150_000]
    depth = b"".join(b"\0\0\0\1" + price.to_bytes(4, "big") + b"\0\1\0\0" for price in [*prices, *prices])
    full = pack(184, USDINR, last_price=831_225_000, average_traded_price=831_225_678, day_close=831_000_000)[:64]
    (row,) = stored(conn, message(full + depth))
    assert (row["last_price"], row["average_traded_price"], row["day_close"]) == (83.1225, 83.1226, 83.1)
    assert (row["change"], row["mid_price"]) == (0.0225, 83.1225)
    assert row["bid_prices"] == row["ask_prices"] == [83.1225, 83.125, 83.12, 83.1175, 83.115]


def test_a_ticker_row_has_the_previous_close_of_an_earlier_quote(conn: connection) -> None:
    quote, ticker = stored(conn, message(INDEX_QUOTE, pack(8, NIFTY, last_price=2_600_000)))
    assert (quote["day_close"], ticker["day_close"], ticker["change"]) == (26060.2, 26060.2, -60.2)
    assert "last_trade_time" not in ticker
