"""One market, and two feeds that tell of it in their own ways: what a comparison of both has to find, or not to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection
from psycopg2.extras import execute_values

from dhan_pipeline.instruments import ExchangeSegment, KiteSegment, generate_instrument_token, make_kite_token
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.store.pairs import Pair
from dhan_pipeline.store.partitions import ensure_partitions, instant

HOUR = "2026-11-20T10:00"
START_NS = parse_hour_key(HOUR)
START_US = START_NS // 1000

DHAN_NIFTY, KITE_NIFTY = generate_instrument_token(ExchangeSegment.IDX_I, 13), 256265
DHAN_RELIANCE = generate_instrument_token(ExchangeSegment.NSE_EQ, 2885)
KITE_RELIANCE = make_kite_token(KiteSegment.NSE, 2885)
DHAN_TCS, KITE_TCS = (
    generate_instrument_token(ExchangeSegment.NSE_EQ, 11536),
    make_kite_token(KiteSegment.NSE, 11536),
)

NIFTY = Pair(DHAN_NIFTY, KITE_NIFTY, "NIFTY", 0.05)
RELIANCE = Pair(DHAN_RELIANCE, KITE_RELIANCE, "RELIANCE", 0.05)
TCS = Pair(DHAN_TCS, KITE_TCS, "TCS", 0.05)


@dataclass
class Feed:
    """Ticks of one instrument, as one broker sends them. Arrays of shape (ticks,), free to be spoilt."""

    token: int
    time_us: NDArray[np.int64]
    """Receipt, from the hour's start."""
    price: NDArray[np.float64]
    volume: NDArray[np.int64]
    trade_time_us: NDArray[np.int64]
    """From the hour's start, a whole second."""

    def without(self, from_s: float, to_s: float) -> "Feed":
        """As if nothing had come between two times of the hour."""
        return self._some((self.time_us < from_s * 1e6) | (self.time_us >= to_s * 1e6))

    def later(self, seconds: float) -> "Feed":
        """As if everything had come later; what would have come after the hour is not there."""
        moved = replace(self, time_us=self.time_us + int(seconds * 1e6))
        return moved._some(moved.time_us < 3600 * 10**6)

    def _some(self, kept: NDArray[np.bool_]) -> "Feed":
        columns = (self.time_us[kept], self.price[kept], self.volume[kept], self.trade_time_us[kept])
        return Feed(self.token, *columns)


class Market:
    """Trades of one instrument in an hour: some a second, or one in many seconds."""

    def __init__(self, seed: int = 0, trades: int = 10_000, price: float = 1300.0) -> None:
        random = np.random.default_rng(seed)
        # One before the hour, so that it has a price.
        self.time_us = np.append(-9_000_000, np.sort(random.integers(0, 3600 * 10**6, trades)))
        self.price = ((round(price * 20) + np.cumsum(random.integers(-1, 2, trades + 1))) / 20).round(2)
        self.volume = 1_000_000 + np.cumsum(random.integers(1, 200, trades + 1))

    def feed(self, token: int, seed: int, delay_s: float = 0.05, jitter_s: float = 0.1) -> Feed:
        """Snapshots in times of the feed's own, up to a second apart, of what is new then; they come after a delay."""
        random = np.random.default_rng(seed)
        looked_us = np.cumsum(random.integers(200_000, 1_000_000, 7000))
        looked_us = looked_us[looked_us < 3_599_000_000]
        at = self.time_us.searchsorted(looked_us, side="right") - 1
        new = np.diff(at, prepend=-1) > 0
        at, looked_us = at[new], looked_us[new]
        delay_us = delay_s * 1e6 + random.uniform(0, jitter_s * 1e6, len(at))
        received_us = np.maximum.accumulate(looked_us + delay_us.astype(np.int64))
        trade_time_us = self.time_us[at] // 1_000_000 * 1_000_000
        return Feed(token, received_us, self.price[at].copy(), self.volume[at].copy(), trade_time_us)


def honest(pair: Pair, seed: int = 0, trades: int = 10_000, delays_s: tuple[float, float] = (0.05, 0.2)) -> list[Feed]:
    """Dhan's feed and Kite's over one market."""
    market = Market(seed, trades)
    return [
        market.feed(pair.dhan_token, 2 * seed + 1, delays_s[0]),
        market.feed(pair.kite_token, 2 * seed + 2, delays_s[1]),
    ]


def columns(feeds: Sequence[Feed]) -> dict[str, NDArray[Any]]:
    """As `store.shadow.read_ticks` gives them."""
    every = {
        "time": np.concatenate([feed.time_us for feed in feeds]) + START_US,
        "instrument_token": np.concatenate([np.full(len(feed.time_us), feed.token) for feed in feeds]),
        "last_price": np.concatenate([feed.price for feed in feeds]),
        "volume_traded": np.concatenate([feed.volume for feed in feeds]),
        "last_trade_time": np.concatenate([feed.trade_time_us for feed in feeds]) + START_US,
    }
    return {"tick_id": np.arange(len(every["time"])), **every}


def store(conn: connection, *feeds: Feed) -> None:
    """Put them into `tick_rows`."""
    ensure_partitions(conn, START_NS, START_NS + 1)
    ticks = columns(feeds)
    with conn, conn.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO tick_rows (tick_id, time, instrument_token, last_price, volume_traded, last_trade_time, "
            "tradable, mode) VALUES %s",
            [
                (number, instant(time * 1000), token, price, volume, instant(traded * 1000), True, "full")
                for number, time, token, price, volume, traded in zip(
                    *(column.tolist() for column in ticks.values()), strict=True
                )
            ],
            page_size=5000,
        )
