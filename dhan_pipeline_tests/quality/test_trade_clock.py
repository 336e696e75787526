"""A feed that begins to write its trade times in true UTC is noticed, and nothing else is taken for it."""

from datetime import datetime

import numpy as np
import pytest
from numpy.typing import NDArray

from dhan_pipeline.quality.trade_clock import FEWEST, WINDOW, TradeClock, Verdict, moved_in_words
from dhan_pipeline.sessions import IST, IST_OFFSET_S


class Feed:
    """What a `TradeClock` is shown of a feed. Times are Unix seconds; trade times come converted with the offset."""

    def __init__(self, offset_s: int = IST_OFFSET_S) -> None:
        self.clock = TradeClock(offset_s)
        self.random = np.random.default_rng(20261120)
        self.now_s = int(datetime(2026, 11, 20, 10, 0, tzinfo=IST).timestamp())

    def live(self, seconds: int, *, rate: int = 20, late_s: int = 2, shift_s: int = 0, live: float = 0.6) -> None:
        """Packets of which a share reports a trade of just now, the others one of some time today."""
        for _ in range(seconds):
            ages = np.where(
                self.random.random(rate) < live,
                self.random.integers(0, late_s + 1, rate),
                self.random.integers(300, 3600, rate),
            )
            self.show(self.now_s - ages - shift_s)
            self.now_s += 1

    def show(self, traded_s: NDArray[np.int64]) -> None:
        self.clock.update(traded_s, np.full(len(traded_s), self.now_s * 10**9 + 5))

    @property
    def verdict(self) -> Verdict:
        return self.clock.verdict()


@pytest.mark.parametrize(("live", "late_s"), [(1.0, 1), (0.6, 2), (0.1, 2), (0.6, 110)])
def test_trades_of_just_now_are_right_also_among_stale_ones_and_on_a_day_of_delays(live: float, late_s: int) -> None:
    feed = Feed()
    feed.live(300, live=live, late_s=late_s)
    assert feed.verdict == "ok"


def test_a_few_packets_say_nothing() -> None:
    feed = Feed()
    feed.show(np.full(FEWEST - 1, feed.now_s))
    assert feed.verdict is None
    feed.show(np.full(1, feed.now_s))
    assert feed.verdict == "ok"


@pytest.mark.parametrize("rate", [2, 20, 5000])
def test_a_feed_that_switches_to_utc_is_noticed_within_minutes_and_noticed_when_it_switches_back(rate: int) -> None:
    feed = Feed()
    feed.live(200, rate=rate)
    assert feed.verdict == "ok"
    feed.live(100 + WINDOW // rate, rate=rate, shift_s=IST_OFFSET_S)
    feed.live(250, rate=rate, shift_s=IST_OFFSET_S)
    assert feed.verdict == "moved"
    feed.live(20 + WINDOW // rate, rate=rate)
    assert feed.verdict == "ok"


def test_stale_trade_times_alone_say_nothing() -> None:
    feed = Feed()
    feed.live(600, live=0.0)
    assert feed.verdict is None


def test_last_trades_of_a_session_that_ended_as_long_ago_as_the_shift_are_not_taken_for_it() -> None:
    feed = Feed()
    close_s = int(datetime(2026, 11, 20, 15, 30, tzinfo=IST).timestamp())
    # Around 21:00 the shares' last trades are 5:30 h old; a connection that flaps brings them again and again.
    feed.now_s = close_s + IST_OFFSET_S - 300
    verdicts = set()
    for _ in range(40):
        feed.show(np.full(5000, close_s - 1))
        verdicts.add(feed.verdict)
        feed.now_s += 15
    assert verdicts == {None}


def test_a_few_live_packets_among_old_ones_are_enough_to_doubt_the_switch() -> None:
    feed = Feed()
    for _ in range(600):
        traded_s = np.full(100, feed.now_s - IST_OFFSET_S)
        traded_s[:2] = feed.now_s
        feed.show(traded_s)
        feed.now_s += 1
    assert feed.verdict is None


def test_packets_without_a_trade_time_count_for_nothing_and_cost_no_memory() -> None:
    feed = Feed()
    for _ in range(1000):
        feed.show(np.zeros(50, np.int64))
    assert feed.verdict is None
    assert not feed.clock._batches


def test_a_feed_that_returns_from_utc_to_indias_wall_clock_is_noticed_too() -> None:
    feed = Feed(offset_s=0)
    feed.live(600)
    assert feed.verdict == "ok"
    feed.live(600, shift_s=-IST_OFFSET_S)
    assert feed.verdict == "moved"


def test_what_it_means_is_said_for_either_way() -> None:
    assert "follow true UTC: `last_trade_time` is then 5.5 h too early" in moved_in_words("dhan", IST_OFFSET_S)
    assert "DHAN_TRADE_TIME_OFFSET_S=0," in moved_in_words("dhan", IST_OFFSET_S)
    assert "follow India's wall clock: `last_trade_time` is then 5.5 h too late" in moved_in_words("dhan", 0)
    assert "DHAN_TRADE_TIME_OFFSET_S=19800," in moved_in_words("dhan", 0)
    assert "DHAN" not in moved_in_words("kite", 0)
