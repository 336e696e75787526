"""Which lively instruments fell silent while the rest of their connection went on."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: An instrument is lively once so many of its packets came, at this rate or above, over the last minutes.
LIVELY_PACKETS = 30
LONGEST_INTERVAL_S = 10.0

#: How fast the mean interval follows: each packet weighs so much.
_WEIGHT = 1 / 64

#: It is silent when nothing came for so many of its mean intervals, and for at least so long. Were packets independent,
#: an interval of 40 means would occur once in e^40 packets; markets come in bursts, which the factor leaves room for.
SILENT_INTERVALS = 40.0
SILENT_S = 30.0

#: Where more than this share of a connection's lively instruments is silent, the matter is the connection's, or the
#: market's: the watchdog's, not ours.
_COMMON = 0.5


class SilenceWatch:
    """Watches the instruments of one capture. Times are receive times in ns; they never step back."""

    def __init__(self, connections: NDArray[np.int16]) -> None:
        """The connection of each instrument by its index, below 0 for those that are not subscribed."""
        self._connections = connections
        self._last_ns = np.zeros(len(connections), np.int64)
        self._interval_ns = np.zeros(len(connections))
        self._packets = np.zeros(len(connections), np.int64)
        self._silent = np.zeros(len(connections), np.bool_)
        self._back: list[tuple[int, int, int]] = []

    def reset(self) -> None:
        """Forget what was lively, and who is silent: after a gap of a connection, everything begins anew."""
        for values in (self._last_ns, self._interval_ns, self._packets, self._silent):
            values.fill(0)
        self._back.clear()

    def update(self, index: NDArray[Any], received_ns: NDArray[Any]) -> None:
        """Packets came of these instruments (indices from 0, in order of receipt)."""
        # Of several packets of one instrument the last one's time counts, and all of them.
        seen, from_end, counts = np.unique(index[::-1], return_index=True, return_counts=True)
        newest_ns = received_ns[len(index) - 1 - from_end]
        before_ns = self._last_ns[seen]
        was_silent = self._silent[seen]
        for at in np.flatnonzero(was_silent).tolist():
            self._back.append((int(seen[at]), int(before_ns[at]), int(newest_ns[at])))
        self._silent[seen] = False
        known = before_ns > 0
        weight = 1 - (1 - _WEIGHT) ** counts
        mean = self._interval_ns[seen]
        # The silence itself says nothing about how lively it is.
        span = np.where(was_silent, mean, (newest_ns - before_ns) / counts)
        young = self._packets[seen] < LIVELY_PACKETS
        # The first packets weigh alike, so that the mean is one from the beginning.
        weight = np.where(young, counts / np.maximum(self._packets[seen] + counts, 1), weight)
        self._interval_ns[seen] = np.where(known, mean + weight * (span - mean), 0.0)
        self._packets[seen] += counts
        self._last_ns[seen] = newest_ns

    def check(self, now_ns: int) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
        """(fell silent: index and last packet's time; were heard again: index, last time before, time now)."""
        lively = (
            (self._packets >= LIVELY_PACKETS)
            & (self._interval_ns <= LONGEST_INTERVAL_S * 1e9)
            & (self._connections >= 0)
        )
        bound_ns = np.maximum(self._interval_ns * SILENT_INTERVALS, SILENT_S * 1e9)
        silent = lively & (now_ns - self._last_ns > bound_ns)
        # Long before the bound it shows whether everybody is quiet.
        quiet = lively & (now_ns - self._last_ns > np.maximum(bound_ns / 4, self._interval_ns * 10))
        fell: list[tuple[int, int]] = []
        if silent.any():
            for connection in np.unique(self._connections[silent]).tolist():
                of_it = self._connections == connection
                if np.count_nonzero(quiet & of_it) > _COMMON * np.count_nonzero(lively & of_it):
                    continue
                new = silent & of_it & ~self._silent
                self._silent |= new
                fell += [(at, int(self._last_ns[at])) for at in np.flatnonzero(new).tolist()]
        back, self._back = self._back, []
        return fell, back
