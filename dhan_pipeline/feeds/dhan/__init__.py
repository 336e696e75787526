"""Dhan's live feed: wire format, decoder, and the one-packet functions and models."""

from dhan_pipeline.feeds.dhan.packets import (
    DhanMarketDepthLevel,
    DhanResponseHeader,
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

__all__ = [
    "DhanMarketDepthLevel",
    "DhanResponseHeader",
    "DhanTick",
    "PacketError",
    "parse_disconnect_packet",
    "parse_full_packet",
    "parse_market_depth_level",
    "parse_oi_packet",
    "parse_prev_close_packet",
    "parse_quote_packet",
    "parse_ticker_packet",
]
