"""Of which instruments packets are due, minute by minute: those that are subscribed while their segment trades.

Before the open, in auctions and after the close nothing is due. In the closing auction that is so of the whole segment:
most of its instruments that are worth capturing are in it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.instruments import ExchangeSegment, segment_of
from dhan_pipeline.sessions import MINUTE_NS, in_closing_auction, packets_due_throughout
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.flow import MINUTES
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.store.subscribed import Subscribed


@dataclass(frozen=True, slots=True)
class Due:
    """The instruments that were subscribed in an hour."""

    tokens: NDArray[np.int64]
    minutes: NDArray[np.bool_]
    """Whether something was due of each in each minute, of shape (tokens, 60)."""

    @property
    def by_minute(self) -> NDArray[np.int64]:
        """Of how many instruments something was due in each minute, of shape (60,)."""
        by_minute: NDArray[np.int64] = self.minutes.sum(axis=0)
        return by_minute


def due_in_hour(stretches: Iterable[Subscribed], start_ns: int, always: bool) -> Due:
    """Of the hour that begins at `start_ns` (ns since the Unix epoch, UTC). With `always`, every minute counts."""
    start, found = instant(start_ns), dict[int, NDArray[np.bool_]]()
    for stretch in stretches:
        token = stretch.instrument_token
        # Of a minute in which it only came in, less is due than of a whole one. One in which its mode changed counts.
        from_minute = ceil((stretch.since - start).total_seconds() / 60)
        to_minute = MINUTES if stretch.until is None else int((stretch.until - start).total_seconds() // 60) + 1
        subscribed = found.setdefault(token, np.zeros(MINUTES, np.bool_))
        subscribed[max(from_minute, 0) : max(to_minute, 0)] = True
    tokens = np.fromiter(found, np.int64, len(found))
    minutes = np.array([found[token] & trading_minutes(segment_of(token), start_ns, always) for token in found])
    return Due(tokens, minutes.reshape(-1, MINUTES).astype(np.bool_))


@lru_cache(maxsize=1024)
def trading_minutes(segment: ExchangeSegment, start_ns: int, always: bool) -> NDArray[np.bool_]:
    """Whether packets are due of a segment's instruments in each whole minute of an hour, of shape (60,)."""
    starts = range(start_ns, start_ns + MINUTES * MINUTE_NS, MINUTE_NS)
    return np.array([is_trading(segment, at, at + MINUTE_NS - 1, always) for at in starts])


def is_trading(segment: ExchangeSegment, start_ns: int, end_ns: int, always: bool) -> bool:
    """Whether packets are due of a segment's instruments from the one instant to the other (ns, UTC)."""
    return always or (packets_due_throughout(start_ns, end_ns, (segment,)) and not in_closing_auction(end_ns, segment))


def trading_now(status: Mapping[str, Any], settings: Settings) -> dict[str, tuple[int, int]]:
    """Of the segments that have traded continuously for the minute before a capture's status line: how many instruments
    are subscribed, and of how many a tick came since the capture started."""
    now_ns = int(datetime.fromisoformat(status["at"]).timestamp() * 1e9)
    return {
        name: (facts["instruments"], min(facts["heard"], facts["instruments"]))
        for name, facts in status.get("segments", {}).items()
        if is_trading(ExchangeSegment[name], now_ns - MINUTE_NS, now_ns, settings.sessions == "always")
    }
