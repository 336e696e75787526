"""Which clock the feed's trade times follow: a guard against a server that switches, which must never go unseen.

Dhan writes India's wall clock as if it were UTC. Should it begin to write true UTC, every trade would seem 5:30 h old,
and should it return to its habit when we have followed, 5:30 h ahead; nothing else would notice. This only tells; data
is never changed on a guess.
"""

from collections import deque
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.sessions import IST_OFFSET_S
from dhan_pipeline.sources import Source

Verdict = Literal["ok", "moved"] | None

#: A trade time this close to the packet's arrival is that of a live packet. Delays of minutes happen, on a bad day.
NEAR_S = 120

#: Packets with a trade time that a verdict is based on: the last ones, as many as these at least.
WINDOW = 2000
FEWEST = 200

#: Share of live packets that makes a verdict. Stale trade times are normal, so most packets need not be live.
_FAIR = 0.05
_HARDLY_ANY = 0.005

#: The last trade of a session is sent again with every subscription, and looks shifted when it is as old as the shift
#: is long: for twice `NEAR_S`, and no longer. Trade times that look shifted for longer than that move on.
_STANDS_STILL_S = 2 * NEAR_S + 10


class TradeClock:
    """Judges the last packets that carry a trade time."""

    def __init__(self, offset_s: int) -> None:
        """`offset_s`: how far ahead of UTC the trade times on the wire are taken to be."""
        self._shift_s = offset_s - _other(offset_s)
        self._batches: deque[tuple[int, int, int]] = deque()
        self._packets = self._near = self._shifted = 0
        self._now_ns = self._shifted_since_ns = 0

    def update(self, traded_s: NDArray[Any], received_ns: NDArray[Any]) -> None:
        """Take account of packets: trade times in UTC seconds as converted, 0 for none, and receive times in ns."""
        known = traded_s > 0
        lag_s = (received_ns // 1_000_000_000 - traded_s)[known]
        if not len(lag_s):
            return
        near = int(np.count_nonzero(np.abs(lag_s) <= NEAR_S))
        shifted = int(np.count_nonzero(np.abs(lag_s - self._shift_s) <= NEAR_S))
        self._batches.append((len(lag_s), near, shifted))
        self._packets += len(lag_s)
        self._near += near
        self._shifted += shifted
        while self._packets - self._batches[0][0] >= WINDOW:
            packets, near_then, shifted_then = self._batches.popleft()
            self._packets -= packets
            self._near -= near_then
            self._shifted -= shifted_then
        self._now_ns = int(received_ns[-1])
        if self._near > _HARDLY_ANY * self._packets or self._shifted < _FAIR * self._packets:
            self._shifted_since_ns = 0
        elif not self._shifted_since_ns:
            self._shifted_since_ns = self._now_ns

    def verdict(self) -> Verdict:
        """`ok`: trade times are of just now; `moved`: they follow the other clock; None: nothing can be said."""
        if self._packets < FEWEST:
            return None
        if self._near >= _FAIR * self._packets:
            return "ok"
        if self._shifted_since_ns and self._now_ns - self._shifted_since_ns > _STANDS_STILL_S * 1e9:
            return "moved"
        return None


def moved_in_words(source: Source, offset_s: int) -> str:
    """What the verdict `moved` means where trade times are taken to be `offset_s` ahead of UTC, and what to do."""
    other = _other(offset_s)
    clock = "India's wall clock" if other else "true UTC"
    wrong = f"{abs(offset_s - other) / 3600:g} h too {'early' if offset_s > other else 'late'}"
    found = f"The feed's trade times seem to follow {clock}: `last_trade_time` is then {wrong} in every row."
    if source == "kite":
        return f"{found} Kite never did so: prices and volumes are right, and the journal has the bytes."
    return (
        f"{found} Set DHAN_TRADE_TIME_OFFSET_S={other}, start the capture again, and materialise `ticks` of the hours"
        " since then again: the journal has the bytes."
    )


def _other(offset_s: int) -> int:
    return 0 if offset_s else IST_OFFSET_S
