"""A market that is driven by hand, and the bars that its packets amount to, worked out one packet at a time."""

import struct
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.sessions import IST

FULL = "<BHBIfHIfIIIIIIffff" + "IIHHff" * 5
NOON = datetime(2026, 11, 20, 12, 0, 0, tzinfo=IST)


class SetClock(Clock):
    """Shows `at` until told otherwise."""

    def __init__(self, at: datetime = NOON) -> None:
        super().__init__()
        self.at = at

    def now_ns(self) -> int:
        return int(self.at.timestamp() * 1e6) * 1000


@dataclass
class Bar:
    open: float
    high: float
    low: float
    close: float
    volume: int = 0
    oi: int = 0


class Watcher:
    """Sees every packet of a market: `bars[token][start of the minute in seconds, UTC]`.

    It trades with the market that it is given; without one, it is shown packets.
    """

    def __init__(self, market: Market | None = None) -> None:
        self.bars: defaultdict[int, dict[int, Bar]] = defaultdict(dict)
        self._market = market
        self._volumes: dict[int, tuple[int, int]] = {}
        if market is not None:
            self._see_all(np.arange(len(market)))

    def trade(self, events: int) -> None:
        assert self._market is not None
        for index, _ in self._market.step(events):
            self._see_all(index)

    def see(self, packet: bytes) -> None:
        """A full packet."""
        _, _, segment, security_id, price, _, trade_time, _, volume, _, _, oi, *_ = struct.unpack(FULL, packet)
        token = generate_instrument_token(segment, security_id)
        price = round(price, 4)
        day = trade_time // 86_400
        before_day, before = self._volumes.get(token, (day, volume))
        self._volumes[token] = day, volume
        if trade_time == 0:
            return
        minute = (trade_time - 19_800) // 60 * 60
        bar = self.bars[token].setdefault(minute, Bar(price, price, price, price))
        bar.high, bar.low, bar.close, bar.oi = max(bar.high, price), min(bar.low, price), price, oi
        # With a new day volumes begin at zero: at midnight, but trade times follow with the first trade only.
        bar.volume += volume if day != before_day else max(volume - before, 0)

    def _see_all(self, index: NDArray[np.intp]) -> None:
        assert self._market is not None
        for packet in self._market.packets(ResponseCode.FULL, index):
            self.see(packet.tobytes())
