"""What differs from broker to broker, chosen by the settings' source: the decoder of its feed."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import Decoded

#: Everything in the messages of blocks: payload, offsets of the messages in it, which of them came as text.
Decode = Callable[[bytes, NDArray[np.int64], NDArray[np.bool_] | None], Decoded]


def decoder(settings: Settings) -> Decode:
    """What reads the source's messages. It never raises for what they hold."""
    if settings.source == "dhan":
        from dhan_pipeline.feeds.dhan.decode import decode

        return partial(decode, trade_time_offset_s=settings.dhan_trade_time_offset_s)
    from dhan_pipeline.feeds.kite.decode import decode as decode_kite

    return decode_kite
