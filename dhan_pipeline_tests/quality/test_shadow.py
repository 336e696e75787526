"""Two feeds over one market: what is delivery, what is a fault, and who was later."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.quality.shadow import Columns, ShadowComparison, compare, sources_agree
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.pairs import Pair, Unpaired
from dhan_pipeline.ticks import NULL_INT
from dhan_pipeline_tests.two_feeds import (
    HOUR,
    NIFTY,
    RELIANCE,
    START_NS,
    START_US,
    TCS,
    Feed,
    Market,
    columns,
    honest,
)

SETTINGS = Settings(_env_file=None)
ALWAYS = Settings(_env_file=None, sessions="always")


def compared(feeds: Sequence[Feed], *pairs: Pair, settings: Settings = ALWAYS) -> Columns:
    return compare(pairs or [RELIANCE], columns(feeds), START_NS, settings)[0]


def of_one(feeds: Sequence[Feed], pair: Pair = RELIANCE) -> dict[str, Any]:
    return {name: column[0].item() for name, column in compared(feeds, pair).items()}


def disagreeing(found: dict[str, Any]) -> int:
    return int(found["seconds"] - found["agreeing_seconds"])


@pytest.mark.parametrize("trades", [1, 20, 1000, 10_000, 50_000])
def test_honest_feeds_agree_whatever_their_moments_are(trades: int) -> None:
    for seed in range(3):
        found = of_one(honest(RELIANCE, seed, trades))
        assert found["seconds"] > 3000 or trades == 1
        assert disagreeing(found) <= 2
        assert found["dhan_missing_seconds"] == found["kite_missing_seconds"] == 0


def test_honest_feeds_are_counted_and_their_delay_is_measured() -> None:
    dhan, kite = honest(RELIANCE, delays_s=(0.05, 0.25))
    found = of_one([dhan, kite])
    assert (found["dhan_ticks"], found["kite_ticks"]) == (len(dhan.time_us), len(kite.time_us))
    assert found["dhan_seconds"] == len(np.unique(dhan.time_us // 1_000_000))
    assert (found["dhan_volume"], found["kite_volume"]) == (dhan.volume[-1], kite.volume[-1])
    assert found["lag_median_ms"] == pytest.approx(-200, abs=20)
    assert found["lag_p99_ms"] < 1000
    # Half a second of it is the exchange's full second.
    assert found["kite_trade_delay_ms"] - found["dhan_trade_delay_ms"] == pytest.approx(200, abs=40)
    assert np.isnan(found["price_difference"])
    assert found["price_differs_most_at"] == NULL_INT
    assert found["volume_difference"] == 0


def test_a_wrong_divisor_differs_in_every_second() -> None:
    dhan, kite = honest(RELIANCE)
    kite.price *= 10
    found = of_one([dhan, kite])
    assert found["price_differs_seconds"] > 3590
    assert found["price_difference"] < -10_000
    assert found["volume_differs_seconds"] == 0


def test_prices_that_are_a_tick_apart_differ_and_those_that_are_less_do_not() -> None:
    for apart, seconds in ((0.05, 40), (0.02, 0)):
        dhan, kite = honest(RELIANCE, trades=100)
        dhan.price[50:52] += apart
        found = of_one([dhan, kite])
        assert (found["price_differs_seconds"] > seconds) == bool(seconds)
        assert not found["price_differs_seconds"] or found["price_difference"] == apart


def test_an_instrument_that_is_stuck_differs_from_then_on() -> None:
    dhan, kite = honest(RELIANCE)
    stuck = dhan.time_us > 1800 * 10**6
    dhan.price[stuck] = dhan.price[~stuck][-1]
    dhan.volume[stuck] = dhan.volume[~stuck][-1]
    found = of_one([dhan, kite])
    assert disagreeing(found) > 1500
    assert found["price_differs_seconds"] > 1000
    assert found["volume_differs_seconds"] > 1000


def test_lost_seconds_are_counted_at_the_broker_that_lost_them() -> None:
    dhan, kite = honest(RELIANCE, trades=50_000)
    found = of_one([dhan.without(1000, 1030), kite])
    assert found["dhan_missing_seconds"] == 30
    assert found["kite_missing_seconds"] == 0
    assert disagreeing(found) == pytest.approx(30, abs=3)
    found = of_one([dhan, kite.without(1000, 1030).without(3000, 3005)])
    assert (found["dhan_missing_seconds"], found["kite_missing_seconds"]) == (0, 35)


def test_seconds_in_which_nothing_moved_are_not_missed() -> None:
    dhan, kite = honest(RELIANCE, trades=20)
    noise = replace(kite, time_us=np.arange(100, 3500) * 1_000_000)
    at = kite.time_us.searchsorted(noise.time_us, side="right") - 1
    for name in ("price", "volume", "trade_time_us"):
        setattr(noise, name, getattr(kite, name)[at])
    found = of_one([dhan, noise])
    assert found["dhan_missing_seconds"] == 0
    assert disagreeing(found) <= 2


def test_a_volume_that_is_two_percent_off_differs() -> None:
    dhan, kite = honest(RELIANCE)
    dhan.volume = (dhan.volume * 1.02).astype(np.int64)
    found = of_one([dhan, kite])
    assert found["volume_differs_seconds"] > 3590
    assert found["volume_difference"] == pytest.approx(0.0196, abs=0.001)
    assert found["price_differs_seconds"] == 0
    # No volume means the same at both.
    assert (found["shared_states"], np.isnan(found["lag_median_ms"])) == (0, True)


def test_a_feed_that_is_seconds_late_is_found_by_its_lag_and_where_prices_run() -> None:
    dhan, kite = honest(RELIANCE, delays_s=(0.05, 0.05))
    found = of_one([dhan.later(3), kite])
    assert found["lag_median_ms"] == pytest.approx(3000, abs=50)
    assert found["dhan_trade_delay_ms"] - found["kite_trade_delay_ms"] == pytest.approx(3000, abs=50)
    assert found["price_differs_seconds"] > 100
    assert found["dhan_missing_seconds"] == 0


def test_an_index_has_no_volume_and_is_compared_by_its_price() -> None:
    market = Market(trades=20_000, price=25_000.0)
    dhan, kite = market.feed(NIFTY.dhan_token, 1), market.feed(NIFTY.kite_token, 2, delay_s=0.35)
    dhan.volume[:] = 0
    kite.volume[:] = NULL_INT
    found = of_one([dhan, kite], NIFTY)
    assert disagreeing(found) <= 2
    assert found["volume_differs_seconds"] == 0
    assert np.isnan(found["volume_difference"])
    assert (found["dhan_volume"], found["kite_volume"]) == (0, NULL_INT)
    assert found["shared_states"] > 100
    assert found["lag_median_ms"] == pytest.approx(-300, abs=200)


def test_a_volume_of_the_day_before_counts_as_none_yet() -> None:
    dhan, kite = honest(RELIANCE, trades=1000)
    kite.volume -= kite.volume[0]
    dhan.volume -= dhan.volume[0]
    for column, before in ((dhan.volume, 5_000_000), (dhan.trade_time_us, -86_400 * 10**6)):
        column[:200] = before
    found = of_one([dhan, kite])
    assert found["volume_differs_seconds"] > 0
    assert found["volume_difference"] == -1.0
    kite.volume[kite.time_us < dhan.time_us[200] + 10**6] = 0
    assert of_one([dhan, kite])["volume_differs_seconds"] <= 2


def test_an_absent_price_changes_nothing() -> None:
    dhan, kite = honest(RELIANCE, trades=1000)
    dhan.price[100:102] = np.nan
    found = of_one([dhan, kite])
    assert disagreeing(found) <= 12
    assert found["dhan_missing_seconds"] == 0


def test_an_instrument_of_which_a_broker_sends_nothing_is_missing_where_it_moves() -> None:
    dhan, kite = honest(RELIANCE)
    found = of_one([dhan.without(0, 3600), kite])
    assert found["dhan_ticks"] == 0
    assert found["dhan_missing_seconds"] > 3000
    assert (found["price_differs_seconds"], found["dhan_volume"]) == (0, NULL_INT)


def test_pairs_do_not_mix_and_each_minute_is_counted() -> None:
    of_reliance, of_tcs = honest(RELIANCE, 1), honest(TCS, 2)
    of_tcs[1].price *= 10
    together, minutes = compare([RELIANCE, TCS], columns([*of_tcs, *of_reliance]), START_NS, ALWAYS)
    for at, feeds in enumerate((of_reliance, of_tcs)):
        alone = compared(feeds, (RELIANCE, TCS)[at])
        for name, column in alone.items():
            np.testing.assert_array_equal(together[name][at], column[0], name)
    assert minutes.sum(axis=1).tolist() == [together["seconds"].sum(), together["agreeing_seconds"].sum()]
    assert minutes[0].tolist() == [120] * 60


def test_only_continuous_trading_is_compared() -> None:
    start_ns = parse_hour_key("2026-11-20T09:00")
    ticks = columns(honest(RELIANCE))
    for name in ("time", "last_trade_time"):
        ticks[name] = ticks[name] - START_US + start_ns // 1000
    found, minutes = compare([RELIANCE], ticks, start_ns, SETTINGS)
    assert found["seconds"].tolist() == [45 * 60]
    assert minutes[0].tolist() == [0] * 15 + [60] * 45
    holiday_ns = parse_hour_key("2026-11-21T10:00")
    assert compare([RELIANCE], ticks, holiday_ns, SETTINGS)[0]["seconds"].tolist() == [0]


@given(
    seed=st.integers(0, 50),
    trades=st.sampled_from([1, 50, 2000]),
    fault=st.sampled_from(["none", "price", "volume", "gap", "late"]),
)
def test_swapping_the_sides_mirrors_what_is_found(seed: int, trades: int, fault: str) -> None:
    dhan, kite = honest(RELIANCE, seed, trades)
    if fault == "price":
        dhan.price[len(dhan.price) // 2 :] += 1
    elif fault == "volume":
        kite.volume = (kite.volume * 1.05).astype(np.int64)
    elif fault == "gap":
        dhan = dhan.without(500, 900)
    elif fault == "late":
        kite = kite.later(4)
    found = of_one([dhan, kite])
    mirrored = of_one([replace(kite, token=dhan.token), replace(dhan, token=kite.token)])
    for name, value in found.items():
        if "token" in name:
            continue
        other = name.replace("dhan", "*").replace("kite", "dhan").replace("*", "kite")
        sign = -1 if name in ("price_difference", "volume_difference", "lag_median_ms") else 1
        assert mirrored[other] == pytest.approx(sign * value if value != NULL_INT else value, nan_ok=True), name


def result(
    spoil: Callable[[Feed], object] = lambda feed: None, pairs: Sequence[Pair] = (RELIANCE, TCS)
) -> ShadowComparison:
    """Of two instruments; Kite's feed of the second may be spoilt."""
    feeds = [*honest(RELIANCE, 1), *honest(TCS, 2)]
    spoil(feeds[3])
    found, (seconds, agreeing) = compare(pairs, columns(feeds), START_NS, ALWAYS)
    ticks: Any = {"dhan": 10, "kite": 10}
    return ShadowComparison(HOUR, pairs, found, agreeing / seconds, ticks)


