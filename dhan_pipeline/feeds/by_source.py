"""What differs from broker to broker, chosen by the settings' source: its decoder, its client, its words."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.feeds.client import Feed
from dhan_pipeline.instruments import source_of, split_instrument_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.ticks import Decoded

if TYPE_CHECKING:
    from dhan_pipeline.feeds.explained import ExplainedPacket

#: Everything in the messages of blocks: payload, offsets of the messages in it, which of them came as text.
Decode = Callable[[bytes, NDArray[np.int64], NDArray[np.bool_] | None], Decoded]


def decoder(settings: Settings) -> Decode:
    """What reads the source's messages. It never raises for what they hold."""
    if settings.source == "dhan":
        from dhan_pipeline.feeds.dhan.decode import decode

        return partial(decode, trade_time_offset_s=settings.dhan_trade_time_offset_s)
    from dhan_pipeline.feeds.kite.decode import decode as decode_kite

    return decode_kite


def feed_of(settings: Settings) -> type[Feed]:
    """The client of the source's feed."""
    if settings.source == "dhan":
        from dhan_pipeline.feeds.dhan.client import Feed as DhanFeed

        return DhanFeed
    from dhan_pipeline.feeds.kite.client import Feed as KiteFeed

    return KiteFeed


def instrument_mark(instrument_token: int) -> tuple[int, bytes]:
    """Where a packet of the instrument says whose it is, and the bytes that stand there: also one that was rejected."""
    if source_of(instrument_token) == "dhan":
        segment, security_id = split_instrument_token(instrument_token)
        return 3, bytes([segment]) + security_id.to_bytes(4, "little")
    return 0, instrument_token.to_bytes(4, "big")


def explainer(source: Source) -> "Callable[[bytes], list[ExplainedPacket]]":
    """What puts a message of the feed into words."""
    if source == "dhan":
        from dhan_pipeline.feeds.dhan.explain import explain

        return explain
    from dhan_pipeline.feeds.kite.explain import explain as explain_kite

    return explain_kite
