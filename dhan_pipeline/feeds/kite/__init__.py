"""Kite's live feed: wire format, decoder, client, and the one-packet functions and models."""

from dhan_pipeline.feeds.errors import (
    CredentialsError,
    FeedError,
    FeedRefusedError,
    RateLimitedError,
    SilentFeedError,
    SourceError,
    SubscriptionLimitError,
    TokenExpiredError,
    TokenRefusedError,
)
from dhan_pipeline.feeds.kite.auth import (
    Credentials,
    check_kite_token_validity,
    get_kite_credentials,
    get_kite_websocket_url,
    save_kite_token,
)
from dhan_pipeline.feeds.kite.client import Feed
from dhan_pipeline.feeds.kite.packets import KiteDepthLevel, KiteTick, PacketError, parse_message, parse_packet

__all__ = [
    "Credentials",
    "CredentialsError",
    "Feed",
    "FeedError",
    "FeedRefusedError",
    "KiteDepthLevel",
    "KiteTick",
    "PacketError",
    "RateLimitedError",
    "SilentFeedError",
    "SourceError",
    "SubscriptionLimitError",
    "TokenExpiredError",
    "TokenRefusedError",
    "check_kite_token_validity",
    "get_kite_credentials",
    "get_kite_websocket_url",
    "parse_message",
    "parse_packet",
    "save_kite_token",
]