def test_the_check_passes_where_both_agree() -> None:
    outcome = sources_agree(result(), SETTINGS)
    assert (outcome.passed, outcome.unit) == (True, "%")
    assert outcome.value is not None
    assert outcome.value > 99.9
    assert "Kite shows a trade" in outcome.description
    assert f"seconds of 2 instruments of {HOUR}" in outcome.description


def test_the_check_names_an_instrument_that_seldom_moves_where_a_broker_sent_nothing_of_it() -> None:
    silent = result()
    for name, seconds in (("kite_ticks", 0), ("kite_missing_seconds", 3)):
        silent.columns[name][1] = seconds
    outcome = sources_agree(silent, SETTINGS)
    assert (outcome.passed, outcome.severity) == (False, "WARN")
    assert "one broker sent nothing of them: TCS." in outcome.description


def test_the_check_names_one_bad_instrument_of_many() -> None:
    def shift(feed: Feed) -> None:
        late = feed.time_us > 3300 * 10**6
        feed.price[late] += 5

    outcome = sources_agree(result(shift), SETTINGS.model_copy(update={"shadow_agree_warn": 0.9}))
    assert (outcome.passed, outcome.severity) == (False, "WARN")
    assert (
        "1 of the instruments agree in less than 95% of theirs, or one broker sent nothing of them: TCS."
        in outcome.description
    )
    assert "seconds, prices differ" in outcome.description


