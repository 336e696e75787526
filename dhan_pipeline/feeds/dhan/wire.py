"""THE table of Dhan's wire formats. Structs, NumPy dtypes and sizes are all derived from it.

Little endian, packed, every size includes the header. Pages: https://dhanhq.co/docs/v2/live-market-feed/,
https://dhanhq.co/docs/v2/full-market-depth/ and https://dhanhq.co/docs/v2/annexure/. Where the documentation is silent
or counts differently, captured frames decide: a full packet is 162 bytes and a quote packet 50.
"""

from enum import IntEnum

from dhan_pipeline.feeds.layout import Field, Layout
from dhan_pipeline.ticks import DEPTH_LEVELS


class ResponseCode(IntEnum):
    """First byte of a packet: what it is."""

    HEARTBEAT = 0
    INDEX = 1
    """Documented by name only; nobody has published its layout."""
    TICKER = 2
    LEGACY_DEPTH = 3
    """Five levels and a price, of version 1 of the feed."""
    QUOTE = 4
    OPEN_INTEREST = 5
    PREVIOUS_CLOSE = 6
    MARKET_STATUS = 7
    FULL = 8
    DISCONNECT = 50


class DepthCode(IntEnum):
    """Third byte of a packet of the 20- and 200-level depth feeds."""

    BID = 41
    DISCONNECT = 50
    ASK = 51


class RequestCode(IntEnum):
    """`RequestCode` of the JSON messages that a client sends."""

    CONNECT = 11
    DISCONNECT = 12
    SUBSCRIBE_TICKER = 15
    UNSUBSCRIBE_TICKER = 16
    SUBSCRIBE_QUOTE = 17
    UNSUBSCRIBE_QUOTE = 18
    SUBSCRIBE_LEGACY_DEPTH = 19
    UNSUBSCRIBE_LEGACY_DEPTH = 20
    SUBSCRIBE_FULL = 21
    UNSUBSCRIBE_FULL = 22
    SUBSCRIBE_FULL_DEPTH = 23
    UNSUBSCRIBE_FULL_DEPTH = 24
    """The annexure's number; another page of the documentation says 25."""


#: Why the server ends a connection, or refuses a request. 801-803 are not documented.
DISCONNECT_REASONS = {
    800: "internal server error",
    804: "more instruments requested than allowed",
    805: "too many requests or connections",
    806: "data APIs are not subscribed",
    807: "access token expired",
    808: "authentication failed: client id or access token invalid",
    809: "access token invalid",
    810: "client id invalid",
    811: "invalid expiry date",
    812: "invalid date format",
    813: "invalid security id",
    814: "invalid request",
}


def disconnect_reason(code: int) -> str:
    """What a disconnect code means, in words."""
    return DISCONNECT_REASONS.get(code, "undocumented reason")


def _fields(spec: str) -> list[Field]:
    """`"name:format name:format"` as fields."""
    return [Field(*item.split(":")) for item in spec.split()]


_HEADER = _fields("response_code:B message_length:H exchange_segment:B security_id:I")
_OHLC = _fields("day_open:f day_close:f day_high:f day_low:f")
_TRADE = _fields(
    "last_price:f last_traded_quantity:H last_trade_time:I average_traded_price:f "
    "volume_traded:I total_sell_quantity:I total_buy_quantity:I"
)

#: What every packet begins with.
HEADER = Layout("header", _HEADER)

#: One of the five levels of a full packet.
DEPTH_LEVEL = Layout(
    "depth level", _fields("bid_quantity:I ask_quantity:I bid_orders:H ask_orders:H bid_price:f ask_price:f")
)

#: Packets of the live feed by response code. Fields that become columns bear the names of `ticks.COLUMNS`.
LAYOUTS: dict[int, Layout] = {
    ResponseCode.HEARTBEAT: Layout("heartbeat", _HEADER),
    ResponseCode.TICKER: Layout("ticker", _HEADER + _fields("last_price:f last_trade_time:I")),
    ResponseCode.LEGACY_DEPTH: Layout(
        "legacy depth", _HEADER + _fields("last_price:f"), levels=DEPTH_LEVELS, level=DEPTH_LEVEL
    ),
    ResponseCode.QUOTE: Layout("quote", _HEADER + _TRADE + _OHLC),
    ResponseCode.OPEN_INTEREST: Layout("open interest", _HEADER + _fields("oi:I")),
    ResponseCode.PREVIOUS_CLOSE: Layout("previous close", _HEADER + _fields("prev_close:f prev_oi:I")),
    ResponseCode.MARKET_STATUS: Layout("market status", _HEADER),
    ResponseCode.FULL: Layout(
        "full",
        _HEADER + _TRADE + _fields("oi:I oi_day_high:I oi_day_low:I") + _OHLC,
        levels=DEPTH_LEVELS,
        level=DEPTH_LEVEL,
    ),
    ResponseCode.DISCONNECT: Layout("disconnect", _HEADER + _fields("reason_code:H")),
}

#: What every packet of the depth feeds begins with: length first. `rows` is a sequence number on the 20-level feed.
DEPTH_HEADER = Layout(
    "depth header", _fields("message_length:H response_code:B exchange_segment:B security_id:I rows:I")
)

#: One row of a bid or ask packet of the depth feeds.
DEPTH_ROW = Layout("depth row", _fields("price:d quantity:I orders:I"))

#: Trade times up to this raw value (1980-01-01) mean that the instrument never traded.
NEVER_TRADED_S = 315_532_800
