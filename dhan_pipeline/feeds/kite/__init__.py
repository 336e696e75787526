"""Kite's live feed: wire format, decoder, client, and the one-packet functions and models."""

from dhan_pipeline.feeds.kite.packets import KiteDepthLevel, KiteTick, PacketError, parse_message, parse_packet

__all__ = [
    "KiteDepthLevel",
    "KiteTick",
    "PacketError",
    "parse_message",
    "parse_packet",
]