def test_the_check_fails_where_too_little_agrees_and_says_what_it_is() -> None:
    def divide(feed: Feed) -> None:
        feed.price /= 10

    outcome = sources_agree(result(divide), SETTINGS)
    assert (outcome.passed, outcome.severity) == (False, "ERROR")
    assert outcome.value == pytest.approx(50, abs=1)


def test_where_one_broker_was_not_captured_the_check_passes_and_says_so() -> None:
    nothing = ShadowComparison(HOUR, [], {}, np.full(60, np.nan), {"dhan": 12, "kite": 0})
    outcome = sources_agree(nothing, SETTINGS)
    assert (outcome.passed, outcome.value) == (True, None)
    assert outcome.description == f"There are only Dhan's ticks of the hour {HOUR}: there is nothing to compare."
    assert (nothing.worst(), nothing.below(1.0), nothing.lag_ms, nothing.total("seconds")) == ([], [], None, 0)


def test_where_nothing_could_be_paired_the_check_says_what_to_do() -> None:
    left = [Unpaired("dhan", RELIANCE.dhan_token, "NSE_EQ", "RELIANCE")]
    outcome = sources_agree(ShadowComparison(HOUR, [], {}, np.full(60, np.nan), {"dhan": 1, "kite": 1}, left), SETTINGS)
    assert (outcome.passed, outcome.severity) == (False, "WARN")
    assert "none of the instruments is the same" in outcome.description


def test_the_worst_instruments_come_first_and_those_without_a_difference_not_at_all() -> None:
    def shift(feed: Feed) -> None:
        feed.price[100:200] += 5

    found = result(shift)
    assert found.worst() == [1]
    assert found.below(0.999) == [1]
    assert result().worst() == []
