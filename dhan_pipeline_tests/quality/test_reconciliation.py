"""Our bars against the broker's, a few made by hand."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from dhan_pipeline.gaps import Cause
from dhan_pipeline.instruments import ExchangeSegment, KiteSegment, generate_instrument_token, make_kite_token
from dhan_pipeline.quality.reconciliation import (
    EXPLANATIONS,
    FIELDS,
    Reconciliation,
    agreement_picture,
    bars_fetched,
    candles_agree,
    reconcile,
)
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import capture_number
from dhan_pipeline.store.gaps import StoredGap
from dhan_pipeline.ticks import NULL_INT

DAY = date(2026, 11, 20)
OPENS = parse_hour_key("2026-11-20T09:00") // 10**9 + 15 * 60
RELIANCE = generate_instrument_token(ExchangeSegment.NSE_EQ, 2885)
TCS = generate_instrument_token(ExchangeSegment.NSE_EQ, 11536)
KITE_RELIANCE = make_kite_token(KiteSegment.NSE, 2885)
NIFTY = generate_instrument_token(ExchangeSegment.IDX_I, 13)
SETTINGS = Settings(_env_file=None)

Columns = dict[str, NDArray[Any]]


def bars(token: int, *minutes: int, price: float = 100.0, volume: int = 1000) -> Columns:
    """Equal bars of these minutes after 09:15 IST."""
    count = len(minutes)
    return {
        "instrument_token": np.full(count, token, np.int64),
        "time": (OPENS + 60 * np.array(minutes, np.int64)) * 1_000_000,
        **{name: np.full(count, price) for name in ("open", "high", "low", "close")},
        "volume": np.full(count, volume, np.int64),
        **{name: np.zeros(count, np.bool_) for name in ("rest", "touches_gap", "starts_late")},
    }


def both(*columns: Columns) -> Columns:
    return {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}


def edited(columns: Columns, name: str, at: int, value: Any) -> Columns:
    column = columns[name].copy()
    column[at] = value
    return columns | {name: column}


def gap(*tokens: int, from_s: float, to_s: float | None) -> StoredGap:
    """From and to so many seconds after 09:15 IST."""
    started_ns = OPENS * 10**9 + int(from_s * 1e9)
    ended_ns = None if to_s is None else OPENS * 10**9 + int(to_s * 1e9)
    return StoredGap(0, 1, 0, np.array(tokens, np.int64), started_ns, ended_ns, Cause.RESET, "", "")


def compare(
    ours: Columns, brokers: Columns, *gaps: StoredGap, settings: Settings = SETTINGS, **more: Any
) -> Reconciliation:
    volumes = {"our_volumes": {}, "broker_volumes": {}, "tick_sizes": {}} | more
    return reconcile(DAY, ours, brokers, gaps=gaps, settings=settings, **volumes)


def rows(result: Reconciliation) -> list[tuple[int, int, str, float | None, float | None, str]]:
    """(instrument, minute after 09:15, field, ours, theirs, explained by)."""
    d = result.differences
    return [
        (
            int(d.instrument_token[i]),
            (int(d.time_s[i]) - OPENS) // 60,
            FIELDS[d.field[i]],
            None if np.isnan(d.ours[i]) else float(d.ours[i]),
            None if np.isnan(d.brokers[i]) else float(d.brokers[i]),
            EXPLANATIONS[d.explained_by[i]],
        )
        for i in range(len(d))
    ]


def test_equal_bars_agree() -> None:
    same = both(bars(RELIANCE, 0, 1, 2), bars(TCS, 0, 2))
    result = compare(same, same)
    assert (result.instruments, result.bars, result.agreement, rows(result)) == (2, 5, 1.0, [])


def test_a_minute_that_only_one_side_has_is_missing_or_extra_and_counts_as_a_bar() -> None:
    result = compare(bars(RELIANCE, 0, 2), bars(RELIANCE, 0, 1, price=100.0))
    assert rows(result) == [
        (RELIANCE, 1, "missing", None, 100.0, ""),
        (RELIANCE, 2, "extra", 100.0, None, ""),
    ]
    assert (result.bars, result.unexplained) == (3, 2)
    assert result.agreement == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["open", "high", "low", "close"])
def test_prices_differ_beyond_half_a_tick(name: str) -> None:
    brokers = bars(RELIANCE, 0, 1)
    ours = edited(edited(brokers, name, 0, 100.04), name, 1, 100.1)
    assert rows(compare(ours, brokers, tick_sizes={RELIANCE: 0.1})) == [(RELIANCE, 1, name, 100.1, 100.0, "")]
    # Without a known tick size it is a paisa.
    assert len(rows(compare(ours, brokers))) == 2
    lenient = SETTINGS.model_copy(update={"candle_price_ticks": 1.5})
    assert rows(compare(ours, brokers, tick_sizes={RELIANCE: 0.1}, settings=lenient)) == []


def test_prices_of_currencies_are_compared_to_four_decimals() -> None:
    pair = generate_instrument_token(ExchangeSegment.NSE_CURRENCY, 1)
    brokers = bars(pair, 0, price=85.0025)
    assert rows(compare(edited(brokers, "low", 0, 85.0), brokers)) == [(pair, 0, "low", 85.0, 85.0025, "")]


@pytest.mark.parametrize(("volume", "differs"), [(1010, False), (1011, True), (989, True), (NULL_INT, False)])
def test_volumes_differ_beyond_a_share_of_the_brokers_and_only_where_they_are_known(volume: int, differs: bool) -> None:
    brokers = bars(RELIANCE, 0)
    found = rows(compare(edited(brokers, "volume", 0, volume), brokers))
    assert found == ([(RELIANCE, 0, "volume", volume, 1000, "")] if differs else [])


def test_what_lies_in_a_gap_of_the_instrument_is_explained_and_not_judged() -> None:
    brokers = both(bars(RELIANCE, 0, 1, 2, 3), bars(TCS, 0, 1, 2, 3))
    ours = both(bars(RELIANCE, 0, 3), bars(TCS, 0, 3))
    result = compare(ours, brokers, gap(RELIANCE, from_s=90, to_s=130))
    assert [(token, minute, by) for token, minute, _, _, _, by in rows(result)] == [
        (RELIANCE, 1, "gap"),
        (RELIANCE, 2, "gap"),
        (TCS, 1, ""),
        (TCS, 2, ""),
    ]
    assert (result.bars, result.explained, result.unexplained) == (8, 2, 2)
    assert result.agreement == pytest.approx(4 / 6)
    assert result.by_field() == {"missing": (2, 2)}


@pytest.mark.parametrize("other", [gap(from_s=0, to_s=30), gap(RELIANCE, from_s=-9, to_s=None)])
def test_a_gap_may_concern_all_instruments_and_may_last(other: StoredGap) -> None:
    assert compare(bars(RELIANCE, 3), bars(RELIANCE, 0, 3), other).unexplained == 0


def test_a_gap_of_one_feed_explains_nothing_about_the_other() -> None:
    ours, brokers = (
        both(bars(RELIANCE, 3), bars(KITE_RELIANCE, 3)),
        both(bars(RELIANCE, 0, 3), bars(KITE_RELIANCE, 0, 3)),
    )
    of_all = replace(gap(from_s=0, to_s=None), capture=capture_number("kite", 0))
    assert [(token, by) for token, *_, by in rows(compare(ours, brokers, of_all))] == [
        (KITE_RELIANCE, "gap"),
        (RELIANCE, ""),
    ]


def test_instruments_of_kite_have_sessions_and_tick_sizes_too() -> None:
    rupee, index = make_kite_token(KiteSegment.CDS, 1), 256265
    brokers = both(bars(KITE_RELIANCE, 0, -10), bars(rupee, 0, price=85.0), bars(index, 0, volume=0))
    ours = both(bars(KITE_RELIANCE, 0), bars(rupee, 0, price=85.0002), bars(index, 0, volume=7))
    assert [(token, minute, field) for token, minute, field, *_ in rows(compare(ours, brokers))] == [
        (rupee, 0, field) for field in ("open", "high", "low", "close")
    ] + [(index, 0, "volume")]


def test_a_bar_that_says_that_it_touches_a_gap_explains_itself() -> None:
    ours = edited(bars(RELIANCE, 0, 1, volume=5000), "touches_gap", 1, True)
    assert [row[5] for row in rows(compare(ours, bars(RELIANCE, 0, 1)))] == ["", "gap"]


def test_what_was_before_a_late_start_is_explained_by_it() -> None:
    ours = edited(bars(RELIANCE, 2, 3, volume=500), "starts_late", 0, True)
    assert [row[1:] for row in rows(compare(ours, bars(RELIANCE, 0, 1, 2, 3)))] == [
        (0, "missing", None, 100.0, "late start"),
        (1, "missing", None, 100.0, "late start"),
        (2, "volume", 500, 1000, "late start"),
        (3, "volume", 500, 1000, ""),
    ]


def test_bars_of_the_brokers_that_stand_in_for_ours_are_left_out() -> None:
    ours = edited(bars(RELIANCE, 0, 1, price=7.0), "rest", 0, True)
    result = compare(ours, bars(RELIANCE, 0, 1, price=7.0))
    assert (result.bars, result.stand_ins, rows(result)) == (1, 1, [])


def test_only_continuous_trading_is_compared_unless_sessions_never_end() -> None:
    pre_open, after = -8, 6 * 60 + 16
    brokers = bars(RELIANCE, pre_open, 0, after)
    result = compare(bars(RELIANCE, 0), brokers)
    assert (result.bars, rows(result)) == (1, [])
    always = compare(bars(RELIANCE, 0), brokers, settings=SETTINGS.model_copy(update={"sessions": "always"}))
    assert [row[1] for row in rows(always)] == [pre_open, after]


def test_a_minute_in_which_the_broker_saw_no_trade_is_not_missing_but_that_of_an_index_is() -> None:
    brokers = both(bars(RELIANCE, 0, 1, volume=0), bars(NIFTY, 0, 1, volume=0))
    ours = both(bars(RELIANCE, 0, volume=0), bars(NIFTY, 0, volume=NULL_INT))
    assert [row[:3] for row in rows(compare(ours, brokers))] == [(NIFTY, 1, "missing")]


def test_bars_of_another_day_are_none_of_this_one() -> None:
    elsewhere = bars(RELIANCE, -1440, 1440)
    assert compare(elsewhere, bars(RELIANCE)).bars == 0


def test_the_volumes_of_the_day_are_compared_where_both_are_known() -> None:
    same = both(bars(RELIANCE, 0), bars(TCS, 0))
    result = compare(
        same,
        same,
        gap(TCS, from_s=600, to_s=660),
        our_volumes={RELIANCE: 900, TCS: 900, NIFTY: 5, 1: 5},
        broker_volumes={RELIANCE: 1000, TCS: 1000, NIFTY: 0, 2: 5},
    )
    midnight = -(9 * 60 + 15)
    assert (
        rows(result)
        == [
            (TCS, midnight, "day_volume", 900, 1000, "gap"),
            (RELIANCE, midnight, "day_volume", 900, 1000, ""),
        ][::-1]
    )
    assert result.agreement == 1.0


def test_instruments_are_ranked_by_what_nothing_explains() -> None:
    brokers = both(bars(RELIANCE, 0, 1, 2, 3), bars(TCS, 0, 1))
    ours = both(bars(RELIANCE, 3), bars(TCS, 0))
    result = compare(ours, brokers, gap(RELIANCE, from_s=0, to_s=179))
    assert result.worst() == [(TCS, 1, 1), (RELIANCE, 0, 3)]
    assert result.worst(1) == [(TCS, 1, 1)]


def agreeing(share: float, **more: Any) -> Reconciliation:
    same = bars(RELIANCE, 0)
    return replace(compare(same, same), bars=1000, unexplained=round(1000 * (1 - share)), **more)


@pytest.mark.parametrize(
    ("share", "passed", "severity"),
    [(1.0, True, "WARN"), (0.99, True, "WARN"), (0.98, False, "WARN"), (0.94, False, "ERROR")],
)
def test_a_day_is_judged_by_the_share_of_bars_that_agree(share: float, passed: bool, severity: str) -> None:
    outcome = candles_agree(agreeing(share), SETTINGS)
    assert (outcome.passed, outcome.severity) == (passed, severity)
    assert outcome.value == pytest.approx(100 * share)
    assert f"{share:.2%} of 1,000 bars of 2026-11-20 agree" in outcome.description
    assert outcome.limits == "warning below 99.0%, critical below 95.0%"


def test_minutes_that_are_missing_without_a_gap_are_pointed_out() -> None:
    lost = compare(bars(RELIANCE, 0), bars(RELIANCE, 0, 1))
    assert "missing without a noted gap" in candles_agree(lost, SETTINGS).description
    assert "leaves out some prints" in candles_agree(agreeing(0.9), SETTINGS).description


def test_a_day_without_bars_is_not_passed() -> None:
    outcome = candles_agree(compare(bars(RELIANCE), bars(RELIANCE)), SETTINGS)
    assert (outcome.passed, outcome.severity, outcome.value) == (False, "WARN", None)
    assert "materialise `candles_1m` and `broker_candles`" in outcome.description


def test_what_the_broker_lacks_is_asked_for_again() -> None:
    lost = compare(bars(RELIANCE, 0, 1), bars(RELIANCE, 0))
    assert "The broker's history lacks 1 minutes" in candles_agree(lost, SETTINGS).description


def test_a_day_of_which_nothing_can_be_judged_says_why() -> None:
    explained = replace(agreeing(0.0), explained=1000, unexplained=0)
    assert (
        "1,000 bars of 2026-11-20 that could be compared differs, and" in candles_agree(explained, SETTINGS).description
    )
    stand_ins = replace(compare(bars(RELIANCE), bars(RELIANCE)), stand_ins=7)
    assert "All 7 bars of 2026-11-20" in candles_agree(stand_ins, SETTINGS).description


@pytest.mark.parametrize(
    ("wanted", "expired", "failed", "passed", "severity", "value"),
    [
        (0, 0, {}, True, "WARN", 100.0),
        (100, 0, {}, True, "WARN", 100.0),
        (100, 50, {}, True, "WARN", 100.0),
        (150, 50, {"no answer": 1, "refused": 1}, False, "WARN", 98.0),
        (150, 50, {"no answer": 10}, False, "ERROR", 90.0),
    ],
)
def test_bars_that_did_not_come_are_judged_but_for_what_has_expired(
    wanted: int, expired: int, failed: dict[str, int], passed: bool, severity: str, value: float
) -> None:
    outcome = bars_fetched(wanted, expired, failed, "Dhan is away.")
    assert (outcome.passed, outcome.severity, outcome.value) == (passed, severity, value)
    assert f" of {wanted - expired} instruments were had." in outcome.description
    assert ("Dhan is away." in outcome.description) is bool(failed)
    assert ("50 more have expired" in outcome.description) is bool(expired)


def test_a_broker_that_could_not_be_asked_at_all_is_said() -> None:
    outcome = bars_fetched(10, 0, {}, "", ["There is no token of Kite's."])
    assert (outcome.passed, outcome.severity, outcome.value) == (False, "ERROR", 100.0)
    assert outcome.description == "Bars of 10 of 10 instruments were had. There is no token of Kite's."


def drawn(svg: str) -> Sequence[str]:
    root = ElementTree.fromstring(svg)
    return [path.get("d") or "" for path in root]


def test_the_agreement_is_drawn_by_time_of_day() -> None:
    result = compare(bars(RELIANCE, 0, 1, 60), bars(RELIANCE, 0, 60))
    green, red = drawn(agreement_picture(result.by_minute))
    assert (green, red) == ("M20 40v-40", "M0 40v-1")


def test_the_picture_of_the_longest_day_is_small() -> None:
    shares = np.full(96, np.nan)
    shares[: 24 * 4] = np.linspace(0.85, 1.0, 96)
    svg = agreement_picture(shares)
    assert len(svg) < 670
    assert len(re.findall("M", svg)) == 48
    assert drawn(agreement_picture(np.full(96, np.nan))) == []


def test_a_day_without_sessions_has_nothing_to_compare() -> None:
    of_sunday = bars(RELIANCE, 2 * 1440)
    assert reconcile(DAY + timedelta(days=2), of_sunday, of_sunday, {}, {}, [], {}, SETTINGS).agreement is None
