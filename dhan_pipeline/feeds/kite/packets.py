"""One packet at a time: bytes in, a model out. For a person at a prompt and for small scripts.

Same wire definitions and framing as the batch path, so both always agree. A packet that the batch path would count and
keep raises `PacketError` here.
"""

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from dhan_pipeline.feeds.kite.framing import split
from dhan_pipeline.feeds.kite.wire import (
    DEPTH_LEVEL,
    DIVISORS,
    FULL,
    INDEX_FULL,
    INDEX_QUOTE,
    LAYOUTS,
    LTP,
    NEVER_TRADED_S,
    QUOTE,
)
from dhan_pipeline.instruments import KITE_SEGMENTS, PRICE_DECIMALS, KiteSegment
from dhan_pipeline.ticks import DEPTH_LEVELS, Mode

#: Decimals of an average price that the segment's own decimals do not express.
AVERAGE_DECIMALS = 4

_MODES = {
    LTP: Mode.TICKER,
    INDEX_QUOTE: Mode.QUOTE,
    QUOTE: Mode.QUOTE,
    INDEX_FULL: Mode.FULL,
    FULL: Mode.FULL,
}


class PacketError(ValueError):
    """Bytes that are not the packets they were taken for: of another length, torn, or impossible."""


class KiteDepthLevel(BaseModel):
    """One level of one side of the book. Price in rupees, None where the level is empty."""

    model_config = ConfigDict(frozen=True)

    quantity: int
    price: float | None
    orders: int


class KiteTick(BaseModel):
    """One packet of the live feed. What its kind does not carry is None, and so is a price of zero.

    Prices are in rupees, rounded to the decimals of the segment (an average price to 4, where it has more than that);
    quantities in units.
    """

    model_config = ConfigDict(frozen=True)

    instrument_token: int
    segment: KiteSegment
    tradable: bool
    """False for an index."""
    mode: Mode
    """What was subscribed: Kite's ltp is ticker here."""
    last_price: float | None = None
    last_traded_quantity: int | None = None
    average_traded_price: float | None = None
    volume_traded: int | None = None
    """Of the day so far."""
    total_buy_quantity: int | None = None
    total_sell_quantity: int | None = None
    day_open: float | None = None
    day_high: float | None = None
    day_low: float | None = None
    day_close: float | None = None
    """Close of the previous day."""
    change: float | None = None
    """Last price less the previous close: an index says it itself."""
    last_trade_time: datetime | None = None
    """UTC, 1 s resolution; in full mode, of what was traded."""
    exchange_timestamp: datetime | None = None
    """When the exchange sent it, UTC, 1 s resolution; in full mode."""
    oi: int | None = None
    oi_day_high: int | None = None
    oi_day_low: int | None = None
    bids: tuple[KiteDepthLevel, ...] | None = None
    """Five levels, best first."""
    asks: tuple[KiteDepthLevel, ...] | None = None


def parse_message(data: bytes) -> list[KiteTick]:
    """The ticks of a binary message; none of a heartbeat. https://kite.trade/docs/connect/v3/websocket/

    Raises PacketError if any of its packets cannot be read.
    """
    ticks = []
    for start, size, reason in split(data):
        if reason is not None:
            raise PacketError(reason)
        if size:
            ticks.append(parse_packet(data[start : start + size]))
    return ticks


def parse_packet(data: bytes) -> KiteTick:
    """One packet, without the length before it: 8, 28, 32, 44 or 184 bytes. Raises PacketError."""
    layout = LAYOUTS.get(len(data))
    if layout is None:
        raise PacketError(f"packet of {len(data)} bytes")
    values: dict[str, Any] = dict(zip((f.name for f in layout.fields), layout.struct.unpack_from(data), strict=False))
    number = values["instrument_token"] & 0xFF
    if number not in KITE_SEGMENTS:
        raise PacketError(f"segment {number} is not assigned")
    segment = KiteSegment(number)
    divisor, decimals = DIVISORS.get(segment, 100), PRICE_DECIMALS[KITE_SEGMENTS[segment]]
    for field in layout.fields[1:]:
        if field.name == "change":
            values["change"] = round(values["change"] / divisor, 4)
        elif field.format == "i":
            values[field.name] = _price(field.name, values[field.name], divisor, decimals)
    for name in ("last_trade_time", "exchange_timestamp"):
        if name in values:
            values[name] = exchange_time(values[name])
    if "change" not in values and values["last_price"] and values.get("day_close"):
        values["change"] = round(values["last_price"] - values["day_close"], 4)
    if layout.level is not None:
        places = range(layout.levels_start, layout.size, layout.level.size)
        levels = tuple(_level(data, at, divisor, decimals) for at in places)
        values |= {"bids": levels[:DEPTH_LEVELS], "asks": levels[DEPTH_LEVELS:]}
    tradable = segment is not KiteSegment.INDICES
    return KiteTick(segment=segment, tradable=tradable, mode=_MODES[len(data)], **values)


def exchange_time(raw: int) -> datetime | None:
    """A time on the wire, Unix seconds, as UTC; None where it means that there was none."""
    return datetime.fromtimestamp(raw, UTC) if raw > NEVER_TRADED_S else None


def _level(data: bytes, at: int, divisor: int, decimals: int) -> KiteDepthLevel:
    quantity, price, orders, _ = DEPTH_LEVEL.struct.unpack_from(data, at)
    return KiteDepthLevel(quantity=quantity, price=_price("depth price", price, divisor, decimals), orders=orders)


def _price(name: str, wire: int, divisor: int, decimals: int) -> float | None:
    if wire < 0:
        raise PacketError(f"{name} of {wire} is impossible")
    price = _rounded(wire / divisor, decimals)
    if name == "average_traded_price" and price != wire / divisor:
        price = _rounded(wire / divisor, AVERAGE_DECIMALS)
    return price or None


def _rounded(price: float, decimals: int) -> float:
    """As the batch path rounds, to the last bit."""
    return float(round(price * 10**decimals) / 10**decimals)
