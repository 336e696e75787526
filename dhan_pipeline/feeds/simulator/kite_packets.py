"""The synthetic market in Kite's packets."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.kite.wire import DIVISOR_TABLE, FULL, INDEX_FULL, INDEX_QUOTE, LAYOUTS, LTP, QUOTE
from dhan_pipeline.feeds.simulator.correspondence import kite_token_of
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.instruments import ExchangeSegment, decimals_of, segments_of
from dhan_pipeline.ticks import DEPTH_LEVELS

#: The size of what an instrument's packet of a mode is: of what is traded, and of an index.
SIZES = {"ltp": (LTP, LTP), "quote": (QUOTE, INDEX_QUOTE), "full": (FULL, INDEX_FULL)}

_PRICES = ("last_price", "day_open", "day_high", "day_low", "day_close")
_SAME = (
    *("last_traded_quantity", "volume_traded", "total_buy_quantity", "total_sell_quantity"),
    *("oi", "oi_day_high", "oi_day_low"),
)

#: A packet with the length that stands before it, by size.
_RECORDS = {size: np.dtype([("length", ">u2"), ("packet", layout.dtype)]) for size, layout in LAYOUTS.items()}


class KitePackets:
    """Encodes what the market is at now. Instruments go by their index in it."""

    def __init__(self, market: Market, clock: Clock) -> None:
        """Raises ValueError where the number of an instrument is none that Kite's tokens hold."""
        self._market = market
        self._clock = clock
        self.tokens: NDArray[np.int64] = np.array([kite_token_of(token) for token in market.tokens.tolist()], np.int64)
        self.index_of = {token: index for index, token in enumerate(self.tokens.tolist())}
        self.is_index: NDArray[np.bool_] = segments_of(self.tokens) == ExchangeSegment.IDX_I
        # What is a multiple of the last decimal stays one: float32 is exact to it, and not beyond.
        self._scale = 10.0 ** decimals_of(self.tokens)
        self._steps = DIVISOR_TABLE.take(self.tokens & 0xFF) / self._scale

    def __len__(self) -> int:
        return len(self.tokens)

    def sized(self, mode: str, index: NDArray[np.intp]) -> list[tuple[int, NDArray[np.intp]]]:
        """Where among the instruments those are whose packets have this size in this mode."""
        sizes = np.array(SIZES[mode])[self.is_index[index].astype(np.intp)]
        return [(size, np.flatnonzero(sizes == size)) for size in np.unique(sizes).tolist()]

    def records(self, size: int, index: NDArray[np.intp]) -> NDArray[Any]:
        """The current packets of these instruments, each with its length before it: of this size, all of them."""
        rows = self._market.packets(ResponseCode.FULL, index)
        scale, steps = self._scale[index], self._steps[index]

        def wire(price: NDArray[Any]) -> NDArray[np.float64]:
            by = (slice(None),) + (None,) * (price.ndim - 1)
            units: NDArray[np.float64] = np.rint(price.astype(np.float64) * scale[by]) * steps[by]
            return units

        records = np.zeros(len(index), _RECORDS[size])
        records["length"] = size
        packet = records["packet"]
        packet["instrument_token"] = self.tokens[index]
        fields = packet.dtype.names or ()
        for name in _PRICES:
            if name in fields:
                packet[name] = wire(rows[name])
        if "average_traded_price" in fields:
            packet["average_traded_price"] = np.rint(rows["average_traded_price"].astype(np.float64) * scale * steps)
        for name in _SAME:
            if name in fields:
                packet[name] = rows[name]
        if "change" in fields:
            packet["change"] = packet["last_price"] - packet["day_close"]
        traded_s = rows["last_trade_time"].astype(np.int64)
        traded_s = np.where(traded_s > 0, traded_s - self._market.trade_time_offset_s, 0)
        if "last_trade_time" in fields:
            packet["last_trade_time"] = traded_s
            packet["exchange_timestamp"] = self._clock.now_ns() // 1_000_000_000
        elif "exchange_timestamp" in fields:  # of an index: when it was worked out
            packet["exchange_timestamp"] = traded_s
        if "depth" in fields:
            for side, levels in (("bid", slice(DEPTH_LEVELS)), ("ask", slice(DEPTH_LEVELS, None))):
                depth = packet["depth"][:, levels]
                depth["price"] = wire(rows["depth"][f"{side}_price"])
                depth["quantity"] = rows["depth"][f"{side}_quantity"]
                depth["orders"] = rows["depth"][f"{side}_orders"]
        return records
