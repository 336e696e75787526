"""The market as the stored packets show it now: ticks by segment, and what has moved most since yesterday's close.

`Liveliness` shows it the packets once a second. What the status line says of it, `watch` and the live page show.
"""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.instruments import ExchangeSegment, InstrumentIndex, segments_of

Ints = NDArray[np.int64]

#: Seconds over which rates are taken.
WINDOW_S = 10

#: How many of each group are told, up and down.
MOVERS = 10

#: Options are no movers: the far ones double and halve all day.
GROUPS = ("indices", "shares", "futures")
_GROUP_OF_SEGMENT = {ExchangeSegment.IDX_I: 0, ExchangeSegment.NSE_EQ: 1, ExchangeSegment.BSE_EQ: 1}
_FUTURE, _NONE = 2, 3

_SEGMENTS = 256  # what a number may be that `segments_of` says


class _Look(NamedTuple):
    """Never changed, so that another thread may read it."""

    at_ns: int
    ticks: Ints
    """So far, by segment."""
    last_us: Ints
    """When the last one was received, by segment; 0 for none."""
    subscribed: Ints
    """Instruments, by segment."""
    heard: Ints
    """Of how many instruments there was a tick, by segment."""
    movers: dict[str, dict[str, list[dict[str, float]]]]


class Market:
    """The latest price of each instrument. `facts` is for any thread, all else for that of the packets."""

    def __init__(self, speed: float = 1.0) -> None:
        """`speed`: that of the clock of the receive times."""
        self._speed = speed
        self._ticks = np.zeros(_SEGMENTS, np.int64)
        self._last_us = np.zeros(_SEGMENTS, np.int64)
        self._looks: tuple[_Look, ...] = ()
        self._tokens = np.zeros(0, np.int64)
        self._price, self._close = np.zeros(0), np.zeros(0)
        self.know(InstrumentIndex([]), np.zeros(0, np.bool_), np.zeros(0, np.int64))

    def know(self, instruments: InstrumentIndex, subscribed: NDArray[np.bool_], futures: Ints) -> None:
        """Follow these instruments; of those that were known before and are subscribed, prices stay.

        `subscribed` says it of each; `futures` are tokens, of which some may not be among them.
        """
        before = instruments.lookup(self._tokens)
        tokens = self._tokens = instruments.tokens
        self._segment = segments_of(tokens)
        self._is_subscribed = subscribed
        self._subscribed = np.bincount(self._segment[subscribed], minlength=_SEGMENTS)
        self._group = np.full(len(tokens), _NONE, np.uint8)
        for segment, group in _GROUP_OF_SEGMENT.items():
            self._group[self._segment == segment] = group
        at = instruments.lookup(futures)
        self._group[at[at >= 0]] = _FUTURE
        # 0: no tick yet. Of a page that is never written, no memory is taken.
        price, close, kept = np.zeros(len(tokens)), np.zeros(len(tokens)), before >= 0
        kept[kept] = subscribed[before[kept]]
        price[before[kept]], close[before[kept]] = self._price[kept], self._close[kept]
        self._price, self._close = price, close
        self._prices = instruments, price
        if not self._ticks.any():  # of a feed that brings nothing it is told all the same what is subscribed
            self._looks = ()
            self.look(0)

    @property
    def looked_ns(self) -> int:
        """Receive time (ns, UTC) of what it saw last; 0 before anything was. For any thread."""
        looks = self._looks
        return looks[-1].at_ns if looks else 0

    def prices(self, instrument_tokens: Collection[int]) -> dict[int, float]:
        """The last price of each of them, in rupees, as far as there was one. For any thread."""
        instruments, price = self._prices
        tokens = np.fromiter(instrument_tokens, np.int64, len(instrument_tokens))
        at = instruments.lookup(tokens)
        found = np.where(at >= 0, price.take(at, mode="clip") if len(price) else np.nan, np.nan)
        return {token: last for token, last in zip(tokens.tolist(), found.tolist(), strict=True) if last > 0}

    def update(
        self, index: NDArray[Any], received_us: Ints, price: NDArray[np.float64], close: NDArray[np.float64]
    ) -> None:
        """Take account of ticks in order of receipt: whose, when, last price, and the previous close (NaN: none).

        A tick without a price, or a previous close, says nothing about the one that was known before.
        """
        index = index.astype(np.intp, copy=False)
        segment = self._segment.take(index)
        counts = np.bincount(segment, minlength=_SEGMENTS)
        self._ticks += counts
        for number in np.flatnonzero(counts).tolist():
            self._last_us[number] = received_us[-1 - int((segment[::-1] == number).argmax())]
        _put_known(self._price, index, price)
        _put_known(self._close, index, close)

    def look(self, now_ns: int) -> None:
        """Sum up, once a second."""
        # Of what was subscribed until just now, packets may still come.
        heard = np.flatnonzero((self._price != 0) & self._is_subscribed)
        look = _Look(
            now_ns,
            self._ticks.copy(),
            self._last_us.copy(),
            self._subscribed,
            np.bincount(self._segment.take(heard), minlength=_SEGMENTS),
            self._movers(heard),
        )
        since_ns = now_ns - (WINDOW_S + 1) * 1e9 * self._speed
        self._looks = (*(past for past in self._looks if past.at_ns > since_ns), look)

    def _movers(self, heard: Ints) -> dict[str, dict[str, list[dict[str, float]]]]:
        close = self._close.take(heard)
        with np.errstate(invalid="ignore", divide="ignore"):
            percent = np.rint((self._price.take(heard) / close - 1) * 1e4) / 100
        found = {}
        group_of = self._group.take(heard)
        for number, group in enumerate(GROUPS):
            of_group = np.flatnonzero((group_of == number) & np.isfinite(percent))
            if len(of_group):
                order = of_group[percent.take(of_group).argsort(kind="stable")]
                up = [at for at in order[: -MOVERS - 1 : -1].tolist() if percent[at] > 0]
                down = [at for at in order[:MOVERS].tolist() if percent[at] < 0]
                found[group] = {
                    way: [
                        {
                            "instrument_token": int(self._tokens[heard[at]]),
                            "last_price": float(self._price[heard[at]]),
                            "change_percent": float(percent[at]),
                        }
                        for at in some
                    ]
                    for way, some in (("up", up), ("down", down))
                }
        return found

    def facts(self, now_ns: int) -> dict[str, Any]:
        """What the status line says of it at an instant (ns, UTC): `segments` and `movers`."""
        looks = self._looks
        if not looks:
            return {"segments": {}, "movers": {}}
        last = looks[-1]
        # Where nothing comes there is no look: a second later than due, it was silent since.
        until_ns = max(last.at_ns, now_ns - 2e9 * self._speed)
        since_ns = until_ns - (WINDOW_S + 1) * 1e9 * self._speed
        first = next((look for look in looks if look.at_ns > since_ns), last)
        seconds = max((until_ns - first.at_ns) / (1e9 * self._speed), 1.0)
        segments = {}
        for number in ExchangeSegment:
            if last.subscribed[number] or last.ticks[number]:
                last_us = int(last.last_us[number])
                segments[number.name] = {
                    "ticks": int(last.ticks[number]),
                    "ticks_per_second": round(float(last.ticks[number] - first.ticks[number]) / seconds, 1),
                    "last_at": datetime.fromtimestamp(last_us / 1e6, UTC).isoformat() if last_us else None,
                    "instruments": int(last.subscribed[number]),
                    "heard": int(last.heard[number]),
                }
        return {"segments": segments, "movers": last.movers}


def _put_known(values: NDArray[np.float64], index: NDArray[np.intp], new: NDArray[np.float64]) -> None:
    """Put the numbers among `new` in their places, and NaN where there was nothing (0) before."""
    none = np.isnan(new)
    if none.any():
        nothing = index[none]
        values[nothing[values.take(nothing) == 0]] = np.nan
        index, new = index[~none], new[~none]
    values[index] = new  # where a place is written twice, the last one stays
