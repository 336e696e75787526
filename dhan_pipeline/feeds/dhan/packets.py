"""One packet at a time: bytes in, a model out. For a person at a prompt and for small scripts.

Same wire definitions and framing as the batch path, so both always agree. A packet that the batch path would count and
keep raises `PacketError` here.
"""

from datetime import UTC, datetime
from math import isfinite
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from dhan_pipeline.feeds.dhan.framing import split
from dhan_pipeline.feeds.dhan.wire import DEPTH_LEVEL, HEADER, LAYOUTS, NEVER_TRADED_S, ResponseCode
from dhan_pipeline.instruments import PRICE_DECIMALS, ExchangeSegment
from dhan_pipeline.sessions import IST_OFFSET_S

#: Decimals of an average price that the segment's own decimals do not express.
AVERAGE_DECIMALS = 4


class PacketError(ValueError):
    """Bytes that are not the one packet they were taken for: another code, torn, followed by more, or impossible."""


class DhanResponseHeader(BaseModel):
    """What every packet begins with."""

    model_config = ConfigDict(frozen=True)

    response_code: int
    """What the packet is; see `wire.ResponseCode`."""
    message_length: int
    """Bytes of the packet, header included, as the header says."""
    exchange_segment: str
    """`NSE_EQ`, `NSE_FNO`, …"""
    exchange_segment_code: int
    security_id: str
    """Unique within the exchange segment."""


class DhanMarketDepthLevel(BaseModel):
    """One level of the book. Prices in rupees, None where the level is empty."""

    model_config = ConfigDict(frozen=True)

    bid_quantity: int
    ask_quantity: int
    bid_orders: int
    ask_orders: int
    bid_price: float | None
    ask_price: float | None


class DhanTick(DhanResponseHeader):
    """One packet of the live feed. What its kind does not carry is None, and so is a price of zero.

    Prices are in rupees, rounded to the decimals of the segment (an average price to 4, where it has more than that);
    quantities in units.
    """

    last_price: float | None = None
    last_traded_quantity: int | None = None
    """16 bits on the wire: never sum it, use differences of `volume_traded`."""
    last_trade_time: datetime | None = None
    """UTC, 1 s resolution; None if the instrument never traded."""
    average_traded_price: float | None = None
    volume_traded: int | None = None
    """Of the day so far."""
    total_sell_quantity: int | None = None
    total_buy_quantity: int | None = None
    day_open: float | None = None
    day_close: float | None = None
    """Close of the previous day, during the session."""
    day_high: float | None = None
    day_low: float | None = None
    oi: int | None = None
    oi_day_high: int | None = None
    oi_day_low: int | None = None
    prev_close: float | None = None
    """Of a previous-close packet."""
    prev_oi: int | None = None
    reason_code: int | None = None
    """Of a disconnect packet; `wire.disconnect_reason` has the words."""
    depth: tuple[DhanMarketDepthLevel, ...] | None = None
    """Five levels, best first."""


def parse_ticker_packet(data: bytes) -> DhanTick:
    """Last price and time (code 2, 16 bytes). Raises PacketError."""
    return _parse(data, ResponseCode.TICKER)


def parse_quote_packet(data: bytes) -> DhanTick:
    """Trade, totals and day's prices (code 4, 50 bytes). Raises PacketError."""
    return _parse(data, ResponseCode.QUOTE)


def parse_oi_packet(data: bytes) -> DhanTick:
    """Open interest (code 5, 12 bytes), in `oi`. Raises PacketError."""
    return _parse(data, ResponseCode.OPEN_INTEREST)


def parse_prev_close_packet(data: bytes) -> DhanTick:
    """Close and open interest of the previous day (code 6, 16 bytes). Raises PacketError."""
    return _parse(data, ResponseCode.PREVIOUS_CLOSE)


def parse_full_packet(data: bytes) -> DhanTick:
    """Everything a quote has, open interest and five levels of depth (code 8, 162 bytes). Raises PacketError."""
    return _parse(data, ResponseCode.FULL)


def parse_disconnect_packet(data: bytes) -> DhanTick:
    """Why the server ends the connection (code 50, 10 bytes), in `reason_code`. Raises PacketError."""
    return _parse(data, ResponseCode.DISCONNECT)


def parse_market_depth_level(data: bytes, offset: int = 0, decimals: int = 2) -> DhanMarketDepthLevel:
    """The level of depth at `offset` (20 bytes), prices rounded to `decimals`. Raises PacketError."""
    if not 0 <= offset <= len(data) - DEPTH_LEVEL.size:
        raise PacketError(
            f"a depth level needs {DEPTH_LEVEL.size} bytes at offset {offset}, there are {len(data)} in all"
        )
    values = DEPTH_LEVEL.struct.unpack_from(data, offset)
    level = dict(zip((field.name for field in DEPTH_LEVEL.fields), values, strict=True))
    for name in ("bid_price", "ask_price"):
        level[name] = _price(name, level[name], decimals)
    return DhanMarketDepthLevel(**level)


def _parse(data: bytes, code: ResponseCode) -> DhanTick:
    layout = LAYOUTS[code]
    packets = list(split(data))
    if not packets:
        raise PacketError(f"expected one {layout.name} packet, got nothing")
    _, size, found, reason = packets[0]
    if reason is not None:
        raise PacketError(reason)
    if found != code:
        raise PacketError(f"expected a {layout.name} packet (code {code:d}), got {LAYOUTS[found].name} (code {found})")
    if len(packets) > 1:
        raise PacketError(f"expected one {layout.name} packet, got {len(data) - size} bytes more after its {size}")

    values: dict[str, Any] = dict(zip((f.name for f in layout.fields), layout.struct.unpack_from(data), strict=False))
    segment_code = values["exchange_segment"]
    if segment_code not in PRICE_DECIMALS:
        raise PacketError(f"exchange segment {segment_code} is not assigned")
    segment = ExchangeSegment(segment_code)
    decimals = PRICE_DECIMALS[segment]
    for field in layout.fields[len(HEADER.fields) :]:
        if field.format == "f":
            values[field.name] = _price(field.name, values[field.name], decimals)
    if "last_trade_time" in values:
        values["last_trade_time"] = trade_time(values["last_trade_time"])
    if layout.level is not None:
        offsets = range(layout.levels_start, layout.size, layout.level.size)
        values["depth"] = tuple(parse_market_depth_level(data, offset, decimals) for offset in offsets)
    values |= {
        "exchange_segment": segment.name,
        "exchange_segment_code": segment_code,
        "security_id": str(values["security_id"]),
    }
    return DhanTick(**values)


def trade_time(raw: int) -> datetime | None:
    """A trade time on the wire, which counts seconds of the Indian wall clock, as UTC; None for never traded."""
    return datetime.fromtimestamp(raw - IST_OFFSET_S, UTC) if raw > NEVER_TRADED_S else None


def _price(name: str, wire: float, decimals: int) -> float | None:
    if not isfinite(wire) or wire < 0:
        raise PacketError(f"{name} of {wire} is impossible")
    price = round(wire, decimals)
    if name == "average_traded_price" and np.float32(price) != wire:
        price = round(wire, AVERAGE_DECIMALS)  # an average is seldom a multiple of the tick
    return price or None
