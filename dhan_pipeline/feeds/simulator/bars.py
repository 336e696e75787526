"""The exchange's own minute bars: what a client makes of the packets that it sees, if it sees them all.

A market that is asked for 200,000 events a second has no time for them, so trades are noted as they come, and folded
into bars many at a time.
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

#: Prices in ticks, volume and open interest in units.
BAR = np.dtype([(name, np.uint32) for name in ("index", "open", "high", "low", "close", "volume", "oi")])

#: All bars together take so much; then the oldest minutes are forgotten. Two hours of 20,000 instruments that trade
#: every minute, or six days of 1000.
MEMORY_BYTES = 64 << 20

#: Trades are folded when they were noted in so many parts.
_PARTS = 32

_NO_LOW = np.iinfo(np.int64).max


class MinuteBars:
    """Bars of the minute that is, and of those that were, as far back as `memory_bytes` reach.

    Instruments go by their index in the market, minutes by their number since the Unix epoch, UTC.
    """

    def __init__(self, minute: int, volume: NDArray[np.int64], memory_bytes: int = MEMORY_BYTES) -> None:
        """Begin with this minute; `volume` is what has been traded of each instrument until then."""
        self._memory_bytes = memory_bytes
        self._past: deque[tuple[int, NDArray[np.void]]] = deque()
        self._past_bytes = 0
        self._noted: list[tuple[NDArray[np.intp], NDArray[np.int64]]] = []
        self._open, self._high, self._low = np.zeros((3, len(volume)), np.int64)
        self._begin(minute, volume)

    def note(self, index: NDArray[np.intp], ticks: NDArray[np.int64]) -> None:
        """Trades at these prices, no instrument twice. The arrays are kept, and must not be changed any more."""
        self._noted.append((index, ticks))
        if len(self._noted) == _PARTS:
            self._fold()

    def end_minute(
        self, minute: int, ticks: NDArray[np.int64], volume: NDArray[np.int64], oi: NDArray[np.int64]
    ) -> None:
        """Close the bars of the minute that is, with what all instruments stand at, and begin the one given.

        Volumes count from there; where they begin again at zero with a new day, `restart` is to be called.
        """
        bars = self._bars_of_now(ticks, volume, oi)
        if len(bars):
            self._past.append((self.minute, bars))
            self._past_bytes += bars.nbytes
        while self._past_bytes > self._memory_bytes:
            self._past_bytes -= self._past.popleft()[1].nbytes
        self._begin(minute, volume)

    def restart(self, volume: NDArray[np.int64]) -> None:
        """Count volumes from these."""
        self._volume_before = volume.copy()

    def of(
        self, index: int, ticks: NDArray[np.int64], volume: NDArray[np.int64], oi: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.void]]:
        """(minutes, bars) of an instrument, the unfinished one of this minute included."""
        minutes: list[int] = []
        found: list[NDArray[np.void]] = []
        for minute, bars in (*self._past, (self.minute, self._bars_of_now(ticks, volume, oi))):
            at = int(np.searchsorted(bars["index"], index))
            if at < len(bars) and bars["index"][at] == index:
                minutes.append(minute)
                found.append(bars[at : at + 1])
        return np.array(minutes, np.int64), np.concatenate([np.zeros(0, BAR), *found])

    def _begin(self, minute: int, volume: NDArray[np.int64]) -> None:
        self.minute = minute
        self._open[:] = self._high[:] = 0
        self._low[:] = _NO_LOW
        self.restart(volume)

    def _fold(self) -> None:
        if not self._noted:
            return
        index, ticks = (np.concatenate(parts) for parts in zip(*self._noted, strict=True))
        self._noted.clear()
        (first,) = np.nonzero(self._open[index] == 0)
        if len(first):
            first = first[::-1]  # of an instrument that occurs twice, the last one written stays
            self._open[index[first]] = ticks[first]
        np.maximum.at(self._high, index, ticks)
        np.minimum.at(self._low, index, ticks)

    def _bars_of_now(
        self, ticks: NDArray[np.int64], volume: NDArray[np.int64], oi: NDArray[np.int64]
    ) -> NDArray[np.void]:
        self._fold()
        (index,) = np.nonzero(self._open)
        bars = np.empty(len(index), BAR)
        bars["index"] = index
        for name, values in (
            *(("open", self._open), ("high", self._high), ("low", self._low), ("close", ticks)),
            *(("volume", volume - self._volume_before), ("oi", oi)),
        ):
            bars[name] = values[index]
        return bars
